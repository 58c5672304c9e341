"""
What this process holds and waits for through Dask's locks: for joining reads, for metrics, and for the plugins.

Nothing is decided by it that the lock directory does not decide; it forgets everything in a forked child.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

#: How many paths are remembered as used. Those of earlier ones fall back on the lease when the worker dies.
USED_MAX: Final = 10_000
#: Waits that are shorter are no news.
_LONG_WAIT_S: Final = 1.0

Event = dict[str, Any]
Used = tuple[str, str | None]


class Recent(OrderedDict[Used, None]):
    """Locks that a process may come to hold, the latest last, and no more of them than :data:`USED_MAX`."""

    def use(self, lock: Used) -> bool:
        """Note a lock as the latest; return whether it was not there."""
        is_new = lock not in self
        self[lock] = None
        self.move_to_end(lock)
        if len(self) > USED_MAX:
            self.popitem(last=False)
        return is_new


class Ledger:
    """The one book of a process; see :data:`ledger`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._held: Counter[str] = Counter()
        self._awaited: Counter[str] = Counter()
        self._used = Recent()
        #: Called with each event, from any thread.
        self.listeners: list[Callable[[Event], None]] = []

    def held(self) -> list[str]:
        """Return ``"write /path"`` for each lock that is held, in order."""
        with self.lock:
            return sorted(self._held)

    def awaited(self) -> list[str]:
        """Return ``"read /path"`` for each lock that somebody waits for, in order."""
        with self.lock:
            return sorted(self._awaited)

    def used(self) -> list[Used]:
        """Return the path and the directory of locks of each lock that was ever asked for, the latest last."""
        with self.lock:
            return list(self._used)

    def use(self, path: str, lock_dir: str | None) -> None:
        """Note, before anything is announced on disk, that this process may come to hold the lock on ``path``."""
        key = (path, lock_dir)
        with self.lock:
            is_new = self._used.use(key)
        if is_new:
            self.tell({"action": "uses", "pid": os.getpid(), "locks": [list(key)]})

    @contextmanager
    def waiting(self, mode: str, path: str) -> Iterator[None]:
        """Count a caller as waiting for the time of the block."""
        name, started = f"{mode} {path}", time.monotonic()
        self._change(self._awaited, name, 1)
        try:
            yield
        finally:
            self._change(self._awaited, name, -1)
            waited = time.monotonic() - started
            if waited >= _LONG_WAIT_S:
                self.tell({"action": "waited", "mode": mode, "path": path, "seconds": round(waited, 3)})

    def take(self, mode: str, path: str) -> None:
        """Note that a lock is held."""
        self._change(self._held, f"{mode} {path}", 1)

    def leave(self, mode: str, path: str, *, lost: bool) -> None:
        """Note that a hold has ended, and whether somebody else ended it."""
        self._change(self._held, f"{mode} {path}", -1)
        if lost:
            self.tell({"action": "lost", "mode": mode, "path": path})

    def tell(self, event: Event) -> None:
        """Pass on an event to whoever listens."""
        for listener in list(self.listeners):
            listener(dict(event))

    def _change(self, counter: Counter[str], name: str, by: int) -> None:
        with self.lock:
            counter[name] += by
            if counter[name] <= 0:
                del counter[name]


ledger: Final = Ledger()


def _reset_after_fork() -> None:
    # What the parent holds is not the child's, and another thread of the parent may have held the lock.
    ledger.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_reset_after_fork)
