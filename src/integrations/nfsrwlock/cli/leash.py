"""
The leash: a command may work only while the hold is certain.

What it cannot do: take back what the command has already handed to the kernel. Data written before the stop may reach
the server after it; and if the whole machine stood still past the lease, the command may run for a few milliseconds
before it is stopped. Where that matters, check the fencing generation when publishing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from nfsrwlock.cli.keeper import Hold, OnExpiry, now
from nfsrwlock.processes import Find, freeze, kill, thaw
from nfsrwlock.text import duration
from nfsrwlock_core import HoldStatus

_AGAIN_SECONDS: Final = 1.0


class _Work(Enum):
    """What the processes under the leash may do."""

    ALLOWED = "allowed"
    SUSPENDED = "suspended"
    FORBIDDEN = "forbidden"


class Leash:
    """
    Stops, continues and kills the processes that ``find`` lists, as the hold demands.

    :param what: what to call them in messages: "the command", "process 4711"
    :param say: takes one line for the user
    :param when_stopped: called when they have just been stopped
    """

    def __init__(
        self,
        find: Find,
        policy: OnExpiry,
        what: str,
        say: Callable[[str], None],
        when_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        self._when_stopped = when_stopped
        self._find = find
        self._policy = policy
        self._what = what
        self._say = say
        self._work = _Work.ALLOWED
        self._since = self._looked = now()
        self._stopped: dict[int, None] = {}

    @property
    def tight(self) -> bool:
        """Whether the processes must stand still for now."""
        return self._work is _Work.SUSPENDED and self._policy is OnExpiry.STOP

    @property
    def killed(self) -> bool:
        """Whether the processes were killed for the hold's sake."""
        return self._work is _Work.FORBIDDEN and self._policy is not OnExpiry.IGNORE

    def apply(self, hold: Hold) -> None:
        """Make the processes' state what ``hold`` demands at this moment."""
        moment = now()
        match self._work, hold.at(moment):
            case _Work.ALLOWED, HoldStatus.SUSPECT:
                self._expired(moment)
            case _Work.SUSPENDED, HoldStatus.HELD:
                self._confirmed(moment)
            case ((_Work.ALLOWED | _Work.SUSPENDED), (HoldStatus.LOST | HoldStatus.FREE)):
                self._lost(hold)
            case _:
                self._enforce(moment)

    def kill(self) -> None:
        """Kill them all, whatever the hold."""
        self._work = _Work.FORBIDDEN
        kill(self._find)

    def take_over(self) -> None:
        """From now on what stands still (a suspended job that its user continues) is the leash's to continue."""
        for entry in self._find():
            if entry.stopped:
                self._stopped[entry.pid] = None

    def _expired(self, moment: float) -> None:
        self._work, self._since = _Work.SUSPENDED, moment
        expired = "the lease has run out before a heartbeat succeeded"
        if self._policy is OnExpiry.STOP:
            freeze(self._find, self._stopped)
            self._when_stopped()
            self._say(f"{expired}: {self._what} is stopped until the hold is confirmed")
        elif self._policy is OnExpiry.KILL:
            self.kill()
            self._say(f"{expired}: {self._what} was killed (--on-expiry=kill)")
        else:
            self._say(f"{expired}: {self._what} goes on although the lock is not certain (--on-expiry=ignore)")

    def _confirmed(self, moment: float) -> None:
        self._work = _Work.ALLOWED
        thaw(self._stopped)
        goes_on = f"; {self._what} goes on" if self._policy is OnExpiry.STOP else ""
        self._say(f"the hold is confirmed after {duration(moment - self._since)}, it never ended{goes_on}")

    def _lost(self, hold: Hold) -> None:
        self._work = _Work.FORBIDDEN
        reason = hold.reason or "the lock was lost"
        if self._policy is OnExpiry.IGNORE:
            self._say(f"{self._what} goes on without a lock (--on-expiry=ignore): {reason}")
        else:
            self.kill()
            self._say(f"{self._what} was killed: {reason}")

    def _enforce(self, moment: float) -> None:
        """Somebody else may have continued what is stopped, or a kill may have missed a process just made."""
        if moment - self._looked < _AGAIN_SECONDS:
            return
        self._looked = moment
        if self.tight:
            freeze(self._find, self._stopped)
        elif self.killed:
            kill(self._find)
