"""
Shared holds that are kept for a moment after their release (``linger=``), so that the next read costs nothing.

A kept hold is an ordinary shared hold that this process has not given back yet: nobody writes under it, and who joins
it makes no file-system call. It does not delay others for long: it ends a linger after it was granted, however often it
was joined. Who comes then takes the lock anew, and so queues behind a writer that has announced itself meanwhile. A
writer of this very process ends it at once.

Only a lock that was released less than a linger ago is kept, so a process that reads each file once keeps nothing. It
is joined through locks with equal settings only, so all its users agree on its lease and on who is told of its loss.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from nfsrwlock_core.names import Mode
from nfsrwlock_core.system.clock import now

from . import keeper
from .hold import Hold, HoldStatus

if TYPE_CHECKING:
    from nfsrwlock_core.lock import AcquireReturnProxy
    from nfsrwlock_core.settings import Settings

#: Kept at a time. A server that hangs may hold up the ends of as many.
_KEPT_MAX: Final = 64
#: Locks of which it is known when they were released.
_KNOWN_MAX: Final = 1024

_mutex = threading.RLock()  # re-entrant: a signal's handler may use the lock
#: What may be joined, and until when.
_kept: Final[dict[Settings, tuple[Hold, float]]] = {}
#: When each lock was released, by its path, the latest last.
_released: Final[dict[str, float]] = {}


class Use:
    """
    One use of a hold, by a lock object or by a task. A kept hold may have several at a time.

    :param settings: of the lock
    :param mode: shared or exclusive
    :param owner: what must not be garbage meanwhile, because only through it can the lock be released
    :param at_most: the limit of a shared hold, 0: none
    """

    def __init__(self, settings: Settings, mode: Mode, owner: object, at_most: int = 0) -> None:
        self.mode: Final = mode
        self.at_most: Final = at_most
        self.owner: Final = owner
        #: How often a lock object has taken it and not given it back, and each time for which thread.
        self.levels: dict[AcquireReturnProxy, int] = {}
        #: The asyncio task whose it is; ``None``: it is its threads'.
        self.task: ref[Any] | None = None
        #: Another thread may give it back.
        self.may_move = False
        self._settings: Final = settings
        self._linger: Final = settings.linger if mode is Mode.READ and not at_most else 0.0
        self._thread: Final = threading.get_ident()
        #: What is used, once it is.
        self.hold: Hold | None = None

    @property
    def threads(self) -> Collection[int]:
        """Which threads may be working under the hold, by their ids."""
        return self.levels.values() or (self._thread,)

    @property
    def lock_path(self) -> str:
        """Where the lock lives."""
        return self._settings.lock_path

    def refuse_another(self, mode: Mode, at_most: int, who: str, more: str = "") -> None:
        """Refuse, with ``RuntimeError``, another mode or limit as one more level of this use, which ``who`` has."""
        wish = f"cannot take the {mode.value} lock on {self._settings.lock_file!r}"
        if self.mode is not mode:
            direction = "downgrade" if mode is Mode.READ else "upgrade"
            raise RuntimeError(f"{wish}: {who} holds a {self.mode.value} lock; {direction} not allowed{more}")
        if at_most not in (0, self.at_most):
            held = f"with at_most={self.at_most}" if self.at_most else "without a limit"
            raise RuntimeError(f"{wish} with at_most={at_most}: {who} holds it {held}{more}")

    def join(self) -> Hold | None:
        """Use the hold that is kept, and return it; ``None`` if there is none that stands. No file-system call."""
        if not self._linger:
            return None
        hold, _ = _kept.get(self._settings, (None, 0.0))
        if hold is None or hold.ended or hold.status is not HoldStatus.HELD:
            return None
        with _mutex:
            same, until = _kept.get(self._settings, (None, 0.0))
            if same is not hold or now() >= until:
                return None
            # In this order, so that a signal's exception in between leaves nothing that end() does not find.
            self.hold = hold
            hold.users.add(self)
            hold.is_idle = False
            return hold

    def begin(self, hold: Hold) -> None:
        """
        Use a hold that was granted just now, and begin to beat for it; nothing if it was joined.

        :raises LockError: if nobody can beat for it
        """
        if self.hold is hold:
            return
        self.hold = hold
        hold.users.add(self)
        until = 0.0
        if self._linger:
            granted = now()
            if granted - _released.get(self._settings.lock_path, -self._linger) < self._linger:
                until = hold.ends = granted + self._linger
                hold.at_end = partial(_end, self._settings, hold)
        keeper.keep(hold, self._settings.heartbeat)
        if not until:
            return
        known, known_until = _kept.get(self._settings, (None, 0.0))
        if known is not None and now() < known_until and known.error() is None:
            return  # granted to another thread or task meanwhile: one is enough
        with _mutex:
            if len(_kept) < _KEPT_MAX or self._settings in _kept:
                _kept[self._settings] = hold, until

    def leave(self) -> bool:
        """
        End this use; doing so twice does no harm.

        :returns: whether the hold goes on, because others use it or it is kept. Else the caller must release it
        """
        hold = self.hold
        if hold is None:
            return False
        if not self._linger:  # nobody else uses it
            hold.users.discard(self)
            return False
        stands = hold.status is HoldStatus.HELD and not keeper.is_exiting()
        with _mutex:
            hold.users.discard(self)
            _note_released(self._settings.lock_path)
            if hold.users:
                return True
            same, until = _kept.get(self._settings, (None, 0.0))
            hold.is_idle = same is hold and stands and now() < until
            if same is hold and not hold.is_idle:
                del _kept[self._settings]
            return hold.is_idle

    def end(self, granted: Hold | None = None) -> bool:
        """
        End this use, and the hold unless it goes on; see :func:`keeper.release`.

        :param granted: a hold that was granted for this use, which may not have begun
        :returns: whether the hold stood to the end of this use
        """
        if self.leave() and self.hold is not None:
            return self.hold.is_idle or self.hold.error() is None
        hold = self.hold or granted
        return hold is None or keeper.release(hold)


def make_way(lock_path: str) -> None:
    """End what this process keeps of a lock, because it wants it exclusively; what is in use ends with its last use."""
    if not _kept:
        return
    with _mutex:
        found = [(settings, hold) for settings, (hold, _) in _kept.items() if settings.lock_path == lock_path]
    for settings, hold in found:
        _end(settings, hold)


def _end(settings: Settings, hold: Hold) -> None:
    with _mutex:
        if _kept.get(settings, (None, 0.0))[0] is hold:
            del _kept[settings]
        if hold.users:
            return
    keeper.release(hold)


def _note_released(path: str) -> None:
    _released.pop(path, None)
    _released[path] = now()
    while len(_released) > _KNOWN_MAX:
        del _released[next(iter(_released))]


def _forget_after_fork() -> None:
    # The holds are the parent's.
    global _mutex  # noqa: PLW0603 - another thread of the parent may have held it
    _mutex = threading.RLock()
    _kept.clear()
    _released.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
