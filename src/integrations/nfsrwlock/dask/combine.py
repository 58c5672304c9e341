"""
Several locks as one, taken by everybody in the same order.

xarray's own combination sorts by ``id()``, which differs from process to process, and takes two objects on one path for
two locks, of which the second waits for the first. Here locks on files come first, by canonical path, and those of the
process (HDF5's, for example) last: who waits for a file must not keep its whole process from using a library.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Generator
from types import TracebackType
from typing import Any, Final, Self

from dask.base import tokenize
from distributed import Lock as DistributedLock

from nfsrwlock_core import LockNotHeldError, Timeout

from .awaiting import Awaitable
from .lock import Lock, Time
from .place import Caller, coroutine_caller, is_on_dask_loop, task_owner
from .rwlock import RWLock
from .settings import limit


class CombinedLock:
    """
    What :func:`combine` returns: a lock that is held while all its members are.

    :param locks: the members, in the order in which they are taken
    """

    def __init__(self, locks: tuple[Any, ...]) -> None:
        #: The members, in the order in which they are taken.
        self.locks: Final = locks
        self._mutex = threading.Lock()
        self._taken = 0

    def __repr__(self) -> str:
        return f"combine({', '.join(map(repr, self.locks))})"

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, CombinedLock) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __dask_tokenize__(self) -> object:
        return "nfsrwlock.dask.combine", [tokenize(lock) for lock in self.locks]

    def __reduce__(self) -> tuple[Any, ...]:
        return combine, self.locks

    def _key(self) -> tuple[Any, ...]:
        return tuple(lock if isinstance(lock, Lock) else _foreign_key(lock) for lock in self.locks)

    def acquire(self, blocking: bool = True, timeout: Time | None = None) -> Any:
        """
        Take all locks, or none. On Dask's event loop, await the result.

        Parameters, result and errors are those of :meth:`Lock.acquire`; the time-out is for all of them together.

        :raises TypeError: in a coroutine, if a member is a thread's lock
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify a timeout for a non-blocking call")
        seconds = None if timeout is None else limit("timeout", timeout)
        if is_on_dask_loop():
            call = self._acquire_async(blocking, seconds, coroutine_caller())
            return Awaitable(call, f"acquire() of {self!r}", is_try=not blocking)
        return self._acquire(blocking, seconds)

    def release(self) -> Any:
        """
        Give all locks back. On Dask's event loop, await the result.

        :returns: ``True``; ``False`` if a member says so
        :raises RuntimeError: if one is not held; the others are given back
        :raises LockLostError: if a hold was lost before
        """
        if is_on_dask_loop():
            return Awaitable(self._release_async(coroutine_caller()), f"release() of {self!r}")
        return self._release()

    def locked(self) -> bool:
        """Whether any of the members is locked. Takes file-system calls."""
        return any(lock._is_locked() if isinstance(lock, Lock) else _is_foreign_locked(lock) for lock in self.locks)

    def check(self) -> None:
        """Make sure that the caller still holds all locks on files; see :meth:`Lock.check`."""
        for lock in self.locks:
            if isinstance(lock, Lock):
                lock.check()

    def __await__(self) -> Generator[Any, None, Self]:
        async def ready() -> Self:
            return self

        return ready().__await__()

    def __enter__(self) -> Self:
        if is_on_dask_loop():
            raise RuntimeError(f"'with' on {self!r} would block Dask's event loop; in a coroutine use 'async with'")
        self._acquire(True, None)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._count(-1)
        _, error = _release_all(list(self.locks))
        if error is not None and exc_value is None:
            raise error

    async def __aenter__(self) -> Self:
        await self._acquire_async(True, None, coroutine_caller())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._count(-1)
        _, error = await _release_all_async(list(self.locks), coroutine_caller())
        if error is not None and exc_value is None:
            raise error

    def _acquire(self, blocking: bool, seconds: float | None) -> bool:
        deadline = _deadline(seconds)
        taken: list[Any] = []
        try:
            for lock in self.locks:
                if _taken(lock, blocking, deadline) is False:
                    _refuse_failure(lock, blocking, seconds)
                    _release_all(taken)
                    return False
                taken.append(lock)
        except BaseException:
            _release_all(taken)
            raise
        self._count(1)
        return True

    async def _acquire_async(self, blocking: bool, seconds: float | None, caller: Caller | None) -> bool:
        self._refuse_thread_locks()
        deadline = _deadline(seconds)
        taken: list[Any] = []
        try:
            for lock in self.locks:
                if await _acquired(lock, blocking, deadline, caller) is False:
                    _refuse_failure(lock, blocking, seconds)
                    await _release_all_async(taken, caller)
                    return False
                taken.append(lock)
        except BaseException:
            await _release_all_async(taken, caller)
            raise
        self._count(1)
        return True

    def _count(self, by: int) -> None:
        # A lock of the process may be held by others, through other combinations: what was not taken through this
        # object must not be given back through it.
        with self._mutex:
            if self._taken + by < 0:
                raise LockNotHeldError(f"Released too often: {self!r} is not held through this object")
            self._taken += by

    def _release(self) -> bool:
        self._count(-1)
        results, error = _release_all(list(self.locks))
        if error is not None:
            raise error
        return all(result is not False for result in results)

    async def _release_async(self, caller: Caller | None) -> bool:
        self._count(-1)
        results, error = await _release_all_async(list(self.locks), caller)
        if error is not None:
            raise error
        return all(result is not False for result in results)

    def _refuse_thread_locks(self) -> None:
        for lock in self.locks:
            if not isinstance(lock, Lock | DistributedLock):
                raise TypeError(
                    f"{lock!r} is a thread's lock and would block the event loop; take {self!r} in a thread, not in a "
                    "coroutine"
                )


