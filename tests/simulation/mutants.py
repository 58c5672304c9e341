"""
Ways to break the protocol, each of them one that somebody might call an improvement.

A mutant changes the shipped code while it is applied, and only in the one respect that its name says. The tests assert
that the simulation finds every one: an instrument that passes the shipped code proves something only if it fails these.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from nfsrwlock_core.holding import heartbeat_thread as scheduler
from nfsrwlock_core.names import (
    Announcement,
    Mode,
    beat_name,
    generation_name,
    gone_name,
    note_name,
    parse_beats,
)
from nfsrwlock_core.protocol import heartbeat, removal, rivals, watch
from nfsrwlock_core.protocol import participant as protocol
from nfsrwlock_core.protocol.heartbeat import Announced, Beat, Phase
from nfsrwlock_core.protocol.participant import Participant
from nfsrwlock_core.witness import HoldWitness

Changes = Callable[[ExitStack], None]
#: What :meth:`watch.Watch.look` returns.
Seen = tuple[float, int | None]


@dataclass(frozen=True)
class Mutant:
    """One broken protocol."""

    name: str
    rule: str
    #: The kind of random runs that are to find it, any if ``None``.
    kind: str | None
    #: A run that finds it, if that takes long otherwise. It is played first; when it has aged, the others must find it.
    run: int
    _change: Changes

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Break the shipped code for a while."""
        with ExitStack() as stack:
            self._change(stack)
            yield


MUTANTS: dict[str, Mutant] = {}


def _mutant(rule: str, *, kind: str | None = None, run: int = 0) -> Callable[[Changes], Changes]:
    def register(change: Changes) -> Changes:
        name = change.__name__
        MUTANTS[name] = Mutant(name, rule, kind, run, change)
        return change

    return register


def _replace(stack: ExitStack, owner: Any, **changes: Any) -> None:
    for name, value in changes.items():
        stack.enter_context(mock.patch.object(owner, name, value))


# -- acquire ----------------------------------------------------------------------------------------------------------


@_mutant("a participant announces itself before it lists")
def list_before_announcing(stack: ExitStack) -> None:
    _list_first(stack, lambda participant: True)


@_mutant("a reader with a limit announces itself before it counts", kind="limited")
def count_before_announcing(stack: ExitStack) -> None:
    _list_first(stack, lambda participant: participant.mode is Mode.READ and participant._at_most > 0)


def _list_first(stack: ExitStack, who: Callable[[Participant], bool]) -> None:
    announce, list_ = Participant._announce, Participant._list

    def list_then_announce(self: Participant) -> None:
        if who(self):
            self._early = list_(self)  # type: ignore[attr-defined]
        announce(self)

    def list_or_remember(self: Participant) -> Any:
        early, self._early = getattr(self, "_early", None), None  # type: ignore[attr-defined]
        if early is None or not self.name:
            return list_(self)
        listing = replace(early, announcements={**early.announcements, self.name: _own(self)})
        self._listing = listing
        return listing

    _replace(stack, Participant, _announce=list_then_announce, _list=list_or_remember)


@_mutant("an announcement whose mkdir did not succeed decides nothing: the listing after it need not be fresh")
def own_eexist_is_success(stack: ExitStack) -> None:
    announce = Participant._announce

    def announce_anyhow(self: Participant) -> None:
        sent = self._world.clock()
        try:
            announce(self)
        except FileExistsError:
            self.name = self._litter.pop()
            self._beat, self._unheard, self.lease = None, None, heartbeat.Lease(self._ttl, sent)

    _replace(stack, Participant, _announce=announce_anyhow)


@_mutant("who stands in line waits for those of lower rank that were announced before it, too")
def forget_lower_writers(stack: ExitStack) -> None:
    drain = Participant._drain_rest

    def drain_readers_and_higher(self: Participant, listing: Any) -> bool:
        assert self._ahead is not None
        mine = (self._ticket, protocol.token_in(self.name))
        self._ahead = frozenset(
            name
            for name in self._ahead & listing.announcements.keys()
            if not listing.announcements[name].at_most or listing.announcements[name].rank < mine
        )
        return drain(self, listing)

    _replace(stack, Participant, _drain_rest=drain_readers_and_higher)


