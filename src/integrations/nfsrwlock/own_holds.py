"""
What a thread holds by the ready-made forms of the lock, so that it does not wait for itself.

Who holds a path shared and asks for it again in the same thread would queue behind a writer that waits for the first
hold, and neither would ever go on. So it joins the hold that it has.

Only the same thread's: if all threads of a process joined each other's holds, a writer might never have its turn.
"""

from __future__ import annotations

import threading
from typing import Final, Literal

from nfsrwlock_core import AcquireReturnProxy, DeadlockError, HoldStatus, LockLostError, SoftReadWriteLock

Mode = Literal["read", "write"]

_mine = threading.local()


class OwnHold:
    """A hold, which ends when all its users have left; they may leave in any thread."""

    def __init__(self, lock: SoftReadWriteLock, mode: Mode, grant: AcquireReturnProxy, user: object) -> None:
        self.lock: Final = lock
        self.mode: Final = mode
        self._grant: AcquireReturnProxy | None = grant
        self._thread: Final = threading.get_ident()
        self._users = {user}
        self._mutex = threading.RLock()

    def join(self, user: object) -> bool:
        """Keep it for ``user`` until it leaves; returns whether that is still possible."""
        with self._mutex:
            if self._users:
                self._users.add(user)
            return bool(self._users)

    def is_used_by(self, user: object) -> bool:
        """Whether ``user`` has not left."""
        return user in self._users

    def leave(self, user: object) -> LockLostError | None:
        """
        End it for ``user``, and altogether if that was the last one; doing so twice does no harm.

        :returns: that it was lost, if it was
        """
        with self._mutex:
            self._users.discard(user)
            is_over = not self._users
            grant, self._grant = (self._grant, None) if is_over else (None, self._grant)
        try:
            if grant is not None and self._thread == threading.get_ident():
                grant.__exit__(None, None, None)
            elif not is_over:
                self.lock.check()
        except LockLostError as error:
            return error
        finally:
            if is_over:
                self.lock.release(force=True)
        return None


def note(lock: SoftReadWriteLock, mode: Mode, grant: AcquireReturnProxy, user: object) -> OwnHold:
    """
    Note that the calling thread has taken ``lock`` for ``user``.

    :param grant: what the lock gave for it
    """
    hold = OwnHold(lock, mode, grant, user)
    _mine.holds = [*_holds(), hold]
    return hold


def joined(lock: SoftReadWriteLock, mode: Mode, user: object) -> OwnHold | None:
    """
    Let ``user`` join the calling thread's hold on the path of ``lock`` that covers ``mode``.

    :returns: that hold, ``None`` if the thread has none on this path
    :raises DeadlockError: if it has it shared, and ``mode`` is exclusive
    """
    holds = [hold for hold in _holds() if hold.lock.lock_path == lock.lock_path]
    for hold in holds:
        if hold.mode in ("write", mode) and hold.join(user):
            return hold
    if any(hold.mode != mode for hold in holds):
        raise DeadlockError(
            f"cannot take the write lock on {lock.lock_file!r}: this very thread holds it shared, and waiting for "
            "itself would never end; release that hold first"
        )
    return None


def _holds() -> list[OwnHold]:
    # Those that have ended, or were inherited through fork(), are void; a lost one covers nobody.
    holds: list[OwnHold] = getattr(_mine, "holds", [])
    return [hold for hold in holds if hold.lock.status is HoldStatus.HELD]


__all__ = ["Mode", "OwnHold", "joined", "note"]
