"""A reader/writer lock as two views: :class:`RWLock` with two :class:`~nfsrwlock.dask.Lock` on one path."""

from __future__ import annotations

from typing import Any, Final

from .lock import Lock, restored
from .names import fresh_name
from .settings import Settings


class RWLock:
    """
    A reader/writer lock on one path, as two views: ``read`` and ``write``, each a :class:`Lock`.

    Parameters and errors are those of :class:`Lock`.
    """

    def __init__(self, name: Any = None, **settings: Any) -> None:
        if "mode" in settings:
            raise TypeError("an RWLock has both modes: take its read or its write")
        name = fresh_name() if name is None else name
        #: The view that shares the path with other readers.
        self.read: Final = Lock(name, mode="read", **settings)
        #: The view that has the path alone.
        self.write: Final = Lock(name, mode="write", **settings)

    @property
    def name(self) -> Any:
        """As it was given."""
        return self.write.name

    @property
    def path(self) -> str:
        """The path that is protected, canonical and absolute."""
        return self.write.path

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        return self.write == other.write if isinstance(other, RWLock) else NotImplemented

    def __hash__(self) -> int:
        return hash((RWLock, self.write))

    def __dask_tokenize__(self) -> object:
        return "nfsrwlock.dask.RWLock", self.write.__dask_tokenize__()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.name, self.read._settings, self.write._settings)


def _restored(name: Any, read: Settings, write: Settings) -> RWLock:
    pair = RWLock.__new__(RWLock)
    pair.__dict__.update(read=restored(name, read), write=restored(name, write))
    return pair