@_mutant("a reader with a limit waits until fewer than that are ahead of it", kind="limited")
def one_more_than_the_limit(stack: ExitStack) -> None:
    drain = Participant._drain_rest

    def drain_all_but_one(self: Participant, listing: Any) -> bool:
        if self.mode is Mode.READ and self._ahead:
            self._ahead = frozenset(sorted(self._ahead)[1:])
        return drain(self, listing)

    _replace(stack, Participant, _drain_rest=drain_all_but_one)


@_mutant("who gives way states its limit anew", kind="limited")
def forget_the_limit_on_giving_way(stack: ExitStack) -> None:
    announce, withdraw = Participant._announce, Participant._withdraw

    def withdraw_and_forget(self: Participant) -> None:
        withdraw(self)
        self._has_given_way = True  # type: ignore[attr-defined]

    def announce_without(self: Participant) -> None:
        at_most = self._at_most
        if self.mode is Mode.READ and getattr(self, "_has_given_way", False):
            self._at_most = 0  # type: ignore[misc]
        try:
            announce(self)
        finally:
            self._at_most = at_most  # type: ignore[misc]

    _replace(stack, Participant, _announce=announce_without, _withdraw=withdraw_and_forget)


@_mutant("who stands in line makes room for one of higher rank")
def ignore_rank(stack: ExitStack) -> None:
    _replace(stack, Participant, _must_give_way=lambda self, listing: False)


@_mutant("S is fixed at the first listing: those who come later wait for the writer", run=62)
def add_to_s(stack: ExitStack) -> None:
    drain = Participant._drain_rest

    def drain_everybody(self: Participant, listing: Any) -> bool:
        self._ahead = frozenset(listing.announcements) - {self.name}
        return drain(self, listing)

    _replace(stack, Participant, _drain_rest=drain_everybody)


@_mutant("no announcement's name is ever used twice")
def reuse_token(stack: ExitStack) -> None:
    announce = Participant._announce

    def announce_as_before(self: Participant) -> None:
        def one_token_per_process() -> str:
            return f"{self._who.pid:032x}"

        world = self._world
        self._world = replace(world, token=one_token_per_process)  # type: ignore[misc]
        self._since_ms = 0  # type: ignore[misc]
        self._ticket = self._who.pid  # type: ignore[misc]
        try:
            announce(self)
        finally:
            self._world = world  # type: ignore[misc]

    _replace(stack, Participant, _announce=announce_as_before)


@_mutant("ENOENT is never evidence that somebody is gone; a fresh listing is")
def believe_enoent(stack: ExitStack) -> None:
    look = Participant._look_at_beat

    def look_and_believe(self: Participant, peer: Announcement, *arguments: Any, **options: Any) -> int | None:
        try:
            return look(self, peer, *arguments, **options)
        except FileNotFoundError:
            if self._ahead is not None:
                self._ahead -= {peer.name}
            raise

    _replace(stack, Participant, _look_at_beat=look_and_believe)


@_mutant("what a call that failed may have made is removed later")
def forget_litter(stack: ExitStack) -> None:
    def forget(self: Participant) -> None:
        self._litter.clear()

    def forget_at_once(self: Participant) -> None:
        name, beat = self.name, self._beat
        self._forget_announcement()
        with contextlib.suppress(OSError):
            removal.remove_announcement(self.files, name, beat)

    _replace(stack, Participant, _remove_litter=forget, _withdraw=forget_at_once)


@_mutant("an announcement's lease counts from before the call was sent")
def announcement_counts_from_after_the_call(stack: ExitStack) -> None:
    announce = Participant._announce

    def announce_then_look_at_clock(self: Participant) -> None:
        announce(self)
        self.lease = replace(self.lease, renewed=self._world.clock())

    _replace(stack, Participant, _announce=announce_then_look_at_clock)


