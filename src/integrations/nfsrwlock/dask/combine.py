"""
Several locks as one, taken by everybody in the same order.

Locks on files come first, by canonical path, and those of the process (HDF5's, for example) last: who waits for a file
must not keep its whole process from using a library.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Generator
from typing import Any, Final

from dask.utils import SerializableLock
from distributed import Lock as DistributedLock
from filelock import BaseFileLock

from nfsrwlock import FileLock
from nfsrwlock.driving import at_once, done
from nfsrwlock_core import LockNotHeldError, Timeout

from .context import Caller, thread_caller
from .lock import Lock, LockMethods, RWLock

_FILE_LOCKS: Final = (BaseFileLock, FileLock)


class CombinedLock(LockMethods):
    """What :func:`combine` returns: a lock that is held while all its members are. It takes all of them, or none."""

    def __init__(self, locks: tuple[Any, ...]) -> None:
        #: The members, in the order in which they are taken.
        self.locks: Final = locks
        # One entry for each time that it is held through this object: others may hold the process's locks.
        self._holds: list[bool] = []

    def __repr__(self) -> str:
        return f"combine({', '.join(map(repr, self.locks))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return combine, self.locks

    def _key(self) -> object:
        return tuple(lock if isinstance(lock, Lock) else _name_of(lock) for lock in self.locks)

    def _is_locked(self) -> bool:
        return bool(self._holds) or any(map(_is_locked, self.locks))

    def check(self) -> None:
        """Make sure that the caller still holds all locks on files; see :meth:`Lock.check`."""
        for lock in self.locks:
            if isinstance(lock, Lock):
                lock.check()

    async def _acquire(self, caller: Caller, seconds: float | None) -> None:
        for lock in self.locks:
            if caller.is_coroutine and not isinstance(lock, Lock | DistributedLock):
                raise TypeError(
                    f"{lock!r} is a thread's lock and would block the event loop; take {self!r} in a thread, not in a "
                    "coroutine"
                )
        deadline = None if seconds is None or seconds < 0 else time.monotonic() + seconds
        taken: list[Any] = []
        try:
            for lock in self.locks:
                if not await _take(lock, caller, deadline):
                    raise Timeout(repr(lock), "its acquire() returned False although it was to wait")
                taken.append(lock)
        except BaseException:
            await _release_all(taken, caller)
            raise
        self._holds.append(True)

    async def _release(self, caller: Caller) -> bool:
        try:
            self._holds.pop()
        except IndexError:
            raise LockNotHeldError(f"Released too often: {self!r} is not held through this object") from None
        results = await _release_all(self.locks, caller)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return all(result is not False for result in results)


def combine(*locks: Any) -> CombinedLock:
    """
    Return several locks as one, for example HDF5's and a file's: ``combine(HDF5_LOCK, rw.read)``.

    They are taken in one order everywhere: locks on files by canonical path, then all others. A file that is in it
    twice is taken once, exclusively if one of them is exclusive. Combinations, xarray's included, are taken apart;
    ``None`` is left out.

    :param locks: locks of this module, filelock's, and those with the methods of ``threading.Lock``, which are called
        by position: ``acquire()``, ``acquire(False)``, ``acquire(True, seconds)``, ``release()``, and ``locked()`` if
        there is one (``multiprocessing.Lock``, dask's and xarray's ``SerializableLock``, ``distributed.Lock``, …). None
        of asyncio's
    :raises TypeError: if one is no lock
    :raises ValueError: if there is none
    """
    members: dict[tuple[str, bytes], Any] = {}
    for lock in _flat(locks):
        name = _name_of(lock)
        known = members.setdefault(name, lock)
        if isinstance(lock, Lock) and _strength(lock) > _strength(known):
            members[name] = lock
    if not members:
        raise ValueError("there is nothing to combine: give at least one lock")
    return CombinedLock(tuple(members[name] for name in sorted(members)))


def _flat(locks: Any) -> Generator[Any, None, None]:
    xarray = sys.modules.get("xarray.backends.locks")  # nobody has a lock of xarray's who has not imported it
    combinations = CombinedLock if xarray is None else (CombinedLock, xarray.CombinedLock)
    for lock in locks:
        if isinstance(lock, combinations):
            yield from _flat(lock.locks)
        elif isinstance(lock, RWLock):
            raise TypeError(f"combine takes one view of {lock!r}: its read or its write")
        elif lock is not None:
            if isinstance(lock, type) or not (hasattr(lock, "acquire") and hasattr(lock, "release")):
                raise TypeError(f"a lock has acquire and release; {lock!r} has not")
            if inspect.iscoroutinefunction(lock.acquire):
                raise TypeError(f"{lock!r} is an asyncio lock of one event loop and cannot be combined; take it apart")
            yield lock


def _strength(lock: Lock) -> tuple[bool, bool]:
    return lock.mode == "write", lock._settings.at_most > 0


def _name_of(lock: Any) -> tuple[str, bytes]:
    # What names a lock in every process, in the order in which they are taken: those of this module come first. One
    # that no other process can have has only its identity.
    if isinstance(lock, Lock):
        return "", os.fsencode(lock.lock_path)
    name = f"{id(lock):x}"
    if isinstance(lock, SerializableLock):
        name = str(lock.token)
    elif isinstance(lock, DistributedLock):
        name = repr(lock.name)
    elif isinstance(lock, _FILE_LOCKS):
        directory, file = os.path.split(os.fsdecode(lock.lock_file))
        name = os.path.join(os.path.realpath(directory), file)
    return f"{type(lock).__module__}.{type(lock).__qualname__}", name.encode(errors="surrogateescape")


async def _take(lock: Any, caller: Caller, deadline: float | None) -> bool:
    seconds = None if deadline is None else max(deadline - time.monotonic(), 0.0)
    if isinstance(lock, Lock):
        return await lock._try(caller, seconds)
    if isinstance(lock, _FILE_LOCKS):  # their time-out comes first, and its end is an exception
        try:
            lock.acquire(seconds)
        except TimeoutError:
            return False
        return True
    # By position, for their names differ (multiprocessing says `block`).
    result = lock.acquire() if seconds is None else lock.acquire(True, seconds) if seconds else lock.acquire(False)
    return await done(result) is not False


async def _release_all(locks: Any, caller: Caller) -> list[Any]:
    # Returns the result, or the error, of each.
    results: list[Any] = []
    for lock in reversed(locks):
        try:
            result = lock._release(caller) if isinstance(lock, Lock) else lock.release()
            results.append(await done(result))
        except BaseException as error:
            results.append(error)
    return results


def _is_locked(lock: Any) -> bool:
    if hasattr(lock, "locked"):
        return bool(lock.locked())
    if at_once(_take(lock, thread_caller(), 0.0)):
        lock.release()
        return False
    return True
