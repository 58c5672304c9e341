"""
``distributed.Lock``'s contract on a file.

The object is a name and settings; holds hang on it only where they were taken. It pickles as name and settings, and so
two objects with one name exclude each other wherever they are.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Generator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from distributed import Reschedule
from distributed.metrics import context_meter

from nfsrwlock_core import LockNotHeldError, Timeout, inspect

from . import holds
from .awaiting import Awaitable
from .contention import Refusal, pauses_of_coroutine, wait_for
from .grip import CoroutineGrip, Grip, OnWait, Taker, ThreadGrip
from .ledger import ledger
from .names import encoded, fresh_name, path_of
from .place import Caller, Owner, coroutine_caller, coroutine_key, is_on_dask_loop, task_owner, thread_owner
from .settings import Heartbeat, Mode, OnContention, Settings, limit, settings_of

Time = float | str | timedelta


class Lock:
    """
    A lock in the place of ``distributed.Lock``: the same methods, but it lives beside the file that it protects.

    On Dask's event loop its methods return awaitables, and elsewhere they wait, by the rule of ``distributed`` itself.
    It is bound to no thread and not re-entrant: a second ``acquire`` waits for a ``release``. Reading is different in
    one point: a thread, or an asyncio task, that holds the path through any lock of this module joins its own hold.

    Where it differs from ``distributed.Lock``: no client is needed; ``with`` in a coroutine on Dask's loop raises,
    where the original would run the block without the lock; an acquire that may wait as long as it takes raises when it
    cannot succeed, and never returns ``False``; and a hold that was lost makes :meth:`release` and the end of a
    ``with`` block raise :class:`~nfsrwlock.LockLostError`.

    :param name: a path (it has a slash in it, or is a path object), or any other name, whose lock then lives below
        ``nfsrwlock.root`` of Dask's configuration; ``None``: a name that nobody else has
    :param scheduler_rpc: ignored; there for ``distributed.Lock``'s sake
    :param loop: the Tornado loop that counts as Dask's; ``None``: the current worker's or client's
    :param mode: ``"write"`` for exclusive, ``"read"`` for shared
    :param timeout: how long ``with`` and an acquire without a limit of its own wait (seconds, ``"200ms"``, timedelta);
        they raise :class:`~nfsrwlock.Timeout` when it is over; ``None``: no limit
    :param on_contention: in a task that would wait: ``"block"``; ``"reschedule"``: let the task start over later;
        ``"secede"``: leave the worker's thread pool
    :param heartbeat: ``"thread"``, ``"process"`` or ``"auto"``: a process on Dask's workers, a thread elsewhere
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if one is out of range, or the name is no path and no root is configured

    The other parameters are those of :class:`nfsrwlock.SoftReadWriteLock`; times may be given in every form that Dask
    takes. What is ``None`` is taken from Dask's configuration, where and when the lock is made; it then travels with
    the lock.
    """

    def __init__(
        self,
        name: str | os.PathLike[str] | None = None,
        scheduler_rpc: Any = None,
        loop: Any = None,
        *,
        mode: Mode = "write",
        timeout: Time | None = None,
        on_contention: OnContention | None = None,
        heartbeat: Heartbeat | None = None,
        heartbeat_interval: Time | None = None,
        stale_threshold: Time | None = None,
        poll_interval: Time | None = None,
        share: str | None = None,
        lock_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        name = fresh_name() if name is None else name
        settings = settings_of(
            path_of(name),
            mode=mode,
            timeout=timeout,
            on_contention=on_contention,
            heartbeat=heartbeat,
            heartbeat_interval=heartbeat_interval,
            stale_threshold=stale_threshold,
            poll_interval=poll_interval,
            share=share,
            lock_dir=lock_dir,
        )
        self._set_up(os.fsdecode(name), settings, loop)

    def _set_up(self, name: str, settings: Settings, loop: Any = None) -> None:
        #: As it was given.
        self.name = name
        self._settings = settings
        self._loop = loop
        self._taker = Taker(settings)
        self._mutex = threading.Lock()
        self._grips: list[Grip] = []

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The path that is protected, canonical and absolute."""
        return self._settings.path

    @property
    def lock_path(self) -> str:
        """The directory where the lock lives."""
        return self._settings.lock_path

    @property
    def mode(self) -> Mode:
        """``"read"`` or ``"write"``."""
        return self._settings.mode

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.mode}>"

    def __eq__(self, other: object) -> bool:
        return self._settings == other._settings if isinstance(other, Lock) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._settings)

    def __dask_tokenize__(self) -> object:
        return "nfsrwlock.dask.Lock", tuple(self._settings.token().items())

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (self.name, self._settings, type(self))

    #: With ``__getitem__`` alone Python would take a lock for an endless sequence.
    __iter__ = None

    def __getitem__(self, key: str) -> Lock:
        """
        Return the lock on one key of a store at this lock's path: what zarr 2 asks of a ``synchronizer``.

        These locks live in the directory ``<path>.keys``, which the first of them that is taken makes. This lock and
        they know nothing of each other. They are always synchronous, for zarr 2 is, also where Dask unpickles one of
        its arrays on the event loop.

        :raises TypeError: if ``key`` is no string
        """
        if not isinstance(key, str):
            raise TypeError(f"a store's key must be a string, not {type(key).__name__}")
        path = os.path.join(f"{self.path}.keys", encoded(key))
        return restored(path, self._settings.at(path), _KeyLock)

    # -- distributed.Lock's methods -----------------------------------------------------------------------------------

    def acquire(self, blocking: bool = True, timeout: Time | None = None) -> Any:
        """
        Take the lock. On Dask's event loop, await the result.

        :param blocking: ``False``: do not wait
        :param timeout: how long to wait: seconds, ``"200ms"`` or a timedelta; ``None``: as the lock says
        :returns: ``True``; ``False`` if it could not be had and ``blocking=False`` or ``timeout=`` allowed for that
        :raises ValueError: if a time-out is given for a call that is not to wait
        :raises Timeout: if the lock's own time-out is over
        :raises distributed.Reschedule: in a task, with ``on_contention="reschedule"``
        :raises LockPathError: if the lock cannot live at its path
        :raises RuntimeError: if this very thread holds the path shared and asks for it exclusively without a limit
        """
        may_fail = not blocking or timeout is not None
        if not blocking:
            if timeout is not None:
                raise ValueError("can't specify a timeout for a non-blocking call")
            seconds = 0.0
        else:
            seconds = self._settings.timeout if timeout is None else limit("timeout", timeout)
        if self._is_async():
            # Whoever calls here asks for the lock, not the task that asyncio.wait_for and others make of the call.
            call = self._acquire_async(seconds, may_fail=may_fail, caller=coroutine_caller())
            return Awaitable(call, f"acquire() of {self!r}", is_try=not blocking)
        return self._acquire(seconds, may_fail=may_fail)

    def release(self) -> Any:
        """
        Give the lock back: the caller's own hold if it has one, else the oldest. On Dask's loop, await the result.

        :returns: ``True``; ``False`` if the hold was lost and another exception is on its way already
        :raises RuntimeError: if the lock is not held through this object
        :raises LockLostError: if the hold was lost before, so that what was done under it may overlap with others
        """
        if self._is_async():
            with self._mutex:
                self._refuse_if_free(self._own_grips())
            return Awaitable(self._release_later(_owner_here(), _is_unwinding()), f"release() of {self!r}")
        return self._release(self._let_go(thread_owner()), _is_unwinding())

    def locked(self) -> Any:
        """
        Whether anybody anywhere holds the lock in a way that excludes this one. On Dask's loop, await the result.

        A snapshot, for people: by the time it is returned it may be wrong.
        """
        return self._sync(self._is_locked, "locked()")

    def get_value(self) -> Any:
        """Return how many hold the lock, readers included, wherever they are. On Dask's loop, await the result."""
        return self._sync(self._count_holders, "get_value()")

    def register(self, **_: object) -> Any:
        """Do nothing: a lock on files need not be registered. On Dask's loop, await the result."""
        return self._sync(lambda: None, "register()")

    def close(self) -> Any:
        """
        Give back what is held through this object. On Dask's loop, await the result.

        ``distributed.Lock`` forgets the lock for everybody; here others keep what they hold.

        :raises LockLostError: if a hold was lost before
        """
        return self._close_async() if self._is_async() else self._close()

    def __await__(self) -> Generator[Any, None, Self]:
        async def ready() -> Self:
            return self

        return ready().__await__()

    def check(self) -> None:
        """
        Make sure that the caller still holds the lock. Costs no file-system call; call it right before publishing.

        :raises LockLostError: if somebody has evicted this holder
        :raises LeaseExpiredError: if the lease has run out, so that somebody may have
        :raises LockNotHeldError: if the lock is not held through this object
        """
        owner = _owner_here()
        with self._mutex:
            grips = self._own_grips()
        mine = [grip for grip in grips if grip.owner == owner] or grips
        if not mine:
            raise LockNotHeldError(f"the lock on {self.path!r} is not held through this object")
        for grip in mine:
            grip.check()

    # -- with ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._is_async():
            raise RuntimeError(
                f"'with' on the lock {self.name!r} would block Dask's event loop; in a coroutine use 'async with'"
            )
        self._acquire(self._settings.timeout, may_fail=False)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release(self._let_go(thread_owner()), exc_value is not None)

    async def __aenter__(self) -> Self:
        await self._acquire_async(self._settings.timeout, may_fail=False)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._release_async(self._let_go(task_owner()), exc_value is not None)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _is_async(self) -> bool:
        return is_on_dask_loop(self._loop)

    def _sync(self, call: Callable[[], Any], name: str) -> Any:
        return Awaitable(_in_thread(call), f"{name} of {self!r}") if self._is_async() else call()

    def _acquire(self, timeout: float, *, may_fail: bool) -> bool:
        owner = thread_owner()
        if self._join(owner):
            return True
        self._refuse_upgrade(owner, timeout)

        def take(seconds: float, on_wait: OnWait) -> ThreadGrip:
            return self._taker.take(owner, seconds, on_wait)

        try:
            grip = wait_for(take, self._settings, timeout)
        except Timeout:
            if may_fail:
                return False
            raise
        self._hold(grip)
        return True

    async def _acquire_async(self, seconds: float, *, may_fail: bool, caller: Caller | None = None) -> bool:
        caller = caller or Caller(task_owner(), coroutine_key())
        owner = caller.owner
        if self._join(owner):
            return True
        self._refuse_upgrade(owner, seconds)
        settings, key = self._settings, caller.key
        refuse = Refusal(key)
        try:
            with ledger.waiting(settings.mode, settings.path), context_meter.meter("nfsrwlock-wait"):
                grip: CoroutineGrip = await self._taker.take_async(owner, seconds, pauses_of_coroutine(key, refuse))
        except Timeout:
            if may_fail:
                return False
            raise
        try:
            refuse.at_grant()
        except Reschedule:
            await grip.end_async()
            raise
        self._hold(grip)
        return True

    def _hold(self, grip: Grip) -> None:
        holds.enter(grip)
        with self._mutex:
            self._grips.append(grip)

    def _join(self, owner: Owner) -> bool:
        # Waiting behind a writer who waits for us would never end, and a thread cannot overlap with itself.
        if self.mode == "write":
            return False
        grip = holds.join(self.lock_path, owner)
        if grip is None:
            return False
        with self._mutex:
            self._grips.append(grip)
        return True

    def _refuse_upgrade(self, owner: Owner, timeout: float) -> None:
        if timeout < 0 and holds.is_reader(self.lock_path, owner):
            raise RuntimeError(
                f"cannot take the write lock on {self.path!r}: the caller holds it shared, and would wait for itself; "
                "release the read lock first"
            )

    def _own_grips(self) -> list[Grip]:
        pid = os.getpid()
        self._grips = [grip for grip in self._grips if grip.pid == pid]  # after a fork they are the parent's
        return list(self._grips)

    def _refuse_if_free(self, grips: list[Grip]) -> None:
        if not grips:
            raise LockNotHeldError(f"Released too often: the lock on {self.path!r} is not held through this object")

    def _let_go(self, owner: Owner) -> Grip:
        with self._mutex:
            grips = self._own_grips()
            self._refuse_if_free(grips)
            grip = next((grip for grip in reversed(grips) if grip.owner == owner), grips[0])
            self._grips.remove(grip)
        return grip

    def _release(self, grip: Grip, is_unwinding: bool) -> bool:
        with holds.leaving(grip, is_unwinding) as verdict:
            if verdict.is_last:
                grip.end()
            else:
                grip.check()
        return verdict.stood

    async def _release_later(self, owner: Owner, is_unwinding: bool) -> bool:
        # The hold is let go when this is awaited: else one whose release nobody awaits could not be released any more.
        return await self._release_async(self._let_go(owner), is_unwinding)

    async def _release_async(self, grip: Grip, is_unwinding: bool) -> bool:
        with holds.leaving(grip, is_unwinding) as verdict:
            if verdict.is_last:
                await grip.end_async()
            else:
                grip.check()
        return verdict.stood

    def _close(self) -> None:
        try:
            while self._is_held():
                self._release(self._let_go(thread_owner()), False)
        finally:  # the others, where one was lost
            if self._is_held():
                self._close()

    async def _close_async(self) -> None:
        try:
            while self._is_held():
                await self._release_async(self._let_go(task_owner()), False)
        finally:
            if self._is_held():
                await self._close_async()

    def _is_held(self) -> bool:
        with self._mutex:
            return bool(self._own_grips())

    def _is_locked(self) -> bool:
        holders = inspect(self.path, lock_dir=self._settings.lock_dir).holders
        return any(peer.mode != "read" or self.mode == "write" for peer in holders)

    def _count_holders(self) -> int:
        return len(inspect(self.path, lock_dir=self._settings.lock_dir).holders)


class _KeyLock(Lock):
    def _is_async(self) -> bool:
        return False


def _owner_here() -> Owner:
    try:
        return task_owner()
    except (RuntimeError, AssertionError):
        return thread_owner()


def _is_unwinding() -> bool:
    return sys.exc_info()[0] is not None


async def _in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(call)


def restored(name: str, settings: Settings, kind: type[Lock] = Lock) -> Lock:
    """Return a lock with these settings, not held."""
    lock = kind.__new__(kind)
    lock._set_up(name, settings)
    return lock
