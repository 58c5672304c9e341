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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from nfsrwlock_core import WaitInfo

logger: Final = logging.getLogger("nfsrwlock.dask")

#: Waits that are shorter are no news, seconds. One that lasts is reported then, and after ten times as long each.
LONG_WAIT_S: Final = 1.0

Event = dict[str, Any]


class Use:
    """A lock that somebody waits for or holds; to be called before each pause of the wait."""

    def __init__(self, mode: str, path: str, lock_dir: str | None) -> None:
        self.mode: Final = mode
        self.path: Final = path
        self.lock_dir: Final = lock_dir
        self.is_held = False
        self._started: Final = time.monotonic()
        self._next_report_s = LONG_WAIT_S

    def waited_s(self) -> float:
        """How long it has waited so far."""
        return time.monotonic() - self._started

    def __call__(self, info: WaitInfo) -> None:
        """Report the wait if it has become a long one."""
        if (seconds := self.waited_s()) >= self._next_report_s:
            self._next_report_s *= 10
            blockers = [peer.describe() for peer in info.blockers[:5]]
            activity.report("waiting", self, seconds=round(seconds, 3), blockers=blockers)


class Activity:
    """What one process does; see :data:`activity`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._uses: set[Use] = set()
        self._waited_s = 0.0
        #: How many holds were lost.
        self.losses = 0
        #: Called with each event, from any thread.
        self.listeners: list[Callable[[Event], None]] = []
        #: File descriptors by path, and the paths of those that end when nothing is in use.
        self._journals: dict[str, int] = {}
        self._ending: set[str] = set()

    def uses(self, *, held: bool) -> list[Use]:
        """Return what is held, or awaited."""
        with self._lock:
            return [use for use in self._uses if use.is_held == held]

    def waited_s(self) -> float:
        """Return how many seconds all callers together have waited, those that wait yet included."""
        with self._lock:
            return self._waited_s + sum(use.waited_s() for use in self.uses(held=False))

    @contextmanager
    def waiting(self, mode: str, path: str, lock_dir: str | None) -> Iterator[Use]:
        """
        Count a caller as waiting for the time of the block, and as a holder from then on unless it raises.

        The holder is to :meth:`leave`.
        """
        use = Use(mode, path, lock_dir)
        self._change(self._uses.add, use)
        is_granted = False
        try:
            yield use
            is_granted = True
        finally:
            with self._lock:
                seconds = use.waited_s()
                self._waited_s += seconds
                use.is_held = is_granted
                self._change(self._uses.add if is_granted else self._uses.discard, use)
            if seconds >= LONG_WAIT_S:
                self.report("waited", use, seconds=round(seconds, 3))

    def leave(self, use: Use, *, is_lost: bool) -> None:
        """Note that a hold has ended, and whether somebody else ended it."""
        self._change(self._uses.discard, use)
        if is_lost:
            self.losses += 1
            self.report("lost", use)

    def report(self, action: str, use: Use, **more: Any) -> None:
        """Pass on an event to whoever listens."""
        for listener in list(self.listeners):
            listener({"action": action, "mode": use.mode, "path": use.path, **more})

    def open_journal(self, path: str) -> None:
        """
        Write down in a file what is held and awaited, now and from now on, so that it is known also after SIGKILL.

        The process has the file locked (flock(2)) as long as it lives, so that the kernel says whether it is dead.
        Where the file cannot be written, locks are taken all the same.
        """
        with self._lock:
            self._ending.discard(path)
            try:
                if path not in self._journals:
                    self._journals[path] = file = os.open(
                        path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
                    )
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                logger.warning(
                    "cannot write %r, so that the locks of this process end by their leases: %s", path, error
                )
            self._write_journals()

    def close_journal(self, path: str) -> None:
        """Remove the file as soon as nothing is held and awaited: until then somebody may look after our death."""
        with self._lock:
            self._ending.add(path)
            self._write_journals()

    def _change(self, change: Callable[[Use], None], use: Use) -> None:
        with self._lock:
            change(use)
            self._write_journals()

    def _write_journals(self) -> None:
        entries = [JournalEntry(use.is_held, use.mode, use.path, use.lock_dir) for use in self._uses]
        # What is left of a longer text comes after the end of the line.
        text = json.dumps([os.getpid(), *entries]).encode() + b"\n"
        for path, file in list(self._journals.items()):
            with suppress(OSError):
                os.pwrite(file, text, 0)
            if path in self._ending and not entries:
                os.close(self._journals.pop(path))
                remove_journal(path)

    def reset_after_fork(self) -> None:
        """Forget all in a forked child: it is the parent's, and another thread of that may have held the lock."""
        for file in self._journals.values():
            os.close(file)
        self.__init__()  # type: ignore[misc]


activity: Final = Activity()
os.register_at_fork(after_in_child=activity.reset_after_fork)


class JournalEntry(NamedTuple):
    """A lock that a process holds or waits for."""

    is_held: bool
    mode: str
    path: str
    lock_dir: str | None


class Journal(NamedTuple):
    """What the journal of a process says, which lives or is dead."""

    pid: int
    is_alive: bool
    entries: set[JournalEntry]


def read_journal(path: str) -> Journal | None:
    """Return what the journal at ``path`` says; ``None`` if there is none, or none that is whole."""
    try:
        with open(path, encoding="ascii") as file:
            is_alive = _is_locked(file.fileno())
            pid, *entries = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    return Journal(pid, is_alive, {JournalEntry(*entry) for entry in entries})


def remove_journal(path: str) -> None:
    """Remove a journal that nobody needs any more."""
    with suppress(OSError):
        os.unlink(path)


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
