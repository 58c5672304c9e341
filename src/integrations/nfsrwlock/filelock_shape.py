"""
The exclusive lock in the shape of filelock's classes, for libraries that take a lock class or build one themselves.

What differs from filelock's: the lock is a directory ``<lock_file>.rwlock``, no file; it works between hosts that share
a file system; a lost hold raises at the end of the ``with`` block; it can be pickled.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ContextDecorator, suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar, Unpack

from nfsrwlock_core import AcquireReturnProxy, HoldStatus, LockLostError, SoftReadWriteLock, Timeout

from .options import LeaseOptions, refuse_unknown

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Context:
    lock: SoftReadWriteLock
    #: What counts only while the lock is held: it is not in a forked child, nor after a release that was interrupted.
    counter: int = 0
    #: What the core gave for the hold; leaving it tells whether the hold was lost.
    grant: AcquireReturnProxy | None = None

    @property
    def level(self) -> int:
        """How often it was acquired and not released yet."""
        return 0 if self.lock.status is HoldStatus.FREE else self.counter


class FileLockProxy:
    """What :meth:`FileLock.acquire` returns: leaving a ``with`` block on it releases one level of the lock."""

    def __init__(self, lock: FileLock) -> None:
        self.lock: Final = lock

    def __enter__(self) -> FileLock:
        return self.lock

    def __exit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        self.lock.__exit__(exc_type, exc_value, traceback)


class FileLock(ContextDecorator):
    """
    An exclusive lock with the methods of ``filelock.FileLock``, over the write side of :class:`SoftReadWriteLock`.

    It is re-entrant. Used as a decorator of a function, it is held during each call. Its file is never made: what
    exists on disk is the directory ``<lock_file>.rwlock``. Of what filelock's constructor takes it knows the parameters
    below; ``is_singleton``, ``lifetime`` and the like are refused, for it cannot do what they ask for.

    :param lock_file: the path that names the lock
    :param timeout: seconds to wait at most; -1 waits without limit
    :param mode: accepted for filelock's callers and without effect; who may take part is said by ``share``
    :param thread_local: ``True``: each thread that uses the object has a hold of its own, so threads exclude each
        other. ``False``: the hold is the object's, any thread may raise or release it
    :param blocking: ``False``: raise :class:`Timeout` at once if the lock is not free
    :param poll_interval: seconds between looks while waiting
    :param options: the other settings of the lock, see :class:`SoftReadWriteLock`
    :raises TypeError: if a setting is of the wrong type or unknown
    :raises ValueError: if settings are out of range or contradict each other
    """

    def __init__(
        self,
        lock_file: str | os.PathLike[str],
        timeout: float = -1,
        mode: int = -1,
        thread_local: bool = True,
        *,
        blocking: bool = True,
        poll_interval: float = 0.05,
        **options: Unpack[LeaseOptions],
    ) -> None:
        refuse_unknown(dict(options), "FileLock()")
        lock = SoftReadWriteLock(
            lock_file, timeout, is_singleton=False, blocking=blocking, poll_interval=poll_interval, **options
        )
        self._set_up(lock, mode, thread_local)

    def _set_up(self, lock: SoftReadWriteLock, mode: int, thread_local: bool) -> None:
        # The path is resolved once: wherever the program goes, each thread's context is on the same lock.
        self._timeout, self._blocking = lock.timeout, lock.blocking
        self._mode = mode
        self._is_thread_local = thread_local
        self._mutex = threading.RLock()
        self._contexts = threading.local()
        #: Those that hold the lock. Others go with their threads.
        self._holding: set[_Context] = set()
        self._shared = _Context(lock)

    @property
    def _context(self) -> _Context:
        if not self._is_thread_local:
            return self._shared
        context: _Context | None = getattr(self._contexts, "context", None)
        if context is None:
            context = self._contexts.context = _Context(copy(self._shared.lock))
        return context

    def __getstate__(self) -> tuple[Any, ...]:
        return self._shared.lock, self._mode, self._is_thread_local, self._timeout, self._blocking

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *made_with, timeout, blocking = state
        self._set_up(*made_with)
        self._timeout, self._blocking = timeout, blocking

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.lock_file!r}, {self._context.lock.status.value}>"

    @property
    def lock_file(self) -> str:
        """The path as it was given."""
        return self._shared.lock.lock_file

    @property
    def timeout(self) -> float:
        """Seconds to wait by default; -1 for no limit. Can be set."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float | str) -> None:
        self._timeout = float(value)

    @property
    def blocking(self) -> bool:
        """Whether an acquire waits by default. Can be set."""
        return self._blocking

    @blocking.setter
    def blocking(self, value: bool) -> None:
        self._blocking = value

    @property
    def mode(self) -> int:
        """As it was given; without effect."""
        return self._mode

    @property
    def is_singleton(self) -> bool:
        """``False``: two objects on one path are two locks, which exclude each other."""
        return False

    def is_thread_local(self) -> bool:
        """Whether each thread has a hold of its own."""
        return self._is_thread_local

    @property
    def is_locked(self) -> bool:
        """Whether the lock is held, by this thread if holds are thread-local, and was not lost."""
        return self._context.lock.status is HoldStatus.HELD

    @property
    def lock_counter(self) -> int:
        """How often the lock was acquired and not released yet."""
        return self._context.level

    def check(self) -> None:
        """
        Make sure that the lock is still held.

        :raises LockLostError: if it was lost, or its lease has run out
        :raises LockNotHeldError: if it is not held at all
        """
        self._context.lock.check()

    def acquire(
        self,
        timeout: float | None = None,
        poll_interval: float | None = None,
        *,
        poll_intervall: float | None = None,
        blocking: bool | None = None,
        cancel_check: Callable[[], bool] | None = None,
    ) -> FileLockProxy:
        """
        Take the lock, or raise the level of a hold that exists.

        :param timeout: seconds; ``None``: the object's; -1: no limit
        :param poll_interval: accepted for filelock's callers and without effect: the object's counts
        :param poll_intervall: the same
        :param blocking: ``False``: do not wait; ``None``: as the object says
        :param cancel_check: asked before each pause while waiting; ``True`` ends the waiting with :class:`Timeout`
        :returns: a proxy that releases the lock at the end of a ``with`` block
        :raises Timeout: if it could not be had in time; a subclass of ``filelock.Timeout``
        :raises LockPathError: if the lock cannot live at its path
        :raises LockLostError: if it is held and was lost; release it first
        :raises DeadlockError: if this very thread holds it by another object, and there is no limit to the waiting
        :raises RuntimeError: if the object was inherited through ``fork`` while it was used; make a new one
        """
        if poll_intervall is not None:
            warnings.warn("use poll_interval instead of poll_intervall", DeprecationWarning, stacklevel=2)
        context = self._context
        limit = self._timeout if timeout is None else timeout
        blocking = self._blocking if blocking is None else blocking
        if self._is_thread_local:
            return self._taken(context, limit, blocking, cancel_check)
        # One thread at a time waits on disk; another one that comes meanwhile shares what it gets.
        deadline, left = time.monotonic() + limit, limit
        while True:
            is_over = left == 0 or not blocking or (cancel_check is not None and cancel_check())
            pause = 0.0 if is_over else context.lock.poll_interval
            if self._mutex.acquire(timeout=pause if left < 0 else min(pause, left)):
                break
            if is_over:
                raise Timeout(self.lock_file, "another thread of this process is waiting for it already")
            left = limit if limit < 0 else max(deadline - time.monotonic(), 0.0)
        try:
            return self._taken(context, left, blocking, cancel_check)
        finally:
            self._mutex.release()

    def _taken(
        self, context: _Context, limit: float, blocking: bool, until: Callable[[], bool] | None
    ) -> FileLockProxy:
        before = context.level
        try:
            if before:
                context.lock.check()
            else:
                context.grant = context.lock.acquire_write(limit, blocking=blocking, until=until)
                self._holding.add(context)
            context.counter = before + 1
            return FileLockProxy(self)
        except BaseException:  # also a signal's, right after the grant: nobody would ever release it
            if not before:
                self._end(context)
            elif context.level > before:
                context.counter -= 1
            raise

    def release(self, force: bool = False) -> None:
        """
        Give back one level; the last one ends the hold. Does nothing if the lock is not held, as filelock's.

        :param force: give back all levels
        """
        if force:
            self._context.counter = min(self._context.counter, 1)
        with suppress(LockLostError):
            self.__exit__(None, None, None)

    def _end(self, context: _Context) -> None:
        context.lock.release(force=True)
        context.counter = 0
        self._holding.discard(context)

    def __call__(self, func: _F) -> _F:
        """
        Let each call of ``func`` hold the lock.

        :raises TypeError: if its body runs after the call: a coroutine function, or a generator function
        """
        for kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
            if kind(func):
                raise TypeError(
                    f"the body of {getattr(func, '__qualname__', func)} runs after the call, without the lock; "
                    "use the lock in a with statement inside of it"
                )
        return super().__call__(func)

    def __enter__(self) -> Self:
        context = self._context
        before = context.level
        try:
            self.acquire()
            return self
        except BaseException:
            if self._is_thread_local and context.level > before:  # a signal's exception came right after it was taken
                self.release()
            raise

    def __exit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        context = self._context
        if context.level > 1:
            context.counter -= 1
        elif context.level:
            try:
                if context.grant is not None:
                    context.grant.__exit__(exc_type, exc_value, traceback)
            finally:  # a signal's exception may have come before
                self._end(context)

    def __del__(self) -> None:
        # As filelock's: what nobody can release any more is released. Half-made objects have no contexts.
        for context in getattr(self, "_holding", ()):
            context.lock.release(force=True)
