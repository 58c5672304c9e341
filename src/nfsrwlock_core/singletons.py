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
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from .settings import Heartbeat, Settings, checked
from .system.directory import Share
from .system.paths import lock_path_of

if TYPE_CHECKING:
    from filelock import LeaseCompromise

    from .lock import SoftReadWriteLock


class _Registry:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.classes: list[OnePerPath] = []
        #: Every lock object, for a forked child to void.
        self.all: WeakValueDictionary[int, SoftReadWriteLock] = WeakValueDictionary()


_registry = _Registry()


class OnePerPath(type):
    """Gives each class of locks its registry, and returns the instance that a path has already."""

    _instances: WeakValueDictionary[str, SoftReadWriteLock]

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        cls._instances = WeakValueDictionary()
        _registry.classes.append(cls)

    def __call__(
        cls,
        lock_file: str | os.PathLike[str],
        timeout: float = -1,
        *,
        blocking: bool = True,
        is_singleton: bool = True,
        heartbeat_interval: float = 30.0,
        stale_threshold: float | None = None,
        poll_interval: float = 0.25,
        on_compromise: Callable[[LeaseCompromise], None] | None = None,
        heartbeat: Heartbeat = "thread",
        share: Share = "user",
        lock_dir: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Return the lock for ``lock_file``: the one that exists, or a new one; see :class:`SoftReadWriteLock`."""
        # Passed on only when asked for, so that a subclass whose own constructor does without them keeps working.
        extensions = {
            name: value
            for name, value, default in (
                ("on_compromise", on_compromise, None),
                ("heartbeat", heartbeat, "thread"),
                ("share", share, "user"),
                ("lock_dir", lock_dir, None),
            )
            if value != default
        }
        make = partial(
            super().__call__,
            lock_file,
            timeout,
            blocking=blocking,
            is_singleton=is_singleton,
            heartbeat_interval=heartbeat_interval,
            stale_threshold=stale_threshold,
            poll_interval=poll_interval,
            **extensions,
        )
        if is_singleton is not True:
            return make()
        path = lock_path_of(lock_file, lock_dir)
        with _registry.lock:
            instance = cls._instances.get(path)
            if instance is None:
                instance = cls._instances[path] = make()
                return instance
        asked = checked(
            lock_file,
            timeout=timeout,
            blocking=blocking,
            is_singleton=is_singleton,
            heartbeat_interval=heartbeat_interval,
            stale_threshold=stale_threshold,
            poll_interval=poll_interval,
            on_compromise=on_compromise,
            heartbeat=heartbeat,
            share=share,
            lock_dir=lock_dir,
        )
        _refuse_other_contract(instance._settings, asked)
        return instance


def register(lock: SoftReadWriteLock) -> None:
    """Note that ``lock`` exists."""
    _registry.all[id(lock)] = lock


def offer(lock: SoftReadWriteLock) -> None:
    """Make ``lock`` its path's one object, unless there is one."""
    with _registry.lock:
        type(lock)._instances.setdefault(lock.lock_path, lock)


def _refuse_other_contract(old: Settings, new: Settings) -> None:
    # Tuning keeps the first caller's values, and whoever asks for nothing special joins. What would take away something
    # that a caller asks for is refused.
    for name, joins in (
        ("timeout", _same_seconds(old.timeout, new.timeout)),
        ("blocking", old.blocking == new.blocking),
        ("on_compromise", new.on_compromise in (None, old.on_compromise)),
        ("heartbeat", new.heartbeat in ("thread", old.heartbeat)),
        ("share", new.share in ("user", old.share)),
    ):
        if not joins:
            raise ValueError(
                f"the lock on {new.lock_file!r} exists in this process with {name}={getattr(old, name)!r}, which "
                f"cannot be changed to {getattr(new, name)!r}; use is_singleton=False for a lock of its own"
            )


def _same_seconds(one: float, other: float) -> bool:
    return one == other or {one, other} <= {-1.0, math.inf} or (math.isnan(one) and math.isnan(other))


def _reset_after_fork() -> None:
    # Another thread of the parent may have held the registry's lock, and all its locks are the parent's.
    inherited = list(_registry.all.values())
    _registry.lock = threading.RLock()
    _registry.all = WeakValueDictionary()
    for cls in _registry.classes:
        cls._instances = WeakValueDictionary()
    for lock in inherited:
        lock._void()


os.register_at_fork(after_in_child=_reset_after_fork)
