"""
The lock protocol: announce, list, wait, and leave. Its specification and proof: docs/PROTOCOL.md.

How an announcement is kept is in :mod:`.heartbeat`, how others are watched and evicted in :mod:`.rivals`.

What it does not do: it never sleeps, starts no thread, and reads no clock, no process table and no environment of its
own. Each call takes one step of the story and returns; time, liveness and randomness come in by argument. So the same
code runs on a real mount and in the simulation, and a late heartbeat is a fact that a test can make.

Three rules carry everything:

* A participant announces itself (``mkdir`` of a name nobody else ever uses) before it lists, and only the listing that
  follows its own successful ``mkdir`` decides.
* No name is used twice, so a removal that lands late removes nothing of anybody else's.
* An eviction is one operation that the server carries out or refuses, and it refuses if the holder has beaten since.
"""

from __future__ import annotations

import contextlib
import math
from typing import Final

from nfsrwlock_core.errors import LimitMismatchError, LockPathError
from nfsrwlock_core.names import (
    COUNT_MAX,
    Announcement,
    Identity,
    Listing,
    Mode,
    announcement_name,
    generation_name,
    parse_listing,
    token_in,
)
from nfsrwlock_core.system.directory import Files

from .heartbeat import Beat, Lease, Phase, World, changed
from .removal import is_not_empty, remove_announcement, remove_quietly
from .rivals import Observer
from .watch import Watch

#: A waiter pauses at most for this part of the shortest lease of all whom it waits for, and of its own: a look that was
#: not yet due before a pause comes less than 1/3 after the one before it, whatever :data:`_SPREAD` and calls add.
_PAUSE_MOST: Final = 1 / 12
#: A reader begins with pauses of this part of the poll interval, for locks that are held for milliseconds.
_POLL_FIRST: Final = 1 / 16
#: A writer with this part of it for each one ahead: it need not look before those have had their turns.
_POLL_NEXT: Final = 1 / 64
#: Long waits are polled less often: a reader pauses for this part of the time it has waited, a writer of the time since
#: one of those before it was last seen to be gone …
_POLL_OF_WAITED: Final = 1 / 40
#: … up to this multiple of its poll interval.
_POLL_MOST: Final = 4
#: Pauses differ by up to this part of them, lest many waiters ask at one moment.
_SPREAD: Final = 1 / 4
#: A writer before which nothing moves stays announced this part of its lease at first, later for each that is ahead of
#: it, and at the most, before it makes room.
_STAY_FIRST: Final = 1 / 2880
_STAY_MOST: Final = 1 / 12
#: A waiter makes its listing fresh after this part of its lease at first, and at the most of the shortest lease of all
#: whom it waits for, by a change of its own. That also stops it on NFSv4 in a grace period, before it has taken who
#: stands still there for silent: with a heartbeat in every third of a lease, and looks that far apart at the most, 1/6
#: is soon enough, and 1/3 is not.
_AFRESH_FIRST: Final = 1 / 90
_AFRESH_MOST: Final = 1 / 6
#: A turn comes soon with one more in the way than may hold at a time, but no more than so many, and for so many seconds
#: after those have changed: one who may have to wait for long takes up none of what is scarce.
_NEAR_MOST: Final = 5
_MOVING_S: Final = 10.0
#: Grant numbers that may be found taken in one step; each is another writer's, so there are few.
_NUMBERS_AT_ONCE: Final = 50
#: So many own announcements in a row that are there and that no listing shows are the file system's fault.
_UNLISTED_MAX: Final = 3


