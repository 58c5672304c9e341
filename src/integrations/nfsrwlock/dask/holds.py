"""
The holds of this process, by lock directory: through whatever objects they were taken, a reader finds its own again.

Nothing is decided by it that the lock directory does not decide; it forgets everything in a forked child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nfsrwlock_core import LockLostError

from .grip import Grip
from .ledger import ledger
from .place import Owner

_table: dict[str, list[Grip]] = {}
_lock = threading.RLock()


class Verdict:
    """What came of giving back a hold: whether that was its last level, and whether it stood."""

    def __init__(self, *, is_last: bool) -> None:
        self.is_last = is_last
        self.stood = True


def enter(grip: Grip) -> None:
    """Note a new hold."""
    ledger.take(grip.settings.mode, grip.settings.path)
    with _lock:
        _table.setdefault(grip.settings.lock_path, []).append(grip)


def join(lock_path: str, owner: Owner) -> Grip | None:
    """
    Return the hold that ``owner`` has, one level higher; ``None`` if it has none.

    :raises LockLostError: if it was lost
    """
    with _lock:
        grip = next((grip for grip in _table.get(lock_path, ()) if grip.owner == owner), None)
        if grip is not None:
            grip.check()
            grip.levels += 1
        return grip


def is_reader(lock_path: str, owner: Owner) -> bool:
    """Whether ``owner`` holds the lock shared."""
    with _lock:
        return any(grip.owner == owner and grip.settings.mode == "read" for grip in _table.get(lock_path, ()))


@contextmanager
def leaving(grip: Grip, is_unwinding: bool) -> Iterator[Verdict]:
    """
    Take a level of the hold back. In the block the caller ends it, or checks it if this was not the last level.

    :raises LockLostError: what the block raised, unless another exception is on its way: that one says why the work is
        void
    """
    verdict = Verdict(is_last=_give_back_level(grip))
    try:
        yield verdict
    except LockLostError:
        verdict.stood = False
        if not is_unwinding:
            raise
    finally:
        if verdict.is_last:
            ledger.leave(grip.settings.mode, grip.settings.path, lost=not verdict.stood)


def _give_back_level(grip: Grip) -> bool:
    with _lock:
        grip.levels -= 1
        if grip.levels:
            return False
        grips = _table.get(grip.settings.lock_path, [])
        if grip in grips:
            grips.remove(grip)
        if not grips:
            _table.pop(grip.settings.lock_path, None)
    return True


def _reset_after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.RLock()
    _table.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
