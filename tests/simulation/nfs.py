"""
A simulated NFS: one server, and clients whose caches obey PROTOCOL.md section 6 and nothing else.

What it keeps:

* ``mkdir`` makes a name or fails; ``rmdir`` fails on a directory with an entry; of ``rename`` and ``unlink`` of one
  name
  exactly one succeeds. Each call that reaches the server is carried out at one moment.
* A listing that a client starts after its own successful ``mkdir`` in that directory shows every entry that was there
  at that moment and still is.

All else is allowed to happen, and does, as far as a run's :class:`Weather` has it:

* A listing may be arbitrarily old (up to ``stale_s``, so that what takes bounded time can be tested), and it need not
  be
  the state of any one moment: it shows what was there throughout some stretch of time, and of the rest whatever comes.
* A call may fail with ``ENOENT`` out of the client's cache of missing names without reaching the server.
* A reply may be lost: what was done comes back as ``EEXIST`` or ``ENOENT`` after a retransmission, or as ``EIO``,
  ``ESTALE`` or ``ETIMEDOUT``. With the last, the call may also be carried out long after it was given up.
* Calls and replies take time. While the server is down, or the client is cut off, they hang, and are answered later;
  listings may be answered all the same, from the client's cache.
* A file removed by the client that has it open leaves a ``.nfs…`` entry until it is closed.

One rule more is kept unless ``Weather.strict`` is set: a client's listing is never older than its own latest successful
change in that directory, of whatever kind. Section 6 demands it of ``mkdir`` only.
"""

from __future__ import annotations

import errno
import os
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .scheduler import Agenda, Stopped, Task

#: The calls that change nothing.
LOOKS = ("listdir", "glance")
#: A call that changes something, and what a retransmission of it meets if the first one was carried out.
_ERROR_OF_RETRANSMISSION = {
    "mkdir": errno.EEXIST,
    "create": errno.EEXIST,
    "rmdir": errno.ENOENT,
    "unlink": errno.ENOENT,
    "rename": errno.ENOENT,
}


@dataclass(frozen=True)
class Weather:
    """What the network and the caches do to calls. Probabilities are per call, durations in seconds."""

    #: Listings are up to this much older than the latest change.
    stale_s: float = 0.0
    #: How many listings are the newest state, how many some older state; the rest are of no one moment.
    fresh: float = 0.4
    coherent: float = 0.3
    #: Only ``mkdir`` makes the next listing fresh, as section 6 says to the letter.
    strict: bool = False
    #: ``ENOENT`` without asking the server.
    negative: float = 0.0
    #: Done, but reported as ``EEXIST`` or ``ENOENT``.
    lost_reply: float = 0.0
    #: ``EIO`` or ``ESTALE``: done (half of them) or not.
    error: float = 0.0
    #: ``ETIMEDOUT``, and carried out within this many seconds after that.
    late: float = 0.0
    late_s: float = 20.0
    #: Ordinary delay of a call or a reply, at most.
    delay_s: float = 0.01
    #: A call, or a reply, that takes up to ``slow_s``.
    slow: float = 0.0
    slow_s: float = 10.0
    #: A listing of an announcement never shows the latest change in it, as if it had crossed it.
    lags: bool = False
    #: Listings are answered while the server is down, from what the client has cached.
    cached_looks: bool = False


@dataclass(eq=False, slots=True)
class Directory:
    """A directory's entries, and all that ever changed in it."""

    made: float = 0.0
    entries: dict[str, Directory | None] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    changes: list[tuple[str, bool]] = field(default_factory=list)

    def put(self, name: str, entry: Directory | None, now: float) -> None:
        if name not in self.entries:
            self.times.append(now)
            self.changes.append((name, True))
        self.entries[name] = entry

    def take(self, name: str, now: float) -> Directory | None:
        entry = self.entries.pop(name)
        self.times.append(now)
        self.changes.append((name, False))
        return entry

    def view(self, first: int, last: int, rng: random.Random) -> list[str]:
        """What a listing may show that began after ``first`` changes and ended after ``last`` of them."""
        if first == len(self.changes):
            return list(self.entries)  # nothing has changed since
        shown = dict.fromkeys(self.entries)
        for name, made in reversed(self.changes[first:]):
            if made:
                shown.pop(name, None)
            else:
                shown[name] = None
        touched = {name: None for name, _ in self.changes[first:last]}
        for name in touched:
            shown.pop(name, None)
            if rng.random() < 0.5:
                shown[name] = None
        return list(shown)


