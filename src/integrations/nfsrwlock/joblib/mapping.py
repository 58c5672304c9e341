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

from nfsrwlock_core import SoftReadWriteLock

_NO_DATA: Final = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType)

#: The holds of maps that live in this process, by what they lock.
_living: Final[dict[str, list[MapHold]]] = {}
_mutex: Final = threading.RLock()  # re-entrant: a finaliser may run anywhere, in here, too


class MapHold:
    """
    The hold of memory maps, and of those who borrow it.

    :param lock: by which it is held
    :param count: of its users
    :param release: ends it, from whatever thread; in a forked child it must do nothing
    """

    def __init__(self, lock: SoftReadWriteLock, count: int, release: Callable[[], object]) -> None:
        self.lock: Final = lock
        self._count = count
        self._release: Final = release

    def leave(self) -> None:
        """End it for one user, and altogether if that was the last one."""
        with _mutex:
            self._count -= 1
            if self._count:
                return
            others = [hold for hold in _living.pop(self.lock.lock_file, ()) if hold is not self]
            if others:
                _living[self.lock.lock_file] = others
        self._release()

    def _join(self) -> MapHold:
        self._count += 1
        return self


def is_mapped_here(lock_file: str) -> bool:
    """Whether a living memory map of this process holds the lock on ``lock_file``."""
    return lock_file in _living


def borrow(lock_file: str) -> MapHold | None:
    """
    Use the hold of a memory map of this process, beyond the map's end if need be; ``None``: there is none.

    Whoever reads what this process has mapped already would wait behind a writer that waits for the map.
    """
    with _mutex:
        return next((hold._join() for hold in list(_living.get(lock_file, ())) if hold.lock.is_locked), None)


def keep_for(maps: list[mmap.mmap], lock: SoftReadWriteLock, release: Callable[[], object]) -> None:
    """Let a shared hold end when the last of ``maps`` is gone. The other parameters are those of :class:`MapHold`."""
    hold = MapHold(lock, len(maps), release)
    with _mutex:
        _living[lock.lock_file] = [*_living.get(lock.lock_file, ()), hold]
    for one in maps:
        weakref.finalize(one, hold.leave).atexit = False  # at exit the core releases what is held


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
