"""
A hold that was taken in a thread or in a coroutine, and that ends wherever its owner likes.

``distributed.Lock`` is bound to no thread: whoever has the object may release it. The core's sets and its asynchronous
locks offer that; :class:`Hold` makes the two alike.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from nfsrwlock_core import AsyncAcquireReturnProxy, AsyncSoftReadWriteLock, LockLostError, LockSet, WaitInfo

from .activity import Use, activity
from .context import Caller, Owner, current_worker, is_on_worker
from .settings import Settings

OnWait = Callable[[WaitInfo], None]

#: How often it is looked whether a task that holds a lock has ended, seconds.
_LOOK_S: Final = 1.0


class Hold:
    """
    A hold. ``levels`` counts how often its owner has taken it; it ends with the last one.

    :param held: a set that was taken in a thread, or what a coroutine was granted
    """

    def __init__(self, settings: Settings, owner: Owner, held: LockSet | AsyncAcquireReturnProxy) -> None:
        self.settings: Final = settings
        self.owner: Final = owner
        self.levels: int = 1
        self.pid: Final = os.getpid()
        #: What the process's activity knows of it.
        self.use: Use
        self._held: Final = held

    def check(self) -> None:
        """Raise what is wrong with the hold, if anything is; costs no file-system call."""
        self._held.check()

    async def leave(self, *, is_coroutine: bool) -> None:
        """
        Give one level back.

        :param is_coroutine: the caller awaits; else nothing here suspends
        :raises LockLostError: if the hold was lost
        """
        if not _give_back_level(self):
            self.check()
            return
        is_lost = False
        try:
            if isinstance(self._held, AsyncAcquireReturnProxy):
                await (self._held.end() if is_coroutine else _on_own_loop(self._held))
            elif is_coroutine:
                await asyncio.to_thread(self._held.__exit__, None, None, None)
            else:
                self._held.__exit__(None, None, None)
        except LockLostError:
            is_lost = True
            raise
        finally:
            activity.leave(self.use, is_lost=is_lost)


async def _on_own_loop(proxy: AsyncAcquireReturnProxy) -> None:
    # The loop on which it was taken may have ended, or may be waiting for this very call.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, proxy.end()).result()


class Taker:
    """Makes the holds of one view."""

    def __init__(self, settings: Settings) -> None:
        self._settings: Final = settings
        # By form of heartbeat. Each hold has a set of its own, made from one of these, which have resolved the path.
        self._sets: dict[str, LockSet] = {}

    async def take(self, caller: Caller, seconds: float, on_wait: OnWait) -> Hold:
        """
        Take the lock.

        :param seconds: 0: do not wait; -1: no limit
        :raises Timeout: if it could not be had in time
        """
        settings, heartbeat = self._settings, self._heartbeat()
        if caller.is_coroutine:
            # In a thread: it resolves the path, and the file server may hang.
            lock = await asyncio.to_thread(
                AsyncSoftReadWriteLock,
                settings.path,
                is_singleton=False,
                heartbeat=heartbeat,
                **settings.core_arguments(),
            )
            acquire = lock.acquire_write if settings.mode == "write" else lock.acquire_read
            proxy = await acquire(seconds, blocking=seconds != 0, on_wait=on_wait)
            return Hold(settings, caller.owner, proxy)
        if heartbeat not in self._sets:
            self._sets[heartbeat] = LockSet(
                heartbeat=heartbeat, **{settings.mode: settings.path, **settings.core_arguments()}
            )
        held = LockSet.joined([self._sets[heartbeat]])
        held.acquire(seconds, blocking=seconds != 0, on_wait=on_wait)
        return Hold(settings, caller.owner, held)

    def _heartbeat(self) -> Any:
        if self._settings.heartbeat == "auto":
            return "process" if is_on_worker() else "thread"
        return self._settings.heartbeat


def collect_after(caller: Caller, hold: Hold) -> None:
    """
    Look for garbage if ``caller``, a task, ends without having given ``hold`` back.

    The error of a task refers to its variables, and Dask's report of the error to itself, so that only the garbage
    collector ends them, and with them the lock's object. In a worker that has nothing to do it does not run.
    """
    worker, key = current_worker(), caller.key
    if worker is None or key is None:
        return

    def look() -> None:
        if hold.levels and key in worker.active_keys:
            worker.loop.call_later(_LOOK_S, look)
        elif hold.levels:
            gc.collect()

    worker.loop.add_callback(worker.loop.call_later, _LOOK_S, look)


# -- what this process holds: a reader finds its own hold again, through whatever object it was taken ------------------

_holds: dict[str, list[Hold]] = {}
_lock = threading.RLock()


def enter(hold: Hold) -> None:
    """Note a new hold."""
    with _lock:
        _holds.setdefault(hold.settings.lock_path, []).append(hold)


def join(lock_path: str, owner: Owner) -> Hold | None:
    """
    Return the hold that ``owner`` has, one level higher; ``None`` if it has none.

    :raises LockLostError: if it was lost
    """
    with _lock:
        hold = next((hold for hold in _holds.get(lock_path, ()) if hold.owner == owner), None)
        if hold is not None:
            hold.check()
            hold.levels += 1
        return hold


def is_reader(lock_path: str, owner: Owner) -> bool:
    """Whether ``owner`` holds the lock shared."""
    with _lock:
        return any(hold.owner == owner and hold.settings.mode == "read" for hold in _holds.get(lock_path, ()))


def _give_back_level(hold: Hold) -> bool:
    # Returns whether it was the last one.
    with _lock:
        hold.levels -= 1
        if hold.levels:
            return False
        holds = _holds.get(hold.settings.lock_path, [])
        if hold in holds:
            holds.remove(hold)
        if not holds:
            _holds.pop(hold.settings.lock_path, None)
    return True


def _reset_after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.RLock()
    _holds.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
