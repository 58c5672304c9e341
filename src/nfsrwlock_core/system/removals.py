"""
Whoever waits until a directory is removed hears of it at once, if a process of this kernel removes it: inotify(7).

Nothing may rest on it. What another host removes is not told, nor what another mount of the same files removes, and all
processes of a user share a few instances of inotify. So it only ever ends a pause early.
"""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from typing import Any, Final
from weakref import WeakSet

_init: Any = None
with suppress(ImportError, OSError, AttributeError):  # a Python without libffi or poll, a static one, another system
    import ctypes
    from select import POLLIN, poll

    _libc = ctypes.CDLL(None)
    _add, _init = _libc.inotify_add_watch, _libc.inotify_init1

#: From sys/inotify.h: the directory itself is removed; what is watched is a directory, and no link to one.
_EVENTS: Final = 0x400 | 0x1000000 | 0x2000000


class Removals(FileIO):
    """
    Tells one waiter of removals: it can be read once there was one. It is a file, so no exception leaves it open.

    :raises ValueError: if the kernel gives none
    """

    def __init__(self) -> None:
        super().__init__(-1 if _init is None else _init(os.O_CLOEXEC | os.O_NONBLOCK))
        _all.add(self)
        self._watched: set[str] = set()
        self._poll = poll()
        self._poll.register(self, POLLIN)

    def watch(self, directory: str) -> None:
        """Tell of this one, too, from now on. It is looked up once, which may take as long as the file server does."""
        if directory not in self._watched:
            _add(self.fileno(), os.fsencode(directory), _EVENTS)
            self._watched.add(directory)

    def wait(self, seconds: float) -> None:
        """Wait for so long, or until it can be read."""
        self._poll.poll(seconds * 1000)


_all: Final[WeakSet[Removals]] = WeakSet()
# A forked child would take away what its parent is told.
os.register_at_fork(after_in_child=lambda: [*map(Removals.close, list(_all))])
