"""
A shared hold that lasts as long as memory maps do.

The hold hangs on the ``mmap`` object below an array, which every view of the array keeps alive. What it does not cover:
maps of the same file that another process has opened by name, as joblib's children do with an array that is passed to
them; they are safe while the parent keeps its array.
"""

from __future__ import annotations

import gc
import mmap
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Final

from nfsrwlock_core import SoftReadWriteLock, WaitInfo

_NO_DATA: Final = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType)

#: The holds of maps that live in this process, by what they lock.
_living: Final[dict[str, list[_Hold]]] = {}
_mutex: Final = threading.RLock()  # re-entrant: a finaliser may run anywhere, in here, too


def is_mapped_here(lock_file: str) -> bool:
    """Whether a living memory map of this process holds the lock on ``lock_file``."""
    return lock_file in _living


class Borrowed(Exception):
    """Ends a wait: a living memory map of this process holds the lock, and its hold is borrowed."""


class Loan:
    """
    The hold of a memory map of this process, kept for a reader, beyond the map's end if need be.

    Whoever reads what this process has mapped already would wait behind a writer that waits for the map.

    :param lock_file: on which it is held
    """

    def __init__(self, lock_file: str) -> None:
        self._lock_file: Final = lock_file
        self._hold: _Hold | None = None

    @property
    def lock(self) -> SoftReadWriteLock | None:
        """The lock by which it is held; ``None`` if nothing is borrowed."""
        return None if self._hold is None else self._hold.lock

    def instead_of_waiting(self, info: WaitInfo) -> None:
        """
        Take up the loan, if there is a hold that stands. To be called at each pause of an acquire.

        :raises Borrowed: if it is taken up
        """
        with _mutex:
            for hold in list(_living.get(self._lock_file, ())):
                if hold.lock.is_locked:
                    hold.count += 1
                    self._hold = hold
                    raise Borrowed

    def give_back(self) -> None:
        """End the loan; does nothing if there is none."""
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.one_less()


def maps_in(value: object) -> list[mmap.mmap]:
    """
    Return the memory maps that ``value`` refers to, however deeply.

    Objects of C types that hide their references from the garbage collector are not looked into, but for NumPy's.
    """
    found: dict[int, mmap.mmap] = {}
    seen: set[int] = set()
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _NO_DATA):
            continue
        seen.add(id(item))
        if isinstance(item, mmap.mmap):
            found[id(item)] = item
            continue
        waiting.extend(gc.get_referents(item))
        if hasattr(item, "__array_interface__") or hasattr(item, "dtype"):  # NumPy's arrays tell the collector nothing
            waiting.append(getattr(item, "base", None))
            if getattr(getattr(item, "dtype", None), "hasobject", False):
                waiting.extend(getattr(item, "flat", ()))
    return list(found.values())


class _Hold:
    def __init__(self, lock_file: str, lock: SoftReadWriteLock, count: int, release: Callable[[], object]) -> None:
        self._lock_file: Final = lock_file
        self.lock: Final = lock
        self.count = count
        self._release: Final = release

    def one_less(self) -> None:
        with _mutex:
            self.count -= 1
            if self.count:
                return
            others = [hold for hold in _living.get(self._lock_file, ()) if hold is not self]
            if others:
                _living[self._lock_file] = others
            else:
                _living.pop(self._lock_file, None)
        self._release()


def keep_for(maps: list[mmap.mmap], lock_file: str, lock: SoftReadWriteLock, release: Callable[[], object]) -> None:
    """
    Let a shared hold end when the last of ``maps`` is gone.

    :param lock_file: on which it is held
    :param lock: by which it is held
    :param release: ends it, from whatever thread; in a forked child it must do nothing
    """
    hold = _Hold(lock_file, lock, len(maps), release)
    with _mutex:
        _living[lock_file] = [*_living.get(lock_file, ()), hold]
    for one in maps:
        weakref.finalize(one, hold.one_less).atexit = False  # at exit the core releases what is held
