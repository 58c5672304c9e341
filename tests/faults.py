"""
A lock directory in memory behind the interface of the real one, a clock that stands still, and faults by name.

A :class:`Server` keeps the entries; each participant talks to it through a client of its own (:class:`MemoryFiles`),
which can be given faults: ``files.inject(LostReply("mkdir"))``. A fault applies to the next calls of the operation it
names, unless it says otherwise, and then it is spent. :class:`Stage` puts participants and hand-made peers together.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

from nfsrwlock_core.names import Announcement, Identity, Mode, announcement_name, beat_name, parse_announcement
from nfsrwlock_core.protocol.heartbeat import Announced, World
from nfsrwlock_core.protocol.participant import Participant
from nfsrwlock_core.protocol.watch import Watch

TTL = 90.0
INTERVAL = 30.0

#: What a request meets that is sent again because the reply to the first one was lost.
_SENT_AGAIN = {
    "mkdir": errno.EEXIST,
    "rmdir": errno.ENOENT,
    "create": errno.EEXIST,
    "rename": errno.ENOENT,
    "unlink": errno.ENOENT,
    "listdir": errno.EIO,
}


def os_error(number: int, name: str = "") -> OSError:
    """Return what a system call raises; the class follows from the number."""
    return OSError(number, os.strerror(number), name)


class Server:
    """The entries of one lock directory: a directory is a dict, anything else under a name is bytes."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, bytes] | bytes] = {}
        #: False: the lock directory itself was removed.
        self.exists = True

    def mkdir(self, name: str) -> None:
        self._need()
        if name in self.entries:
            raise os_error(errno.EEXIST, name)
        self.entries[name] = {}

    def rmdir(self, name: str = "") -> None:
        if self._directory(name) if name else self.entries:
            raise os_error(errno.ENOTEMPTY, name)
        if name:
            del self.entries[name]
        else:
            self.exists = False

    def listdir(self, name: str = "") -> list[str]:
        self._need()
        return list(self._directory(name) if name else self.entries)

    def create(self, name: str, record: bytes) -> None:
        directory, _, file = name.partition("/")
        inside = self._directory(directory)
        if file in inside:
            raise os_error(errno.EEXIST, name)
        inside[file] = record

    def rename(self, old: str, new: str) -> None:
        source, old_name = self._place(old)
        target, new_name = self._place(new)
        if old_name not in source:
            raise os_error(errno.ENOENT, old)
        if target.get(new_name):
            raise os_error(errno.ENOTEMPTY, new)
        target[new_name] = source.pop(old_name)

    def unlink(self, name: str) -> None:
        place, file = self._place(name)
        if file not in place:
            raise os_error(errno.ENOENT, name)
        if isinstance(place[file], dict):
            raise os_error(errno.EISDIR, name)
        del place[file]

    @property
    def names(self) -> set[str]:
        """The names in the lock directory."""
        return set(self.entries)

    @property
    def announced(self) -> set[str]:
        """Those of the names that announce somebody."""
        return {name for name in self.entries if parse_announcement(name) is not None}

    def inside(self, name: str) -> set[str]:
        """Return the names inside one announcement."""
        return set(self._directory(name))

    def _need(self) -> None:
        if not self.exists:
            raise os_error(errno.ENOENT, "the lock directory")

    def _place(self, name: str) -> tuple[dict[str, Any], str]:
        directory, slash, file = name.partition("/")
        self._need()
        return (self._directory(directory), file) if slash else (self.entries, name)

    def _directory(self, name: str) -> dict[str, bytes]:
        place, file = self._place(name)
        if file not in place:
            raise os_error(errno.ENOENT, name)
        found = place[file]
        if isinstance(found, bytes):
            raise os_error(errno.ENOTDIR, name)
        return found


class Fault:
    """
    What goes wrong with calls of one operation.

    :param op: the operation
    :param on: only where this is part of the name it is called with
    :param times: how often; ``None`` for ever
    :param skip: how many such calls pass before
    """

    def __init__(self, op: str, *, on: str = "", times: int | None = 1, skip: int = 0) -> None:
        self.op, self.on, self.times, self.skip = op, on, times, skip
        #: How often it has struck.
        self.struck = 0

    def strikes(self, op: str, name: str) -> bool:
        if op != self.op or self.on not in name or (self.times is not None and self.struck >= self.times):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.struck += 1
        return True

    def apply(self, call: Callable[[], Any], name: str) -> Any:
        raise NotImplementedError


