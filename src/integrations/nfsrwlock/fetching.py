"""
Build a file or directory once, however many processes on any hosts ask for it at the same time; the others wait.

What it rests on: who builds holds the path's lock exclusively, and publishes by a rename within one directory. What it
does not promise: that a program which does not go through :func:`fetch`, or take the lock, leaves the result alone.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, Unpack

from nfsrwlock_core import DeadlockError, LockPathError, SoftReadWriteLock, WaitInfo

from .freshness import stat_afresh
from .options import LockOptions, refuse_unknown

_SUFFIX: Final = ".partial"

#: The locks under which this thread or task is building right now.
_building: ContextVar[frozenset[str]] = ContextVar("nfsrwlock_building", default=frozenset())


class Fetched:
    """
    A path that is complete, with a shared hold on it: nobody rebuilds or cleans it until the hold is released.

    Use it as a context manager, or call :meth:`release`. It can be passed to whatever takes a path.
    """

    def __init__(self, path: Path, lock: SoftReadWriteLock) -> None:
        #: What was asked for.
        self.path: Final = path
        self._lock: Final = lock

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {os.fspath(self.path)!r}, {self._lock.status.value}>"

    @property
    def generation(self) -> int | None:
        """The number of the latest exclusive hold on the path, which serves as its version; ``None`` once released."""
        return self._lock.generation

    def check(self) -> None:
        """
        Make sure that the hold still stands.

        :raises LockLostError: if it was lost, or its lease has run out
        :raises LockNotHeldError: if it was released
        """
        self._lock.check()

    def release(self) -> None:
        """Let go of the path. Doing so twice does no harm."""
        self._lock.release(force=True)

    def __enter__(self) -> Self:
        self._lock.check()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if exc_value is None:
                self._lock.check()
        finally:
            self.release()


class _Appeared(Exception):
    """What this process waits to build is there: it need not be built, only read."""


def fetch(
    path: str | os.PathLike[str],
    build: Callable[[Path], object],
    *,
    is_valid: Callable[[Path], bool] | None = None,
    **options: Unpack[LockOptions],
) -> Fetched:
    """
    Return ``path`` with a shared hold on it, after building it if it is not there.

    Of all processes that ask at the same time one builds, under the exclusive lock; the others wait. If it raises or
    dies, the next one builds.

    :param path: a file or a directory; the directories above it must exist
    :param build: called with the path of a private sibling, at which it must make the file or directory. What it made
        is renamed to ``path`` when it has returned, if the lock is still held then
    :param is_valid: asked whether an existing ``path`` can be used. If it says no, ``path`` is built anew and the old
        one removed. Default: whatever exists can be used
    :param options: settings of the lock, see :class:`SoftReadWriteLock`; ``timeout`` counts for each wait of its own
    :returns: the path and its hold, to be used as a context manager
    :raises Timeout: if the lock could not be had in time
    :raises LockLostError: if the lock was lost while it was being built; nothing was published
    :raises LockPathError: if the lock cannot live beside ``path``, or ``build`` made nothing
    :raises DeadlockError: if ``build`` asks for the very path that it builds

    What ``build`` and ``is_valid`` raise is passed on, and nothing is published.
    """
    refuse_unknown(dict(options), "fetch()")
    target = Path(os.path.abspath(path))
    lock = SoftReadWriteLock(target, is_singleton=False, **options)
    if lock.lock_path in _building.get():
        raise DeadlockError(f"{os.fspath(target)!r} is being built by this very call of fetch(); build it from others")
    while True:
        lock.acquire_read()
        try:
            before = stat_afresh(target)
            if before is not None and (is_valid is None or is_valid(target)):
                return Fetched(target, lock)
        except BaseException:
            lock.release()
            raise
        lock.release()
        try:
            lock.acquire_write(on_wait=partial(_stop_waiting, target, _signature(before)))
        except _Appeared:
            continue
        try:
            now = stat_afresh(target)
            # Whoever was here in between has built it; it is looked at under the shared lock, together with the others.
            if now is None or _signature(now) == _signature(before):
                _build(lock, target, build)
        finally:
            lock.release()


def _signature(found: os.stat_result | None) -> tuple[int, ...] | None:
    return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _stop_waiting(target: Path, before: tuple[int, ...] | None, info: WaitInfo) -> None:
    found = stat_afresh(target)
    if found is not None and _signature(found) != before:
        raise _Appeared


def _build(lock: SoftReadWriteLock, target: Path, build: Callable[[Path], object]) -> None:
    _remove_leftovers(target)
    mine = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_SUFFIX}")
    token = _building.set(_building.get() | {lock.lock_path})
    try:
        build(mine)
        if not os.path.lexists(mine):
            raise LockPathError(
                os.fspath(mine), "was not made by build()", "let build() write to the path that it is called with"
            )
        lock.check()  # the last thing before it becomes visible
        _publish(mine, target)
    finally:
        _building.reset(token)
        _remove(mine)


def _publish(mine: Path, target: Path) -> None:
    aside = None
    if os.path.lexists(target) and (target.is_dir() or mine.is_dir()):
        # rename(2) replaces a file, but no directory with something in it.
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_SUFFIX}")
        os.rename(target, aside)
    os.rename(mine, target)
    if aside is not None:
        _remove(aside)


def _remove_leftovers(target: Path) -> None:
    # Of builders that were killed. Whoever builds holds the lock exclusively, so no other one is at work.
    prefix = f".{target.name}."
    for name in os.listdir(target.parent):
        token = name.removeprefix(prefix).removesuffix(_SUFFIX)
        if name == f"{prefix}{token}{_SUFFIX}" and len(token) == 32 and set(token) <= set("0123456789abcdef"):
            _remove(target.with_name(name))


def _remove(path: Path) -> None:
    remove: Any = shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink
    with suppress(OSError):
        remove(path)
