"""
What this process holds and waits for through Dask's locks: for who asks again, for metrics, events and the journal.

Nothing is decided by it that the lock directory does not decide; it forgets everything in a forked child.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from .context import Caller
from .journal import Entry, Journal

if TYPE_CHECKING:
    from .holding import Hold

#: Waits that are shorter are no news, seconds. One that lasts is reported then, and after ten times as long each.
LONG_WAIT_S: Final = 1.0

Event = dict[str, Any]


class Activity:
    """What one process does; see :data:`activity`."""

    #: The objects by which a forked child's parent held something. There it is not theirs to give back.
    inherited: Final[set[str]] = set()

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.awaited: list[Hold] = []
        #: In the order in which they were granted.
        self.held: list[Hold] = []
        self._waited_s = 0.0
        #: How many holds were lost.
        self.losses = 0
        #: Called with each event, from any thread.
        self.listeners: list[Callable[[Event], None]] = []
        self._journals: dict[str, Journal] = {}

    def waited_s(self) -> float:
        """Return how many seconds all callers together have waited, those that wait yet included."""
        with self._lock:
            return self._waited_s + sum(hold.waited_s() for hold in self.awaited)

    @contextmanager
    def waiting(self, hold: Hold) -> Iterator[None]:
        """Count ``hold`` as awaited for the time of the block, and as held from then on unless the block raises."""
        with self._changing():
            self.awaited.append(hold)
        is_granted = False
        try:
            yield
            is_granted = True
        finally:
            with self._changing():
                seconds = hold.waited_s()
                self._waited_s += seconds
                self.awaited.remove(hold)
                if is_granted:
                    self.held.append(hold)
            if seconds >= LONG_WAIT_S:
                self.report("waited", hold, seconds=round(seconds, 3))

    def of(self, caller: Caller, lock_path: str) -> Hold | None:
        """Return what ``caller`` holds of a lock, through whatever object."""
        with self._lock:
            mine = (hold for hold in self.held if hold.caller == caller and hold.settings.lock_path == lock_path)
            return next((hold for hold in mine if hold.takers), None)

    def through(self, taker: str) -> list[Hold]:
        """Return what is held through one object."""
        return [hold for hold in list(self.held) if taker in hold.takers]

    def join(self, caller: Caller, lock_path: str, taker: str) -> bool:
        """
        Take what ``caller`` holds once more.

        :returns: whether it holds the lock
        :raises LockLostError: if it has lost it
        """
        with self._lock:
            hold = self.of(caller, lock_path)
            if hold is not None:
                hold.check()
                hold.takers.append(taker)
            return hold is not None

    def strike_out(self, caller: Caller, taker: str) -> tuple[Hold, bool] | None:
        """
        Forget one of the times that ``taker`` took something: of the caller's own hold, else of the oldest.

        :returns: the hold, and whether it is to be ended, as nobody has taken it any more; ``None`` if there is none
        """
        with self._lock:
            holds = self.through(taker)
            if not holds:
                return None
            hold = next((hold for hold in reversed(holds) if hold.caller == caller), holds[0])
            hold.takers.remove(taker)
            return hold, not hold.takers

    def leave(self, hold: Hold, *, is_lost: bool) -> None:
        """Note that a hold has ended, and whether somebody else ended it."""
        with self._changing():
            self.held.remove(hold)
        if is_lost:
            self.losses += 1
            self.report("lost", hold)

    def report(self, action: str, hold: Hold, **more: Any) -> None:
        """Pass on an event to whoever listens."""
        for listener in list(self.listeners):
            listener({"action": action, "mode": hold.settings.mode, "path": hold.settings.path, **more})

    def open_journal(self, path: str) -> None:
        """Keep a journal, from now on, of what is held and awaited."""
        with self._changing():
            if path not in self._journals:
                self._journals[path] = Journal(path)
            self._journals[path].is_ending = False

    def close_journal(self, path: str) -> None:
        """Remove the journal as soon as nothing is held and awaited: until then somebody may look after our death."""
        with self._changing():
            self._journals[path].is_ending = True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            yield
            for path, journal in list(self._journals.items()):
                entries = [
                    Entry(is_held, hold.settings.mode, hold.settings.path, hold.settings.lock_dir)
                    for is_held, holds in ((True, self.held), (False, self.awaited))
                    for hold in holds
                ]
                journal.write(entries)
                if journal.is_ending and not entries:
                    self._journals.pop(path).remove()

    def reset_after_fork(self) -> None:
        """Forget all in a forked child: it is the parent's, and another thread of that may have held the lock."""
        for journal in self._journals.values():
            journal.close()
        self.inherited.update(*(hold.takers for hold in self.held))
        self.__init__()  # type: ignore[misc]


activity: Final = Activity()
os.register_at_fork(after_in_child=activity.reset_after_fork)
