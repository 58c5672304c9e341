"""
Locks for Dask: :class:`Lock` in the place of ``distributed.Lock``, on files instead of in the scheduler.

Nothing here talks to the scheduler to lock or to release: a lock works without a client, outlives the scheduler, and is
the same one for other clusters, for programs outside Dask, and for the command line. What is guaranteed is what the
engine guarantees; see :class:`nfsrwlock.SoftReadWriteLock`.
"""

from __future__ import annotations

try:
    import distributed  # noqa: F401
except ImportError as error:
    raise ImportError("nfsrwlock.dask needs dask.distributed: pip install 'nfsrwlock[dask]'") from error

from .combine import CombinedLock, combine
from .lock import Lock, RWLock
from .plugins import install
from .semaphore import Semaphore

__all__ = ["CombinedLock", "Lock", "RWLock", "Semaphore", "combine", "install"]
