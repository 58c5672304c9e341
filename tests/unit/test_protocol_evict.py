"""Evict and release (PROTOCOL.md sections 4 and 5): one operation that the server carries out or refuses."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faults import INTERVAL, TTL, After, Before, Clock, Fails, Late, LostReply, MemoryFiles, Shows, Stage
from nfsrwlock_core.names import Announcement, Mode, beat_name, gone_name, note_name, parse_announcement
from nfsrwlock_core.protocol.heartbeat import Beat, Phase
from nfsrwlock_core.protocol.participant import Participant
from nfsrwlock_core.protocol.removal import evict
from nfsrwlock_core.protocol.watch import Watch


@pytest.fixture
def stage() -> Stage:
    return Stage()


def seen_by(stage: Stage, participant: Participant) -> Announcement:
    """What an observer reads from the participant's name."""
    announcement = parse_announcement(participant.name)
    assert announcement is not None
    return announcement


def holder_at(stage: Stage, beat: int | None) -> Participant:
    """A holder whose latest heartbeat is this one."""
    holder = stage.holding_writer()
    while holder.beats != beat:
        assert holder.beat() is Beat.DONE
    return holder


# -- the compare-and-swap ----------------------------------------------------------------------------------------------


def test_an_announcement_without_a_beat_is_evicted_by_one_rmdir(stage):
    """Section 4: observed no beat: rmdir announcement."""
    holder, files = holder_at(stage, None), MemoryFiles(stage.server)
    assert evict(files, seen_by(stage, holder), None)
    assert files.calls == [("rmdir", holder.name)]
    assert holder.beat() is Beat.LOST


def test_an_announcement_with_a_beat_is_evicted_by_removing_that_beat(stage):
    """Section 4: observed beat.k: unlink beat.k. After it succeeded: rmdir."""
    holder, files = holder_at(stage, 3), MemoryFiles(stage.server)
    assert evict(files, seen_by(stage, holder), 3)
    assert files.calls == [("unlink", f"{holder.name}/beat.3"), ("rmdir", holder.name)]
    assert holder.beat() is Beat.LOST


@pytest.mark.parametrize("observed", [None, 0, 3])
def test_an_eviction_fails_if_the_holder_has_beaten_since(stage, observed):
    """Section 4: it fails (not empty, or missing) if the holder has beaten since; then nothing happened."""
    holder = holder_at(stage, observed)
    peer = seen_by(stage, holder)
    assert holder.beat() is Beat.DONE
    before = stage.server.inside(holder.name)
    assert not evict(MemoryFiles(stage.server), peer, observed)
    assert stage.server.inside(holder.name) == before
    assert holder.beat() is Beat.DONE


@pytest.mark.parametrize("observed", [None, 0, 3])
def test_a_heartbeat_that_comes_second_finds_that_it_was_evicted(stage, observed):
    """Section 4: holder's call against observer's, the other way round: exactly one succeeds."""
    holder = holder_at(stage, observed)
    evicted = []
    op = "create" if observed is None else "rename"
    other = MemoryFiles(stage.server)
    holder.files.inject(Before(op, lambda: evicted.append(evict(other, seen_by(stage, holder), observed))))
    assert holder.beat() is Beat.LOST
    assert evicted == [True]
    assert stage.server.announced == set()


@pytest.mark.parametrize("observed", [None, 3])
def test_of_two_observers_exactly_one_evicts(stage, observed):
    """Section 4: the first operation that succeeds is the eviction."""
    holder = holder_at(stage, observed)
    peer = seen_by(stage, holder)
    one, two = MemoryFiles(stage.server), MemoryFiles(stage.server)
    outcome = []
    one.inject(
        Before("rmdir" if observed is None else "unlink", lambda: outcome.append(evict(two, peer, observed))),
    )
    outcome.append(evict(one, peer, observed))
    assert outcome == [True, False]


@pytest.mark.parametrize("observed", [None, 3])
def test_an_eviction_that_lands_an_age_late_touches_no_successor(stage, observed):
    """Section 4: it may be sent by a process that slept for an hour; no name is ever used twice."""
    holder = holder_at(stage, observed)
    peer = seen_by(stage, holder)
    holder.release()
    successor = holder_at(stage, observed)
    before = stage.server.inside(successor.name)
    assert not evict(MemoryFiles(stage.server), peer, observed)
    assert stage.server.inside(successor.name) == before
    assert successor.beat() is Beat.DONE