def combine(*locks: Any) -> CombinedLock:
    """
    Return several locks as one, for example HDF5's and a file's: ``combine(HDF5_LOCK, rw.read)``.

    They are taken in one order everywhere: locks on files by canonical path, then all others. A file that is in it
    twice is taken once, exclusively if one of them is exclusive. Combinations, xarray's included, are taken apart;
    ``None`` is left out.

    :param locks: locks of this module, and others that have ``acquire`` and ``release`` (``threading.Lock``, dask's
        and xarray's ``SerializableLock``, ``distributed.Lock``, filelock's ``FileLock``, …), but none of asyncio's
    :raises TypeError: if one is no lock
    :raises ValueError: if there is none
    """
    files: dict[str, Lock] = {}
    others: dict[Any, Any] = {}
    for lock in _flat(locks):
        if isinstance(lock, Lock):
            known = files.get(lock.lock_path)
            if known is None or (known.mode == "read" and lock.mode == "write"):
                files[lock.lock_path] = lock
        else:
            others.setdefault(_foreign_key(lock), lock)
    if not files and not others:
        raise ValueError("there is nothing to combine: give at least one lock")
    in_order = [files[path] for path in sorted(files, key=os.fsencode)]
    return CombinedLock((*in_order, *(others[key] for key in sorted(others))))


def _flat(locks: Any) -> Generator[Any, None, None]:
    for lock in locks:
        if lock is None:
            continue
        if isinstance(lock, RWLock):
            raise TypeError(f"combine takes one view of {lock!r}: its read or its write")
        acquire, release = getattr(lock, "acquire", None), getattr(lock, "release", None)
        if isinstance(lock, type) or not callable(acquire) or not callable(release):
            raise TypeError(f"a lock has acquire and release; {lock!r} has not")
        if inspect.iscoroutinefunction(acquire):
            raise TypeError(f"{lock!r} is an asyncio lock of one event loop and cannot be combined; take it apart")
        members = getattr(lock, "locks", None)
        if isinstance(members, tuple | list) and type(lock).__name__ == "CombinedLock":
            yield from _flat(members)
        else:
            yield lock


def _foreign_key(lock: Any) -> tuple[str, str]:
    # What names a lock in every process, if anything does; a lock that no other process can have sorts by identity.
    kind = f"{type(lock).__module__}.{type(lock).__qualname__}"
    for attribute in ("token", "name", "lock_file"):
        if isinstance(name := getattr(lock, attribute, None), str):
            return kind, name
    return kind, f"{id(lock):x}"


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None or seconds < 0 else time.monotonic() + seconds


def _taken(lock: Any, blocking: bool, deadline: float | None) -> Any:
    arguments = _arguments(blocking, deadline)
    if not arguments or isinstance(lock, Lock) or _first_parameter(lock.acquire) != "timeout":
        return lock.acquire(*arguments)
    try:  # filelock's shape: the time-out comes first, and its end is an exception
        return lock.acquire(arguments[-1] if blocking else 0)
    except TimeoutError:
        return False


def _first_parameter(function: Any) -> str:
    try:
        return next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):  # of C code
        return ""


def _is_foreign_locked(lock: Any) -> bool:
    if (locked := getattr(lock, "locked", None)) is not None:
        return bool(locked())
    if getattr(lock, "is_locked", False) is True or _taken(lock, False, None) is False:
        return True
    lock.release()  # filelock's tell only of themselves, RLock and those of multiprocessing nothing: so it was tried
    return False


def _arguments(blocking: bool, deadline: float | None) -> tuple[Any, ...]:
    # By position, for their names differ (multiprocessing says `block`).
    if not blocking:
        return (False,)
    return () if deadline is None else (True, max(deadline - time.monotonic(), 0.0))


async def _acquired(lock: Any, blocking: bool, deadline: float | None, caller: Caller | None) -> Any:
    arguments = _arguments(blocking, deadline)
    if not isinstance(lock, Lock):
        return await lock.acquire(*arguments)
    seconds = lock._settings.timeout if not arguments else 0.0 if not blocking else arguments[1]
    return await lock._acquire_async(seconds, may_fail=bool(arguments), caller=caller)


def _refuse_failure(lock: Any, blocking: bool, seconds: float | None) -> None:
    # dask.array.store and others do not look at the result of an acquire that may wait.
    if blocking and seconds is None:
        raise Timeout(repr(lock), "its acquire() returned False although it was to wait")


def _release_all(locks: list[Any]) -> tuple[list[Any], Exception | None]:
    results: list[Any] = []
    first: Exception | None = None
    for lock in reversed(locks):
        try:
            results.append(lock.release())
        except Exception as error:
            first = first or error
    return results, first


async def _release_all_async(locks: list[Any], caller: Caller | None) -> tuple[list[Any], Exception | None]:
    owner = task_owner() if caller is None else caller.owner
    results: list[Any] = []
    first: Exception | None = None
    for lock in reversed(locks):
        try:
            result = lock._release_async(lock._let_go(owner), False) if isinstance(lock, Lock) else lock.release()
            results.append(await result if inspect.isawaitable(result) else result)
        except Exception as error:
            first = first or error
    return results, first