class Server:
    """The lock directory as the server has it. Every method is one atomic operation."""

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda
        self.root = Directory()
        #: Announcements that are gone: a client may still list them.
        self.ghosts: dict[str, Directory] = {}
        #: Told of every change: which operation, on which name, and who asked for it.
        self.on_change: Callable[[str, str, Any], None] = lambda kind, name, by: None

    def mkdir(self, name: str, by: Any) -> None:
        if name in self.root.entries:
            raise _error(errno.EEXIST, name)
        self.root.put(name, Directory(self.agenda.now), self.agenda.now)
        self.on_change("mkdir", name, by)

    def rmdir(self, name: str, by: Any) -> None:
        if not name and not self.root.entries:
            return  # whoever comes next makes it anew
        directory = self._subdirectory(name)
        if directory.entries:
            raise _error(errno.ENOTEMPTY, name)
        self._drop(name)
        self.on_change("rmdir", name, by)

    def create(self, name: str, by: Any) -> None:
        parent, _, entry = name.partition("/")
        directory = self._subdirectory(parent)
        if entry in directory.entries:
            raise _error(errno.EEXIST, name)
        directory.put(entry, None, self.agenda.now)
        self.on_change("create", name, by)

    def rename(self, old: str, new: str, by: Any) -> None:
        parent, _, entry = old.partition("/")
        directory = self._subdirectory(parent)
        now = self.agenda.now
        if not entry:
            target = self.root.entries.get(new)
            if target is not None and target.entries:
                raise _error(errno.ENOTEMPTY, new)
            self._drop(old)
            self.root.put(new, directory, now)
            self.on_change("rename", old, by)
            return
        if entry not in directory.entries:
            raise _error(errno.ENOENT, old)
        directory.take(entry, now)
        directory.put(new.partition("/")[2], None, now)

    def unlink(self, name: str, by: Any, leave: str | None = None) -> None:
        """Remove a file; a client that has it open leaves it there as ``leave``."""
        parent, _, entry = name.partition("/")
        directory = self._subdirectory(parent)
        if entry not in directory.entries:
            raise _error(errno.ENOENT, name)
        directory.take(entry, self.agenda.now)
        if leave is not None:
            directory.put(leave, None, self.agenda.now)
        self.on_change("unlink", name, by)

    def _subdirectory(self, name: str) -> Directory:
        directory = self.root.entries.get(name)
        if directory is None:
            raise _error(errno.ENOENT, name)
        return directory

    def _drop(self, name: str) -> None:
        directory = self.root.take(name, self.agenda.now)
        assert directory is not None
        self.ghosts[name] = directory


#: What NFSv4 clients may not do during the server's grace period; NFSv3 knows no such thing.
_REFUSED_IN_GRACE = frozenset({"rmdir", "unlink", "rename"})


class Network:
    """When the server can be reached, and by whom."""

    def __init__(self) -> None:
        self._down: list[tuple[float, float]] = []
        #: Grace periods: from when, until when, and how long after that a client may take to ask again.
        self._graces: list[tuple[float, float, float]] = []

    def cut(self, start: float, end: float) -> None:
        """Let calls and replies hang from ``start`` to ``end``."""
        self._down.append((start, end))

    def restart(self, start: float, end: float, grace: float, retry: float) -> None:
        """Let the server be down from ``start`` to ``end``, and have a grace period then."""
        self.cut(start, end)
        self._graces.append((end, end + grace, retry))

    def granted_at(self, moment: float, rng: random.Random) -> float:
        """Return ``moment``, or when a client asks again after the grace period that it falls into."""
        return next((end + rng.random() * retry for start, end, retry in self._graces if start <= moment < end), moment)

    def restarts(self, moment: float) -> int:
        """How often the server was restarted up to ``moment``."""
        return sum(start <= moment for start, _, _ in self._graces)

    def up_again(self, moment: float) -> float:
        """Return ``moment``, or when the outage ends that it falls into."""
        for start, end in self._down:
            if start <= moment < end:
                return self.up_again(end)
        return moment


