"""
Counting semaphores, named by a path: at most so many permits are held at a time, on all hosts together.

A permit is a shared hold with a limit, on the same engine as all holds; see ``at_most`` of
:meth:`SoftReadWriteLock.acquire_read`.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar, Unpack

from .aio import AsyncAcquireReturnProxy, AsyncSoftReadWriteLock
from .errors import LockNotHeldError
from .holding.hold import HoldStatus
from .holding.waiting import OnWait, Until, Wait
from .inspection import inspect
from .lock import AcquireReturnProxy, SoftReadWriteLock
from .names import Mode
from .settings import Options, Settings, checked_limit
from .system.paths import AnyPath

_Permit = TypeVar("_Permit", AcquireReturnProxy, AsyncAcquireReturnProxy)


class _Permits(Generic[_Permit]):
    # What both kinds have in common: the settings, and what is held through this object, each by whom.
    def __init__(self, lock_file: AnyPath, permits: int = 1, timeout: float = -1, **options: Unpack[Options]) -> None:
        lock = SoftReadWriteLock(lock_file, timeout, is_singleton=False, **options)
        self._set_up(lock._settings, checked_limit("permits", permits))

    def _set_up(self, settings: Settings, permits: int) -> None:
        #: How many may be held at a time.
        self.permits = permits
        self._settings = settings
        self._taken: list[tuple[object, _Permit]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.permits} on {self.lock_file!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._restore, (self._settings, self.permits)

    @classmethod
    def _restore(cls, settings: Settings, permits: int) -> Self:
        semaphore = cls.__new__(cls)
        semaphore._set_up(settings, permits)
        return semaphore

    @property
    def lock_file(self) -> str:
        """The path as it was given."""
        return self._settings.lock_file

    @property
    def lock_path(self) -> str:
        """The directory where the permits live, absolute."""
        return self._settings.lock_path

    @property
    def value(self) -> int:
        """
        How many permits nobody holds, as one listing shows it; others may take them at any moment.

        :raises LockPathError: if the lock directory cannot be read
        """
        state = inspect(self.lock_file, lock_dir=self._settings.lock_dir)
        return max(self.permits - sum(peer.at_most > 0 for peer in state.holders), 0)

    def _latest_of(self, whose: object) -> _Permit:
        # Removed from what is held: the caller's latest, or else anybody's.
        mine = [pair for pair in self._taken if pair[0] == whose]
        for pair in reversed(mine or self._taken):
            with suppress(ValueError):  # another thread was faster
                self._taken.remove(pair)
                return pair[1]
        raise LockNotHeldError(f"cannot release a permit of {self.lock_file!r}: none is held through this object")


class SoftSemaphore(_Permits[AcquireReturnProxy]):
    """
    A counting semaphore for processes on any number of hosts that share a file system.

    At most ``permits`` are held at a time, by whatever threads, processes and hosts. Nobody falls behind the others,
    but they are not served strictly in the order in which they came. A permit has a lease and heartbeats, as every hold
    of :class:`SoftReadWriteLock` has, so the permit of a process that died comes free. As with
    :class:`threading.Semaphore`, each acquire takes one more permit, and any thread may release it. On the same path,
    :meth:`SoftReadWriteLock.acquire_write` excludes all permits.

    :param lock_file: what the permits are for; it need not exist
    :param permits: how many may be held at a time; everybody must state the same
    :param timeout: seconds to wait at most; -1 waits without limit
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if one is out of range

    The other parameters are those of :class:`SoftReadWriteLock`.
    """

    def acquire(
        self,
        timeout: float | None = None,
        *,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> AcquireReturnProxy:
        """
        Take one permit.

        :returns: what gives it back at the end of a ``with`` block, as :meth:`release` does; its ``lock`` tells whether
            it is still held
        :raises LimitMismatchError: if somebody who came first states another number of permits

        Parameters and other errors are those of :meth:`SoftReadWriteLock.acquire_read`.
        """
        lock = SoftReadWriteLock._restore(self._settings)
        permit = AcquireReturnProxy(lock, may_move=True)
        lock._acquire(Mode.READ, Wait(lock._limit_of_call(timeout, blocking), on_wait, until), permit, self.permits)
        self._taken = [pair for pair in self._taken if pair[1].lock.status is not HoldStatus.FREE]
        self._taken.append((threading.get_ident(), permit))
        return permit

    def release(self) -> None:
        """
        Give back one permit that was taken through this object, the calling thread's latest if it has one.

        :raises LockLostError: if somebody has evicted its holder meanwhile
        :raises RuntimeError: if none is held
        """
        self._latest_of(threading.get_ident()).__exit__(None, None, None)

    def check(self) -> None:
        """
        Make sure that all permits that were taken through this object are still held.

        :raises LockLostError: if one was lost
        :raises LeaseExpiredError: if the lease of one has run out
        :raises LockNotHeldError: if none is held
        """
        held = [permit.lock for _, permit in self._taken if permit.lock.status is not HoldStatus.FREE]
        if not held:
            raise LockNotHeldError(f"no permit of {self.lock_file!r} is held through this object")
        for lock in held:
            lock.check()

    def __enter__(self) -> SoftReadWriteLock:
        return self.acquire().lock

    def __exit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        self._latest_of(threading.get_ident()).__exit__(exc_type, exc_value, traceback)


class AsyncSoftSemaphore(_Permits[AsyncAcquireReturnProxy]):
    """:class:`SoftSemaphore` for asyncio: the same parameters, files and promises; any task may release a permit."""

    async def acquire(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as in AsyncSoftReadWriteLock
        *,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> AsyncAcquireReturnProxy:
        """Take one permit; see :meth:`SoftSemaphore.acquire`. Its ``check()`` tells whether it is still held."""
        lock = AsyncSoftReadWriteLock._restore(self._settings)
        wait = Wait(lock._limit_of_call(timeout, blocking), on_wait, until)
        permit = await lock._acquire(Mode.READ, wait, self.permits)
        permit._held.use.may_move = True
        self._taken.append((asyncio.current_task(), permit))
        return permit

    async def release(self) -> None:
        """Give back one permit, the calling task's latest if it has one; see :meth:`SoftSemaphore.release`."""
        await self._latest_of(asyncio.current_task()).end()

    async def __aenter__(self) -> AsyncAcquireReturnProxy:
        return await self.acquire()

    async def __aexit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        await self._latest_of(asyncio.current_task()).__aexit__(exc_type, exc_value, traceback)
