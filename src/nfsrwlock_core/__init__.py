"""
nfsrwlock_core: reader/writer locks for files on shared file systems.

Names are loaded when they are first used: the heartbeat helper process imports this package, too, and needs little.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if os.name != "posix":
    raise ImportError("nfsrwlock works on POSIX systems only: its protocol needs their rename, rmdir and O_NOFOLLOW")

if TYPE_CHECKING:
    from .aio import AsyncAcquireReturnProxy, AsyncSoftReadWriteLock
    from .compat import LeaseCompromise, Timeout
    from .errors import (
        DeadlockError,
        LeaseExpiredError,
        LimitMismatchError,
        LockBusyError,
        LockError,
        LockLostError,
        LockNotHeldError,
        LockPathError,
    )
    from .holding.held import hold_for, holds_for, own_hold
    from .holding.hold import HoldStatus
    from .inspection import LockState, PeerInfo, WaitInfo, break_lock, inspect
    from .lock import AcquireReturnProxy, SoftReadWriteLock, joined
    from .lockset import LockSet
    from .pruning import find_locks, prune
    from .semaphore import AsyncSoftSemaphore, SoftSemaphore
    from .system.directory import make_directories
    from .system.paths import lock_home
    from .trace import end_trace, traced_as
    from .witness import HoldWitness

#: What is in which module.
_MODULES: Final = {
    "aio": "AsyncAcquireReturnProxy AsyncSoftReadWriteLock",
    "compat": "LeaseCompromise Timeout",
    "errors": "DeadlockError LeaseExpiredError LimitMismatchError LockBusyError LockError LockLostError "
    "LockNotHeldError LockPathError",
    "holding.held": "hold_for holds_for own_hold",
    "holding.hold": "HoldStatus",
    "inspection": "LockState PeerInfo WaitInfo break_lock inspect",
    "lock": "AcquireReturnProxy SoftReadWriteLock joined",
    "lockset": "LockSet",
    "pruning": "find_locks prune",
    "semaphore": "AsyncSoftSemaphore SoftSemaphore",
    "system.directory": "make_directories",
    "system.paths": "lock_home",
    "trace": "end_trace traced_as",
    "witness": "HoldWitness",
}
_HOMES: Final = {name: home for home, names in _MODULES.items() for name in names.split()}

# Spelled out for type checkers, which do not run code; a test compares it with the above.
__all__ = [
    "AcquireReturnProxy",
    "AsyncAcquireReturnProxy",
    "AsyncSoftReadWriteLock",
    "AsyncSoftSemaphore",
    "DeadlockError",
    "HoldStatus",
    "HoldWitness",
    "LeaseCompromise",
    "LeaseExpiredError",
    "LimitMismatchError",
    "LockBusyError",
    "LockError",
    "LockLostError",
    "LockNotHeldError",
    "LockPathError",
    "LockSet",
    "LockState",
    "PeerInfo",
    "SoftReadWriteLock",
    "SoftSemaphore",
    "Timeout",
    "WaitInfo",
    "break_lock",
    "end_trace",
    "find_locks",
    "hold_for",
    "holds_for",
    "inspect",
    "joined",
    "lock_home",
    "make_directories",
    "own_hold",
    "prune",
    "traced_as",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
