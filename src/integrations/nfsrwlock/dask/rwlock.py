"""A reader/writer lock as two views: :class:`RWLock` with two :class:`~nfsrwlock.dask.Lock` on one path."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Unpack

from .lock import Lock
from .names import fresh_name
from .settings import Mode, Options


@dataclass(frozen=True, init=False, repr=False)
class RWLock:
    """
    A reader/writer lock on one path, as two views: ``read`` and ``write``, each a :class:`Lock`.

    Parameters and errors are those of :class:`Lock`.
    """

    #: The view that shares the path with other readers.
    read: Lock
    #: The view that has the path alone.
    write: Lock

    def __init__(self, name: Any = None, **options: Unpack[Options]) -> None:
        if "mode" in options:
            raise TypeError("an RWLock has both modes: take its read or its write")
        name = fresh_name() if name is None else name
        modes: tuple[Mode, ...] = ("read", "write")
        for mode in modes:
            options["mode"] = mode
            object.__setattr__(self, mode, Lock(name, **options))

    @property
    def name(self) -> Any:
        """As it was given."""
        return self.write.name

    @property
    def path(self) -> str:
        """The path that is protected, canonical and absolute."""
        return self.write.path

    def __copy__(self) -> RWLock:
        return copy.deepcopy(self)  # a copy holds nothing

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
