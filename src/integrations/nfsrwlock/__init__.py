"""
Shared and exclusive locks on files that several hosts share over NFS or another shared file system.

These are the public names of the engine, :mod:`nfsrwlock_core`, and ready-made forms of the lock (``fetch``,
``shared_directory``, ``FileLock``), each loaded when it is first used: the command line,
which is a module of this package (``nfsrwlock.cli``), must start quickly. Adapters for other programs are modules of
this package too; each imports what it adapts, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import nfsrwlock_core
from nfsrwlock_core.lazy import lazily

if TYPE_CHECKING:
    from nfsrwlock_core import *  # noqa: F403 - all that is public there

    from .directories import SharedDirectory as SharedDirectory
    from .directories import shared_directory as shared_directory
    from .fetching import Fetched as Fetched
    from .fetching import fetch as fetch
    from .filelock_shape import FileLock as FileLock
    from .filelock_shape import FileLockProxy as FileLockProxy
    from .options import LockOptions as LockOptions

#: Which module each name is in: ready-made forms of the lock in this package's, all others in the core.
_HOMES: Final = {
    **dict.fromkeys(dir(nfsrwlock_core), "nfsrwlock_core"),
    "Fetched": ".fetching",
    "FileLock": ".filelock_shape",
    "FileLockProxy": ".filelock_shape",
    "LockOptions": ".options",
    "SharedDirectory": ".directories",
    "fetch": ".fetching",
    "shared_directory": ".directories",
}

#: The one place that states the version; the package's metadata is made from it.
__version__ = "0.2.0"

if not TYPE_CHECKING:
    __all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - names, all of them
    __getattr__, __dir__ = lazily(__name__, _HOMES)