@_mutant("a waiting writer beats", run=8)
def wait_without_beating(stack: ExitStack) -> None:
    drain = Participant._drain

    def drain_in_silence(self: Participant) -> bool:
        with mock.patch.object(self, "beat", return_value=Beat.UNKNOWN):
            return drain(self)

    _replace(stack, Participant, _drain=drain_in_silence)


@_mutant("an own announcement that no error says is gone is removed: ENOENT may come from the client's cache", run=44)
def removed_says_enoent(stack: ExitStack) -> None:
    _replace(stack, removal, is_unlisted=lambda files, name: True)


# -- number the grant -------------------------------------------------------------------------------------------------


@_mutant("a number is granted only after a fresh listing shows that it is the highest", kind="mixed", run=1014)
def trust_first_listing(stack: ExitStack) -> None:
    def number_the_grant(self: Participant, listing: Any) -> bool:
        number = listing.highest_generation + 1
        while not self._try_mkdir(generation_name(number)):
            number += 1
        listing = self._list()
        if self.name not in listing.announcements:
            self._forget_announcement()
            return False
        if not self._grant():
            return False
        self.generation = number
        return True

    _replace(stack, Participant, _number_the_grant=number_the_grant)


@_mutant("a number that could not be made is not ours")
def taken_number_is_fine(stack: ExitStack) -> None:
    make = Participant._try_mkdir

    def make_or_take(self: Participant, name: str) -> bool:
        make(self, name)
        return True

    _replace(stack, Participant, _try_mkdir=make_or_take)


@_mutant("the latest number stays on disk")
def clean_all_numbers(stack: ExitStack) -> None:
    tidy = Participant._tidy

    def tidy_too_much(self: Participant) -> None:
        tidy(self)
        if self._listing is not None and self.mode is Mode.WRITE and self.generation is not None:
            numbers = [generation_name(n) for n in (*self._listing.generations, self.generation)]
            removal.remove_quietly(self.files, numbers)

    _replace(stack, Participant, _tidy=tidy_too_much)


@_mutant("a reader's generation is read after its grant, from a fresh listing")
def generation_of_first_listing(stack: ExitStack) -> None:
    def read_generation(self: Announced) -> int:
        if self.generation is None:
            assert self._first_listing is not None
            self.generation = self._first_listing.highest_generation
        return self.generation

    _replace(stack, Announced, read_generation=read_generation)


@_mutant("a reader makes a change of its own before the listing that it reads its generation from")
def generation_of_any_listing(stack: ExitStack) -> None:
    def read_generation(self: Announced) -> int:
        if self.generation is None:
            self.generation = protocol.parse_listing(self.files.listdir()).highest_generation
        return self.generation

    _replace(stack, Announced, read_generation=read_generation)


@_mutant("a generation is read only after a change of one's own that succeeded")
def generation_without_its_probe(stack: ExitStack) -> None:
    changed = heartbeat.changed
    _replace(stack, heartbeat, changed=lambda files, world: changed(files, world, if_possible=True))


# -- leases -----------------------------------------------------------------------------------------------------------


@_mutant("a grant requires that the lease has not run out since the announcement", run=211)
def no_lease_check_at_grant(stack: ExitStack) -> None:
    def grant(self: Participant) -> bool:
        self.phase, self.blockers = Phase.GRANTED, ()
        self.lease = replace(self.lease, renewed=max(self.lease.renewed, self._world.clock()))
        return True

    _replace(stack, Participant, _grant=grant)


@_mutant("a holder gives up a part of its lease, for clocks do not run equally fast", run=114)
def no_margin(stack: ExitStack) -> None:
    _replace(stack, heartbeat, MARGIN=0.0)


@_mutant("a holder's lease is no longer than what its peers wait for")
def lease_longer_than_peers(stack: ExitStack) -> None:
    _replace(stack, heartbeat, MARGIN=-0.3)


@_mutant("a peer's lease is what its name says, not the observer's own")
def own_lease_for_all(stack: ExitStack) -> None:
    def lease_of(self: Participant, peer: Announcement) -> float:
        return self._ttl

    _replace(stack, Participant, _lease_of=lease_of)


