"""
nfsrwlock for joblib: contexts and decorators around parallel work, and a cache that computes once.

Each name is loaded when it is first used. :func:`guard` and :func:`locked` need the core alone, so a child process that
gets them by pickle imports nothing else; :class:`Memory` and the store backend need joblib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .guarding import Guard, guard
    from .locking import locked
    from .memory import Memory
    from .store import LockingStoreBackend, register_store_backend

_HOMES: Final = {
    "Guard": "guarding",
    "LockingStoreBackend": "store",
    "Memory": "memory",
    "guard": "guarding",
    "locked": "locking",
    "register_store_backend": "store",
}

__all__ = ["Guard", "LockingStoreBackend", "Memory", "guard", "locked", "register_store_backend"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