class Client:
    """One kernel's NFS client: what it has cached, and how it reaches the server. All processes on a host share it."""

    def __init__(self, name: str, server: Server, network: Network, weather: Weather, rng: random.Random) -> None:
        self.name = name
        self.server = server
        self.weather = weather
        self.rng = rng
        self.link = Network()
        self.by_nfs3 = False
        self._network = network
        #: No listing of a directory shows a state from before this many of its changes.
        self._floor: dict[Directory, int] = {}
        self._open: dict[str, Directory] = {}

    def reachable_at(self, moment: float) -> float:
        """Return ``moment``, or when server and network are up again after it."""
        while (later := self.link.up_again(self._network.up_again(moment))) != moment:
            moment = later + self.rng.random() * 0.02
        return moment

    def granted_at(self, kind: str, moment: float) -> float:
        """Return ``moment``, or when the server does not refuse such a call any more."""
        refused = kind in _REFUSED_IN_GRACE and not self.by_nfs3
        return self._network.granted_at(moment, self.rng) if refused else moment

    def connection(self) -> str | None:
        """What the kernel shows of its connection; it is a new one after each restart."""
        return f"connected {self._network.restarts(self.server.agenda.now)}" if self.by_nfs3 else None

    def do(self, call: Call) -> Any:
        """Carry a call out, at the server or from a cache; runs at one moment."""
        kind, names, server = call.kind, call.names, self.server
        if kind in LOOKS:
            return (self._list if kind == "listdir" else self._glance)(names[0], call.floor)
        if kind == "unlink" and names[0] in self._open:
            leave = f".nfs{len(self._open):08x}"
            directory = self._open.pop(names[0])
            server.unlink(names[0], call.by, leave)
            self._open[f"{names[0].partition('/')[0]}/{leave}"] = directory
        else:
            getattr(server, kind)(*names, call.by)
        if kind == "create":
            self._open[names[0]] = self._directory_of(names[0])
        call.mark = self._mark_of(call)
        return None

    def close(self, call: Call) -> None:
        """The file that ``call`` created is closed now."""
        directory = self._open.pop(call.names[0], None)
        if directory is None:
            for path, other in list(self._open.items()):
                if path.startswith(call.names[0].partition("/")[0] + "/.nfs"):
                    del self._open[path]
                    entry = path.partition("/")[2]
                    if entry in other.entries:
                        other.take(entry, self.server.agenda.now)

    def succeeded(self, call: Call) -> None:
        """The caller learns of its success: from now on its client's listings show what was there then."""
        if call.mark is not None:
            directory, count = call.mark
            if self.weather.strict and call.kind != "mkdir":
                return
            self._floor[directory] = max(count, self._floor.get(directory, 0))

    def floor_of(self, name: str) -> int:
        """How old a listing that starts now may be, in changes of its directory."""
        root = self.server.root
        directory = root.entries.get(name) or self.server.ghosts.get(name) if name else root
        return 0 if directory is None else self._floor.get(directory, 0)

    def _list(self, name: str, first: int) -> list[str]:
        weather, rng = self.weather, self.rng
        root = self.server.root
        name, inside, entry = name.partition("/")
        if inside:  # whether a heartbeat is there: the client's cache of names may be as old as that of listings
            directory = root.entries.get(name) if weather.lags else None
            there = self._list(name, first) if directory is None else directory.entries
            raise _error(errno.ENOTDIR if entry in there else errno.ENOENT, f"{name}/{entry}")
        directory = root.entries.get(name) if name else root
        if directory is None and weather.stale_s and rng.random() < 0.3:
            directory = self.server.ghosts.get(name)  # the cache still has it
        if directory is None:
            raise _error(errno.ENOENT, name)
        last = len(directory.changes)
        if name and weather.lags:
            return directory.view(max(first, last - 2), max(first, last - 2), rng)  # a rename is two changes
        first = max(first, bisect_left(directory.times, self.server.agenda.now - weather.stale_s))
        kind = rng.random()
        if first >= last or kind < weather.fresh:
            first = last
        elif kind < weather.fresh + weather.coherent:
            first = last = rng.randint(first, last)
        elif kind < 1 - (1 - weather.fresh - weather.coherent) / 2:
            first = rng.randint(first, last)
            last = rng.randint(first, last)
        return directory.view(first, last, rng)

    def _glance(self, name: str, first: int) -> tuple[float, list[str]]:
        """A directory's time stamp, and what was in it then or later."""
        root = self.server.root
        directory = root.entries.get(name) or self.server.ghosts.get(name)
        if directory is None or (name not in root.entries and not self.weather.stale_s):
            raise _error(errno.ENOENT, name)
        count = len(directory.changes)
        first = max(first, bisect_left(directory.times, self.server.agenda.now - self.weather.stale_s))
        if self.rng.random() < self.weather.fresh:
            first = count
        stamped = self.rng.randint(first, count)
        shown = self.rng.randint(stamped, count)
        return ([directory.made, *directory.times][stamped], directory.view(shown, shown, self.rng))

    def _directory_of(self, name: str) -> Directory:
        directory = self.server.root.entries[name.partition("/")[0]]
        assert directory is not None
        return directory

    def _mark_of(self, call: Call) -> tuple[Directory, int]:
        inside = "/" in call.names[0]
        directory = self._directory_of(call.names[0]) if inside else self.server.root
        return directory, len(directory.changes)