def test_an_eviction_that_stops_half_way_is_final(stage):
    """Section 4: an announcement whose beat was removed can never beat again (its holder only renames)."""
    holder = holder_at(stage, 3)
    files = MemoryFiles(stage.server, Fails("rmdir", errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        evict(files, seen_by(stage, holder), 3)
    assert stage.server.inside(holder.name) == set()
    assert holder.beat() is Beat.LOST
    assert stage.server.announced == set(), "the holder finishes what the evictor began"


def test_anyone_who_saw_the_beat_may_finish_an_eviction_at_once(stage):
    """Sections 4 and 5: an announcement without a beat that an observer has itself seen with one."""
    peer = stage.peer(Mode.WRITE, beat=3)
    reader = stage.reader()
    assert not stage.poll(reader, 20)
    stage.server.entries[peer.name] = {}  # somebody evicts it and dies
    assert stage.poll(reader, 20)
    assert reader.evictions == 1


def test_who_never_saw_the_beat_waits_for_a_lease(stage):
    """Section 5: to it, this is an announcement that has not beaten yet."""
    peer = stage.peer(Mode.WRITE, beat=3)
    stage.server.entries[peer.name] = {}
    reader = stage.reader()
    assert not stage.poll(reader, TTL - 1)
    assert stage.poll(reader, 5)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("poll_interval", [0.05, 0.25, 5.0])
@pytest.mark.parametrize("lease", [0.001, 0.1, 1.5, 2.25, 9.0, 45.0, 90.0, 900.0])
@pytest.mark.parametrize("chances", [(0.5,), (0.0,), (1.0,), (0.0, 1.0)])
def test_who_has_waited_long_evicts_the_dead_whatever_their_lease_and_its_own_settings(
    stage, mode, poll_interval, lease, chances
):
    """Section 3: looks further apart than a third of the *peer's* lease do not count, so pauses must obey it."""
    stage.peer(Mode.WRITE, beat=3, lease=lease)
    waiter = stage.participant(mode, ticket=2)
    waited, chance = 3600.0, itertools.cycle(chances)
    died = stage.clock()
    while not waiter.advance():
        stage.clock.sleep(waiter.pause(waited, poll_interval, next(chance)))
        assert stage.clock() - died < max(lease, 0.1) * 1.5 + 0.1
    assert stage.clock() - died >= lease


def test_the_shortest_lease_of_those_in_the_way_sets_the_pause(stage):
    """Section 3: however many others there are; and who is not waited for does not count."""
    for lease in (90.0, 3.0, 900.0):
        stage.peer(Mode.READ, lease=lease)
    waiter = stage.writer(ticket=2)
    assert not waiter.advance()
    stage.peer(Mode.READ, lease=0.5)
    stage.clock.sleep(0.5)
    assert not waiter.advance()
    stage.clock.sleep(3600.0)
    assert waiter.pause(3600.0, 5.0, 0.5) == 3.0 / 12


def test_a_listing_is_made_afresh_by_the_shortest_lease_of_those_in_the_way(stage):
    """Section 3: or a peer that stands still in a grace period could be silent for its lease before we are stopped."""
    stage.peer(Mode.WRITE, lease=6.0)
    waiter = stage.reader(ttl=900.0)
    assert not waiter.advance()
    assert not stage.poll(waiter, 1.0 - 0.1, every=0.1)
    waiter.files.ops()
    for _ in range(4):
        assert not stage.poll(waiter, 1.0, every=0.1)
        assert "mkdir" in waiter.files.ops()


def test_waiters_ask_rarely_when_nothing_needs_them_to_ask_often(stage):
    """A fortieth of the time waited, from a sixteenth of the poll interval up to four times that."""
    stage.peer(Mode.WRITE)
    waiter = stage.reader()
    assert not waiter.advance()
    assert [waiter.pause(waited, 0.25, 0.5) for waited in (0.0, 10.0, 20.0, 3600.0)] == [0.25 / 16, 0.25, 0.5, 1.0]
    assert [waiter.pause(20.0, 0.25, chance) for chance in (0.0, 1.0)] == [0.375, 0.625]


@pytest.mark.parametrize("kind", ["reader", "writer", "permit"])
def test_who_has_met_nothing_but_trouble_tries_again_soon_at_first(stage, kind):
    waiter = {
        "reader": stage.reader,
        "writer": stage.writer,
        "permit": lambda: stage.participant(Mode.READ, at_most=1),
    }[kind]()
    waiter.files.inject(Fails("mkdir", errno.EIO, times=None))
    for waited, least, most in ((0.0, 0.001, 0.02), (20.0, 0.4, 0.6)):
        stage.clock.sleep(waited)
        with pytest.raises(OSError, match="Input"):
            waiter.advance()
        assert least < waiter.pause(waited, 0.25, 0.5) < most


def test_a_writer_asks_the_more_often_the_nearer_its_turn_is(stage):
    """Whose turn is next need not wait; who is far behind need not ask. All readers are one turn, for they overlap."""
    ahead = [stage.peer(Mode.WRITE, ticket=number, lease=3600) for number in range(1, 10)]
    readers = [stage.peer(Mode.READ, lease=3600) for _ in range(3)]
    waiter = stage.writer(ticket=99)
    for left in range(10, 1, -1):
        assert not waiter.advance()
        assert waiter.pause(7.0, 0.25, 0.5) == pytest.approx(0.25 / 64 * left)
        stage.leave(ahead.pop(0))
    assert not waiter.advance()
    assert waiter.pause(7.0, 0.25, 0.5) == 0.25 / 64
    stage.clock.sleep(4)
    stage.leave(readers.pop())
    assert not waiter.advance()
    assert waiter.pause(7.0, 0.25, 0.5) == pytest.approx(0.1), "and rarely where nothing moves"
    stage.clock.sleep(400)
    assert waiter.pause(7.0, 0.25, 0.5) == 1.0


def test_a_writer_that_only_makes_room_moves_nothing(stage):
    """Section 2, writer 3: else waiters behind one holder, each of which gives way in vain, would never get calmer."""
    stage.peer(Mode.WRITE, ticket=1, lease=3600)
    other = stage.peer(Mode.WRITE, ticket=2, lease=3600)
    waiter = stage.writer(ticket=99)
    assert not waiter.advance()
    stage.clock.sleep(4)
    stage.leave(other)
    stage.peer(Mode.WRITE, ticket=2, lease=3600)
    assert not waiter.advance()
    assert waiter.pause(7.0, 0.25, 0.5) == pytest.approx(0.1)


def test_a_heartbeat_that_another_thread_finds_saves_the_holder(stage):
    """Section 3: threads share a watch. What is removed is the heartbeat that was watched, no later one."""
    holder = holder_at(stage, 3)
    watch = Watch()
    one, other = stage.reader(watch=watch), stage.reader(watch=watch)
    watched = watch.look

    def look(name: str, beat: int | None, **given: Any) -> Any:
        judged = watched(name, beat, **given)
        if judged[0] >= TTL and holder.beats == 3:  # right now the holder wakes up, and the other thread looks
            assert holder.beat() is Beat.DONE
            other.advance()
        return judged

    with mock.patch.object(watch, "look", look):
        for _ in range(int(TTL) + 5):
            stage.clock.sleep(1)
            assert not one.advance()
            other.advance()
    assert holder.beats == 4
    assert holder.name in stage.server.announced


def test_the_evictor_of_the_first_half_is_not_paid_for_with_the_successor(stage):
    """Sections 4 and 7: two evictors in a row must not clear the way for a paused holder."""
    holder = holder_at(stage, 3)
    observed = seen_by(stage, holder)
    slow = MemoryFiles(stage.server, Before("rmdir", lambda: None))
    stage.server.unlink(f"{holder.name}/beat.3")
    assert evict(slow, observed, None)
    successor = stage.holding_writer()
    assert not evict(MemoryFiles(stage.server), observed, 3)
    assert not evict(MemoryFiles(stage.server), observed, None)
    assert holder.beat() is Beat.LOST
    assert stage.server.announced == {successor.name}


@pytest.mark.parametrize("op", ["unlink", "rmdir"])
def test_an_eviction_whose_reply_was_lost_is_looked_at_again(stage, op):
    """Section 6: an evictor whose rmdir or unlink fails looks again; the name tells, not the error."""
    peer = stage.peer(Mode.WRITE, beat=3)
    reader = stage.reader()
    reader.files.inject(LostReply(op))
    assert stage.poll(reader, TTL + 20)
    assert peer.name not in stage.server.names


@pytest.mark.parametrize("op", ["unlink", "rmdir"])
def test_a_missing_name_is_no_proof_that_a_peer_is_gone(stage, op):
    """Section 6: ENOENT may come from the client's own cache: the peer is still there, and nobody enters."""
    peer = stage.peer(Mode.WRITE, beat=3)
    reader = stage.reader()
    reader.files.inject(Fails(op, errno.ENOENT, on="write."))
    entered_beside = []
    for _ in range(200):
        if reader.advance():
            entered_beside.append(peer.name in stage.server.names)
            break
        stage.clock.sleep(1)
    assert entered_beside == [False]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_server_says_otherwise_is_told(stage, number):
    """Section 4: only "not empty" and "missing" mean that the peer has moved."""
    holder = holder_at(stage, None)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked
        evict(MemoryFiles(stage.server, Fails("rmdir", number)), seen_by(stage, holder), None)
    assert caught.value.errno == number
    assert holder.beat() is Beat.DONE


def test_a_waiter_bears_an_eviction_that_fails(stage):
    """Sections 4 and 6: it looks again, and tries again."""
    stage.peer(Mode.WRITE, beat=3)
    reader = stage.reader()
    reader.files.inject(Fails("unlink", errno.EACCES, times=3))
    assert stage.poll(reader, TTL + 60)


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.EEXIST])
def test_both_ways_to_say_not_empty_are_understood(stage, number):
    """Section 4; rmdir(2): POSIX allows ENOTEMPTY and EEXIST."""
    holder = holder_at(stage, None)
    peer = seen_by(stage, holder)
    holder.beat()
    assert not evict(MemoryFiles(stage.server, Fails("rmdir", number)), peer, None)
    assert holder.beat() is Beat.DONE


