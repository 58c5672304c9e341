"""
Whoever waits until a directory is removed hears of it at once, if a process of this kernel removes it: inotify(7).

Nothing may rest on it. What another host removes is not told, nor what another mount of the same files removes, and all
processes of a user share a few instances of inotify. So it only ever ends a pause early.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from . import workers
from .directory import close, open_now

_libc: Any = None
with suppress(ImportError, OSError, AttributeError):  # a Python without libffi, a static one, or another system
    import ctypes

    _libc = ctypes.CDLL(None)
    _init, _add = _libc.inotify_init1, _libc.inotify_add_watch

#: From sys/inotify.h: the directory itself is removed; what is watched is a directory, and no link to one.
_EVENTS: Final = 0x400 | 0x1000000 | 0x2000000
_ROOM: Final = 4096


class Removals:
    """Tells one waiter of removals. :attr:`fd` can be read once there was one; negative: nothing is told."""

    def __init__(self) -> None:
        self.fd: int = -1 if _libc is None else _init(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd >= 0:
            open_now.add(self.fd)

    def watch(self, directories: Iterable[str]) -> None:
        """Tell of these from now on. They are looked up, which may take as long as the file server does."""
        if self.fd >= 0:
            with suppress(OSError):  # it was told of nothing, or is closed
                os.read(self.fd, _ROOM)
            for directory in directories:  # those that it tells of already make no difference
                _add(self.fd, os.fsencode(directory), _EVENTS)

    def wait(self, seconds: float) -> None:
        """Wait for so long, or until a directory is removed."""
        if self.fd < 0:
            time.sleep(seconds)
        else:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            poll.poll(seconds * 1000)

    def close(self) -> None:
        """Tell of nothing any more."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            workers.enqueue(close, fd)  # which takes the kernel 10 ms
