"""
Shared holds that are kept for a moment after a hit, so that a loop of hits pays for its lock a few times a second.

A kept hold is an ordinary shared hold that this process has not given back yet: nothing can be stored or removed under
it, and whoever joins it reads under it. Nobody else waits for it for long: it ends a linger after it was granted,
however often it was joined. Who comes then takes the lock anew, and so queues behind a writer that has announced itself
meanwhile. What asks for the exclusive lock in this very process gets its kept hold out of the way first.

Only a lock that was given back less than a linger ago is kept, so a process that loads each result once holds nothing
beyond the loading. At the end of a process the core releases what is held; a killed one is evicted, as ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from nfsrwlock_core import SoftReadWriteLock, WaitInfo

from . import mapping

#: How long a hold is kept by default, seconds: hundreds of hits, and a delay that no computation worth storing notices.
LINGER_S: Final = 0.25
#: Who waits for a writer's turn must not wait for a mere habit.
_LINGER_MAX_S: Final = 10.0
#: Kept at a time; each has a thread that ends it, so that a file server that hangs delays nothing on another one.
_KEPT_MAX: Final = 64
#: Locks of which it is known when they were given back.
_KNOWN_MAX: Final = 1024


def checked_linger(linger: float) -> float:
    """
    Return ``linger`` if it can be one.

    :raises TypeError: if it is no number
    :raises ValueError: if it is negative, not finite, or so long that others would wait for it in vain
    """
    if isinstance(linger, bool) or not isinstance(linger, int | float):
        raise TypeError(f"linger must be a number of seconds, got {linger!r}")
    if not 0 <= linger <= _LINGER_MAX_S:
        raise ValueError(f"linger must be between 0 and {_LINGER_MAX_S:g} seconds, got {linger!r}")
    return float(linger)


class _Hold:
    def __init__(self, lock: SoftReadWriteLock, reader: Reader) -> None:
        self.lock: Final = lock
        self.readers = {reader}
        #: Until when others may join it, on the monotonic clock; it is not kept beyond.
        self.until = 0.0
        self.timer: threading.Timer | None = None

    def ends_by_itself(self) -> bool:
        """See to it that it ends in time; whether a thread for that can be had."""
        # Never under the mutex: a thread that begins may run finalisers, which may want it.
        if self.timer is None:
            timer = threading.Timer(max(self.until - time.monotonic(), 0.0), self.end)
            timer.daemon = True  # the end of the process does not wait for it: the core releases what is held
            try:
                timer.start()
            except RuntimeError:
                return False
            self.timer = timer
        return True

    def end(self) -> None:
        """Let nobody join it any more, and release it, now or when its last reader leaves."""
        with _mutex:
            self.until = 0.0
            if _kept.get(self.lock.lock_path) is self:
                del _kept[self.lock.lock_path]
            if self.readers:
                return
        self.lock.release(force=True)


_mutex = threading.RLock()
_kept: Final[dict[str, _Hold]] = {}
#: When each lock was given back, the latest last.
_given_back: Final[dict[str, float]] = {}


class Reader:
    """
    One reader's part in a shared hold of this process: in a kept one, or in its own, which may be kept afterwards.

    :param lock: on what is to be read, not held; this reader's own from now on
    :param linger: how old a hold may become by being kept, seconds; 0: none is kept
    """

    def __init__(self, lock: SoftReadWriteLock, linger: float) -> None:
        self._lock: Final = lock
        self._linger: Final = linger
        self._hold: _Hold | None = None
        self._loan: Final = mapping.Loan(lock.lock_file)

    @property
    def lock(self) -> SoftReadWriteLock:
        """By what it is read."""
        if (borrowed := self._loan.lock) is not None:
            return borrowed
        return self._lock if self._hold is None else self._hold.lock

    def enter(self, on_wait: Callable[[WaitInfo], None] = lambda _: None) -> SoftReadWriteLock:
        """
        Read from now on; what is raised is what :meth:`SoftReadWriteLock.acquire_read` raises.

        :param on_wait: called before each pause while waiting
        :returns: the lock by which it is held
        """
        if self._linger > 0 and (joined := self._join()) is not None:
            return joined
        self._hold = hold = _Hold(self._lock, self)

        def look(info: WaitInfo) -> None:
            self._loan.instead_of_waiting(info)
            on_wait(info)

        try:
            self._lock.acquire_read(on_wait=look)
        except mapping.Borrowed:
            self._hold = None
            return self.lock
        now = time.monotonic()
        with _mutex:
            if now - _given_back.get(self._lock.lock_path, -self._linger) < self._linger:
                hold.until = now + self._linger
        return self._lock

    def _join(self) -> SoftReadWriteLock | None:
        with _mutex:
            hold = _kept.get(self._lock.lock_path)
            if hold is None or time.monotonic() >= hold.until:
                return None
            if not hold.lock.is_locked:
                del _kept[self._lock.lock_path]  # lost, or its lease has run out; its timer releases it
                return None
            # In this order, so that a signal's exception in between leaves nothing that leave() does not find.
            self._hold = hold
            hold.readers.add(self)
            return hold.lock

    def leave(self) -> None:
        """End the reading; does nothing if it has ended."""
        self._loan.give_back()
        hold = self._hold
        if hold is None:
            return
        stays = False
        try:
            with _mutex:
                hold.readers.discard(self)
                if self._linger > 0:
                    _note_given_back(self._lock.lock_path)
                others = bool(hold.readers)
                kept = others or _keep(hold)
            stays = others or (kept and hold.ends_by_itself())
        finally:
            if not stays:  # also when a signal's exception came in between
                hold.readers.discard(self)
                hold.end()
        self._hold = None


def _keep(hold: _Hold) -> bool:
    path = hold.lock.lock_path
    if time.monotonic() >= hold.until or not hold.lock.is_locked:
        return False
    if path not in _kept and len(_kept) < _KEPT_MAX:
        _kept[path] = hold
    return _kept.get(path) is hold


def _note_given_back(path: str) -> None:
    _given_back.pop(path, None)
    _given_back[path] = time.monotonic()
    while len(_given_back) > _KNOWN_MAX:
        del _given_back[next(iter(_given_back))]


def make_way(lock_path: str) -> None:
    """Give back what this process has kept of a lock, because it wants it exclusively."""
    with _mutex:
        hold = _kept.get(lock_path)
    if hold is not None:
        hold.end()
        if hold.timer is not None:
            hold.timer.cancel()


def _forget_after_fork() -> None:
    # The holds are the parent's, and so are the threads that end them.
    global _mutex  # noqa: PLW0603 - another thread of the parent may have held it
    _mutex = threading.RLock()
    _kept.clear()
    _given_back.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
