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
from contextlib import suppress
from typing import Any, Final

import filelock
from dask.utils import SerializableLock
from distributed import Lock as DistributedLock

from nfsrwlock import FileLock
from nfsrwlock.driving import at_once, done
from nfsrwlock_core import LockError, Timeout

from .context import Caller
from .lock import Lock, LockMethods, RWLock

_FILE_LOCKS: Final = (filelock.BaseFileLock, FileLock)


class CombinedLock(LockMethods):
    """What :func:`combine` returns: a lock that is held while all its members are. It takes all of them, or none."""

    def __init__(self, locks: tuple[Any, ...]) -> None:
        #: The members, in the order in which they are taken.
        self.locks: Final = locks
        self._levels = []

    def __repr__(self) -> str:
        return f"combine({', '.join(map(repr, self.locks))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return combine, self.locks

    def _key(self) -> object:
        return tuple(lock if isinstance(lock, Lock) else _name_of(lock) for lock in self.locks)

    def _is_locked(self) -> bool:
        return bool(self._levels) or any(map(_is_locked, self.locks))

    def check(self) -> None:
        """Make sure that the caller still holds all locks on files; see :meth:`Lock.check`."""
        for lock in self.locks:
            if isinstance(lock, Lock):
                lock.check()

    def _level(self, caller: Caller) -> _Together:
        for lock in self.locks:
            if caller.is_coroutine and not isinstance(lock, Lock | DistributedLock):
                raise TypeError(
                    f"{lock!r} is a thread's lock and would block the event loop; take {self!r} in a thread, not in a "
                    "coroutine"
                )
        return _Together(self.locks, caller)


class _Together:
    # A combination, taken once: each member with a level of it.
    def __init__(self, locks: tuple[Any, ...], caller: Caller) -> None:
        self.caller = caller
        self._members: list[tuple[Any, Any]] = [
            (lock, lock._level(caller) if isinstance(lock, Lock) else _Foreign(lock)) for lock in locks
        ]

    async def take(self, seconds: float | None) -> None:
        deadline = None if seconds is None or seconds < 0 else time.monotonic() + seconds
        for lock, level in self._members:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not await (lock._try(level, left) if isinstance(lock, Lock) else level.take(left)):
                raise Timeout(repr(lock), "its acquire() returned False although it was to wait")

    async def end(self, by: Caller) -> bool:
        results: list[Any] = []
        for lock, level in reversed(self._members):
            try:
                results.append(await (lock._end(level, by) if isinstance(lock, Lock) else level.end()))
            except BaseException as error:
                results.append(error)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            # A signal's first: whoever gets that ends once more what it may have kept from its end.
            raise min(errors, key=lambda error: isinstance(error, LockError))
        return all(results)


class _Foreign:
    # A lock that is none of this module, taken once. Only its own methods know what a signal's exception leaves of it.
    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._is_held = False

    async def take(self, seconds: float | None) -> bool:
        # By position, for their names differ (multiprocessing says `block`).
        arguments: tuple[Any, ...] = () if seconds is None else (True, seconds) if seconds else (False,)
        if isinstance(self._lock, _FILE_LOCKS):  # their time-out comes first, and its end is an exception
            arguments = (seconds,)
        with suppress(filelock.Timeout):
            self._is_held = await done(self._lock.acquire(*arguments)) is not False
        return self._is_held

    async def end(self) -> bool:
        was_held, self._is_held = self._is_held, False
        return not was_held or await done(self._lock.release()) is not False


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
    for lock in sorted(_flat(locks), key=_strength, reverse=True):
        members.setdefault(_name_of(lock), lock)
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


def _strength(lock: Any) -> tuple[bool, bool]:
    # Of several locks on one file the strongest is taken. Others have nothing to be compared by.
    return (lock.mode == "write", lock._settings.at_most > 0) if isinstance(lock, Lock) else (False, False)


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


def _is_locked(lock: Any) -> bool:
    if hasattr(lock, "locked"):
        return bool(lock.locked())
    level = _Foreign(lock)
    is_free = at_once(level.take(0.0))
    at_once(level.end())
    return not is_free