def test_a_listing_that_races_with_a_heartbeat_evicts_nobody(stage):
    """Sections 4 and 5: it may show neither the old nor the new name; rmdir is asked, and refuses."""
    writer = stage.peer(Mode.WRITE, beat=3)
    reader = stage.reader()
    stage.poll(reader, 20)
    listed = reader.files.listdir

    def racing(name=""):
        return [] if name else listed(name)

    reader.files.listdir = racing
    for _ in range(30):
        reader.advance()
        stage.clock.sleep(1)
    assert stage.server.inside(writer.name) == {"beat.3"}
    assert reader.evictions == 0


def test_entries_that_are_no_heartbeats_are_never_removed(stage):
    """Sections 1 and 4: a newer format may beat in another way; only an operator may end that."""
    peer = stage.peer(Mode.WRITE)
    stage.server.create(f"{peer.name}/pulse.7", b"")
    assert not stage.poll(stage.reader(), 4 * TTL)
    assert stage.server.inside(peer.name) == {"pulse.7"}


def test_what_lies_beside_a_heartbeat_goes_with_it_and_is_not_deleted(stage):
    """Section 4: the removal of the beat was the eviction; what is left is moved out of the way as it is."""
    peer = stage.peer(Mode.WRITE, beat=3)
    stage.server.create(f"{peer.name}/notes.txt", b"somebody's")
    assert stage.poll(stage.reader(), TTL + 10)
    assert stage.server.entries[gone_name(peer.token)] == {"notes.txt": b"somebody's"}


