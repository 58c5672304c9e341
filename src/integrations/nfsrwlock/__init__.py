"""
Shared and exclusive locks on files that several hosts share over NFS or another shared file system.

These are the public names of the engine, :mod:`nfsrwlock_core`, each loaded when it is first used: the command line,
which is a module of this package (``nfsrwlock.cli``), must start quickly. Adapters for other programs are modules of
this package too; each imports what it adapts, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nfsrwlock_core

if TYPE_CHECKING:
    from nfsrwlock_core import (
        AcquireReturnProxy,
        AsyncAcquireReturnProxy,
        AsyncSoftReadWriteLock,
        HoldStatus,
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
        inspect,
    )

# Spelled out, not taken over from the core: type checkers read it, and a new public name is to be a decision.
__all__ = [
    "AcquireReturnProxy",
    "AsyncAcquireReturnProxy",
    "AsyncSoftReadWriteLock",
    "HoldStatus",
    "LeaseCompromise",
    "LeaseExpiredError",
    "LockBusyError",
    "LockError",
    "LockLostError",
    "LockNotHeldError",
    "LockPathError",
    "LockSet",
    "LockState",
    "PeerInfo",
    "SoftReadWriteLock",
    "Timeout",
    "WaitInfo",
    "__version__",
    "break_lock",
    "inspect",
]

#: The one place that states the version; the package's metadata is made from it.
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(nfsrwlock_core, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