@_mutant("a heartbeat counts from before the call was sent", run=89)
def beat_counts_from_after_the_call(stack: ExitStack) -> None:
    beat = Announced.beat

    def beat_then_look_at_clock(self: Announced) -> Beat:
        outcome = beat(self)
        if outcome is Beat.DONE:
            self.lease = replace(self.lease, renewed=self._world.clock())
        return outcome

    _replace(stack, Announced, beat=beat_then_look_at_clock)


@_mutant("a heartbeat that turns up counts from when it was sent first", run=93)
def unheard_beat_counts_from_now(stack: ExitStack) -> None:
    read_back = Announced._read_back_beat

    def read_back_as_of_now(self: Announced, target: int, sent: float) -> Beat | None:
        self._unheard = None
        return read_back(self, target, self._world.clock())

    _replace(stack, Announced, _read_back_beat=read_back_as_of_now)


@_mutant("a failed heartbeat renews nothing")
def failed_beat_counts(stack: ExitStack) -> None:
    beat = Announced.beat

    def beat_optimistically(self: Announced) -> Beat:
        sent = self._world.clock()
        outcome = beat(self)
        if outcome is Beat.UNKNOWN:
            self.lease = replace(self.lease, renewed=sent)
        return outcome

    _replace(stack, Announced, beat=beat_optimistically)


@_mutant("an announcement that is gone is never made again under its name")
def recreate_after_eviction(stack: ExitStack) -> None:
    beat = Announced.beat

    def beat_or_come_back(self: Announced) -> Beat:
        sent = self._world.clock()
        outcome = beat(self)
        if outcome is Beat.LOST and self.name:
            with contextlib.suppress(OSError):
                self.files.mkdir(self.name)
                self._beat, self._unheard, self.lease = None, None, heartbeat.Lease(self._ttl, sent)
                return Beat.DONE
        return outcome

    _replace(stack, Announced, beat=beat_or_come_back)


@_mutant("each heartbeat has a name of its own")
def beat_by_touching(stack: ExitStack) -> None:
    def send(self: Announced, target: int) -> None:
        name = f"{self.name}/{beat_name(0)}"
        if target == 0:
            self.files.create(name, self.record)
        else:
            self.files.rename(name, name)

    _replace(stack, Announced, _send_beat=send)


@_mutant(
    "a tenth of the lease, since clocks run up to 5 % too fast or too slow; less does not do", kind="lapses", run=95
)
def smaller_margin(stack: ExitStack) -> None:
    _replace(stack, heartbeat, MARGIN=0.06)


@_mutant("that a heartbeat is not listed proves no eviction: the server does, by removing what is empty", run=16)
def lost_by_a_listing(stack: ExitStack) -> None:
    _replace(stack, Announced, _finish_eviction=lambda self: Beat.LOST)


@_mutant("that the announcement is not found proves no eviction: a fresh listing does")
def lost_by_enoent(stack: ExitStack) -> None:
    _replace(stack, Announced, _read_back_announcement=lambda self: Beat.LOST)


@_mutant("after its lease, a release proves that the hold stood only if it finds what it left")
def release_says_it_stood(stack: ExitStack) -> None:
    release = Announced.release

    def release_well(self: Announced) -> bool:
        release(self)
        return True

    _replace(stack, Announced, release=release_well)


@_mutant("only a later heartbeat than the one known proves that a hold stood", run=162)
def ghost_proves_the_hold(stack: ExitStack) -> None:
    _replace(stack, removal, _beat_to_remove=_any_beat)


# -- several senders, and many holds ----------------------------------------------------------------------------------


@_mutant(
    "a successor knows that its predecessor may have left a heartbeat that nobody heard of", kind="succession", run=1597
)
def resume_without_the_unheard_beat(stack: ExitStack) -> None:
    resume = Announced.resume.__func__  # type: ignore[attr-defined]

    def resume_as_if_alone(cls: type, *arguments: Any, **options: Any) -> Announced:
        participant: Announced = resume(cls, *arguments, **{**options, "unheard": None})
        return participant

    _replace(stack, Announced, resume=classmethod(resume_as_if_alone))