@pytest.mark.parametrize("beat", [None, 3])
def test_what_a_client_leaves_of_an_open_file_does_not_keep_the_dead_announced(stage, beat):
    """Sections 4 and 5: a removed file that is still open stays as .nfs…; it is moved out of the way."""
    peer = stage.peer(Mode.WRITE, beat=beat)
    stage.server.create(f"{peer.name}/.nfs0042", b"")
    assert evict(MemoryFiles(stage.server), peer, beat)
    assert stage.server.names == {gone_name(peer.token)}
    assert stage.server.inside(gone_name(peer.token)) == {".nfs0042"}


def test_a_leftover_beside_a_newer_beat_does_not_excuse_an_eviction(stage):
    """Section 4: what has a beat is alive, whatever else lies there."""
    peer = stage.peer(Mode.WRITE, beat=4)
    stage.server.create(f"{peer.name}/.nfs0042", b"")
    assert not evict(MemoryFiles(stage.server), peer, None)
    assert not evict(MemoryFiles(stage.server), peer, 3)
    assert stage.server.inside(peer.name) == {"beat.4", ".nfs0042"}


def test_a_leftover_alone_in_a_listing_excuses_no_eviction_of_who_has_beaten_since(stage):
    """Sections 4 and 6: the listing raced with the next beat; only a removal that the server carried out proves."""
    peer = stage.peer(Mode.WRITE, beat=4)
    stage.server.create(f"{peer.name}/.nfs0042", b"")
    racing = Shows([".nfs0042"], of=peer.name, times=None)
    assert not evict(MemoryFiles(stage.server, racing), peer, 3)
    assert stage.server.inside(peer.name) == {"beat.4", ".nfs0042"}


@pytest.mark.parametrize("fails", [None, "unlink", "listdir"])
def test_a_first_heartbeat_that_arrives_an_age_late_keeps_no_dead_holder_announced(stage, fails):
    """Section 4: it lies below the one that was seen, so it goes with it, and if not at once, with the next look."""
    peer = stage.peer(Mode.WRITE, beat=30_000)
    stage.server.create(f"{peer.name}/beat.0", b"{}")
    reader = stage.reader()
    assert not stage.poll(reader, TTL / 2)
    if fails:  # between the two removals
        reader.files.inject(After("unlink", lambda: reader.files.inject(Fails(fails)), on="beat.30000"))
    assert stage.poll(reader, TTL)
    assert reader.evictions == 1


@pytest.mark.parametrize("beat", [None, 3])
def test_a_file_under_an_announcements_name_is_removed(stage, beat):
    """Section 1: a file or FIFO cannot beat, and nobody holds by it."""
    stage.server.entries["write.v2.x"] = b""
    assert evict(MemoryFiles(stage.server), parse_announcement("write.v2.x"), beat)
    assert stage.server.names == set()


