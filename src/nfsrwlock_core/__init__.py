"""
nfsrwlock_core: reader/writer locks for files on shared file systems.

Names are loaded when they are first used: the heartbeat helper process imports this package, too, and needs little.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from .lazy import lazily

if os.name != "posix":
    raise ImportError("nfsrwlock works on POSIX systems only: its protocol needs their rename, rmdir and O_NOFOLLOW")

if TYPE_CHECKING:  # as themselves: so a type checker knows that they are public
    from .aio import AsyncAcquireReturnProxy as AsyncAcquireReturnProxy
    from .aio import AsyncSoftReadWriteLock as AsyncSoftReadWriteLock
    from .compat import LeaseCompromise as LeaseCompromise
    from .compat import Timeout as Timeout
    from .errors import DeadlockError as DeadlockError
    from .errors import LeaseExpiredError as LeaseExpiredError
    from .errors import LimitMismatchError as LimitMismatchError
    from .errors import LockBusyError as LockBusyError
    from .errors import LockError as LockError
    from .errors import LockLostError as LockLostError
    from .errors import LockNotHeldError as LockNotHeldError
    from .errors import LockPathError as LockPathError
    from .holding.held import hold_for as hold_for
    from .holding.held import holds_for as holds_for
    from .holding.held import own_hold as own_hold
    from .holding.hold import HoldStatus as HoldStatus
    from .inspection import LockState as LockState
    from .inspection import PeerInfo as PeerInfo
    from .inspection import WaitInfo as WaitInfo
    from .inspection import break_lock as break_lock
    from .inspection import inspect as inspect
    from .lock import AcquireReturnProxy as AcquireReturnProxy
    from .lock import SoftReadWriteLock as SoftReadWriteLock
    from .lock import joined as joined
    from .lockset import LockSet as LockSet
    from .pruning import find_locks as find_locks
    from .pruning import prune as prune
    from .semaphore import AsyncSoftSemaphore as AsyncSoftSemaphore
    from .semaphore import SoftSemaphore as SoftSemaphore
    from .system.directory import make_directories as make_directories
    from .system.paths import lock_home as lock_home
    from .trace import end_trace as end_trace
    from .trace import traced_as as traced_as
    from .witness import HoldWitness as HoldWitness

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
_HOMES: Final = {name: f".{home}" for home, names in _MODULES.items() for name in names.split()}

if not TYPE_CHECKING:
    __all__ = [*_HOMES]  # noqa: PLE0604 - names, all of them
    __getattr__, __dir__ = lazily(__name__, _HOMES)