@_mutant(
    "whoever beats again itself knows that a helper may have left a heartbeat that nobody heard of",
    kind="succession",
    run=46,
)
def take_over_without_the_unheard_beat(stack: ExitStack) -> None:
    take_over = Announced.take_over

    def take_over_as_if_that_was_all(self: Announced, beat: int | None, renewed: float) -> None:
        take_over(self, beat, renewed)
        self._unheard = None

    _replace(stack, Announced, take_over=take_over_as_if_that_was_all)


@_mutant(
    "who hands over knows from then on that a heartbeat may be there that nobody heard of", kind="succession", run=20
)
def hand_over_and_forget(stack: ExitStack) -> None:
    _replace(stack, Announced, hand_over=lambda self: self._unheard)


@_mutant("the name of a first heartbeat that nobody heard of is not used again", kind="succession", run=522)
def first_beat_again(stack: ExitStack) -> None:
    def next_beat(self: Participant, sent: float) -> int:
        return 0 if self._beat is None else self._beat + 1

    _replace(stack, Participant, _next_beat=next_beat)


@_mutant("of the holds that are due the one whose lease ends first is beaten for first", kind="in_line")
def beat_in_the_order_of_taking(stack: ExitStack) -> None:
    def next_in(self: scheduler.Scheduler, line: int | None) -> Any:
        # As if the number alone were the key.
        self._lines[line] = sorted((0.0, number, kept) for _, number, kept in self._lines[line])
        return original(self, line)

    original = scheduler.Scheduler._next_in
    _replace(stack, scheduler.Scheduler, _next_in=next_in)


@_mutant("on a slow file system several heartbeats are under way at a time", kind="in_line")
def beat_one_at_a_time(stack: ExitStack) -> None:
    _replace(stack, scheduler, _AT_ONCE=1)


# -- evict ------------------------------------------------------------------------------------------------------------


@_mutant("an eviction is one operation that fails if the holder has beaten since it was observed")
def blind_removal(stack: ExitStack) -> None:
    def evict(files: Any, peer: Announcement, beat: int | None) -> bool:
        now = parse_beats(files.listdir(peer.name))
        try:
            if now is not None:
                files.unlink(f"{peer.name}/{beat_name(now)}")
            files.rmdir(peer.name)
        except FileNotFoundError:
            return False
        return True

    _replace(stack, rivals, evict=evict)


@_mutant("an announcement is removed only when it is empty, never moved away")
def evict_by_rename(stack: ExitStack) -> None:
    def evict(files: Any, peer: Announcement, beat: int | None) -> bool:
        moved = gone_name(peer.token.rstrip("x"))
        try:
            files.rename(peer.name, moved)
        except FileNotFoundError:
            return False
        found = parse_beats(files.listdir(moved))
        with contextlib.suppress(FileNotFoundError):
            if found is not None:
                files.unlink(f"{moved}/{beat_name(found)}")
            files.rmdir(moved)
        return True

    _replace(stack, rivals, evict=evict)


@_mutant("what is moved away beside a removed heartbeat has no newer one in it")
def leftovers_hide_a_beat(stack: ExitStack) -> None:
    evict = rivals.evict

    class Disguised:
        def __init__(self, files: Any) -> None:
            self._files = files

        def __getattr__(self, name: str) -> Any:
            return getattr(self._files, name)

        def listdir(self, name: str) -> list[str]:
            return [entry.replace("beat", ".nfs") for entry in self._files.listdir(name)]

    _replace(stack, rivals, evict=lambda files, peer, beat: evict(Disguised(files), peer, beat))


@_mutant("who has seen a heartbeat finishes what another evictor began, at once", run=81)
def half_an_eviction_is_a_change(stack: ExitStack) -> None:
    judge = Participant._look_and_judge

    def judge_as_if_never_seen(self: Participant, peer: Announcement, *, proven_dead: bool) -> None:
        known, beat = iter([None]), self.watch.beat
        with mock.patch.object(self.watch, "beat", lambda name: next(known, beat(name))):
            judge(self, peer, proven_dead=proven_dead)

    _replace(stack, Participant, _look_and_judge=judge_as_if_never_seen)