def test_an_operators_and_an_observers_removal_are_told_apart_by_nobody(stage):
    """Section 4: each is an eviction; the holder learns of it at its next heartbeat."""
    holder = holder_at(stage, 0)
    assert evict(MemoryFiles(stage.server), seen_by(stage, holder), 0)
    assert holder.beat() is Beat.LOST
    assert not holder.lease.has_run_out(stage.clock())


# -- nobody is evicted before its own lease has run out ----------------------------------------------------------------


class Story:
    """
    One holder and those who would like it to be gone, at random: what happens follows from the number alone.

    Beats succeed, fail, arrive late, are answered late, and come between a look and the eviction that it led to.
    Callers look, give up, leave notes, follow one another and watch side by side. The holder's clock and theirs run at
    rates that differ by up to 8 %.
    """

    LEASE = 30.0

    def __init__(self, number: int) -> None:
        self.dice = random.Random(number)
        self.stage = Stage()
        self.rates = self.dice.uniform(0.96, 1.04), self.dice.uniform(0.96, 1.04)
        self.holder = self.stage.holding_writer(
            clock=lambda: self.stage.clock() * self.rates[0], ticket=0, ttl=self.LEASE, interval=10.0
        )
        self.late: list[Late] = []
        self.callers = [self.new_caller() for _ in range(self.dice.randint(1, 3))]
        self.evicted_at: float | None = None

    def new_caller(self) -> Participant:
        return self.stage.reader(ttl=300.0, interval=100.0, clock=lambda: self.stage.clock() * self.rates[1])

    def everybody_looks(self) -> None:
        for caller in self.callers:
            caller.advance()
            self.check()

    def check(self) -> None:
        """Whoever is evicted has stopped trusting its lease by then."""
        name, entries = self.holder.name, self.stage.server.entries
        if name not in entries or (self.holder.beats is not None and not entries[name]):
            assert self.holder.lease.has_run_out(self.stage.clock() * self.rates[0])
            self.evicted_at = self.stage.clock()

    def beat(self) -> None:
        self.holder.beat()
        self.holder.files.heal()

    def beat_fails(self) -> None:
        self.holder.files.inject(Fails("create", errno.EIO), Fails("rename", errno.EIO))
        self.beat()

    def beat_is_late(self) -> None:
        self.late = [Late("create"), Late("rename")]
        self.holder.files.inject(*self.late)
        self.beat()

    def late_one_arrives(self) -> None:
        for late in self.late:
            with contextlib.suppress(OSError):
                late.arrive()
        self.late = []

    def beat_is_answered_late(self) -> None:
        def wait() -> None:
            for _ in range(3):
                self.stage.clock.sleep(self.dice.uniform(0, 4))
                for caller in self.callers:
                    caller.advance()

        self.holder.files.inject(After("create", wait), After("rename", wait))
        self.beat()

    def beat_comes_before_an_eviction(self) -> None:
        for caller in self.callers:
            caller.files.inject(Before("unlink", self.beat), Before("rmdir", self.beat, on="write."))
        self.everybody_looks()
        for caller in self.callers:
            caller.files.heal()

    def one_gives_up(self) -> None:
        self.callers.pop(self.dice.randrange(len(self.callers))).give_up()
        self.check()
        self.callers.append(self.new_caller())

    def run(self) -> None:
        rare = [self.beat, self.beat_fails, self.beat_is_late, self.late_one_arrives]
        rare += [self.beat_is_answered_late, self.beat_comes_before_an_eviction, self.one_gives_up, self.one_gives_up]
        for _ in range(150):
            self.stage.clock.sleep(self.dice.choice([0.3, 1.0, 4.0]) * self.dice.random())
            (self.dice.choice(rare) if self.dice.random() < 0.15 else self.everybody_looks)()
            self.check()
            if self.evicted_at is not None:
                assert self.holder.beat() is not Beat.DONE
                return


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_whoever_is_evicted_has_stopped_trusting_its_lease_before(number):
    """Sections 3 and 4, what the proof comes down to: an eviction succeeds only after the holder's own expiry."""
    Story(number).run()


def test_the_stories_of_the_test_before_do_end_in_evictions():
    """Otherwise it would say nothing."""
    stories = [Story(number) for number in range(40)]
    for story in stories:
        story.run()
    evicted = [story for story in stories if story.evicted_at is not None]
    assert len(evicted) > 10
    assert any(story.holder.beats is not None for story in evicted)
    assert any(story.holder.beats is None for story in evicted)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_callers_that_come_and_go_never_count_more_silence_than_there_was(number):
    """Section 3: the sum is real elapsed time, whatever callers overlap, and whoever beats is not silent."""
    dice, stage = random.Random(number), Stage()
    peer = stage.peer(Mode.WRITE, beat=0, lease=30.0)
    beat, silent_since, shared = 0, stage.clock(), Watch()
    callers: list[Participant] = []
    for _ in range(150):
        stage.clock.sleep(dice.uniform(0.2, 2.0))
        if dice.random() < 0.01:
            beat, silent_since = beat + 1, stage.clock()
            stage.show_beat(peer, beat)
        if callers and dice.random() < 0.2:
            callers.pop(dice.randrange(len(callers))).give_up()
        if len(callers) < 3:
            # Some are threads of one process, which share what they have seen.
            callers.append(stage.reader(watch=shared if dice.random() < 0.3 else None))
        for caller in callers:
            caller.advance()
        if peer.name not in stage.server.names:
            assert stage.clock() - silent_since >= 30.0
            return


