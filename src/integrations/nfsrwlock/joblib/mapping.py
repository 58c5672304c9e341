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
from typing import Any, Final

from nfsrwlock_core import SoftReadWriteLock

_NO_DATA: Final = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType)

#: The holds of maps that live in this process.
_living: Final[set[MapHold]] = set()
_mutex: Final = threading.RLock()  # re-entrant: a finaliser may run anywhere, in here, too


class MapHold:
    """
    The hold of memory maps, and of those who borrow it.

    :param lock: by which it is held, at first for the caller alone
    """

    def __init__(self, lock: SoftReadWriteLock) -> None:
        self.lock: Final = lock
        self._users = 1

    def leave(self) -> None:
        """End it for one user, and altogether if that was the last one."""
        with _mutex:
            self._users -= 1
            if self._users:
                return
            _living.discard(self)
        self.lock.release(force=True)

    def leave_to(self, maps: list[mmap.mmap]) -> None:
        """End it for one user, but not before the last of ``maps`` is gone."""
        with _mutex:
            self._users += len(maps)
            _living.add(self)
        for one in maps:
            weakref.finalize(one, self.leave).atexit = False  # at exit the core releases what is held
        self.leave()

    def _join(self) -> MapHold:
        self._users += 1
        return self


def is_mapped_here(lock_file: str) -> bool:
    """Whether a living memory map of this process holds the lock on ``lock_file``."""
    return any(hold.lock.lock_file == lock_file for hold in list(_living))


def borrow(lock_file: str) -> MapHold | None:
    """
    Use the hold of a memory map of this process, beyond the map's end if need be; ``None``: there is none.

    Whoever reads what this process has mapped already would wait behind a writer that waits for the map.
    """
    with _mutex:
        here = (hold for hold in list(_living) if hold.lock.lock_file == lock_file and hold.lock.is_locked)
        return next((hold._join() for hold in here), None)


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
