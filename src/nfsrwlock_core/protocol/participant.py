"""
The lock protocol: announce, list, wait; beat; evict; release. Its specification and proof: docs/PROTOCOL.md.

What it does not do: it never sleeps, starts no thread, and reads no clock, no process table and no environment of its
own. Each call takes one step of the story and returns; time, liveness and randomness come in by argument. So the same
code runs on a real mount and in the simulation, and a late heartbeat is a fact that a test can make.

What it does not promise: a holder that goes on after its lease ran out overlaps with whoever comes next. It can know
(:meth:`Participant.lease`), and whoever commits under the lock must ask.

Three rules carry everything:

* A participant announces itself (``mkdir`` of a name nobody else ever uses) before it lists, and only the listing that
  follows its own successful ``mkdir`` decides.
* No name is used twice, so a removal that lands late removes nothing of anybody else's.
* An eviction is one operation that the server carries out or refuses, and it refuses if the holder has beaten since.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from nfsrwlock_core.errors import LockPathError
from nfsrwlock_core.names import (
    COUNT_MAX,
    LEASE_MIN_S,
    Announcement,
    Identity,
    Listing,
    Mode,
    announcement_name,
    beat_name,
    generation_name,
    gone_name,
    note_name,
    parse_beats,
    parse_listing,
    token_in,
)
from nfsrwlock_core.system.directory import Files

from .removal import evict, is_unlisted, remove_announcement, remove_quietly
from .watch import Watch

#: The holder gives up this part of its lease. Peers count the whole lease on their own clocks, so the rates of two
#: clocks may differ by 5 % before a peer could evict a holder that still trusts its lease (0.9 * 1.05 < 1 / 1.05).
MARGIN: Final = 0.1
#: Looks at a peer's heartbeat are this part of its lease apart; more than 1/3 would not count as watching.
_LOOK_EVERY: Final = 1 / 6
#: A waiter pauses at most for this part of the shortest lease of all whom it waits for, and of its own: a look that was
#: not yet due before a pause comes less than 1/3 after the one before it, whatever :data:`_SPREAD` and calls add.
_PAUSE_MOST: Final = 1 / 12
#: Polls begin at this part of the poll interval, for locks that are held for milliseconds.
_POLL_FIRST: Final = 1 / 16
#: Long waits are polled less often: a waiter pauses for this part of the time it has waited …
_POLL_OF_WAITED: Final = 1 / 40
#: … up to this multiple of its poll interval.
_POLL_MOST: Final = 4
#: Pauses differ by up to this part of them, lest many waiters ask at one moment.
_SPREAD: Final = 1 / 4
#: A waiting writer stays announced this part of its lease at first, and at the most, before it makes room again.
_STAY_FIRST: Final = 1 / 360
_STAY_MOST: Final = 1 / 12
#: A waiter makes its listing fresh after this part of its lease at first, and at the most of the shortest lease of all
#: whom it waits for, by a change of its own. That also stops it on NFSv4 in a grace period, before it has taken who
#: stands still there for silent: with a heartbeat in every third of a lease, and looks that far apart at the most, 1/6
#: is soon enough, and 1/3 is not.
_AFRESH_FIRST: Final = 1 / 90
_AFRESH_MOST: Final = 1 / 6
#: A peer that goes within this part of its lease (at most :data:`_PATIENCE_MAX_S`) costs no look at all.
_PATIENCE: Final = 1 / 60
_PATIENCE_MAX_S: Final = 0.1
#: Grant numbers that may be found taken in one step; each is another writer's, so there are few.
_NUMBERS_AT_ONCE: Final = 50
#: So many own announcements in a row that are there and that no listing shows are the file system's fault.
_UNLISTED_MAX: Final = 3
#: A peer that has shown one beat for this part of its lease should have sent the next: it is looked for by name.
_OVERDUE: Final = 1 / 2
#: Notes left by one caller that gives up; enough for the next caller to go on where it matters.
_NOTES_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Lease:
    """
    The time a participant may trust its announcement, seconds on its own clock.

    :param ttl: how long peers wait in silence before they may evict
    :param renewed: the moment *before* the latest successful announcement or beat was sent
    """

    ttl: float
    renewed: float

    @property
    def expires(self) -> float:
        """When the holder itself must stop trusting the hold: before any peer may evict it."""
        return self.renewed + self.ttl * (1 - MARGIN)

    def has_run_out(self, now: float) -> bool:
        """Whether the hold is suspect at ``now``."""
        return now > self.expires


class Beat(Enum):
    """What came of a heartbeat."""

    DONE = "done"
    #: It may or may not have arrived; try again. The lease runs on.
    UNKNOWN = "unknown"
    #: The announcement is gone from the server: somebody evicted it. It never comes back.
    LOST = "lost"


class Phase(Enum):
    """Where a participant stands in the story of PROTOCOL.md section 2."""

    #: Not announced, and nothing is known to be in the way.
    OUTSIDE = "outside"
    #: A reader, not announced, because a writer is in the way.
    POLLING = "polling"
    #: A writer, announced, waits for those who were there before it.
    DRAINING = "draining"
    GRANTED = "granted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class World:
    """
    What a participant cannot decide from listings, so that tests can decide it instead.

    :param clock: seconds on a monotonic clock that runs through suspend
    :param is_dead: whether this kernel proves that a process has ended
    :param token: returns 32 fresh random hex digits
    """

    clock: Callable[[], float]
    is_dead: Callable[[Identity], bool]
    token: Callable[[], str]


def fresh_token() -> str:
    """Return 128 random bits as 32 hex digits."""
    return os.urandom(16).hex()


class Participant:
    """
    One attempt at one lock, from the announcement to the release.

    :param files: the lock directory
    :param who: the process that asks
    :param mode: shared or exclusive
    :param ttl: lease in seconds
    :param interval: seconds between heartbeats
    :param ticket: time of the first attempt, microseconds; decides who is first among writers, never more
    :param since_ms: wall-clock time for people, milliseconds
    :param record: what the first heartbeat's file says, for people
    :param watch: what is known already of the peers on this lock
    :param standstill: for how many seconds after a new connection to the server peers may be unable to beat
    """

    def __init__(
        self,
        files: Files,
        world: World,
        who: Identity,
        mode: Mode,
        *,
        ttl: float,
        interval: float,
        ticket: int,
        since_ms: int,
        record: bytes = b"",
        watch: Watch | None = None,
        standstill: float = 0.0,
    ) -> None:
        self.files: Final = files
        self.mode: Final = mode
        self.watch: Final = Watch() if watch is None else watch
        self._world: Final = world
        self._who: Final = who
        self._ttl: Final = ttl
        self.interval: Final = interval
        self._standstill: Final = standstill
        self._ticket: Final = ticket
        self._since_ms: Final = since_ms
        self.record: Final = record
        self.phase: Phase = Phase.OUTSIDE
        #: The number of a granted write; a reader's is read by :meth:`read_generation`.
        self.generation: int | None = None
        #: Those whom the latest step found in the way.
        self.blockers: tuple[Announcement, ...] = ()
        #: How many peers this participant has evicted.
        self.evictions: int = 0
        #: What the announcement is called now, "" while not announced.
        self.name: str = ""
        self.lease: Lease = Lease(ttl, 0.0)
        self._beat: int | None = None
        # Beats later than the one we know of may be there: none was sent before this moment, so that is when one that
        # turns up counts from. None: there can be none.
        self._unheard: float | None = None
        self._ahead: frozenset[str] | None = None  # S of the protocol
        # Until when a writer stays announced behind one that was first, and for how long it does at a time.
        self._stays_until = 0.0
        self._stay = 0.0
        # When the listing that a waiter repeats was made afresh, and how long after that it is to be made so again.
        self._fresh = 0.0
        self._afresh_in = 0.0
        self._listing: Listing | None = None
        self._first_listing: Listing | None = None
        self._looked_at: set[str] = set()
        self._unlisted = 0
        self._own_names: set[str] = set()
        #: Why the latest heartbeat is :attr:`Beat.UNKNOWN`.
        self.beat_error: OSError | None = None
        # Own names whose removal was not confirmed. They are removed at every further step.
        self._litter: list[str] = []

    @classmethod
    def resume(
        cls,
        files: Files,
        world: World,
        who: Identity,
        *,
        name: str,
        beat: int | None,
        lease: Lease,
        unheard: float | None,
        interval: float,
        record: bytes,
    ) -> Participant:
        """
        Return the participant that another process announced under ``name``, to beat and to release for it.

        :param unheard: what :meth:`hand_over` returned there
        """
        mode = Mode(name.partition(".")[0])
        self = cls(files, world, who, mode, ttl=lease.ttl, interval=interval, ticket=0, since_ms=0, record=record)
        self.name, self._beat, self.lease, self.phase = name, beat, lease, Phase.GRANTED
        self._unheard = unheard
        return self

    def hand_over(self) -> float | None:
        """
        Let another process beat from now on; it may end at any moment without a word of its latest heartbeats.

        :returns: since when heartbeats that nobody has heard of may have been sent before it, ``None`` if none was
        """
        unheard, self._unheard = self._unheard, self.lease.renewed
        return unheard

    def take_over(self, beat: int | None, renewed: float) -> None:
        """Take in what another process, which beats for this one, says of the latest heartbeat that arrived."""
        self._beat = max((number for number in (beat, self._beat) if number is not None), default=None)
        self.lease = replace(self.lease, renewed=max(renewed, self.lease.renewed))

    @property
    def beats(self) -> int | None:
        """The number of the latest heartbeat known to have arrived, ``None`` before the first."""
        return self._beat

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
        self._remove_litter()
        if self.phase is Phase.DRAINING:
            return self._drain()
        if self.name:
            self._withdraw()  # the latest step failed between its announcement and its decision
        if self.phase is Phase.POLLING and self._attend(self._in_the_way(self._look_again())):
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
        wanted = min(max(waited * _POLL_OF_WAITED, poll_interval * _POLL_FIRST), poll_interval * _POLL_MOST)
        return min(wanted, self._shortest_lease() * _PAUSE_MOST) * (1 - _SPREAD + 2 * _SPREAD * chance)

    def _announce_and_decide(self, *, may_give_way: bool = True) -> bool:
        self._announce()
        listing = self._list()
        if self.name not in listing.announcements:
            self._explain_missing_announcement()
            return False
        in_the_way = self._in_the_way(listing)
        if self.mode is Mode.READ:
            if not in_the_way:
                return self._grant()
            self._withdraw()
            self.phase = Phase.POLLING
            self._attend(in_the_way)
            return False
        if in_the_way and may_give_way and self._must_give_way():
            return self._announce_anew()
        self._ahead = frozenset(listing.announcements) - {self.name}
        self.phase = Phase.DRAINING
        return self._drain_rest(listing)

    def _announce_anew(self) -> bool:
        self._withdraw()
        return self._announce_and_decide(may_give_way=False)

    def _announce(self) -> None:
        name = announcement_name(
            self.mode,
            token=self._world.token(),
            ticket=self._ticket,
            lease_ms=math.ceil(self._ttl * 1000),
            who=self._who,
            since_ms=self._since_ms,
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
        listing = parse_listing(self.files.listdir())
        self._listing = listing
        self._own_names.intersection_update({self.name, *listing.announcements})
        if self._first_listing is None:
            self._first_listing = listing
        self.watch.keep_only(listing.announcements)
        return listing

    def _look_again(self) -> Listing:
        # An NFSv3 client goes by the directory's time stamp, which some servers set by the tick: a change within the
        # tick of our latest listing is not seen before the next one, which may never come. So a waiter makes one now
        # and then.
        now = self._world.clock()
        if now < self._fresh + min(self._afresh_in, self._shortest_lease() * _AFRESH_MOST):
            return self._list()
        self._fresh, self._afresh_in = now, 2 * self._afresh_in
        with self._change(if_possible=True):
            return self._list()

    @contextlib.contextmanager
    def _change(self, *, if_possible: bool = False) -> Iterator[None]:
        # A listing within, after a mkdir of our own, shows everything that was there before (section 6 b).
        probe = gone_name(self._world.token())
        try:
            self.files.mkdir(probe)
        except OSError:
            if not if_possible:  # on a full disk, say
                raise
        try:
            yield
        finally:
            remove_quietly(self.files, [probe])

    def _in_the_way(self, listing: Listing) -> list[Announcement]:
        # Whom to give way to. A writer that is not announced has no token yet: equal tickets are settled by announcing.
        others = [peer for name, peer in listing.announcements.items() if name != self.name]
        if self.mode is Mode.READ:
            return [peer for peer in others if peer.is_writer]
        mine = (self._ticket, token_in(self.name))
        # What is not understood may be a writer that waits for us: give way, or both would wait for ever.
        return [peer for peer in others if peer.mode is Mode.WRITE and (not peer.understood or peer.rank < mine)]

    def _must_give_way(self) -> bool:
        # A writer that was first may wait for us, and we for it. So we announce ourselves anew once right away, and
        # then ever more rarely, as long as one that was first is there: after its first listing it does not wait for
        # what we announce. In between we stay announced, so that no new reader gets in before us.
        now = self._world.clock()
        if now < self._stays_until:
            return False
        self._stay = min(max(2 * self._stay, self._ttl * _STAY_FIRST), self._ttl * _STAY_MOST)
        self._stays_until = now + self._stay
        return True

    def _drain(self) -> bool:
        if self._world.clock() >= self.lease.renewed + self.interval and self.beat() is Beat.LOST:
            self._write_off()
            return False
        listing = self._look_again()
        if self.name not in listing.announcements:
            self._write_off()  # evicted while waiting; the ticket keeps our place
            return False
        if any(peer.name in (self._ahead or ()) for peer in self._in_the_way(listing)) and self._must_give_way():
            return self._announce_anew()
        return self._drain_rest(listing)

    def _drain_rest(self, listing: Listing) -> bool:
        assert self._ahead is not None
        # Names only ever leave this set, and none comes back: a stale listing can delay the grant, never give it.
        self._ahead &= listing.announcements.keys()
        self._attend([peer for name, peer in listing.announcements.items() if name in self._ahead])
        return not self._ahead and self._number_the_grant(listing)

    def _number_the_grant(self, listing: Listing) -> bool:
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
        # We may have slept since the announcement. A beat that succeeds proves that it was there all along.
        if self.lease.has_run_out(self._world.clock()):
            outcome = self.beat()
            if outcome is Beat.LOST:
                self._write_off()
            if outcome is not Beat.DONE or self.lease.has_run_out(self._world.clock()):
                return self._not_yet()
        self.phase, self.blockers = Phase.GRANTED, ()
        return True

    def _not_yet(self) -> bool:
        # A reader has no state to wait in while it is announced, so it starts over. A writer keeps its place.
        if self.mode is Mode.READ and self.name:
            self._withdraw()
        return False

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

    # -- peers --------------------------------------------------------------------------------------------------------

    def _attend(self, blockers: list[Announcement]) -> bool:
        # Watch those in the way, and evict who is dead or has been silent for its lease. Returns whether there are any.
        self.blockers = tuple(blockers)
        now = self._world.clock()
        for peer in blockers:
            proven_dead = peer.who is not None and self._world.is_dead(peer.who)
            if proven_dead or self._is_due(peer, now):
                self._look_and_judge(peer, proven_dead=proven_dead)
        return bool(blockers)

    def _is_due(self, peer: Announcement, now: float) -> bool:
        lease = self._lease_of(peer)
        met = self.watch.meet(peer.name, now)
        last = self.watch.last_look(peer.name)
        if last is None:
            return now - met >= min(_PATIENCE_MAX_S, lease * _PATIENCE)
        return now - last >= lease * _LOOK_EVERY or self.watch.watched(peer.name) + now - last >= lease

    def _lease_of(self, peer: Announcement) -> float:
        # What states no lease that we can read gets the longer of the default and our own; what states one so short
        # that no lock has it, the shortest: nobody could look often enough for less.
        return max(peer.lease_ms / 1000, LEASE_MIN_S if peer.understood else self._ttl)

    def _shortest_lease(self) -> float:
        return min((self._ttl, *(self._lease_of(peer) for peer in self.blockers)))

    def _look_and_judge(self, peer: Announcement, *, proven_dead: bool) -> None:
        # A look that fails is no look: the rule about gaps in watching takes care of it.
        with contextlib.suppress(OSError):
            lease = self._lease_of(peer)
            known = self.watch.beat(peer.name)
            overdue = proven_dead or self.watch.watched(peer.name) >= lease * _OVERDUE
            beat = self._look_at_beat(peer, known, overdue=overdue)
            # Only now: the look itself may have been what needed a new connection.
            self.watch.connected(self.files.connection(), now=self._world.clock(), standstill=self._standstill)
            if beat is None and known is not None:
                # Somebody has begun to evict it, and anyone may finish that; or the listing is an old one.
                if evict(self.files, peer, None):
                    self.evictions += 1
                    return
                beat = known
            if not proven_dead:
                credit = self._credit(peer, beat)
                self.watch.look(peer.name, beat, lease=lease, now=self._world.clock(), credit=credit)
                if self.watch.watched(peer.name) < lease:
                    return
                beat = self.watch.beat(peer.name)
            self.evictions += evict(self.files, peer, beat)

    def _look_at_beat(self, peer: Announcement, known: int | None, *, overdue: bool) -> int | None:
        try:
            beat = parse_beats(self.files.listdir(peer.name))
        except OSError as error:
            # Another member's before its first beat (its maker opens it to the group just before that), or a file, a
            # FIFO, a link where a directory should be: no beat. If that is wrong, the server refuses the eviction.
            if error.errno in (errno.EACCES, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        if not overdue:
            return beat
        # A client that goes by time stamps (NFSv3) may keep a listing that crossed the change to the next beat as if it
        # came after. If the holder then died, nothing changes in there any more, every listing shows the beat before
        # its last, and the server refuses for ever to remove that one. A name that was never looked up is asked of the
        # server; that it is there is as good an observation as a listing.
        number = max((seen + 1 for seen in (beat, known) if seen is not None), default=0)
        return number if self._is_file(f"{peer.name}/{beat_name(number)}") else beat

    def _is_file(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            try:
                self.files.listdir(name)
            except NotADirectoryError:
                return True
        return False

    def _credit(self, peer: Announcement, beat: int | None) -> float:
        # Notes count once, at our first look, and only those that lay there when we began: their time and ours cannot
        # overlap then. Notes written side by side do overlap, so the longest counts, never the sum.
        if peer.name in self._looked_at or self._first_listing is None:
            return 0.0
        self._looked_at.add(peer.name)
        notes = self._first_listing.notes
        return max(
            (note.watched_ms / 1000 for note in notes if note.token == peer.token and note.beat == beat), default=0.0
        )

    # -- heartbeat ----------------------------------------------------------------------------------------------------

    def beat(self) -> Beat:
        """
        Send one heartbeat. Never raises ``OSError``: a failure is :attr:`Beat.UNKNOWN`, see :attr:`beat_error`.

        Success renews :attr:`lease` from the moment before the call was sent, even if it had run out: success is
        possible only while nobody has evicted the announcement.
        """
        self.beat_error = None
        if not self.name:
            return Beat.LOST
        for _ in range(3):
            sent = self._world.clock()
            target = self._next_beat(sent)
            try:
                self._send_beat(target)
            except OSError as error:
                self.beat_error = error
                failure = self._read_back_beat(target, sent)
                if failure is not None:
                    return failure
                if self.lease.renewed >= sent:
                    self._unheard = None
                    return Beat.DONE  # this very call arrived, only its reply was lost
                # An earlier try had arrived, long ago perhaps. That proves too little, so beat now; and whoever sent it
                # may have sent the next one, too.
                continue
            self._beat, self._unheard, self.lease = target, None, replace(self.lease, renewed=sent)
            return Beat.DONE
        return Beat.UNKNOWN

    def _next_beat(self, sent: float) -> int:
        if self._beat is not None:
            return self._beat + 1
        # A first beat that was not heard of may have been evicted since: its name must not come back. Others may have
        # followed it, or may still arrive. The time since the announcement, in milliseconds, is above them all.
        return 0 if self._unheard is None else math.ceil((sent - self.lease.renewed) * 1000)

    def _send_beat(self, target: int) -> None:
        new = f"{self.name}/{beat_name(target)}"
        if self._beat is None:
            self.files.create(new, self.record)
        else:
            self.files.rename(f"{self.name}/{beat_name(self._beat)}", new)

    def _read_back_beat(self, target: int, sent: float) -> Beat | None:
        # The error of a call says nothing sure about what the server did. The names do, for only we make them.
        # Returns None if a later beat than the one we knew of turned up. Peers may have watched it ever since the first
        # of our tries, or since another process, which has ended, could send it.
        sent = self._unheard = sent if self._unheard is None else self._unheard
        try:
            found = parse_beats(self.files.listdir(self.name))
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ESTALE:
                return self._read_back_announcement()
            self.beat_error = error
            return Beat.UNKNOWN
        if found is not None and found >= target:
            self._beat, self.lease = found, replace(self.lease, renewed=max(sent, self.lease.renewed))
            return None
        if found is None and self._beat is not None:
            return self._finish_eviction()
        return Beat.UNKNOWN

    def _finish_eviction(self) -> Beat:
        # We had a beat and the listing shows none: an evictor's first half, which nobody can undo, for only we make
        # beats and we only rename. Or the listing is old. The server knows: it removes only what is empty.
        try:
            self.files.rmdir(self.name)
        except FileNotFoundError:
            return self._read_back_announcement()
        except OSError as error:
            self.beat_error = error
            return Beat.UNKNOWN
        return Beat.LOST

    def _read_back_announcement(self) -> Beat:
        # ENOENT may come from the client's cache of missing names; a fresh listing that has lost our name does not.
        try:
            return Beat.LOST if is_unlisted(self.files, self.name) else Beat.UNKNOWN
        except OSError as error:
            self.beat_error = error
            return Beat.UNKNOWN

    # -- the hold -----------------------------------------------------------------------------------------------------

    def read_generation(self) -> int:
        """
        Return the generation of the lock, exact while this participant holds it.

        No write can be granted during a shared hold, so one listing made after the grant is exact if it is fresh. It
        is made fresh as every deciding listing is: by a ``mkdir`` of our own before it.

        :raises OSError: what a system call said
        """
        if self.generation is None:
            with self._change():
                self.generation = parse_listing(self.files.listdir()).highest_generation
        return self.generation

    # -- leave --------------------------------------------------------------------------------------------------------

    def release(self) -> bool:
        """
        End the hold.

        :returns: whether it stood until now. Within the lease it did, by the rules, unless an operator has ended it by
            hand. After the lease, only a removal that finds the latest beat (or no beat, if there was none) proves that
            nobody had evicted us.
        :raises OSError: what a system call said; call again, or let the lease end it
        """
        trusted = not self.lease.has_run_out(self._world.clock())
        if not self.name:
            self.phase = Phase.ENDED
            return False
        unheard = not trusted and self._unheard is not None  # within the lease nobody can have removed one
        found = remove_announcement(self.files, self.name, self._beat, unheard=unheard)
        if not found and trusted:
            trusted = not self._was_broken()
        self.phase = Phase.ENDED
        self._tidy()
        return trusted or found

    def _was_broken(self) -> bool:
        # Not to find it may be a lost reply to our own removal. An operator's removal leaves a word.
        tombstone = gone_name(token_in(self.name))
        try:
            if tombstone not in self.files.listdir():
                return False
        except FileNotFoundError:
            return False
        remove_quietly(self.files, [tombstone])
        return True

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

    def _leave_notes(self) -> None:
        watched: list[tuple[float, Announcement]] = []
        for peer in self.blockers:
            if self.watch.last_look(peer.name) is not None:
                evictions = self.evictions
                self._look_and_judge(peer, proven_dead=False)  # the time since the latest look counts, too
                if self.evictions == evictions:
                    watched.append((self.watch.watched(peer.name), peer))
        watched.sort(key=lambda pair: pair[0], reverse=True)
        notes = self._listing.notes if self._listing is not None else ()
        for seconds, peer in watched[:_NOTES_MAX]:
            beat, ms = self.watch.beat(peer.name), int(seconds * 1000)
            known = [note for note in notes if note.token == peer.token]
            if ms > max((note.watched_ms for note in known if note.beat == beat), default=0):
                with contextlib.suppress(OSError):  # a note is a favour to the next caller, and the disk may be full
                    self.files.mkdir(note_name(peer.token, beat, ms))
                    remove_quietly(self.files, (note.name for note in known))

    def _tidy(self) -> None:
        # At leisure, and only what nobody can need: numbers below a granted one, notes on who is gone, leftovers.
        listing = self._listing
        if listing is None:
            return
        tokens = {peer.token for peer in listing.announcements.values()}
        names = [note.name for note in listing.notes if note.token not in tokens]
        names += listing.gone
        if self.mode is Mode.WRITE and self.generation is not None:
            names += [generation_name(number) for number in listing.generations if number < self.generation]
        remove_quietly(self.files, names)