# -- release -----------------------------------------------------------------------------------------------------------


def test_a_hold_without_a_heartbeat_is_released_by_one_rmdir(stage):
    """Section 5; section 8."""
    holder = holder_at(stage, None)
    holder.files.ops()
    assert holder.release()
    assert holder.files.ops() == ["rmdir"]
    assert holder.phase is Phase.ENDED


def test_a_hold_with_a_heartbeat_is_released_by_unlink_and_rmdir(stage):
    """Section 5: unlink the beat if there is one, then rmdir."""
    holder = holder_at(stage, 3)
    holder.files.ops()
    assert holder.release()
    assert holder.files.ops() == ["unlink", "rmdir"]
    assert stage.server.announced == set()


@pytest.mark.parametrize("beat", [None, 0, 3])
def test_a_lock_can_be_released_on_a_full_disk(stage, beat):
    """Section 5: both free space and need none."""
    holder = holder_at(stage, beat)
    holder.files.inject(*(Fails(op, errno.ENOSPC, times=None) for op in ("mkdir", "create", "rename")))
    assert holder.release()
    assert stage.server.announced == set()


@pytest.mark.parametrize("beat", [None, 0, 3])
def test_a_heartbeat_that_was_not_heard_of_does_not_hinder_a_release(stage, beat):
    """Sections 5 and 6: it arrived late, so the name is not the one that we know of."""
    holder = holder_at(stage, beat)
    late = Late("create" if beat is None else "rename")
    holder.files.inject(late)
    assert holder.beat() is Beat.UNKNOWN
    late.arrive()
    assert holder.release()
    assert stage.server.announced == set()


@pytest.mark.parametrize("beat", [None, 0, 3])
def test_an_old_listing_of_an_unheard_heartbeat_does_not_hinder_a_release(stage, beat):
    """Sections 5 and 6: rmdir says that there is one, and only one name is possible."""
    holder = holder_at(stage, beat)
    late = Late("create" if beat is None else "rename")
    holder.files.inject(late)
    holder.beat()
    late.arrive()
    holder.files.inject(Shows([], of="write."))
    assert holder.release()
    assert stage.server.names == {"gen.1"}


@pytest.mark.parametrize("beat", [None, 0, 3])
def test_a_late_release_proves_the_hold_by_what_it_finds(stage, beat):
    """Sections 3 and 5: the lease has run out, but the removal finds the latest beat (or none, as we left it)."""
    holder = holder_at(stage, beat)
    stage.clock.sleep(10 * TTL)
    assert holder.lease.has_run_out(stage.clock())
    assert holder.release()


@pytest.mark.parametrize("beat", [None, 0])
def test_a_late_release_is_proved_by_an_unheard_heartbeat_too(stage, beat):
    """Sections 3 and 5: only we make beats, so one that came after the known one ends our own unbroken chain."""
    holder = holder_at(stage, beat)
    late = Late("create" if beat is None else "rename")
    holder.files.inject(late)
    holder.beat()
    late.arrive()
    stage.clock.sleep(10 * TTL)
    assert holder.release()
    assert stage.server.announced == set()


@pytest.mark.parametrize("beat", [None, 0, 3])
def test_a_late_release_of_an_evicted_hold_says_so(stage, beat):
    """Sections 3 and 5: what was done under it may have overlapped."""
    holder = holder_at(stage, beat)
    stage.clock.sleep(10 * TTL)
    assert evict(MemoryFiles(stage.server), seen_by(stage, holder), beat)
    successor = stage.holding_writer()
    assert not holder.release()
    assert stage.server.announced == {successor.name}
    assert successor.beat() is Beat.DONE


@pytest.mark.parametrize("left", [set(), {".nfs0042"}])
def test_a_late_release_of_a_half_evicted_hold_says_so(stage, left):
    """Sections 4 and 5: the removal of the beat was the eviction, although the name is still there."""
    holder = holder_at(stage, 3)
    stage.clock.sleep(10 * TTL)
    stage.server.entries[holder.name] = dict.fromkeys(left, b"")
    assert not holder.release()
    assert stage.server.announced == set()