class Fails(Fault):
    """The server refuses, or does not get, the request: nothing is done."""

    def __init__(self, op: str, number: int = errno.EIO, **when: Any) -> None:
        super().__init__(op, **when)
        self.number = number

    def apply(self, call: Callable[[], Any], name: str) -> Any:
        raise os_error(self.number, name)


class LostReply(Fault):
    """The request is carried out and its caller hears an error, by default that of the same request sent again."""

    def __init__(self, op: str, number: int | None = None, **when: Any) -> None:
        super().__init__(op, **when)
        self.number = _SENT_AGAIN[op] if number is None else number

    def apply(self, call: Callable[[], Any], name: str) -> Any:
        call()
        raise os_error(self.number, name)


class Late(Fault):
    """The caller hears of a time-out; the request is carried out when the test says so."""

    def __init__(self, op: str, **when: Any) -> None:
        super().__init__(op, **when)
        self._on_their_way: list[Callable[[], Any]] = []

    def apply(self, call: Callable[[], Any], name: str) -> Any:
        self._on_their_way.append(call)
        raise os_error(errno.ETIMEDOUT, name)

    def arrive(self) -> None:
        """Let the server carry out what is on its way."""
        for call in self._on_their_way:
            call()
        self._on_their_way.clear()


class Before(Fault):
    """Something happens before the request reaches the server."""

    def __init__(self, op: str, happens: Callable[[], Any], **when: Any) -> None:
        super().__init__(op, **when)
        self.happens = happens

    def apply(self, call: Callable[[], Any], name: str) -> Any:
        self.happens()
        return call()


class After(Before):
    """Something happens after the server has carried out the request and before its caller goes on."""

    def apply(self, call: Callable[[], Any], name: str) -> Any:
        result = call()
        self.happens()
        return result


class Shows(Fault):
    """
    A listing shows these names (or what a function says at that time), whatever is there.

    :param of: a part of the name of the announcement that is listed; by default the lock directory is
    """

    def __init__(self, names: Iterable[str] | Callable[[], Iterable[str]], *, of: str = "", **when: Any) -> None:
        super().__init__("listdir", on=of, **when)
        self.names = names

    def strikes(self, op: str, name: str) -> bool:
        return bool(name) == bool(self.on) and "/" not in name and super().strikes(op, name)

    def apply(self, call: Callable[[], Any], name: str) -> Any:
        return list(self.names() if callable(self.names) else self.names)


class MemoryFiles:
    """One client's view of a server, with a log of its calls: tuples of the operation and the names it was given."""

    path = "memory.rwlock"

    def __init__(self, server: Server, *faults: Fault) -> None:
        self.server = server
        self.calls: list[tuple[str, ...]] = []
        #: What this client's connection to the server is; another text for a new one.
        self.connected: str | None = None
        self._faults: list[Fault] = list(faults)

    def inject(self, *faults: Fault) -> None:
        """Let these go wrong from now on."""
        self._faults.extend(faults)

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    def mkdir(self, name: str) -> None:
        self._do("mkdir", lambda: self.server.mkdir(name), name)

    def rmdir(self, name: str = "") -> None:
        self._do("rmdir", lambda: self.server.rmdir(name), name)

    def listdir(self, name: str = "") -> list[str]:
        listing: list[str] = self._do("listdir", lambda: self.server.listdir(name), name)
        return listing

    def create(self, name: str, record: bytes) -> None:
        self._do("create", lambda: self.server.create(name, record), name)

    def rename(self, old: str, new: str) -> None:
        self._do("rename", lambda: self.server.rename(old, new), old, new)

    def unlink(self, name: str) -> None:
        self._do("unlink", lambda: self.server.unlink(name), name)

    def connection(self) -> str | None:
        return self.connected

    def ops(self) -> list[str]:
        """Return the operations so far, without their names, and start the log anew."""
        ops = [call[0] for call in self.calls]
        self.calls.clear()
        return ops

    def _do(self, op: str, call: Callable[[], Any], name: str, *more: str) -> Any:
        self.calls.append((op, name, *more))
        for fault in self._faults:
            if fault.strikes(op, name):
                return fault.apply(call, name)
        return call()


