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
    from nfsrwlock_core import *  # noqa: F403 - its __all__ says what

    from .directories import SharedDirectory, shared_directory
    from .fetching import Fetched, fetch
    from .filelock_shape import FileLock, FileLockProxy
    from .options import LockOptions

__all__ = [
    "Fetched",
    "FileLock",
    "FileLockProxy",
    "LockOptions",
    "SharedDirectory",
    "__version__",
    "fetch",
    "shared_directory",
]
__all__ += nfsrwlock_core.__all__

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
