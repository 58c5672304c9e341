"""
One lock object per path and process: the registry behind ``is_singleton``.

Two objects for one path in one process would wait for each other; one object knows what its process holds already.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from functools import partial
from inspect import Signature, signature
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from .settings import Options, Settings
from .system.paths import AnyPath, lock_path_of

if TYPE_CHECKING:
    from .lock import SoftReadWriteLock

_OPTIONS: Final = frozenset(Options.__annotations__) | {"timeout", "is_singleton"}


_classes: Final[list[OnePerPath]] = []
#: Every lock object, for a forked child to void.
_all: WeakValueDictionary[int, SoftReadWriteLock] = WeakValueDictionary()


class OnePerPath(type):
    """Gives each class of locks its registry, and returns the instance that a path has already."""

    _instances: WeakValueDictionary[str, SoftReadWriteLock]
    #: Of one class, for a constructor may take its time.
    _turn: threading.RLock
    #: The paths for which the thread that has the turn is constructing.
    _making: set[str]

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any) -> None:
        super().__init__(name, bases, namespace, **keywords)
        cls._begin()
        _classes.append(cls)

    def _begin(cls) -> None:
        cls._instances, cls._turn, cls._making = WeakValueDictionary(), threading.RLock(), set()

    if not TYPE_CHECKING:  # which would believe this signature instead of the constructor's

        def __call__(cls, lock_file: AnyPath, *args: Any, **options: Any) -> SoftReadWriteLock:
            """Return the lock for ``lock_file``: the one that exists, or a new one."""
            make = partial(super().__call__, lock_file, *args, **options)
            if options.get("is_singleton", True) is not True:
                return make()
            path = lock_path_of(lock_file, options.get("lock_dir"))
            with cls._turn:
                instance = cls._instances.get(path)
                if instance is None:
                    return cls._make(path, make)
            # Asked of the public class: a subclass's constructor may do more than look at its arguments.
            public = _classes[0]
            known = options if cls is public else {name: options[name] for name in options.keys() & _OPTIONS}
            _refuse_other_contract(instance._settings, type.__call__(public, lock_file, *args, **known)._settings)
            return instance

    @property
    def __signature__(cls) -> Signature:
        # What help() shows: the constructor's parameters, not those of the above.
        constructor = cls.__init__  # type: ignore[misc]  # that of the very class is meant
        return Signature(list(signature(constructor).parameters.values())[1:])

    def _make(cls, path: str, make: Callable[[], SoftReadWriteLock]) -> SoftReadWriteLock:
        if path in cls._making:
            raise RuntimeError(
                f"Singleton lock construction is already active in this very thread, of {cls.__name__} for {path!r}; "
                "the constructor must not ask for the same lock: use is_singleton=False for a lock of its own"
            )
        cls._making.add(path)
        try:
            instance = cls._instances[path] = make()
        finally:
            cls._making.discard(path)
        return instance


def register(lock: SoftReadWriteLock) -> None:
    """Note that ``lock`` exists."""
    _all[id(lock)] = lock


def offer(lock: SoftReadWriteLock) -> None:
    """Make ``lock`` its path's one object, unless there is one."""
    with type(lock)._turn:
        type(lock)._instances.setdefault(lock.lock_path, lock)


def _refuse_other_contract(old: Settings, new: Settings) -> None:
    # Tuning keeps the first caller's values, and whoever asks for nothing special joins. What would take away something
    # that a caller asks for is refused.
    for name, joins in (
        ("timeout", old.timeout == new.timeout or {old.timeout, new.timeout} <= {-1.0, math.inf}),
        ("blocking", old.blocking == new.blocking),
        ("on_compromise", new.on_compromise in (None, old.on_compromise)),
        ("heartbeat", new.heartbeat in ("thread", old.heartbeat)),
        ("share", new.share in ("user", old.share)),
    ):
        if not joins:
            raise ValueError(
                f"the lock on {new.lock_file!r} exists in this process with {name}={getattr(old, name)!r}, which "
                f"cannot be changed to a different {name}: {getattr(new, name)!r}; use is_singleton=False for another "
                "object"
            )


def _reset_after_fork() -> None:
    # Another thread of the parent may have had a class's turn, and all its locks are the parent's.
    global _all  # noqa: PLW0603 - it may have been in the middle of a change
    inherited = list(_all.values())
    _all = WeakValueDictionary()
    for cls in _classes:
        cls._begin()
    for lock in inherited:
        lock._void()


os.register_at_fork(after_in_child=_reset_after_fork)