class Participant(Observer):
    """
    One attempt at one lock, from the announcement to the release.

    :param files: the lock directory
    :param who: the process that asks
    :param mode: shared or exclusive
    :param at_most: how many readers that set a limit may hold at a time, this one among them; 0: it sets none
    :param numbered: whether a write is numbered, and the lock directory stays when nobody uses it
    :param ttl: lease in seconds
    :param interval: seconds between heartbeats
    :param ticket: time of the first attempt, microseconds; decides who is first among writers, never more
    :param since_ms: wall-clock time for people, milliseconds
    :param record: what the first heartbeat's file says, for people
    :param watch: what is known already of the peers on this lock
    """

    def __init__(
        self,
        files: Files,
        world: World,
        who: Identity,
        mode: Mode,
        *,
        at_most: int = 0,
        numbered: bool = True,
        ttl: float,
        interval: float,
        ticket: int,
        since_ms: int,
        record: bytes = b"",
        watch: Watch | None = None,
    ) -> None:
        super().__init__(
            files, world, mode, ttl=ttl, interval=interval, record=record, watch=Watch() if watch is None else watch
        )
        self._who: Final = who
        #: A writer is alone among all whom it waits for.
        self._at_most: Final = 1 if mode is Mode.WRITE else at_most
        self._numbered: Final = numbered
        self._ticket: Final = ticket
        #: Nobody wants the lock any more: a step that is under way announces nothing. May be set in any thread.
        self.is_over = False
        self._since_ms: Final = since_ms
        self._ahead: frozenset[str] | None = None  # S of the protocol
        # Since when a writer stays announced behind one that was first, and for how long it does at a time.
        self._stays_since = 0.0
        self._stay = ttl * _STAY_FIRST
        # When the listing that a waiter repeats was made afresh, and how long after that it is to be made so again.
        self._fresh = 0.0
        self._afresh_in = 0.0
        self._unlisted = 0
        self._own_names: set[str] = set()
        # Own names whose removal was not confirmed. They are removed at every further step.
        self._litter: list[str] = []

    @property
    def others(self) -> tuple[Announcement, ...]:
        """All that the latest listing showed beside this participant."""
        listed = () if self._listing is None else self._listing.announcements.values()
        return tuple(peer for peer in listed if peer.name not in self._own_names)

    # -- acquire ------------------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """
        Take the next step towards the grant.

        :returns: whether the lock is granted now; if not, :attr:`blockers` says who is in the way
        :raises OSError: what a system call said; nothing is half done, call again or :meth:`give_up`
        :raises LockPathError: if the file system does not keep what the protocol needs of it
        """
        if self.phase is Phase.GRANTED:
            return True
        if self._litter:
            self._remove_litter()
        if self.phase is Phase.DRAINING:
            return self._drain()
        if self.name:
            self._withdraw()  # the latest step failed between its announcement and its decision
        if self.phase is Phase.POLLING and self._attend(self._writers_in(self._look_again())):
            return False
        return self._announce_and_decide()

    def pause(self, waited: float, poll_interval: float, chance: float) -> float:
        """
        Return how long to pause before the next :meth:`advance`, in seconds.

        Looks further apart than a third of a peer's lease would not count as watching, and a waiting writer must beat.

        :param waited: how long it has taken so far, seconds
        :param poll_interval: what the waiter's settings say, seconds
        :param chance: a random number from 0 to 1
        """
        first = _POLL_FIRST
        if self._at_most:
            first = _POLL_NEXT * max(len(self._turns), 1) / self._at_most  # none: no step has succeeded
            waited = self._world.clock() - self._moved
        wanted = min(max(waited * _POLL_OF_WAITED, poll_interval * first), poll_interval * _POLL_MOST)
        return min(wanted, self._shortest * _PAUSE_MOST) * (1 - _SPREAD + 2 * _SPREAD * chance)

    def awaited(self) -> tuple[Announcement, ...]:
        """Return who is in the way of one whose turn may come soon, for whom it pays to hear of each removal."""
        is_near = len(self.blockers) <= min(self._at_most + 1, _NEAR_MOST)
        is_moving = self._world.clock() < self._moved + _MOVING_S
        return self.blockers if self._at_most and is_near and is_moving else ()

    def _announce_and_decide(self) -> bool:
        if self.is_over:
            return False
        self._announce()
        listing = self._list()
        if self.name not in listing.announcements:
            self._explain_missing_announcement()
            return False
        self._unlisted = 0
        if self.mode is Mode.READ and (writers := self._writers_in(listing)):
            return self._wait_unannounced(writers)
        if not self._at_most:
            return self._grant()
        ahead = [peer for name, peer in listing.announcements.items() if name != self.name]
        if self.mode is Mode.READ:
            ahead = [peer for peer in ahead if peer.at_most]
            self._refuse_another_limit(ahead)
        self._ahead = frozenset(peer.name for peer in ahead)
        self.phase = Phase.DRAINING
        return self._drain_rest(listing)

    def _wait_unannounced(self, writers: list[Announcement]) -> bool:
        self._withdraw()
        self.phase = Phase.POLLING
        self._attend(writers)
        return False

    def _refuse_another_limit(self, ahead: list[Announcement]) -> None:
        # Two that disagree are told, of two that come at one moment the later one. The dead are evicted instead.
        for peer in ahead:
            if peer.at_most == self._at_most or peer.who is None or self._world.is_dead(peer.who):
                continue
            if self._goes_first(peer):
                raise LimitMismatchError(
                    f"the lock in {self._where()} is asked for by at most {self._at_most} at a time here, but process "
                    f"{peer.who.pid} on {peer.who.host} says {peer.at_most}; state the same limit everywhere, or "
                    "if that process has ended unseen, remove what it left with 'nfsrwlock break'"
                )

    def _announce(self) -> None:
        name = announcement_name(
            self.mode,
            token=self._world.token(),
            ticket=self._ticket,
            lease_ms=math.ceil(self._ttl * 1000),
            who=self._who,
            since_ms=self._since_ms,
            at_most=self._at_most,
        )
        sent = self._world.clock()
        # Litter until it is known to be ours to use: the call may fail after it made the name, or make it later, or a
        # signal's exception may come between. EEXIST, too, can only be ours: a lost reply. But only a mkdir that
        # *succeeded* makes the client drop its cached listing, so such an announcement must not decide anything.
        self._litter.append(name)
        self._own_names.add(name)
        self._fresh, self._afresh_in = sent, self._ttl * _AFRESH_FIRST
        self.files.mkdir(name)
        self.name, self._beat, self._unheard, self.lease = name, None, None, Lease(self._ttl, sent)
        self._litter.remove(name)

    def _list(self) -> Listing:
        known = self.watch.known()  # before: another thread may meet those that come later
        self._listing = listing = parse_listing(self.files.listdir())
        self._own_names.intersection_update({self.name, *listing.announcements})
        if self._first_listing is None:
            self._first_listing = listing
        if gone := known - listing.announcements.keys():
            self.watch.forget(gone)
        return listing

    def _look_again(self) -> Listing:
        # An NFSv3 client goes by the directory's time stamp, which some servers set by the tick: a change within the
        # tick of our latest listing is not seen before the next one, which may never come. So a waiter makes one now
        # and then.
        now = self._world.clock()
        if now < self._fresh + min(self._afresh_in, self._shortest * _AFRESH_MOST):
            return self._list()
        self._fresh, self._afresh_in = now, 2 * self._afresh_in
        with changed(self.files, self._world, if_possible=True):
            return self._list()

    def _writers_in(self, listing: Listing) -> list[Announcement]:
        return [peer for name, peer in listing.announcements.items() if name != self.name and peer.is_writer]

    def _goes_first(self, peer: Announcement) -> bool:
        # What is not understood may be a writer that waits for us: give way, or both would wait for ever.
        return not peer.understood or peer.rank < (self._ticket, token_in(self.name))

    def _must_give_way(self, listing: Listing) -> bool:
        # One that was first may wait for us, and we for it. So where nothing moves we announce ourselves anew,
        # ever more rarely, as long as one that was first is there: after its first listing it does not wait for what
        # we announce. In between we stay announced, so that no new reader gets in before us.
        # The first time soon: who asks at one moment waits for each other in a ring.
        now, turns = self._world.clock(), len(self._turns) if self._stays_since else 1
        if now < max(self._stays_since, self._moved) + min(self._stay * turns, self._ttl * _STAY_MOST):
            return False
        listed = [listing.announcements[name] for name in self._ahead or ()]
        if not any(peer.mode is self.mode and self._goes_first(peer) for peer in listed):
            return False
        self._stays_since, self._stay = now, 2 * self._stay
        return True

    def _drain(self) -> bool:
        if self._world.clock() >= self.lease.renewed + self.interval and self.beat() is Beat.LOST:
            self._write_off()
            return False
        listing = self._look_again()
        if self.name not in listing.announcements:
            self._write_off()  # evicted while waiting; the ticket keeps our place
            return False
        if self.mode is Mode.READ and (writers := self._writers_in(listing)):
            return self._wait_unannounced(writers)
        if self._drain_rest(listing):
            return True
        if self._must_give_way(listing):
            self._withdraw()
            return self._announce_and_decide()
        return False

    def _drain_rest(self, listing: Listing) -> bool:
        assert self._ahead is not None
        # Names only ever leave this set, and none comes back: a stale listing can delay the grant, never give it.
        self._ahead &= listing.announcements.keys()
        self._attend([peer for name, peer in listing.announcements.items() if name in self._ahead])
        if len(self._ahead) >= self._at_most:
            return False
        is_numbered = self._numbered and self.mode is Mode.WRITE
        return self._number_the_grant(listing) if is_numbered else self._grant()

    def _number_the_grant(self, listing: Listing) -> bool:
        if self.lease.has_run_out(self._world.clock()) and not self._is_proven():
            return False  # and no number is made, nor the next one at the next step
        highest = listing.highest_generation
        for _ in range(_NUMBERS_AT_ONCE):
            if highest >= COUNT_MAX:
                raise LockPathError(
                    self._where(),
                    f"has no room for another grant number after {highest}",
                    "remove its gen.* entries while nobody holds the lock; the numbers begin anew then",
                )
            number = highest + 1
            made = self._try_mkdir(generation_name(number))
            listing = self._list()
            if self.name not in listing.announcements:
                self._write_off()
                return False
            if made and listing.highest_generation == number:
                if not self._grant():
                    return False
                self.generation = number
                return True
            # A mkdir that failed does not make the next listing fresh, so it may not show what is in the way.
            highest = max(number, listing.highest_generation)
        return False

    def _try_mkdir(self, name: str) -> bool:
        try:
            self.files.mkdir(name)
        except FileExistsError:
            return False
        return True

    def _grant(self) -> bool:
        if self.lease.has_run_out(self._world.clock()) and not self._is_proven():
            return False
        self.phase, self.blockers = Phase.GRANTED, ()
        return True

    def _is_proven(self) -> bool:
        # We may have slept since the announcement. A beat that succeeds proves that it was there all along; without
        # that proof a reader starts over at its next step, and a writer keeps its place if it still has one.
        return self.beat() is Beat.DONE and not self.lease.has_run_out(self._world.clock())

    def _explain_missing_announcement(self) -> None:
        name = self.name
        self._litter.append(name)
        self._forget_announcement()
        try:
            self.files.rmdir(name)
        except FileNotFoundError:
            return  # evicted, or the whole lock directory was replaced: start over
        self._litter.remove(name)
        self._unlisted += 1
        if self._unlisted < _UNLISTED_MAX:
            return  # the lock directory may have been moved away between the two calls
        raise LockPathError(
            self._where(),
            "is on a file system whose listings do not show what this process has just made",
            "locks cannot work there; keep the lock on another file system with lock_dir= (or NFSRWLOCK_DIR)",
        )

    def _where(self) -> str:
        return getattr(self.files, "path", "the lock directory")

    def _withdraw(self) -> None:
        name, beat = self.name, self._beat
        self._litter.append(name)
        self._forget_announcement()
        remove_announcement(self.files, name, beat)
        self._litter.remove(name)

    def _forget_announcement(self) -> None:
        self.name, self._beat, self._unheard, self._ahead = "", None, None, None
        self.phase = Phase.OUTSIDE

    def _write_off(self) -> None:
        # A listing says that it is gone. Should it be there after all, it must not stay: nobody would beat for it.
        self._litter.append(self.name)
        self._forget_announcement()

    def _remove_litter(self) -> None:
        while self._litter:
            remove_announcement(self.files, self._litter[-1], None)
            self._litter.pop()

    # -- leave --------------------------------------------------------------------------------------------------------

    def release(self) -> bool:
        """End the hold; see :meth:`Announced.release`."""
        stood = super().release()
        self._tidy()
        return stood

    def give_up(self) -> None:
        """
        Withdraw, whatever the phase, and note for the next caller how long those in the way have been silent.

        :raises OSError: what a system call said; call again, or let the lease end it
        """
        waited = self.phase in (Phase.POLLING, Phase.DRAINING)
        if self.name:
            self._withdraw()
        self._remove_litter()
        self.phase = Phase.ENDED
        if waited:
            self._leave_notes()
        self._tidy()

    def _tidy(self) -> None:
        if self._listing is not None:
            self._remove_unneeded(self._listing)
        if self._numbered or not (self._own_names or self._first_listing):  # nothing of it can be there
            return
        if self.mode is Mode.READ and self._listing is not None and self._listing.generations:
            return  # a number stays, and the directory with it: only a writer could have removed it since
        # Who can remove the directory was the last one in it. What else is left then are notes made meanwhile.
        try:
            self.files.rmdir()
        except OSError as error:
            if is_not_empty(error):
                with contextlib.suppress(OSError):
                    listing = parse_listing(self.files.listdir())
                    if not listing.announcements:
                        self._remove_unneeded(listing)
                        self.files.rmdir()

    def _remove_unneeded(self, listing: Listing) -> None:
        # At leisure, and only what nobody can need: numbers below one that we know, notes on who is gone, leftovers.
        names = [*listing.gone]
        if listing.notes:
            tokens = {peer.token for peer in listing.announcements.values()}
            names += [note.name for note in listing.notes if note.token not in tokens]
        if self.generation is not None:
            names += [generation_name(number) for number in listing.generations if number < self.generation]
        remove_quietly(self.files, names)
