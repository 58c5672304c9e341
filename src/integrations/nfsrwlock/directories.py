"""
A directory that many use and somebody cleans up: users share it, a cleaner has it alone.

It binds those who go through it; a cleaner that does not ask removes files under its users' hands as ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Unpack

from nfsrwlock_core import SoftReadWriteLock, joined

from .options import LockOptions, refuse_unknown


class SharedDirectory:
    """
    A directory with its lock, which lives beside it: :meth:`use` takes it shared, :meth:`clean` exclusively.

    As a context manager it is :meth:`use`. It pickles as its settings, and each use is a hold of its own, so threads
    may share an object.

    :param options: settings of the lock, see :class:`SoftReadWriteLock`
    :raises ValueError: if settings are out of range or contradict each other
    :raises TypeError: if one is of the wrong type, or no setting
    """

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[LockOptions]) -> None:
        refuse_unknown(dict(options), "shared_directory()")
        #: The directory.
        self.path: Final = Path(os.path.abspath(path))
        self._options: Final = options
        self._uses = threading.local()
        self._lock: Final = SoftReadWriteLock(self.path, is_singleton=False, **options)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {os.fspath(self.path)!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._options), (self.path,)

    def use(
        self, timeout: float | None = None, *, blocking: bool | None = None
    ) -> AbstractContextManager[SoftReadWriteLock]:
        """
        Use the directory together with others, for a ``with`` block. It is made if it is not there.

        :param timeout: seconds; ``None``: as set for the directory; -1: no limit
        :param blocking: ``False``: do not wait
        :returns: a context manager that gives the lock, whose ``check()`` tells whether the hold still stands
        :raises Timeout: if a cleaner was at work for too long
        :raises LockLostError: at the end of the block, if the hold was lost in it

        A thread that has the directory already, by whichever of the two, does not take it again. Other threads do, and
        a cleaner that waits goes first: within the block, do not wait for a thread or process that asks for it.
        """
        return self._held("read", timeout, blocking)

    def clean(
        self, timeout: float | None = None, *, blocking: bool | None = None
    ) -> AbstractContextManager[SoftReadWriteLock]:
        """
        Have the directory alone, for a ``with`` block. New users wait meanwhile.

        Parameters, result and errors are those of :meth:`use`. To clean only when nobody is there, say
        ``blocking=False`` and pass by on :class:`Timeout`.

        :raises DeadlockError: if this very thread uses it
        """
        return self._held("write", timeout, blocking)

    @contextmanager
    def _held(
        self, mode: Literal["read", "write"], timeout: float | None, blocking: bool | None
    ) -> Iterator[SoftReadWriteLock]:
        with joined(copy(self._lock), mode, timeout, blocking=blocking) as lock:
            if mode == "read":
                os.makedirs(self.path, exist_ok=True)
            yield lock

    def __enter__(self) -> Path:
        with ExitStack() as stack:
            stack.enter_context(self.use())
            self._stacks.append(stack.pop_all())
        return self.path

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stacks.pop().__exit__(exc_type, exc_value, traceback)

    @property
    def _stacks(self) -> list[ExitStack]:
        # A thread may be in several blocks at a time, and each thread leaves its own.
        stacks: list[ExitStack] = self._uses.__dict__.setdefault("stacks", [])
        return stacks


shared_directory = SharedDirectory
