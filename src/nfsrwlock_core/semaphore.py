"""
Counting semaphores, named by a path: at most so many permits are held at a time, on all hosts together.

A permit is a shared hold with a limit, on the same engine as all holds; see ``at_most`` of
:meth:`SoftReadWriteLock.acquire_read`.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Generic, TypeVar, Unpack

from .aio import AsyncAcquireReturnProxy, AsyncSoftReadWriteLock
from .errors import LockError, LockNotHeldError
from .holding.hold import HoldStatus
from .holding.waiting import OnWait, Until, Wait
from .inspection import list_lock
from .lock import AcquireReturnProxy, SoftReadWriteLock
from .names import Mode
from .settings import HasSettings, Options, Settings, checked_limit
from .system.paths import AnyPath

_Permit = TypeVar("_Permit", AcquireReturnProxy, AsyncAcquireReturnProxy)


class _Permits(HasSettings, Generic[_Permit]):
    # What both kinds have in common: the settings, and what is held through this object, each by whom.
    def __init__(self, lock_file: AnyPath, permits: int = 1, timeout: float = -1, **options: Unpack[Options]) -> None:
        lock = SoftReadWriteLock(lock_file, timeout, is_singleton=False, **options)
        self._set_up(replace(lock._settings, permits=checked_limit("permits", permits)))

    def _set_up(self, settings: Settings) -> None:
        super()._set_up(settings)
        self._taken: dict[_Permit, object] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.permits} on {self.lock_file!r}>"

    @property
    def permits(self) -> int:
        """How many may be held at a time."""
        return self._settings.permits

    @property
    def value(self) -> int:
        """
        How many permits nobody holds, as one listing shows it; others may take them at any moment.

        :raises LockPathError: if the lock directory cannot be read
        """
        try:
            peers = list_lock(self.lock_path).announcements.values()
        except FileNotFoundError:
            return self.permits
        return max(self.permits - sum(peer.mode is Mode.READ and peer.at_most > 0 for peer in peers), 0)

    def _held(self) -> list[_Permit]:
        # The latest last. What has ended otherwise, such as with a block on what its acquire returned, is forgotten.
        # Several threads may be here at a time, so each look and each change is one call.
        for permit in list(self._taken):
            if not self._stands(permit):
                self._taken.pop(permit, None)
        return list(self._taken)

    def _latest(self, whose: object) -> _Permit:
        # The caller's latest, or else anybody's.
        held = self._held()
        if not held:
            raise LockNotHeldError(f"cannot release a permit of {self.lock_file!r}: none is held through this object")
        return next((permit for permit in reversed(held) if self._taken.get(permit) == whose), held[-1])

    def _stands(self, permit: _Permit) -> bool:
        # Whether nobody has given it back. Those that a forked child has of its parent stay, and do nothing there.
        raise NotImplementedError


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

    The other parameters are those of :class:`SoftReadWriteLock` but ``is_singleton``.
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
        permit = AcquireReturnProxy(SoftReadWriteLock._restore(self._settings), may_move=True)
        try:
            self._take(permit, Wait(permit.lock._limit_of_call(timeout, blocking), on_wait, until))
            return permit
        except BaseException:
            self._drop(permit)
            raise

    def _take(self, permit: AcquireReturnProxy, wait: Wait) -> None:
        permit.lock._acquire(Mode.READ, wait, permit, self.permits)
        self._held()
        self._taken[permit] = threading.get_ident()

    def _drop(self, permit: AcquireReturnProxy) -> None:
        self._taken.pop(permit, None)
        permit.lock._abandon(permit)

    def _stands(self, permit: AcquireReturnProxy) -> bool:
        return permit._use is not None

    def release(self) -> None:
        """
        Give back one permit that was taken through this object, the calling thread's latest if it has one.

        :raises LockLostError: if somebody has evicted its holder meanwhile
        :raises RuntimeError: if none is held
        """
        self.__exit__(None, None, None)

    def check(self) -> None:
        """
        Make sure that all permits that were taken through this object are still held.

        :raises LockLostError: if one was lost
        :raises LeaseExpiredError: if the lease of one has run out
        :raises LockNotHeldError: if none is held
        """
        held = [permit.lock for permit in self._held() if permit.lock.status is not HoldStatus.FREE]
        if not held:
            raise LockNotHeldError(f"no permit of {self.lock_file!r} is held through this object")
        for lock in held:
            lock.check()

    def __enter__(self) -> SoftReadWriteLock:
        permit = AcquireReturnProxy(SoftReadWriteLock._restore(self._settings), may_move=True)
        try:
            self._take(permit, Wait(permit.lock._limit_of_call(None, None)))
            return permit.lock
        except BaseException:
            self._drop(permit)
            raise

    def __exit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        permit: AcquireReturnProxy | None = None
        try:
            while permit is None or self._taken.pop(permit, None) is None:  # another thread was faster
                permit = self._latest(threading.get_ident())
            permit.__exit__(exc_type, exc_value, traceback)
        except LockError:
            raise
        except BaseException:
            # A signal's exception came between. What the block's end was to give back must go all the same.
            self._drop(permit or self._latest(threading.get_ident()))
            raise


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
        self._held()
        self._taken[permit] = asyncio.current_task()
        return permit

    async def release(self) -> None:
        """Give back one permit, the calling task's latest if it has one; see :meth:`SoftSemaphore.release`."""
        await self.__aexit__(None, None, None)

    def _stands(self, permit: AsyncAcquireReturnProxy) -> bool:
        return permit._held.forgotten.alive

    async def __aenter__(self) -> AsyncAcquireReturnProxy:
        return await self.acquire()

    async def __aexit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        permit = self._latest(asyncio.current_task())
        self._taken.pop(permit, None)
        await permit.__aexit__(exc_type, exc_value, traceback)
