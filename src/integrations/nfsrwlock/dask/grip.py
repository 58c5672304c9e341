"""
One hold of one view, taken in a thread or in a coroutine, and given back from anywhere.

``distributed.Lock`` is bound to no thread: whoever has the object may release it. The core's sets and its asynchronous
locks offer that; a grip makes the two alike.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from nfsrwlock_core import (
    AsyncAcquireReturnProxy,
    AsyncSoftReadWriteLock,
    LockSet,
    WaitInfo,
)

from .ledger import ledger
from .place import Owner, is_on_worker
from .settings import Settings

OnWait = Callable[[WaitInfo], None]


class Grip:
    """A hold. ``levels`` counts how often its owner has taken it; it ends with the last one."""

    def __init__(self, settings: Settings, owner: Owner) -> None:
        self.settings: Final = settings
        self.owner: Final = owner
        self.levels: int = 1
        self.pid: Final = os.getpid()

    def check(self) -> None:
        """Raise what is wrong with the hold, if anything is; costs no file-system call."""
        raise NotImplementedError

    def end(self) -> None:
        """End the hold, in a thread; raise LockLostError if it was lost."""
        raise NotImplementedError

    async def end_async(self) -> None:
        """End the hold, in a coroutine; raise LockLostError if it was lost."""
        raise NotImplementedError


class ThreadGrip(Grip):
    """A hold that was taken in synchronous code."""

    def __init__(self, settings: Settings, owner: Owner, held: LockSet, done: Callable[[LockSet], None]) -> None:
        super().__init__(settings, owner)
        self._held: Final = held
        self._done: Final = done

    def check(self) -> None:
        """See the base class."""
        self._held.check()

    def end(self) -> None:
        """See the base class."""
        self._held.__exit__(None, None, None)
        self._done(self._held)

    async def end_async(self) -> None:
        """See the base class."""
        await asyncio.to_thread(self.end)


class CoroutineGrip(Grip):
    """A hold that was taken in a coroutine."""

    def __init__(self, settings: Settings, owner: Owner, proxy: AsyncAcquireReturnProxy) -> None:
        super().__init__(settings, owner)
        self._proxy: Final = proxy

    def check(self) -> None:
        """See the base class."""
        self._proxy.check()

    def end(self) -> None:
        """See the base class."""
        # On a loop of its own: the one on which it was taken may have ended, or may be waiting for this very call.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, self._proxy.end()).result()

    async def end_async(self) -> None:
        """See the base class."""
        await self._proxy.end()


class Taker:
    """Makes the holds of one view. Unused lock sets are kept, for making one resolves paths on disk."""

    def __init__(self, settings: Settings) -> None:
        self._settings: Final = settings
        self._idle: list[tuple[str, LockSet]] = []
        self._lock = threading.Lock()

    def take(self, owner: Owner, timeout: float, on_wait: OnWait | None) -> ThreadGrip:
        """
        Take the lock in this thread.

        :param timeout: seconds; 0: do not wait; -1: no limit
        :raises Timeout: if it could not be had in time
        """
        settings, heartbeat = self._settings, self._heartbeat()
        ledger.use(settings.path, settings.lock_dir)
        held = self._idle_set(heartbeat)
        if held is None:
            held = LockSet(
                read=settings.path if settings.mode == "read" else (),
                write=settings.path if settings.mode == "write" else (),
                heartbeat=heartbeat,
                **settings.core_arguments(),
            )
        held.acquire(timeout, blocking=timeout != 0, on_wait=on_wait)
        return ThreadGrip(settings, owner, held, lambda free: self._put_back(heartbeat, free))

    async def take_async(self, owner: Owner, seconds: float, on_wait: OnWait | None) -> CoroutineGrip:
        """Take the lock for the calling asyncio task; see :meth:`take`."""
        settings = self._settings
        ledger.use(settings.path, settings.lock_dir)
        # In a thread: it resolves the path, and the file server may hang.
        lock = await asyncio.to_thread(
            AsyncSoftReadWriteLock,
            settings.path,
            is_singleton=False,
            heartbeat=self._heartbeat(),
            **settings.core_arguments(),
        )
        acquire = lock.acquire_write if settings.mode == "write" else lock.acquire_read
        proxy = await acquire(seconds, blocking=seconds != 0, on_wait=on_wait)
        return CoroutineGrip(settings, owner, proxy)

    def _heartbeat(self) -> Any:
        if self._settings.heartbeat == "auto":
            return "process" if is_on_worker() else "thread"
        return self._settings.heartbeat

    def _idle_set(self, heartbeat: str) -> LockSet | None:
        with self._lock:
            for index, (form, _) in enumerate(self._idle):
                if form == heartbeat:
                    return self._idle.pop(index)[1]
        return None

    def _put_back(self, heartbeat: str, free: LockSet) -> None:
        with self._lock:
            self._idle.append((heartbeat, free))