@_mutant("who is proven dead need not be watched for a lease", run=237)
def wait_for_the_proven_dead(stack: ExitStack) -> None:
    judge = Participant._look_and_judge
    _replace(
        stack, Participant, _look_and_judge=lambda self, peer, *, proven_dead: judge(self, peer, proven_dead=False)
    )


@_mutant("an overdue heartbeat is asked for by name: the listing may show the one before for ever", run=57)
def never_ask_for_the_next_beat(stack: ExitStack) -> None:
    look = Participant._look_at_beat
    _replace(
        stack, Participant, _look_at_beat=lambda self, peer, known, *, overdue: look(self, peer, known, overdue=False)
    )


@_mutant("an own heartbeat whose reply was lost is asked for by name, too", kind="dead_holder", run=2)
def never_ask_for_an_own_beat(stack: ExitStack) -> None:
    is_file = Participant._is_file
    _replace(
        stack, Participant, _is_file=lambda self, name: not name.startswith(f"{self.name}/") and is_file(self, name)
    )


# -- watch ------------------------------------------------------------------------------------------------------------


@_mutant("time that nobody watched does not count: not across an outage")
def count_time_across_outage(stack: ExitStack) -> None:
    def look(self: watch.Watch, name: str, beat: int | None, *, lease: float, now: float, credit: float = 0.0) -> Seen:
        record = self._records.get(name, watch._Record(met=now))
        if record.since is None or record.beat != beat:
            record = record._replace(beat=beat, since=now, credit=credit)
        self._records[name] = record._replace(last=now)
        return self.watched(name), beat

    _replace(stack, watch.Watch, look=look)


@_mutant("a waiter now and then makes a change of its own, which stops it when others are stopped")
def only_look(stack: ExitStack) -> None:
    _replace(stack, Participant, _look_again=Participant._list)


@_mutant("after a new connection to the server others may stand still")
def ignore_new_connections(stack: ExitStack) -> None:
    _replace(stack, watch.Watch, connected=lambda self, connection, *, now, standstill: None)


@_mutant("a change of the heartbeat starts the watching anew")
def count_on_after_a_beat(stack: ExitStack) -> None:
    look = watch.Watch.look

    def look_at_presence(
        self: watch.Watch, name: str, beat: int | None, *, lease: float, now: float, credit: float = 0.0
    ) -> Seen:
        record = self._records.get(name)
        if record is not None and record.since is not None and beat is not None:
            self._records[name] = record._replace(beat=beat)
        return look(self, name, beat, lease=lease, now=now, credit=credit)

    _replace(stack, watch.Watch, look=look_at_presence)


@_mutant("a gap in watching is measured by the lease of the peer, not by the observer's own")
def gap_by_own_lease(stack: ExitStack) -> None:
    judge = Participant._look_and_judge

    def judge_with_own_gaps(self: Participant, peer: Announcement, *, proven_dead: bool) -> None:
        look = self.watch.look

        def look_by_own_lease(name: str, beat: int | None, **options: Any) -> Seen:
            return look(name, beat, **{**options, "lease": self._ttl})

        with mock.patch.object(self.watch, "look", look_by_own_lease):
            judge(self, peer, proven_dead=proven_dead)

    _replace(stack, Participant, _look_and_judge=judge_with_own_gaps)


@_mutant("a waiter pauses by the shortest lease of those in its way, not by its own only", run=21)
def pause_by_own_lease(stack: ExitStack) -> None:
    def pause(self: Participant, waited: float, poll_interval: float, chance: float) -> float:
        self._shortest = self._ttl
        return _pause(self, waited, poll_interval, chance)

    _pause = Participant.pause
    _replace(stack, Participant, pause=pause)


@_mutant("looks at a heartbeat are close enough to count")
def look_too_rarely(stack: ExitStack) -> None:
    _replace(stack, rivals, _LOOK_EVERY=0.4)


