"""
Shared and exclusive locks on files that several hosts share over NFS or another shared file system.

These are the public names of the engine, :mod:`nfsrwlock_core`, and ready-made forms of the lock (``fetch``,
``shared_directory``, ``FileLock``), each loaded when it is first used: the command line,
which is a module of this package (``nfsrwlock.cli``), must start quickly. Adapters for other programs are modules of
this package too; each imports what it adapts, and nothing else does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import nfsrwlock_core

if TYPE_CHECKING:
    from nfsrwlock_core import (
        AcquireReturnProxy,
        AsyncAcquireReturnProxy,
        AsyncSoftReadWriteLock,
        DeadlockError,
        HoldStatus,
        HoldWitness,
        LeaseCompromise,
        LeaseExpiredError,
        LockBusyError,
        LockError,
        LockLostError,
        LockNotHeldError,
        LockPathError,
        LockSet,
        LockState,
        PeerInfo,
        SoftReadWriteLock,
        Timeout,
        WaitInfo,
        break_lock,
        hold_for,
        inspect,
        lock_home,
        make_directories,
    )

    from .directories import SharedDirectory, shared_directory
    from .fetching import Fetched, fetch
    from .filelock_shape import FileLock, FileLockProxy
    from .options import LockOptions

# Spelled out, not taken over from the core: type checkers read it, and a new public name is to be a decision.
__all__ = [
    "AcquireReturnProxy",
    "AsyncAcquireReturnProxy",
    "AsyncSoftReadWriteLock",
    "DeadlockError",
    "Fetched",
    "FileLock",
    "FileLockProxy",
    "HoldStatus",
    "HoldWitness",
    "LeaseCompromise",
    "LeaseExpiredError",
    "LockBusyError",
    "LockError",
    "LockLostError",
    "LockNotHeldError",
    "LockOptions",
    "LockPathError",
    "LockSet",
    "LockState",
    "PeerInfo",
    "SharedDirectory",
    "SoftReadWriteLock",
    "Timeout",
    "WaitInfo",
    "__version__",
    "break_lock",
    "fetch",
    "hold_for",
    "inspect",
    "lock_home",
    "make_directories",
    "shared_directory",
]

#: Ready-made forms of the lock, which live in modules of this package; all other names are the core's.
_HOMES: Final = {
    "Fetched": "fetching",
    "FileLock": "filelock_shape",
    "FileLockProxy": "filelock_shape",
    "LockOptions": "options",
    "SharedDirectory": "directories",
    "fetch": "fetching",
    "shared_directory": "directories",
}

#: The one place that states the version; the package's metadata is made from it.
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name)
    value = getattr(import_module(f".{home}", __name__) if home else nfsrwlock_core, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
