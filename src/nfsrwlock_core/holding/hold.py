"""
A granted lock as its process knows it: whether it still stands, and who must be told when it does not.

The state is derived from the lease and the clock whenever it is asked for, so no thread has to run for an expiry to
be noticed: a process that wakes after a pause sees at once that its lease has run out.

A virtual machine that was paused may not see that on the clock of its leases, but on its wall clock once that was set
right. So what the wall clock gains on the other counts as time that has passed. It only ever makes a holder distrust
itself earlier: no clock decides anything about others.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nfsrwlock_core import trace
from nfsrwlock_core.errors import LeaseExpiredError, LockLostError
from nfsrwlock_core.names import token_in
from nfsrwlock_core.protocol.heartbeat import MARGIN, Announced, Beat
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now, wall_clock
from nfsrwlock_core.trace import logger

if TYPE_CHECKING:
    from filelock import LeaseCompromise

    from .kept import Use


class HoldStatus(StrEnum):
    """Whether a lock is held."""

    FREE = "free"
    HELD = "held"
    #: The lease has run out before a heartbeat succeeded. A peer may enter. A later heartbeat may restore the hold.
    SUSPECT = "suspect"
    #: Somebody evicted us. It will not come back.
    LOST = "lost"


class Hold:
    """
    One granted participant, its heartbeat, and what its owner is told of it.

    :param participant: granted
    :param lock_file: the path as the user named it
    :param device: the file system, for the keeper
    :param on_compromise: called once each time the hold becomes suspect or lost, from a thread of this package
    """

    def __init__(
        self,
        participant: Announced,
        lock_file: str,
        device: int,
        on_compromise: Callable[[LeaseCompromise], None] | None,
    ) -> None:
        self.participant: Final = participant
        self.lock_file: Final = lock_file
        self.device: Final = device
        self._on_compromise: Final = on_compromise
        #: One heartbeat or one removal at a time.
        self.mutex: Final = threading.RLock()
        #: The process that holds; in a forked child of it, this object must not touch the disk.
        self.pid: Final = os.getpid()
        #: Set while something else than this process's own thread beats for the hold.
        self.catch_up: Callable[[], None] | None = None
        #: The thread in which ``on_compromise`` runs now; it may release the hold although it does not own it.
        self.callback_thread: int | None = None
        #: What the helper process calls this hold.
        self.key: int = -1
        self.due: float = participant.lease.renewed + participant.interval
        self.ended: bool = False
        #: Its uses; see :mod:`~nfsrwlock_core.holding.kept`.
        self.users: set[Use] = set()
        #: It is kept, and nobody uses it.
        self.is_idle: bool = False
        #: When the scheduler calls :attr:`at_end`, on the clock of the leases.
        self.ends: float = math.inf
        self.at_end: Callable[[], None] | None = None
        #: Somebody is about to call :meth:`tell_owner`.
        self.telling: bool = False
        self._telling_lock = threading.RLock()
        #: A heartbeat has found that somebody evicted this hold.
        self.is_known_lost: bool = False
        #: The status of which the owner knows.
        self._told: HoldStatus = HoldStatus.HELD

    @property
    def status(self) -> HoldStatus:
        """Whether the hold stands now."""
        is_over = self.remaining < 0
        if self.is_known_lost:
            return HoldStatus.LOST
        return HoldStatus.SUSPECT if is_over else HoldStatus.HELD

    def _left_at(self, moment: float) -> float:
        # Of the lease, in seconds, right after a look at the wall clock; negative once it has run out.
        lease = self.participant.lease
        gained = wall_clock.gained(lease.renewed)
        left = lease.expires - moment - gained
        if gained > lease.ttl * MARGIN:
            left = min(left, -gained)  # there was a pause: whoever watched us counts it in full
        return min(left, moment - lease.renewed) if moment < lease.renewed else left

    @property
    def remaining(self) -> float:
        """Seconds until the lease runs out, unless it is renewed; negative after that, 0 once the hold is lost."""
        left = self._left_at(wall_clock.look())
        if left < 0 and self.catch_up is not None and not self.is_known_lost:
            self.catch_up()  # beats may have arrived while this process could not look
            left = self._left_at(wall_clock.look())
        return 0.0 if self.is_known_lost else left

    @property
    def compromise(self) -> LeaseCompromise | None:
        """How the hold was lost, or ``None`` while it stands."""
        status = self.status
        return None if status is HoldStatus.HELD else self._describe(status)

    def error(self) -> LockLostError | None:
        """Return the error that tells what is wrong with the hold, ``None`` if nothing is."""
        return self._error_of(self.status)

    def _error_of(self, status: HoldStatus) -> LockLostError | None:
        if status is HoldStatus.LOST:
            return self.lost_error()
        if status is HoldStatus.SUSPECT:
            lease = self.participant.lease
            silent = lease.ttl * (1 - MARGIN) - self._left_at(wall_clock.look())
            cause = f" ({self.participant.beat_error})" if self.participant.beat_error else ""
            return LeaseExpiredError(
                self.lock_file,
                f"no heartbeat has succeeded for {silent:.1f} s{cause}; with a lease of {lease.ttl:g} s others may "
                "hold the lock now. Stop using what it protects",
            )
        return None

    def lost_error(self) -> LockLostError:
        """Return the error of a hold that somebody has ended."""
        return LockLostError(
            self.lock_file,
            "somebody evicted this holder, after its lease had run out or by an operator's command; what was done "
            "since may overlap with another holder's work and must not be published",
        )

    def beat(self) -> Beat:
        """Send a heartbeat now and take in what comes of it. For the keeper."""
        with self.mutex:
            if self.ended or self.is_known_lost:
                return Beat.LOST
            wall_clock.look()
            outcome = self.participant.beat()
            moment = now()
            if outcome is Beat.LOST:
                self.is_known_lost = True  # before another heartbeat can change the error that this one has found
            elif outcome is Beat.DONE:
                self.due = self.participant.lease.renewed + self.participant.interval
            else:
                self.due = moment + self.participant.interval / 10
        self.take_in(outcome)
        return outcome

    def take_in(self, outcome: Beat) -> None:
        """Take in the outcome of a heartbeat that was sent here or elsewhere, and tell the owner."""
        if outcome is Beat.LOST:
            self.is_known_lost = self.telling = True
            self.due = float("inf")
            # In a thread of its own: the owner's callback may release the hold, and whoever calls here may be what a
            # release waits for.
            workers.submit(self.tell_owner)
        elif self._told is HoldStatus.SUSPECT and self._left_at(wall_clock.look()) >= 0:
            self._told = HoldStatus.HELD
            trace.log(
                *(logging.WARNING, "the lock on %r is safe again: a heartbeat has shown that the hold never ended"),
                self.lock_file,
                extra={"event": "restored", "announcement": self.participant.name},
            )

    def tell_owner(self) -> None:
        """Call ``on_compromise`` if the hold is suspect or lost and its owner does not know that yet."""
        self.telling = False
        status = self.status
        if status is HoldStatus.HELD or self.ended:
            return
        with self._telling_lock:
            if self._told in (status, HoldStatus.LOST):
                return
            self._told = status
        facts = {"event": status.value, "announcement": self.participant.name}
        trace.log(logging.WARNING, "%s", self._error_of(status), extra=facts)  # of then: it may be restored meanwhile
        self.due = min(self.due, now())  # where the clocks say that there was a pause, one can be sent at once
        if self._on_compromise is None or self.is_idle:
            return
        self.callback_thread = threading.get_ident()
        try:
            self._on_compromise(self._describe(status))
        except Exception:
            logger.exception("on_compromise of the lock on %r failed", self.lock_file)
        finally:
            self.callback_thread = None

    @property
    def next_expiry(self) -> float:
        """When the owner must be told of an expiry; ``inf``: it has been told already."""
        is_told = self.telling or self._told is not HoldStatus.HELD
        return math.inf if is_told else now() + self._left_at(wall_clock.look())

    def _describe(self, status: HoldStatus) -> LeaseCompromise:
        from filelock import LeaseCompromise  # noqa: PLC0415 - the beating helper process does without filelock

        return LeaseCompromise(
            lock_file=self.lock_file,
            token=token_in(self.participant.name),
            reason="evicted" if status is HoldStatus.LOST else "refresh-failed",
            error=self.participant.beat_error,
        )