@_mutant("a listing that shows an earlier heartbeat than one before it is an old one", run=57)
def beats_go_back(stack: ExitStack) -> None:
    look = watch.Watch.look

    def look_at_any(
        self: watch.Watch, name: str, beat: int | None, *, lease: float, now: float, credit: float = 0.0
    ) -> Seen:
        record = self._records.get(name)
        if record is not None and beat is not None and record.beat is not None and beat < record.beat:
            self._records[name] = record._replace(since=None, beat=beat)
        return look(self, name, beat, lease=lease, now=now, credit=credit)

    _replace(stack, watch.Watch, look=look_at_any)


@_mutant("after a new connection it takes others until the end of a grace period to beat")
def new_connection_without_standstill(stack: ExitStack) -> None:
    connected = watch.Watch.connected
    _replace(
        stack,
        watch.Watch,
        connected=lambda self, connection, *, now, standstill: connected(self, connection, now=now, standstill=0.0),
    )


@_mutant("a witness takes another number for a heartbeat, not another time stamp", run=43)
def witness_by_time_stamp(stack: ExitStack) -> None:
    def look(self: HoldWitness, files: Any) -> None:
        moment = self._world.clock()
        stamp, entries = self._glance(self.name)
        if self._seen is None or self._seen[0] != stamp:
            self._seen = stamp, self._sent_by(files, stamp, moment)
            self._beat = parse_beats(entries) or self._beat
        self._looked = moment

    _replace(stack, HoldWitness, _look=look)


@_mutant("notes written side by side count as their maximum, never as their sum", run=294)
def sum_of_notes(stack: ExitStack) -> None:
    def credit(self: Participant, peer: Announcement, beat: int | None) -> float:
        if peer.name in self._looked_at or self._first_listing is None:
            return 0.0
        self._looked_at.add(peer.name)
        notes = [n for n in self._first_listing.notes if n.token == peer.token and n.beat == beat]
        return sum(note.watched_ms / 1000 for note in notes)

    _keep_all_notes(stack)
    _replace(stack, Participant, _credit=credit)


@_mutant("a note counts only if it lay there when the caller started")
def note_counts_at_any_time(stack: ExitStack) -> None:
    def credit(self: Participant, peer: Announcement, beat: int | None) -> float:
        assert self._listing is not None
        notes = [n for n in self._listing.notes if n.token == peer.token and n.beat == beat]
        known = self.watch.watched(peer.name)
        return known + max((note.watched_ms / 1000 for note in notes), default=0.0)

    _replace(stack, Participant, _credit=credit)


@_mutant("a note is void as soon as the heartbeat differs")
def note_of_any_beat(stack: ExitStack) -> None:
    def credit(self: Participant, peer: Announcement, beat: int | None) -> float:
        if peer.name in self._looked_at or self._first_listing is None:
            return 0.0
        self._looked_at.add(peer.name)
        notes = [n for n in self._first_listing.notes if n.token == peer.token]
        return max((note.watched_ms / 1000 for note in notes), default=0.0)

    _replace(stack, Participant, _credit=credit)


@_mutant("callers that give up leave a note, so that short callers can clear a dead holder together")
def leave_no_notes(stack: ExitStack) -> None:
    _replace(stack, Participant, _leave_notes=lambda self: None)


def _keep_all_notes(stack: ExitStack) -> None:
    def leave_notes(self: Participant) -> None:
        for peer in self.blockers:
            if self.watch.last_look(peer.name) is not None:
                self._look_and_judge(peer, proven_dead=False)
                milliseconds = int(self.watch.watched(peer.name) * 1000)
                with contextlib.suppress(OSError):
                    self.files.mkdir(note_name(peer.token, self.watch.beat(peer.name), milliseconds))

    _replace(stack, Participant, _leave_notes=leave_notes)


def _any_beat(entries: list[str], known: int | None) -> int | None:
    found = parse_beats(entries)
    return found if found is None or known is None else max(found, known + 1)


def _own(participant: Participant) -> Announcement:
    own = protocol.parse_listing([participant.name]).announcements[participant.name]
    assert own.understood, errno.EINVAL
    return own
