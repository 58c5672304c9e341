"""What this package shares with filelock, so that its users can change the import and keep their ``except`` clauses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import filelock
from filelock import LeaseCompromise

from .errors import LockError

if TYPE_CHECKING:
    from .inspection import PeerInfo

__all__ = ["LeaseCompromise", "Timeout"]


class Timeout(LockError, filelock.Timeout):
    """
    The lock could not be acquired in time. A subclass of :class:`filelock.Timeout`, hence of :class:`TimeoutError`.

    :param lock_file: the path that was asked for
    :param reason: what was in the way, as a clause
    :param holders: those who were in the way
    """

    def __init__(self, lock_file: str, reason: str | None = None, holders: tuple[PeerInfo, ...] = ()) -> None:
        filelock.Timeout.__init__(self, lock_file)
        self.reason = reason
        #: Those who held the lock, or were ahead, when the time was up.
        self.holders = holders

    def __str__(self) -> str:
        return f"The lock on {self.lock_file!r} could not be acquired in time: {self.reason or 'it is held'}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lock_file, self.reason, self.holders)
