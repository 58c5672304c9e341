"""
nfsrwlock for joblib: contexts and decorators around parallel work, and a cache that computes once.

Each name is loaded when it is first used. :func:`guard` and :func:`locked` need the core alone, so a child process that
gets them by pickle imports nothing else; :class:`Memory` and the store backend need joblib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nfsrwlock_core.lazy import lazily

if TYPE_CHECKING:
    from .guarding import Guard as Guard
    from .guarding import guard as guard
    from .locking import locked as locked
    from .memory import Memory as Memory
    from .store import LockingStoreBackend as LockingStoreBackend
    from .store import register_store_backend as register_store_backend

_HOMES: Final = {
    "Guard": ".guarding",
    "LockingStoreBackend": ".store",
    "Memory": ".memory",
    "guard": ".guarding",
    "locked": ".locking",
    "register_store_backend": ".store",
}

if not TYPE_CHECKING:
    __all__ = [*_HOMES]  # noqa: PLE0604 - names, all of them
    __getattr__, __dir__ = lazily(__name__, _HOMES)