@dataclass(eq=False, slots=True)
class Call:
    """One file-system call on its way."""

    kind: str
    names: tuple[str, ...]
    by: Any
    #: What becomes of it.
    fate: str
    #: It is answered without the server.
    from_cache: bool
    #: The client's listing must not be older, in changes of its directory.
    floor: int = 0
    #: Which directory it changed, and how many changes that had seen then.
    mark: tuple[Directory, int] | None = None


class Host:
    """
    What is one kernel in the simulation: a client, and a clock that nobody else shares.

    :param offset: what the clock shows at the beginning
    :param rate: seconds it counts in a second
    :param skew_s: by how much its time of day is wrong
    """

    def __init__(
        self, name: str, agenda: Agenda, client: Client, *, offset: float = 0.0, rate: float = 1.0, skew_s: float = 0.0
    ) -> None:
        self.name = name
        self.address = name
        self.agenda = agenda
        self.client = client
        #: The id of its boot; clones of one snapshot share it, and the host name.
        self.boot = f"{abs(hash_of(name)):x}"
        self._base = (agenda.now, offset)
        self.rate = rate
        self.skew_s = skew_s

    @property
    def kernel(self) -> str:
        """What "the same kernel" rests on: the boot id, and what else tells clones apart (here, an address)."""
        return f"{hash_of(self.boot + self.address):x}"

    def clock(self) -> float:
        """The host's monotonic clock, which runs through suspend."""
        began, shown = self._base
        return shown + (self.agenda.now - began) * self.rate

    def drift(self, rate: float) -> None:
        """Let the clock run at another rate from now on."""
        self._base = (self.agenda.now, self.clock())
        self.rate = rate


