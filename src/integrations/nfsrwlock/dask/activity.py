"""
What this process holds and waits for through Dask's locks: for metrics, events, and whoever looks after its death.

Nothing is decided by it that the lock directory does not decide; it forgets everything in a forked child.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from nfsrwlock_core import WaitInfo

logger: Final = logging.getLogger("nfsrwlock.dask")

#: Waits that are shorter are no news, seconds. One that lasts is reported then, and after ten times as long each.
LONG_WAIT_S: Final = 1.0
#: A journal that has grown to so many bytes is written anew.
_JOURNAL_MAX_BYTES: Final = 1 << 16

Event = dict[str, Any]


class Use(NamedTuple):
    """A lock that somebody holds or waits for."""

    state: Literal["held", "awaited"]
    mode: str
    path: str
    lock_dir: str | None


class Wait:
    """A caller that waits; to be called before each of its pauses."""

    def __init__(self, use: Use) -> None:
        self.use: Final = use
        self.is_granted = False
        self._started: Final = time.monotonic()
        self._next_report_s = LONG_WAIT_S

    @property
    def seconds(self) -> float:
        """How long it has waited."""
        return time.monotonic() - self._started

    def __call__(self, info: WaitInfo) -> None:
        """Report the wait if it has become a long one."""
        if self.seconds >= self._next_report_s:
            self._next_report_s *= 10
            activity.report("waiting", self.use, seconds=round(self.seconds, 3), blockers=_described(info))


def _described(info: WaitInfo) -> list[str]:
    return [peer.describe() for peer in info.blockers[:5]]


class Activity:
    """What one process does; see :data:`activity`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._uses: Counter[Use] = Counter()
        self._waits: set[Wait] = set()
        self._waited_s = 0.0
        #: How many holds were lost.
        self.losses = 0
        #: Called with each event, from any thread.
        self.listeners: list[Callable[[Event], None]] = []
        self._journals: dict[str, Journal] = {}

    def shown(self, state: str) -> str:
        """Return ``"read /path, write /path"`` for what is held, or awaited."""
        with self._lock:
            return ", ".join(sorted(f"{use.mode} {use.path}" for use in self._uses if use.state == state))

    def count(self, state: str, mode: str) -> int:
        """Return how many locks are held, or awaited, in that mode."""
        with self._lock:
            return sum(count for use, count in self._uses.items() if (use.state, use.mode) == (state, mode))

    def waited_s(self) -> float:
        """Return how many seconds all callers together have waited, those that wait yet included."""
        with self._lock:
            return self._waited_s + sum(wait.seconds for wait in self._waits)

    @contextmanager
    def waiting(self, mode: str, path: str, lock_dir: str | None) -> Iterator[Wait]:
        """Count a caller as waiting for the time of the block; if it says that it was granted the lock, as a holder."""
        wait = Wait(Use("awaited", mode, path, lock_dir))
        with self._lock:
            self._waits.add(wait)
        self._change(wait.use, 1)
        try:
            yield wait
        finally:
            if wait.is_granted:
                self._change(wait.use._replace(state="held"), 1)
            self._change(wait.use, -1)
            with self._lock:
                self._waits.discard(wait)
                self._waited_s += wait.seconds
            if wait.seconds >= LONG_WAIT_S:
                self.report("waited", wait.use, seconds=round(wait.seconds, 3))

    def leave(self, mode: str, path: str, lock_dir: str | None, *, lost: bool) -> None:
        """Note that a hold has ended, and whether somebody else ended it."""
        use = Use("held", mode, path, lock_dir)
        self._change(use, -1)
        if lost:
            self.losses += 1
            self.report("lost", use)

    def report(self, action: str, use: Use, **more: Any) -> None:
        """Pass on an event to whoever listens."""
        for listener in list(self.listeners):
            listener({"action": action, "mode": use.mode, "path": use.path, **more})

    def open_journal(self, path: str) -> None:
        """Write down in a file what is held and awaited, now and from now on."""
        with self._lock:
            try:
                journal = self._journals.get(path) or Journal(path)
            except OSError as error:
                logger.warning("cannot write %r, so the locks of this process end by their leases: %s", path, error)
                return
            journal.is_ending = False
            journal.write_anew(self._uses)
            self._journals[path] = journal

    def close_journal(self, path: str) -> None:
        """Remove the file as soon as nothing is held and awaited: until then somebody may look after our death."""
        with self._lock:
            if path in self._journals:
                self._journals[path].is_ending = True
                self._end_journals()

    def _end_journals(self) -> None:
        for path, journal in list(self._journals.items()):
            if journal.is_ending and not self._uses:
                self._journals.pop(path).close()
                remove_journal(path)

    def _change(self, use: Use, by: int) -> None:
        with self._lock:
            self._uses[use] += by
            if self._uses[use] <= 0:
                del self._uses[use]
            for journal in self._journals.values():
                journal.note(use, by, self._uses)
            self._end_journals()

    def reset_after_fork(self) -> None:
        """Forget all in a forked child: it is the parent's, and another thread of that may have held the lock."""
        for journal in self._journals.values():
            journal.close()
        self.__init__()  # type: ignore[misc]


activity: Final = Activity()
os.register_at_fork(after_in_child=activity.reset_after_fork)


class Journal:
    """
    A file that says at any time what its process holds and waits for, also after SIGKILL.

    The process has it locked (flock(2)) as long as it lives, so that the kernel says whether it is dead. Where the file
    cannot be written, locks are taken all the same, and only their leases end them.
    """

    def __init__(self, path: str) -> None:
        #: It is to be removed when nothing is in use.
        self.is_ending = False
        self._size = 0
        self._file: Final = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def note(self, use: Use, by: int, uses: Counter[Use]) -> None:
        """Write down a change, after which there are ``uses``."""
        if self._size > _JOURNAL_MAX_BYTES:
            self.write_anew(uses)
        else:
            self._write([[*use, by]])

    def write_anew(self, uses: Counter[Use]) -> None:
        """Write down this process's id and all uses in the place of what was there."""
        with suppress(OSError):
            os.ftruncate(self._file, 0)
        self._size = 0
        self._write([os.getpid(), *([*use, count] for use, count in uses.items())])

    def close(self) -> None:
        """Close the file, which stays; a lock of a parent on it stays, too."""
        os.close(self._file)

    def _write(self, lines: list[Any]) -> None:
        with suppress(OSError):
            self._size += os.write(self._file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


@dataclass(frozen=True)
class Left:
    """
    What a journal says.

    :param pid: the process that wrote it
    :param is_alive: whether it lives
    :param uses: what it holds and waits for
    """

    pid: int
    is_alive: bool
    uses: Counter[Use]


def read_journal(path: str) -> Left | None:
    """Return what the journal at ``path`` says; ``None`` if there is none, or none that is whole."""
    try:
        with open(path, encoding="ascii") as file:
            is_alive = _is_locked(file.fileno())
            pid, *changes = (json.loads(line) for line in file if line.endswith("\n"))
    except (OSError, ValueError):
        return None
    uses: Counter[Use] = Counter()
    for *use, by in changes:
        uses[Use(*use)] += by
    return Left(pid, is_alive, +uses)


def remove_journal(path: str) -> None:
    """Remove a journal that nobody needs any more."""
    with suppress(OSError):
        os.unlink(path)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
