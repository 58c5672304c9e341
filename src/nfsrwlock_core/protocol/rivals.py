"""
The others on a lock: who is in the way is watched, and evicted once it is dead or has been silent for its lease.

A verdict is never more than a permission to try; the eviction is decided by the server (:mod:`.removal`). PROTOCOL.md,
sections 3 and 4.
"""

from __future__ import annotations

import contextlib
import errno
import math
from typing import Final

from nfsrwlock_core.names import LEASE_MIN_S, Announcement, Listing, Mode, beat_name, note_name, parse_beats
from nfsrwlock_core.system.directory import Files

from .heartbeat import Announced, World
from .removal import evict, remove_quietly
from .watch import Watch

#: Looks at a peer's heartbeat are this part of its lease apart; more than 1/3 would not count as watching.
_LOOK_EVERY: Final = 1 / 6
#: A peer that goes within this part of its lease (at most :data:`_PATIENCE_MAX_S`) costs no look at all.
_PATIENCE: Final = 1 / 60
_PATIENCE_MAX_S: Final = 0.1
#: Those in the way are gone through once in as many seconds for each of them, but no less often than after this part of
#: the shortest lease.
_EACH_S: Final = 0.01
_CROWD: Final = 1 / 90
#: A peer that has shown one beat for this part of its lease should have sent the next: it is looked for by name.
_OVERDUE: Final = 1 / 2
#: Notes left by one caller that gives up; enough for the next caller to go on where it matters.
_NOTES_MAX: Final = 16


class Observer(Announced):
    """
    A participant that watches who is in its way.

    :param watch: what is known already of the peers on this lock
    """

    def __init__(
        self, files: Files, world: World, mode: Mode, *, ttl: float, interval: float, record: bytes, watch: Watch
    ) -> None:
        super().__init__(files, world, mode, ttl=ttl, interval=interval, record=record)
        self.watch: Final = watch
        #: Those whom the latest step found in the way.
        self.blockers: tuple[Announcement, ...] = ()
        #: How many peers this participant has evicted.
        self.evictions: int = 0
        # The turns that come before ours, by their tickets, those of all readers without one as one; and since when all
        # of them are there. Who only makes room and comes again keeps its ticket.
        self._turns: frozenset[int] = frozenset()
        self._moved = world.clock()
        # When they were last gone through, and the shortest of their leases and ours.
        self._attended = -math.inf
        self._shortest = ttl
        self._listing: Listing | None = None
        self._first_listing: Listing | None = None
        self._looked_at: set[str] = set()

    def _attend(self, blockers: list[Announcement]) -> bool:
        # Watch those in the way, and evict who is dead or has been silent for its lease. Returns whether there are any.
        self.blockers = tuple(blockers)
        now, count = self._world.clock(), len(blockers)
        self._count_turns(blockers, now)
        self._shortest = lease = min((self._ttl, *(self._lease_of(peer) for peer in blockers)))
        # The more there are, the less often they are gone through: a crowd must not look at nothing but each other.
        if now >= self._attended + min(max(self._patience(lease), _EACH_S * count), lease * _CROWD):
            self._attended = now
            dead = {who for who in {peer.who for peer in blockers} if who is not None and self._world.is_dead(who)}
            for peer in blockers:
                if peer.who in dead or self._is_due(peer, now):
                    self._look_and_judge(peer, proven_dead=peer.who in dead)
        return count > 0

    def _count_turns(self, blockers: list[Announcement], now: float) -> None:
        turns = frozenset(peer.ticket for peer in blockers)
        listed = () if self._listing is None else self._listing.announcements.values()
        there = turns.union(peer.ticket for peer in listed if peer.at_most)
        if (turns and not self._turns) or not self._turns <= there:
            self._moved = now
        self._turns = turns

    @staticmethod
    def _patience(lease: float) -> float:
        return min(_PATIENCE_MAX_S, lease * _PATIENCE)

    def _is_due(self, peer: Announcement, now: float) -> bool:
        lease = self._lease_of(peer)
        met = self.watch.meet(peer.name, now)
        last = self.watch.last_look(peer.name)
        if last is None:
            return now - met >= self._patience(lease)
        return now - last >= lease * _LOOK_EVERY or self.watch.watched(peer.name) + now - last >= lease

    def _lease_of(self, peer: Announcement) -> float:
        # What states no lease that we can read gets the longer of the default and our own; what states one so short
        # that no lock has it, the shortest: nobody could look often enough for less.
        return max(peer.lease_ms / 1000, LEASE_MIN_S if peer.understood else self._ttl)

    def _look_and_judge(self, peer: Announcement, *, proven_dead: bool) -> None:
        # A look that fails is no look: the rule about gaps in watching takes care of it.
        with contextlib.suppress(OSError):
            lease = self._lease_of(peer)
            known = self.watch.beat(peer.name)
            overdue = proven_dead or self.watch.watched(peer.name) >= lease * _OVERDUE
            beat = self._look_at_beat(peer, known, overdue=overdue)
            # Only now: the look itself may have been what needed a new connection.
            now, standstill = self._world.clock(), self._world.standstill()
            self.watch.connected(self.files.connection(), now=now, standstill=standstill)
            if beat is None and known is not None:
                # Somebody has begun to evict it, and anyone may finish that; or the listing is an old one.
                if self._evict(peer, None):
                    return
                beat = known
            if not proven_dead:
                credit = self._credit(peer, beat)
                watched, beat = self.watch.look(peer.name, beat, lease=lease, now=self._world.clock(), credit=credit)
                if watched < lease:
                    return
            self._evict(peer, beat)

    def _evict(self, peer: Announcement, beat: int | None) -> bool:
        if has_evicted := evict(self.files, peer, beat):
            self.evictions += 1
            self._world.evicted(getattr(self.files, "path", ""), peer)
        return has_evicted

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