class CachingFiles(MemoryFiles):
    """
    A client that keeps its listing of the lock directory, as NFS clients may: until a change of its own succeeds.

    A change that *fails* does not make it ask again, not even with ``EEXIST``.
    """

    def __init__(self, server: Server, *faults: Fault) -> None:
        super().__init__(server, *faults)
        self._cached: list[str] | None = None

    def expire(self) -> None:
        """Let the next listing ask the server, as it does when the cache's time is up."""
        self._cached = None

    def _do(self, op: str, call: Callable[[], Any], name: str, *more: str) -> Any:
        if op != "listdir":
            result = super()._do(op, call, name, *more)
            if "/" not in name:
                self._cached = None
            return result
        if not name and self._cached is not None:
            self.calls.append((op, name))
            return list(self._cached)
        result = super()._do(op, call, name, *more)
        if not name:
            self._cached = list(result)
        return result


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Stage:
    """One lock, its server, one clock for everybody, and the processes that are known to be dead."""

    def __init__(self) -> None:
        self.server = Server()
        self.clock = Clock()
        self.dead: set[Identity] = set()
        self._numbers = itertools.count(1)

    def who(self, host: str = "node1") -> Identity:
        """Return a new process."""
        return Identity(pid=4000 + next(self._numbers), start=77, kernel="c0ffee", uid=1000, host=host)

    def token(self) -> str:
        """Return a token that nobody has, higher than those before."""
        return f"{next(self._numbers):032x}"

    def participant(
        self,
        mode: Mode,
        *,
        at_most: int = 0,
        ticket: int = 1,
        tokens: Iterable[str] = (),
        files: MemoryFiles | None = None,
        ttl: float = TTL,
        interval: float = INTERVAL,
        watch: Watch | None = None,
        who: Identity | None = None,
        clock: Callable[[], float] | None = None,
        standstill: float = 0.0,
    ) -> Participant:
        """
        Return a participant of the shipped protocol, with a client of its own.

        :param tokens: what it announces itself by, in this order; then fresh ones
        """
        ahead = iter(tokens)
        world = World(
            clock=self.clock if clock is None else clock,
            is_dead=self.dead.__contains__,
            token=lambda: next(ahead, None) or self.token(),
            standstill=lambda: standstill,
        )
        return Participant(
            MemoryFiles(self.server) if files is None else files,
            world,
            self.who() if who is None else who,
            mode,
            at_most=at_most,
            ttl=ttl,
            interval=interval,
            ticket=ticket,
            since_ms=1_700_000_000_000,
            record=b"{}",
            watch=watch,
        )

    def twin(self, holder: Participant, files: MemoryFiles) -> Announced:
        """Return what another process beats with for ``holder``, as it stands now."""
        return Announced.resume(
            files,
            holder._world,
            name=holder.name,
            beat=holder.beats,
            lease=holder.lease,
            unheard=holder.hand_over(),
            interval=INTERVAL,
            record=b"{}",
        )

    def reader(self, **settings: Any) -> Participant:
        """Return a participant that asks for the lock shared."""
        return self.participant(Mode.READ, **settings)

    def writer(self, **settings: Any) -> Participant:
        """Return a participant that asks for the lock exclusively."""
        return self.participant(Mode.WRITE, **settings)

    def holding_reader(self, **settings: Any) -> Participant:
        """Return a reader that holds the lock."""
        return self._granted(self.reader(**settings))

    def holding_writer(self, **settings: Any) -> Participant:
        """Return a writer that holds the lock."""
        return self._granted(self.writer(**settings))

    def peer(
        self,
        mode: Mode = Mode.READ,
        *,
        beat: int | None = None,
        lease: float = TTL,
        ticket: int = 1,
        token: str = "",
        who: Identity | None = None,
    ) -> Announcement:
        """Put somebody into the directory who does nothing but what the test does for it."""
        name = announcement_name(
            mode,
            token=token or self.token(),
            ticket=ticket,
            lease_ms=round(lease * 1000),
            who=who or self.who("node2"),
            since_ms=1_700_000_000_000,
        )
        self.server.mkdir(name)
        peer = parse_announcement(name)
        assert peer is not None
        if beat is not None:
            self.show_beat(peer, beat)
        return peer

    def show_beat(self, peer: Announcement, beat: int) -> None:
        """Let a peer show this beat and no other."""
        self.server.entries[peer.name] = {beat_name(beat): b"{}"}

    def leave(self, peer: Announcement) -> None:
        """Let a peer go."""
        del self.server.entries[peer.name]

    def poll(self, participant: Participant, seconds: float, *, every: float = 1.0) -> bool:
        """Let a participant wait for so long, and return whether it was granted."""
        end = self.clock() + seconds
        while not participant.advance():
            if self.clock() >= end:
                return False
            self.clock.sleep(min(every, end - self.clock()))
        return True

    @staticmethod
    def _granted(participant: Participant) -> Participant:
        assert participant.advance()
        return participant
