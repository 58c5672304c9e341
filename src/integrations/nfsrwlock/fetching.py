"""
Build a file or directory once, however many processes on any hosts ask for it at the same time; the others wait.

What it rests on: who builds holds the path's lock exclusively, and publishes by a rename within one directory. What it
does not promise: that a program which does not go through :func:`fetch`, or take the lock, leaves the result alone.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self, Unpack

from nfsrwlock_core import DeadlockError, LockError, LockNotHeldError, LockPathError, SoftReadWriteLock, Timeout, joined

from .freshness import Signature, signature_afresh
from .options import LockOptions, refuse_unknown

_SUFFIX: Final = ".partial"
#: So long may a name be (Linux, all its file systems, bytes) that its private sibling's carries it.
_CARRIED_MAX: Final = 255 - len("..") - 32 - len(_SUFFIX)

#: The locks under which this thread or task is building right now.
_building: ContextVar[frozenset[str]] = ContextVar("nfsrwlock_building", default=frozenset())


class Fetched:
    """
    A path that is complete, with a shared hold on it: nobody rebuilds or cleans it until the hold is released.

    Use it as a context manager, or call :meth:`release`. It can be passed to whatever takes a path.
    """

    def __init__(self, path: Path) -> None:
        #: What was asked for.
        self.path: Final = path
        self._lock: SoftReadWriteLock | None = None
        self._hold: Final = ExitStack()

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        status = "free" if self._lock is None else self._lock.status.value
        return f"<{type(self).__name__} {os.fspath(self.path)!r}, {status}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the hold on {os.fspath(self.path)!r} belongs to this process: pass on the path, and keep the hold until "
            "the other process is done, or let that one call fetch() itself"
        )

    @property
    def generation(self) -> int | None:
        """The number of the latest exclusive hold on the path, which serves as its version; ``None`` once released."""
        return None if self._lock is None else self._lock.generation

    def check(self) -> None:
        """
        Make sure that the hold still stands.

        :raises LockLostError: if it was lost, or its lease has run out
        :raises LockNotHeldError: if it was released
        """
        if self._lock is None:
            raise LockNotHeldError(f"{os.fspath(self.path)!r} was released")
        self._lock.check()

    def release(self) -> None:
        """Let go of the path. Doing so twice does no harm."""
        with suppress(LockError):  # it was lost
            self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        self.check()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock = None
        _unreleased.discard(self)
        self._hold.__exit__(exc_type, exc_value, traceback)


#: A hold lasts until its release, also where nothing refers to it any more.
_unreleased: Final[set[Fetched]] = set()


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
    :raises LockPathError: if the lock cannot live beside ``path``; if ``build`` made nothing, or what ``is_valid``
        refuses
    :raises DeadlockError: if ``build`` asks for the very path that it builds, or ``is_valid`` refuses what this very
        thread holds by an earlier call

    The lock directory stays once something was built, for its number, the version of what is there. Where nothing was,
    whoever releases the path last removes it.

    A thread that has the path already shares its hold. Other threads and processes take their own, and who waits to
    build goes first: within the block, do not wait for one that asks for the same path, but hand it the path.

    What ``build`` and ``is_valid`` raise is passed on, and nothing is published.
    """
    refuse_unknown(dict(options), "fetch()")
    _refuse_unless_called(build, "build")
    if is_valid is not None:
        _refuse_unless_called(is_valid, "is_valid")
    target = Path(os.path.abspath(path))
    built: int | None = None
    while True:
        # Who builds leaves a number behind, the version of what it made. Who only reads need leave nothing.
        reader = SoftReadWriteLock(target, is_singleton=False, numbered=False, **options)
        if reader.lock_path in _building.get():
            raise DeadlockError(
                f"{os.fspath(target)!r} is being built by this very call of fetch(); build it from others"
            )
        got = Fetched(target)
        try:
            _unreleased.add(got)
            got._lock = got._hold.enter_context(joined(reader, "read"))
            before = signature_afresh(target)
            if before is not None and (is_valid is None or is_valid(target)):
                return got
            if before is not None and built is not None and got.generation == built:
                raise LockPathError(
                    os.fspath(target),
                    "is not valid, says is_valid(), though build() has just made it",
                    "let build() make what is_valid() accepts",
                )
        except BaseException:
            got.release()
            raise
        got.release()
        appeared = partial(_has_changed, target, before, set())
        block = ExitStack()
        try:
            writer = SoftReadWriteLock(target, is_singleton=False, **options)
            held = block.enter_context(joined(writer, "write", until=appeared))
        except Timeout:
            if appeared():  # another one has built it: it need only be read
                continue
            raise
        try:
            # Whoever was here in between has built it; it is looked at under the shared lock, together with the others.
            if not appeared():
                _build(held, target, build)
                built = held.generation
        finally:
            with suppress(LockError):  # lost after it was published: the next look tells
                block.close()


def _refuse_unless_called(function: object, name: str) -> None:
    if not callable(function):
        raise TypeError(f"{name} must be a function of the path, got {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} must not be a coroutine function: fetch() does not wait for what it gives")


def _has_changed(target: Path, before: Signature | None, seen: set[Signature | None]) -> bool:
    seen.add(signature_afresh(target))  # what was there once may be gone again
    return not seen <= {None, before}


def _build(lock: SoftReadWriteLock, target: Path, build: Callable[[Path], object]) -> None:
    _remove_leftovers(target)
    mine = _new_sibling(target)
    token = _building.set(_building.get() | {lock.lock_path})
    try:
        build(mine)
        if not os.path.lexists(mine):
            raise LockPathError(
                os.fspath(mine), "was not made by build()", "let build() write to the path that it is called with"
            )
        if not mine.exists():
            raise LockPathError(
                os.fspath(mine), "is a symbolic link that leads nowhere", "let build() make what it leads to"
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
        aside = _new_sibling(target)
        os.rename(target, aside)
    try:
        os.rename(mine, target)
    except OSError:
        if aside is not None:
            os.rename(aside, target)
        raise
    if aside is not None:
        _remove(aside)


def _new_sibling(target: Path) -> Path:
    return target.with_name(f"{_prefix(target)}{uuid.uuid4().hex}{_SUFFIX}")


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)
    return f".{target.name if len(name) <= _CARRIED_MAX else hashlib.sha256(name).hexdigest()}."


def _remove_leftovers(target: Path) -> None:
    # Of builders that were killed. Whoever builds holds the lock exclusively, so no other one is at work.
    prefix = _prefix(target)
    for name in os.listdir(target.parent):
        token = name.removeprefix(prefix).removesuffix(_SUFFIX)
        if name == f"{prefix}{token}{_SUFFIX}" and len(token) == 32 and set(token) <= set("0123456789abcdef"):
            _remove(target.with_name(name))


def _remove(path: Path) -> None:
    remove: Any = shutil.rmtree if path.is_dir() and not path.is_symlink() else os.unlink
    with suppress(OSError):
        remove(path)