def test_a_release_within_the_lease_stood_until_then(stage):
    """Section 3: by the rules nobody may have evicted it."""
    holder = holder_at(stage, 3)
    stage.clock.sleep(TTL * 0.5)
    assert holder.release()


@pytest.mark.parametrize("beat", [None, 0, 3])
def test_a_release_within_the_lease_heeds_an_operators_word(stage, beat):
    """Section 5: an operator does not wait for the lease; what it removed by hand it tells by gone.<token>."""
    holder = holder_at(stage, beat)
    peer = seen_by(stage, holder)
    assert evict(MemoryFiles(stage.server), peer, beat)
    stage.server.mkdir(gone_name(peer.token))
    successor = stage.holding_writer()
    assert not holder.release()
    assert stage.server.announced == {successor.name}
    assert gone_name(peer.token) not in stage.server.names, "the word has been heard"


def test_an_ended_participant_releases_nothing(stage):
    """Section 5: releasing twice, or what was never announced, is harmless."""
    holder = holder_at(stage, None)
    assert holder.release()
    holder.files.ops()
    holder.release()
    assert not stage.reader().release()
    assert stage.server.announced == set()


@pytest.mark.parametrize("beat", [None, 0, 3])
def test_a_release_gives_up_on_no_error_that_the_server_recovers_from(stage, beat):
    """Sections 5 and 6: call again, or let the lease end it."""
    holder = holder_at(stage, beat)
    holder.files.inject(Fails("rmdir", errno.EIO), Fails("unlink", errno.EIO))
    for _ in range(3):
        try:
            stood = holder.release()
        except OSError:
            continue
        break
    assert stood
    assert stage.server.announced == set()


@pytest.mark.parametrize("beat", [None, 3])
@pytest.mark.parametrize("op", ["unlink", "rmdir"])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO])
def test_a_release_whose_reply_was_lost_ends_the_hold_within_its_lease(stage, op, beat, number):
    """Section 6: the outcome is read back from the name."""
    holder = holder_at(stage, beat)
    holder.files.inject(LostReply(op, number))
    try:
        stood = holder.release()
    except OSError:
        stood = holder.release()
    assert stood
    assert stage.server.announced == set()


@pytest.mark.parametrize("beat", [None, 3])
@pytest.mark.parametrize("op", ["unlink", "rmdir"])
def test_a_missing_name_does_not_end_a_release(stage, op, beat):
    """Section 6: ENOENT is never evidence that something is gone; a fresh listing is."""
    holder = holder_at(stage, beat)
    holder.files.inject(Fails(op, errno.ENOENT))
    assert holder.release()
    assert stage.server.announced == set()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_release_that_the_server_refuses_says_why(stage, number):
    """Section 5."""
    holder = holder_at(stage, None)
    holder.files.inject(Fails("rmdir", number, times=None))
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked
        holder.release()
    assert caught.value.errno == number


def test_a_name_that_can_never_be_removed_is_an_error_and_no_endless_loop(stage):
    """Section 5."""
    holder = holder_at(stage, None)
    holder.files.inject(Fails("rmdir", errno.ENOENT, times=None))
    with pytest.raises(OSError, match="cannot be removed"):
        holder.release()
    assert len(holder.files.calls) < 50


@pytest.mark.parametrize("beat", [None, 3])
def test_what_an_open_file_leaves_is_renamed_out_of_the_way(stage, beat):
    """Section 5: a .nfs… leftover of a file open on this client: gone.<token>, and let anyone clean it."""
    holder = holder_at(stage, beat)
    token = seen_by(stage, holder).token
    stage.server.create(f"{holder.name}/.nfs0042", b"")
    assert holder.release()
    assert stage.server.announced == set()
    assert stage.server.inside(gone_name(token)) == {".nfs0042"}
    # The file is closed, its leftover vanishes, and the next one who comes cleans up.
    stage.server.entries[gone_name(token)] = {}
    passer_by = stage.holding_reader()
    passer_by.release()
    assert gone_name(token) not in stage.server.names


def test_what_is_renamed_out_of_the_way_blocks_nobody(stage):
    """Section 5: gone.* is no announcement."""
    stage.server.entries[gone_name("a" * 32)] = {".nfs0042": b""}
    for participant in (stage.reader(), stage.writer()):
        assert participant.advance()
        participant.release()
    assert stage.server.inside(gone_name("a" * 32)) == {".nfs0042"}, "what cannot be removed yet stays"


@pytest.mark.parametrize("mode", Mode)
def test_leaving_cleans_what_nobody_can_need(stage, mode):
    """Sections 2, 3 and 5: notes on who is gone and leftovers; of this lock only what parses as such."""
    here = stage.peer(mode) if mode is Mode.READ else None
    useless = {note_name(stage.token(), 2, 100), gone_name(stage.token())}
    for name in {*useless, "README"}:
        stage.server.mkdir(name)
    if here is not None:
        stage.server.mkdir(note_name(here.token, None, 100))
    participant = stage.participant(mode)
    assert participant.advance()
    participant.release()
    assert not useless & stage.server.names
    assert "README" in stage.server.names
    if here is not None:
        assert note_name(here.token, None, 100) in stage.server.names