class Process:
    """
    A process on a host: it makes calls, sleeps, may be stopped and continued, and may die at any moment.

    :param story: what it does; runs in a task of its own
    """

    def __init__(self, host: Host, name: str, rng: random.Random, log: Log) -> None:
        self.host = host
        self.name = name
        self.agenda = host.agenda
        self.rng = rng
        self.log = log
        self.alive = True
        #: What it had sent when it died does not arrive any more.
        self.silenced = False
        #: It does nothing before this moment.
        self.paused_until = 0.0
        self.calls = 0
        self.task: Task | None = None

    def start(self, story: Callable[[], None], after: float = 0.0) -> None:
        def whole() -> None:
            try:
                story()
            finally:
                self.alive = False

        self.task = self.agenda.start(whole, after)

    def die(self) -> Task | None:
        """Die now. An action of the agenda returns what this returns."""
        self.alive, self.silenced = False, self.rng.random() < 0.5
        return None if self.task is None else self.task.stop()

    def sleep(self, seconds: float) -> None:
        """Do nothing for so many seconds of the host's clock."""
        self._until(self.agenda.now + max(seconds, 0.0) / self.host.rate)

    def call(self, kind: str, *names: str) -> Any:
        """Make one file-system call and wait for its answer."""
        assert self.task is not None
        if not self.alive:
            raise Stopped
        self.calls += 1
        client, agenda, rng = self.host.client, self.agenda, self.rng
        weather = client.weather
        looks = kind in LOOKS
        floor = client.floor_of(names[0]) if looks else 0
        call = Call(kind, names, self, self._fate(kind, names), looks and weather.cached_looks, floor)
        if call.fate == "negative":
            self._until(agenda.now + rng.random() * weather.delay_s)
            self._note(call, "ENOENT, from the client's cache")
            raise _error(errno.ENOENT, names[0])
        if call.fate == "late":
            patience = agenda.now + weather.delay_s + rng.random() * weather.slow_s
            arrival = patience + rng.random() * weather.late_s
            agenda.at(client.reachable_at(arrival), lambda: self._arrive_late(call))
            self._until(patience)
            self._note(call, "ETIMEDOUT, and still on its way")
            raise _error(errno.ETIMEDOUT, names[0])
        agenda.at(self._reached(call), lambda: self._arrive(call))
        result = self.task.wait()
        if isinstance(result, OSError):
            raise result
        return result

    def _fate(self, kind: str, names: tuple[str, ...]) -> str:
        weather = self.host.client.weather
        draw = self.rng.random()
        if draw >= weather.negative + weather.lost_reply + weather.error + weather.late:
            return "well"
        if draw < weather.negative:
            return "negative" if kind != "mkdir" and names[0] else "well"
        draw -= weather.negative
        if draw < weather.lost_reply:
            return "well" if kind in LOOKS else "lost"
        draw -= weather.lost_reply
        if draw < weather.error:
            return self.rng.choice(("not done", "not done", "done", "done, ESTALE"))
        return "well" if kind in LOOKS else "late"

    def _delay(self) -> float:
        weather = self.host.client.weather
        long = weather.slow and self.rng.random() < weather.slow
        return self.rng.random() * (weather.slow_s if long else weather.delay_s)

    def _reached(self, call: Call) -> float:
        # When a call reaches the server, or its answer the caller.
        moment = self.agenda.now + self._delay()
        return moment if call.from_cache else self.host.client.reachable_at(moment)

    def _arrive(self, call: Call) -> Task | None:
        if self.silenced:
            return None
        client, agenda, fate = self.host.client, self.agenda, call.fate
        moment = agenda.now if call.from_cache else client.reachable_at(agenda.now)
        moment = max(moment, client.granted_at(call.kind, agenda.now))
        if moment > agenda.now:
            agenda.at(moment, lambda: self._arrive(call))
            return None
        result: Any = None
        if fate == "not done":
            result = _error(errno.EIO, call.names[0])
        else:
            try:
                result = client.do(call)
            except OSError as error:
                result = error
            else:
                if fate == "lost":
                    result = _error(_ERROR_OF_RETRANSMISSION[call.kind], call.names[0])
                elif fate != "well":
                    result = _error(errno.ESTALE if "ESTALE" in fate else errno.EIO, call.names[0])
        self._note(call, "" if fate == "well" else fate, result)
        agenda.at(self._reached(call), lambda: self._answer(call, result))
        return None

    def _answer(self, call: Call, result: Any) -> Task | None:
        client = self.host.client
        if call.kind == "create":
            client.close(call)
        if not self.alive or self.task is None or self.task.ended:
            return None
        if self.paused_until > self.agenda.now:
            self.agenda.at(self.paused_until, lambda: self._answer(call, result))
            return None
        if not isinstance(result, OSError):
            client.succeeded(call)
        return self.task.wake(result)

    def _arrive_late(self, call: Call) -> None:
        result: Any = None
        try:
            self.host.client.do(call)
        except OSError as error:
            result = error
        else:
            if call.kind == "create":
                self.host.client.close(call)
        self._note(call, "given up long ago", result)

    def _until(self, moment: float) -> None:
        assert self.task is not None
        if not self.alive:
            raise Stopped
        self.agenda.at(moment, self._wake_up)
        self.task.wait()

    def _wake_up(self) -> Task | None:
        if not self.alive or self.task is None or self.task.ended:
            return None
        if self.paused_until > self.agenda.now:
            self.agenda.at(self.paused_until, self._wake_up)
            return None
        return self.task.wake()

    def _note(self, call: Call, how: str, result: Any = None) -> None:
        if not self.log.on:
            return
        if isinstance(result, OSError):
            outcome = f"-> {errno.errorcode[result.errno or 0]}"
        elif isinstance(result, list):
            outcome = f"-> {sorted(result)}"
        elif result is not None:
            outcome = f"-> {result}"
        else:
            outcome = ""
        self.log.say(self.name, f"{call.kind} {' '.join(call.names) or '.'} {outcome}{f' ({how})' if how else ''}")


class MountedFiles:
    """The engine's interface to a lock directory (``nfsrwlock_core.system.directory.Files``), on the simulated NFS."""

    path = "the simulated lock directory"

    def __init__(self, process: Process) -> None:
        self._call = process.call
        self._client = process.host.client

    def mkdir(self, name: str) -> None:
        self._call("mkdir", name)

    def rmdir(self, name: str = "") -> None:
        self._call("rmdir", name)

    def listdir(self, name: str = "") -> list[str]:
        names: list[str] = self._call("listdir", name)
        return names

    def create(self, name: str, record: bytes) -> None:
        self._call("create", name)

    def rename(self, old: str, new: str) -> None:
        self._call("rename", old, new)

    def unlink(self, name: str) -> None:
        self._call("unlink", name)

    def connection(self) -> str | None:
        return self._client.connection()


class Log:
    """What happened, for people; kept only when somebody will read it, since it takes most of a run's time."""

    def __init__(self, agenda: Agenda, *, on: bool) -> None:
        self.agenda = agenda
        self.on = on
        self.lines: list[str] = []

    def say(self, who: str, what: str) -> None:
        if self.on:
            self.lines.append(f"{self.agenda.now:10.4f}  {who:<8} {what}")


@lru_cache
def hash_of(text: str) -> int:
    """A hash that is the same in every Python process."""
    value = 0
    for byte in text.encode():
        value = (value * 257 + byte + 1) & 0xFFFFFFFFFFFF
    return value


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)
