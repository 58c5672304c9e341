"""
The leash: what works under a hold may work only while the hold is certain.

For the command line and for the jobs of Snakemake. When a lease has run out before a heartbeat succeeded, the processes
are stopped, before any peer may enter. They continue if the hold turns out never to have ended (the file server is
back), and are killed if it was lost.

What it cannot do: take back what they have already handed to the kernel. Data written before the stop may reach the
server after it; and if the whole machine stood still past the lease, they may run for a few milliseconds before they
are stopped. Where that matters, check the fencing generation when publishing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

from nfsrwlock.processes import Find, freeze, kill, thaw
from nfsrwlock.text import duration
from nfsrwlock_core import HoldStatus, LockError, LockSet

_AGAIN_SECONDS: Final = 1.0


class OnExpiry(Enum):
    """What happens to the processes when the lease has run out before a heartbeat succeeded."""

    STOP = "stop"
    KILL = "kill"
    IGNORE = "ignore"


def now() -> float:
    """Seconds on a clock that all processes of this kernel share and that runs through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def why_not_held(locks: LockSet) -> str:
    """Say why ``locks`` are not held any more, or are not certain to be."""
    try:
        locks.check()
    except LockError as error:
        return str(error)
    return "the lock was lost for a while"


class Leash:
    """
    Stops, continues and kills the processes that ``find`` lists, as the hold demands.

    :param what: what to call them in messages: "the command", "process 4711"
    :param say: takes one line for the user
    """

    def __init__(self, find: Find, what: str, say: Callable[[str], None], policy: OnExpiry = OnExpiry.STOP) -> None:
        self._find = find
        self._policy = policy
        self._what = what
        self._say = say
        #: Of the hold, as the processes' state shows it; ``LOST``: they may never go on.
        self._status = HoldStatus.HELD
        self._since = self._looked = now()
        self._stopped: dict[int, None] = {}

    @property
    def tight(self) -> bool:
        """Whether the processes must stand still for now."""
        return self._status is HoldStatus.SUSPECT and self._policy is OnExpiry.STOP

    @property
    def killed(self) -> bool:
        """Whether the processes were killed for the hold's sake."""
        return self._status is HoldStatus.LOST and self._policy is not OnExpiry.IGNORE

    def apply(self, status: HoldStatus, reason: str) -> None:
        """
        Make the processes' state what the hold demands at this moment.

        :param reason: why it is lost, if it is
        """
        match self._status, status:
            case HoldStatus.HELD, HoldStatus.SUSPECT:
                self._expired()
            case HoldStatus.SUSPECT, HoldStatus.HELD:
                self._confirmed()
            case ((HoldStatus.HELD | HoldStatus.SUSPECT), (HoldStatus.LOST | HoldStatus.FREE)):
                self._lost(reason)
            case _:
                if now() - self._looked >= _AGAIN_SECONDS:
                    self.enforce()

    def enforce(self) -> None:
        """Look again: somebody may have continued what is stopped, a process may be new, a kill may have missed it."""
        self._looked = now()
        if self.tight:
            freeze(self._find, self._stopped)
        elif self.killed:
            kill(self._find)

    def kill(self) -> None:
        """Kill them all, whatever the hold."""
        self._status = HoldStatus.LOST
        kill(self._find)

    def take_over(self) -> None:
        """From now on what stands still (a suspended job that its user continues) is the leash's to continue."""
        for entry in self._find():
            if entry.stopped:
                self._stopped[entry.pid] = None

    def let_go(self) -> None:
        """The work is over: continue what is stopped, so that it can end."""
        thaw(self._stopped)

    def _expired(self) -> None:
        self._status, self._since = HoldStatus.SUSPECT, now()
        expired = "the lease has run out before a heartbeat succeeded"
        if self._policy is OnExpiry.STOP:
            freeze(self._find, self._stopped)
            self._say(f"{expired}: {self._what} is stopped until the hold is confirmed")
        elif self._policy is OnExpiry.KILL:
            self.kill()
            self._say(f"{expired}: {self._what} was killed (--on-expiry=kill)")
        else:
            self._say(f"{expired}: {self._what} goes on although the lock is not certain (--on-expiry=ignore)")

    def _confirmed(self) -> None:
        self._status = HoldStatus.HELD
        thaw(self._stopped)
        goes_on = f"; {self._what} goes on" if self._policy is OnExpiry.STOP else ""
        self._say(f"the hold is confirmed after {duration(now() - self._since)}, it never ended{goes_on}")

    def _lost(self, reason: str) -> None:
        self._status = HoldStatus.LOST
        if self._policy is OnExpiry.IGNORE:
            self._say(f"{self._what} goes on without a lock (--on-expiry=ignore): {reason}")
        else:
            self.kill()
            self._say(f"{self._what} was killed: {reason}")