def test_cleaning_that_fails_is_no_error(stage):
    """Sections 2 and 5: at leisure; leftovers harm nobody, and the next one will try again."""
    stage.server.mkdir(gone_name(stage.token()))
    reader = stage.holding_reader()
    reader.files.inject(Fails("rmdir", errno.EACCES, on="gone."))
    assert reader.release()
    assert stage.server.announced == set()


def test_an_uncontended_release_cleans_without_a_call(stage):
    """Section 8: what the listing of the grant did not show is not looked for."""
    reader = stage.holding_reader()
    reader.files.ops()
    reader.release()
    assert reader.files.ops() == ["rmdir"]


def test_a_short_hold_that_another_process_would_have_beaten_for_costs_no_listing(stage):
    """Section 5: within the lease nobody can have removed a heartbeat that we have not heard of."""
    reader = stage.holding_reader()
    reader.hand_over()
    reader.files.ops()
    assert reader.release()
    assert reader.files.ops() == ["rmdir"]


# -- the story as a whole ----------------------------------------------------------------------------------------------


def test_a_holder_that_was_frozen_learns_of_its_successor_and_harms_nothing(stage):
    """Sections 3 to 5 in one: frozen, evicted, succeeded, woken up."""
    holder = holder_at(stage, 1)
    waiting = stage.writer(ticket=2)
    assert stage.poll(waiting, TTL + 10)
    assert waiting.generation > holder.generation, "whoever checks numbers refuses the late one"
    assert holder.lease.has_run_out(stage.clock())
    assert holder.beat() is Beat.LOST
    assert not holder.release()
    assert waiting.beat() is Beat.DONE
    assert waiting.release()


def test_a_frozen_holder_that_nobody_wanted_goes_on(stage):
    """Section 3: a beat that succeeds proves that the announcement was there all along."""
    holder = holder_at(stage, 1)
    stage.clock.sleep(100 * TTL)
    assert holder.lease.has_run_out(stage.clock())
    assert holder.beat() is Beat.DONE
    assert not holder.lease.has_run_out(stage.clock())
    waiting = stage.writer(ticket=2)
    for _ in range(8):
        assert not stage.poll(waiting, INTERVAL)
        assert holder.beat() is Beat.DONE


def test_a_clock_that_stands_still_grants_nothing_away(stage):
    """Section 3: watched time is the watcher's own, so a stopped clock evicts nobody."""
    stage.peer(Mode.WRITE, beat=1)
    reader = stage.reader(clock=Clock(5.0))
    for _ in range(1000):
        assert not reader.advance()


@pytest.mark.parametrize(("stale", "real"), [(3, 4), (None, 0)])
def test_a_listing_of_an_announcement_that_stays_stale_does_not_save_the_dead(stage, stale, real):
    """
    Sections 4 and 6: a client may show the beat before a dead holder's last for ever: nothing changes there any more.

    The server refuses to remove the beat that is listed, and the one that is there is never listed.
    """
    peer = stage.peer(Mode.WRITE, beat=real)
    shown = [] if stale is None else [beat_name(stale)]
    reader = stage.participant(Mode.READ, files=MemoryFiles(stage.server, Shows(shown, of=peer.name, times=None)))
    assert not stage.poll(reader, TTL + 5), "silent for less than a lease after the beat that is there was seen"
    assert stage.poll(reader, TTL * 0.75), "and that was soon after the next one was overdue"
    assert reader.evictions == 1
    assert peer.name not in stage.server.announced


def test_a_living_holder_is_not_evicted_on_a_stale_listing_of_its_announcement(stage):
    """Section 4: what is found by name is watched for a whole lease like any other beat."""
    holder = stage.holding_writer()
    files = MemoryFiles(stage.server, Shows([], of=holder.name, times=None))
    reader = stage.participant(Mode.READ, files=files)
    for _ in range(8 * 9):
        assert not reader.advance()
        stage.clock.sleep(10)
        holder.beat()
    assert holder.release()


def test_the_next_beat_is_not_asked_for_before_it_is_overdue(stage):
    """A waiter behind a holder that beats in time pays for no more than its listings."""
    holder = stage.holding_writer()
    files = MemoryFiles(stage.server)
    reader = stage.participant(Mode.READ, files=files)
    for second in range(300):
        assert not reader.advance()
        stage.clock.sleep(1)
        if second % INTERVAL == 0:
            holder.beat()
    assert not [call for call in files.calls if call[0] == "listdir" and "/" in call[1]]
