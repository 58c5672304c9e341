"""Lease and heartbeat (PROTOCOL.md section 3): what a beat proves, when a lease ends, how peers watch."""

from __future__ import annotations

import errno
import time

import pytest

from faults import INTERVAL, TTL, After, Before, Fails, Late, LostReply, MemoryFiles, Shows, Stage
from nfsrwlock_core.names import Mode, note_name, parse_announcement, parse_beats, parse_listing
from nfsrwlock_core.protocol.heartbeat import Beat, Lease, Phase
from nfsrwlock_core.protocol.participant import Participant
from nfsrwlock_core.protocol.removal import evict
from nfsrwlock_core.system.clock import now


@pytest.fixture
def stage() -> Stage:
    return Stage()


def notes_in(stage: Stage) -> dict[str, list]:
    """The notes in the directory, by the token they are about."""
    notes = {}
    for note in parse_listing(list(stage.server.entries)).notes:
        notes.setdefault(note.token, []).append(note)
    return notes


def watch_for(stage: Stage, seconds: float, **settings) -> Participant:
    """A caller that waits for so long, gives up and leaves its note."""
    caller = stage.reader(**settings)
    assert not stage.poll(caller, seconds)
    caller.give_up()
    return caller


# -- the holder beats --------------------------------------------------------------------------------------------------


def test_the_first_heartbeat_is_created_and_the_others_are_renames(stage):
    """Section 3: first create beat.0 in its own announcement, later rename beat.k -> beat.k+1."""
    holder = stage.holding_reader()
    holder.files.calls.clear()
    for _ in range(3):
        assert holder.beat() is Beat.DONE
    name = holder.name
    assert holder.files.calls == [
        ("create", f"{name}/beat.0"),
        ("rename", f"{name}/beat.0", f"{name}/beat.1"),
        ("rename", f"{name}/beat.1", f"{name}/beat.2"),
    ]
    assert holder.beats == 2
    assert stage.server.inside(name) == {"beat.2"}, "one name at a time"


def test_a_heartbeat_carries_a_record_for_people(stage):
    """Section 1: beat.<k> holds a small record; renaming keeps it."""
    holder = stage.holding_reader()
    for _ in range(2):
        holder.beat()
    assert stage.server.entries[holder.name] == {"beat.1": b"{}"}


def test_a_heartbeat_counts_from_before_the_call_was_sent(stage):
    """Section 3: a peer may have seen it as soon as the server had it, and have watched it since."""
    holder = stage.holding_reader()
    stage.clock.sleep(INTERVAL)
    sent = stage.clock()
    holder.files.inject(After("create", lambda: stage.clock.sleep(17)))
    assert holder.beat() is Beat.DONE
    assert holder.lease.renewed == sent


def test_a_lease_runs_out_before_any_peer_may_evict():
    """Section 3: now > last_beat + ttl - margin."""
    lease = Lease(ttl=90.0, renewed=1000.0)
    assert lease.expires == pytest.approx(1081.0)
    assert not lease.has_run_out(1080.9)
    assert lease.has_run_out(1081.1)
    assert lease.expires < lease.renewed + lease.ttl


def test_the_margin_bears_clocks_of_different_rates():
    """Section 3: the watcher's clock and the holder's may differ in rate by 5 %, the holder still gives up first."""
    lease = Lease(ttl=90.0, renewed=0.0)
    holder_stops = lease.expires * 1.05  # on a clock that loses 5 % this takes longer
    peer_evicts = 90.0 / 1.05  # on a clock that gains 5 % this is over sooner
    assert holder_stops < peer_evicts


def test_leases_are_counted_on_a_clock_that_runs_through_suspend():
    """Section 3: CLOCK_BOOTTIME; a machine that slept must know that its lease ran out."""
    assert now.func is time.clock_gettime
    # Elsewhere than on Linux the monotonic clock does that.
    assert now.args == (getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC),)


@pytest.mark.parametrize("beats", [0, 1, 4])
def test_a_heartbeat_that_fails_renews_nothing_and_says_why(stage, beats):
    """Section 3: only a beat that is known to have arrived counts."""
    holder = stage.holding_reader()
    for _ in range(beats):
        holder.beat()
    before = holder.lease
    stage.clock.sleep(INTERVAL)
    holder.files.inject(Fails("create", errno.EIO), Fails("rename", errno.EIO))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.lease == before
    assert holder.beat_error is not None
    assert holder.beat_error.errno == errno.EIO


@pytest.mark.parametrize("mode", Mode)
def test_who_has_withdrawn_sends_no_heartbeat(stage, mode):
    """Section 3: nothing is made under a name that was given back."""
    participant = stage.participant(mode)
    assert participant.advance()
    participant.give_up()
    participant.files.ops()
    assert participant.beat() is Beat.LOST
    assert participant.files.ops() == []


def test_a_later_heartbeat_that_succeeds_restores_the_hold(stage):
    """Section 3: success proves that the announcement was there all along."""
    holder = stage.holding_writer()
    holder.files.inject(Fails("create", errno.ETIMEDOUT, times=9))
    for _ in range(9):
        stage.clock.sleep(INTERVAL)
        assert holder.beat() is Beat.UNKNOWN
    assert holder.lease.has_run_out(stage.clock())
    assert holder.beat() is Beat.DONE
    assert not holder.lease.has_run_out(stage.clock())
    assert holder.beat_error is None


@pytest.mark.parametrize("beats", [0, 1, 4])
def test_a_heartbeat_that_finds_its_name_gone_means_lost(stage, beats):
    """Section 3: report it, never re-create anything under that token."""
    holder = stage.holding_writer()
    for _ in range(beats):
        holder.beat()
    del stage.server.entries[holder.name]
    renewed = holder.lease.renewed
    stage.clock.sleep(INTERVAL)
    assert holder.beat() is Beat.LOST
    assert holder.beat() is Beat.LOST
    assert holder.lease.renewed == renewed
    assert stage.server.announced == set()


@pytest.mark.parametrize("beats", [1, 4])
def test_a_heartbeat_that_was_removed_means_lost(stage, beats):
    """Sections 3 and 4: an announcement whose beat was removed can never beat again."""
    holder = stage.holding_writer()
    for _ in range(beats):
        holder.beat()
    stage.server.entries[holder.name] = {}
    assert holder.beat() is Beat.LOST
    assert stage.server.announced == set(), "nothing was created anew, and the eviction is finished"


@pytest.mark.parametrize("beats", [1, 4])
def test_a_listing_that_shows_no_heartbeat_is_not_believed_when_the_server_knows_one(stage, beats):
    """Sections 3 and 6: the listing may be old, or have raced with our own rename. The server knows."""
    holder = stage.holding_writer()
    for _ in range(beats):
        holder.beat()
    holder.files.inject(Fails("rename", errno.EIO), Shows([], of="write."))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.beat() is Beat.DONE
    assert stage.server.inside(holder.name) == {f"beat.{beats}"}


def test_a_lost_hold_stays_lost_when_another_takes_the_lock(stage):
    """Section 3: nothing is re-created, so the successor is not disturbed."""
    holder = stage.holding_writer()
    holder.beat()
    del stage.server.entries[holder.name]
    successor = stage.holding_writer()
    assert holder.beat() is Beat.LOST
    assert successor.beat() is Beat.DONE
    assert stage.server.announced == {successor.name}


@pytest.mark.parametrize("beats", [0, 1, 4])
def test_a_missing_name_that_is_still_listed_is_not_lost(stage, beats):
    """Section 6: ENOENT may come from the client's cache of missing names; it is never evidence."""
    holder = stage.holding_writer()
    for _ in range(beats):
        holder.beat()
    holder.files.inject(*(Fails(op, errno.ENOENT, times=2) for op in ("create", "rename")))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.beat() is Beat.UNKNOWN
    assert holder.beat() is Beat.DONE


def test_a_missing_announcement_that_is_still_listed_is_not_lost(stage):
    """Section 6: neither is the ENOENT of listing the announcement; a fresh listing of the lock directory decides."""
    holder = stage.holding_writer()
    holder.files.inject(Fails("create", errno.ENOENT), Fails("listdir", errno.ENOENT, on="write."))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.beat() is Beat.DONE


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_server_that_cannot_be_asked_leaves_the_outcome_open(stage, number):
    """Section 6: the hold is called lost on evidence only. The lease runs on."""
    holder = stage.holding_writer()
    holder.beat()
    holder.files.inject(Fails("rename", number))
    holder.files.inject(Fails("listdir", errno.ESTALE, on="write."), Fails("listdir", errno.EIO))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.beat() is Beat.DONE


@pytest.mark.parametrize("beats", [0, 1])
def test_a_file_handle_that_went_stale_is_looked_into(stage, beats):
    """Section 6: ESTALE on the announcement says no more than ENOENT does; the lock directory's listing does."""
    holder = stage.holding_writer()
    for _ in range(beats):
        holder.beat()
    stale = [Fails("create", errno.ESTALE), Fails("rename", errno.ESTALE), Fails("listdir", errno.ESTALE, on="write.")]
    holder.files.inject(*stale)
    assert holder.beat() is Beat.UNKNOWN
    del stage.server.entries[holder.name]
    stale[2].times = None
    assert holder.beat() is Beat.LOST


def test_a_hold_whose_lock_directory_was_removed_is_lost(stage):
    """Section 3: nothing is left that anybody could respect."""
    holder = stage.holding_writer()
    stage.server.exists = False
    assert holder.beat() is Beat.LOST


@pytest.mark.parametrize("number", [None, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize("beats", [0, 1, 4])
def test_a_heartbeat_whose_reply_was_lost_is_read_back(stage, beats, number):
    """Section 6: since every name is unique to its maker, the outcome is read back from the name."""
    holder = stage.holding_writer()
    for _ in range(beats):
        holder.beat()
    stage.clock.sleep(INTERVAL)
    sent = stage.clock()
    lost = [LostReply("create", number), LostReply("rename", number)]
    holder.files.inject(*lost, After("listdir", lambda: stage.clock.sleep(5)))
    assert holder.beat() is Beat.DONE
    assert holder.lease.renewed == sent
    assert holder.beats == beats
    assert holder.beat() is Beat.DONE
    assert stage.server.inside(holder.name) == {f"beat.{beats + 1}"}


@pytest.mark.parametrize("beats", [1, 4])
def test_a_heartbeat_whose_reply_was_lost_is_found_by_its_name_where_listings_stay_old(stage, beats):
    """Section 3: a client that goes by time stamps may show the heartbeat before the latest for ever."""
    holder = stage.holding_writer()
    for _ in range(beats):
        holder.beat()
    stage.clock.sleep(INTERVAL)
    sent = stage.clock()
    holder.files.inject(LostReply("rename"), Shows([f"beat.{beats - 1}"], of=holder.name, times=None))
    assert holder.beat() is Beat.DONE
    assert (holder.beats, holder.lease.renewed) == (beats, sent)
    assert holder.beat() is Beat.DONE
    assert stage.server.inside(holder.name) == {f"beat.{beats + 1}"}


def test_a_writer_that_is_not_sure_of_its_place_makes_no_numbers(stage):
    """Section 2, 4: they would pile up, for only a grant removes the lower ones. And it looks ever more rarely."""
    holder, writer = stage.holding_writer(), stage.writer(ticket=2)
    assert not writer.advance()
    writer.files.inject(Fails("create", times=None))
    holder.release()
    stage.clock.sleep(TTL)
    pauses = []
    for _ in range(20):
        assert not writer.advance()
        pauses.append(writer.pause(TTL, 0.25, 0.5))
        stage.clock.sleep(1)
    assert parse_listing(list(stage.server.entries)).generations == (1,)
    assert pauses[-1] > 10 * pauses[0]
    writer.files.heal()
    assert writer.advance()
    assert writer.generation == 2


def test_an_unheard_heartbeat_that_turns_up_counts_from_its_own_sending(stage):
    """
    Section 3: a beat counts from the moment before *its* call was sent.

    It reached the server late; peers may have watched it since the first of our tries, not since the one that found it.
    """
    holder = stage.holding_writer()
    holder.beat()
    stage.clock.sleep(INTERVAL)
    sent = stage.clock()
    late = Late("rename")
    holder.files.inject(late)
    assert holder.beat() is Beat.UNKNOWN
    late.arrive()
    stage.clock.sleep(INTERVAL)
    # The next try meets the earlier one, and its own beat then fails.
    holder.files.inject(Fails("rename", errno.EIO, on="/beat.1"))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.lease.renewed == sent
    assert holder.beat() is Beat.DONE
    assert holder.lease.renewed == stage.clock()


def test_an_unheard_heartbeat_counts_from_the_first_of_several_tries(stage):
    """Section 3: which of the tries arrived cannot be told, so the earliest counts."""
    holder = stage.holding_writer()
    holder.beat()
    stage.clock.sleep(INTERVAL)
    first = stage.clock()
    late = Late("rename")
    holder.files.inject(late, Fails("rename", errno.EIO))
    assert holder.beat() is Beat.UNKNOWN
    stage.clock.sleep(10)
    assert holder.beat() is Beat.UNKNOWN
    late.arrive()
    stage.clock.sleep(10)
    holder.files.inject(Fails("rename", errno.EIO, on="/beat.1"))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.lease.renewed == first


def test_finding_an_unheard_heartbeat_is_followed_by_one_that_proves_the_present(stage):
    """Section 3: an old beat says little about now; the same call sends a new one."""
    holder = stage.holding_writer()
    holder.beat()
    stage.clock.sleep(INTERVAL)
    late = Late("rename")
    holder.files.inject(late)
    holder.beat()
    late.arrive()
    stage.clock.sleep(INTERVAL)
    assert holder.beat() is Beat.DONE
    assert holder.lease.renewed == stage.clock()
    assert stage.server.inside(holder.name) == {"beat.2"}


@pytest.mark.parametrize("arrives", [0, 1, 2])
def test_a_first_heartbeat_that_was_not_heard_of_is_followed_by_one_above_it_whenever_it_arrives(stage, arrives):
    """Section 3: one that came late and higher would hide those that follow, and an evictor would find it unchanged."""
    holder = stage.holding_writer()
    late = Late("create")
    holder.files.inject(late)
    for step in range(3):
        stage.clock.sleep(INTERVAL)
        if step == arrives:
            late.arrive()
        before = parse_beats(list(stage.server.inside(holder.name)))
        outcome = holder.beat()
        assert outcome is (Beat.UNKNOWN if step == 0 else Beat.DONE)
        if outcome is Beat.DONE:
            latest = parse_beats(list(stage.server.inside(holder.name)))
            assert latest == holder.beats
            assert before is None or latest > before
            assert holder.lease.renewed == stage.clock()
    assert holder.release()
    assert stage.server.announced == set()


def test_a_first_heartbeat_that_may_not_be_the_latest_is_not_adopted(stage):
    """Section 3: what is found below the one that was sent proves nothing, and the next one goes above it, too."""
    holder = stage.holding_writer()
    stage.twin(holder, MemoryFiles(stage.server)).beat()
    renewed = holder.lease.renewed
    stage.clock.sleep(INTERVAL)
    late = Late("create")
    successor = stage.twin(holder, MemoryFiles(stage.server, late))
    assert successor.beat() is Beat.UNKNOWN
    assert (successor.beats, successor.lease.renewed) == (None, renewed)
    stage.clock.sleep(INTERVAL)
    assert successor.beat() is Beat.DONE
    late.arrive()
    assert parse_beats(list(stage.server.inside(holder.name))) == successor.beats


def test_an_older_report_does_not_bring_back_an_older_heartbeat(stage):
    """Section 3: the last word of one helper may be read after the first of the next."""
    holder = stage.holding_writer()
    holder.take_over(7, stage.clock())
    holder.take_over(3, stage.clock())
    holder.take_over(None, stage.clock())
    assert holder.beats == 7


def test_an_unheard_heartbeat_never_shortens_a_lease(stage):
    """Section 3: what is known of a later success stays known."""
    holder = stage.holding_writer()
    stage.clock.sleep(5)
    late = Late("create")
    holder.files.inject(late)
    holder.beat()
    stage.clock.sleep(5)
    assert holder.beat() is Beat.DONE
    renewed = holder.lease.renewed
    assert renewed == stage.clock()
    holder.files.inject(Fails("rename", errno.EIO))
    holder.beat()
    assert holder.lease.renewed == renewed


def test_a_create_that_arrives_an_age_late_revives_nobody(stage):
    """Sections 3 and 4: it puts a second name beside the beat. The holder renames on; once evicted it stays evicted."""
    holder = stage.holding_writer()
    late = Late("create")
    holder.files.inject(late)
    holder.beat()
    assert holder.beat() is Beat.DONE
    assert holder.beat() is Beat.DONE
    late.arrive()
    assert stage.server.inside(holder.name) == {"beat.0", "beat.1"}
    assert holder.beat() is Beat.DONE
    assert stage.server.inside(holder.name) == {"beat.0", "beat.2"}
    stage.server.unlink(f"{holder.name}/beat.2")  # an eviction begins
    stage.clock.sleep(TTL)
    for _ in range(3):
        assert holder.beat() is not Beat.DONE
    assert holder.lease.has_run_out(stage.clock())


def test_a_participant_that_another_process_announced_beats_on_from_where_it_stood(stage):
    """Section 3: the chain of beats is one, whichever process sends them; what the other one reports is taken in."""
    holder = stage.holding_writer()
    holder.beat()
    twin = stage.twin(holder, holder.files)
    stage.clock.sleep(INTERVAL)
    assert twin.beat() is Beat.DONE
    holder.take_over(twin.beats, twin.lease.renewed)
    assert holder.lease.renewed == stage.clock()
    assert holder.beat() is Beat.DONE
    holder.take_over(2, stage.clock() - 50)
    assert holder.lease.renewed == stage.clock(), "old news shortens nothing"
    assert twin.mode is Mode.WRITE
    assert holder.release()


# -- somebody else has beaten before ----------------------------------------------------------------------------------


@pytest.mark.parametrize("heard", [1, 3])
@pytest.mark.parametrize("unheard", [1, 2])
def test_a_successor_counts_its_predecessors_unheard_heartbeat_from_when_the_old_lease_began(stage, heard, unheard):
    """Section 3: the one before ended after its beat had arrived and before it said so; peers have watched it since."""
    holder = stage.holding_writer()
    first = stage.twin(holder, MemoryFiles(stage.server))
    for _ in range(heard):
        first.beat()
        holder.take_over(first.beats, first.lease.renewed)
    renewed = holder.lease.renewed
    for _ in range(unheard):
        stage.clock.sleep(INTERVAL / 3)
        assert first.beat() is Beat.DONE
    stage.clock.sleep(INTERVAL / 2)
    second = stage.twin(
        holder, MemoryFiles(stage.server, Fails("rename", errno.EIO, on=f"/beat.{heard + unheard - 1}"))
    )
    assert second.beat() is Beat.UNKNOWN
    assert second.beats == heard + unheard - 1
    assert second.lease.renewed == renewed
    assert second.beat() is Beat.DONE, "a real one follows"
    assert second.lease.renewed == stage.clock()
    assert stage.server.inside(holder.name) == {f"beat.{heard + unheard}"}


@pytest.mark.parametrize("heard", [1, 3])
@pytest.mark.parametrize("unheard", [1, 2])
def test_a_holder_that_beats_itself_again_counts_an_unheard_heartbeat_as_a_successor_does(stage, heard, unheard):
    """Section 3: as when no further process can be started, and a thread takes over."""
    holder = stage.holding_writer()
    other = stage.twin(holder, MemoryFiles(stage.server))
    for _ in range(heard):
        other.beat()
        holder.take_over(other.beats, other.lease.renewed)
    renewed = holder.lease.renewed
    stage.clock.sleep(INTERVAL)
    for _ in range(unheard):
        other.beat()
    stage.clock.sleep(INTERVAL / 2)
    holder.files.inject(Fails("rename", errno.EIO, on=f"/beat.{heard + unheard - 1}"))
    assert holder.beat() is Beat.UNKNOWN
    assert holder.lease.renewed == renewed
    assert holder.beat() is Beat.DONE
    assert holder.lease.renewed == stage.clock()


def test_a_call_of_a_predecessor_that_is_still_on_its_way_is_not_taken_for_an_own_one(stage):
    """Section 3: it had sent two that nobody heard of, and the second arrives when its successor has met the first."""
    holder = stage.holding_writer()
    holder.beat()
    first = stage.twin(holder, MemoryFiles(stage.server))
    assert first.beat() is Beat.DONE
    renewed = holder.lease.renewed
    stage.clock.sleep(INTERVAL)
    late = Late("rename")
    first.files.inject(late)
    assert first.beat() is Beat.UNKNOWN
    stage.clock.sleep(INTERVAL / 2)
    fails = Fails("rename", errno.EIO, on="/beat.2")
    second = stage.twin(holder, MemoryFiles(stage.server, Before("rename", late.arrive, on="/beat.1"), fails))
    assert second.beat() is Beat.UNKNOWN
    assert (second.beats, second.lease.renewed) == (2, renewed)


def test_a_first_successor_of_somebody_who_has_heard_all_his_heartbeats_believes_a_lost_reply(stage):
    """Section 3: nobody can have sent that beat before."""
    holder = stage.holding_writer()
    holder.beat()
    stage.clock.sleep(INTERVAL)
    twin = stage.twin(holder, MemoryFiles(stage.server, LostReply("rename")))
    assert twin.beat() is Beat.DONE
    assert twin.beats == 1
    assert twin.lease.renewed == stage.clock()


@pytest.mark.parametrize("beats", [1, 2])
def test_a_successor_that_knows_of_no_heartbeat_beats_above_those_that_are_there(stage, beats):
    """Section 3: a lower one would renew its lease, and no peer would see it."""
    holder = stage.holding_writer()
    first = stage.twin(holder, MemoryFiles(stage.server))
    for _ in range(beats):
        stage.clock.sleep(INTERVAL / 3)
        first.beat()
    stage.clock.sleep(INTERVAL / 2)
    for sender in (stage.twin(holder, MemoryFiles(stage.server)), holder):
        assert sender.beat() is Beat.DONE
        assert sender.beats == parse_beats(list(stage.server.inside(holder.name)))
        assert sender.lease.renewed == stage.clock()
        stage.clock.sleep(1)


@pytest.mark.parametrize("by", ["itself", "a successor"])
def test_the_name_of_a_first_heartbeat_that_was_evicted_unheard_is_not_used_again(stage, by):
    """Sections 3 and 4: another evictor may still be about to remove that name."""
    holder = stage.holding_writer()
    peer = parse_announcement(holder.name)
    if by == "itself":
        late = Late("create")
        holder.files.inject(late)
        assert holder.beat() is Beat.UNKNOWN
        late.arrive()
    else:
        stage.twin(holder, MemoryFiles(stage.server)).beat()
        holder = stage.twin(holder, MemoryFiles(stage.server))
    stage.clock.sleep(2 * TTL)
    one, other = MemoryFiles(stage.server), MemoryFiles(stage.server)
    one.inject(Before("rmdir", lambda: outcomes.append(holder.beat())))
    outcomes = []
    assert not evict(one, peer, 0), "it has beaten before it was gone"
    assert outcomes == [Beat.DONE]
    assert not evict(other, peer, 0), "this was decided before, and comes late"
    assert not holder.lease.has_run_out(stage.clock())
    assert holder.name in stage.server.announced
    assert holder.beat() is Beat.DONE


def test_a_late_release_does_not_take_an_unheard_heartbeat_that_was_evicted_for_none(stage):
    """Section 5: to find no beat proves the hold only if none was sent."""
    holder = stage.holding_writer()
    assert stage.twin(holder, MemoryFiles(stage.server)).beat() is Beat.DONE
    stage.clock.sleep(2 * TTL)
    stage.server.unlink(f"{holder.name}/beat.0")  # an evictor's first half
    assert not holder.release()


# -- the observer watches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beat", [None, 0, 5])
def test_a_silent_holder_is_evicted_after_its_lease_of_watched_time(stage, beat):
    """Section 3: a token that has not changed during ttl of watched time may be evicted."""
    stage.peer(Mode.WRITE, beat=beat)
    reader = stage.reader()
    assert not stage.poll(reader, TTL - 1, every=1.0)
    assert reader.evictions == 0
    assert stage.poll(reader, 5, every=1.0)
    assert reader.evictions == 1


@pytest.mark.parametrize("standstill", [0.0, 112.0])
def test_silence_counts_anew_after_a_new_connection(stage, standstill):
    """Section 3: after a server's restart others may be unable to beat for as long as NFSv4's grace period."""
    stage.peer(Mode.WRITE, beat=5)
    reader = stage.reader(standstill=standstill)
    reader.files.connected = "first"
    assert not stage.poll(reader, TTL - 1, every=1.0)
    reader.files.connected = "second"
    assert not stage.poll(reader, max(TTL, standstill) - 1, every=1.0)
    assert reader.evictions == 0
    assert stage.poll(reader, TTL / 6 + 5, every=1.0)


def test_a_look_that_needs_a_new_connection_is_one_on_it(stage):
    """The server was restarted between two looks; the second one finds it again, and must not be the last of 90 s."""
    stage.peer(Mode.WRITE, beat=5)
    reader = stage.reader()
    reader.files.connected = "first"
    stage.poll(reader, TTL - TTL / 12, every=1.0)

    def reconnect() -> None:
        reader.files.connected = "second"

    reader.files.inject(After("listdir", reconnect, on="write."))
    assert not stage.poll(reader, TTL - 1, every=1.0)
    assert stage.poll(reader, TTL / 6 + 5, every=1.0)


def test_a_holder_that_beats_is_never_evicted(stage):
    """Section 3: any change of its beat's name begins a new count."""
    writer = stage.peer(Mode.WRITE)
    reader = stage.reader()
    for beat in range(10):
        assert not stage.poll(reader, TTL - 1, every=5.0)
        stage.show_beat(writer, beat)
    assert reader.evictions == 0


def test_a_holder_that_was_silent_long_before_anybody_watched_gets_its_whole_lease(stage):
    """Section 3: no time of another host, and none that was not watched, counts."""
    stage.peer(Mode.WRITE, beat=3)
    stage.clock.sleep(10_000)
    reader = stage.reader()
    assert not stage.poll(reader, TTL - 1)
    assert stage.poll(reader, 5)


@pytest.mark.parametrize(("lease", "own"), [(30.0, 300.0), (300.0, 30.0)])
def test_the_lease_that_counts_is_the_peers_own(stage, lease, own):
    """Section 3: ttl is written in the announcement's name; peers use the holder's own value."""
    stage.peer(Mode.WRITE, beat=1, lease=lease)
    reader = stage.reader(ttl=own, interval=own / 3)
    assert not stage.poll(reader, lease - 1, every=1.0)
    assert stage.poll(reader, 4, every=1.0)


def test_an_outage_of_the_server_evicts_nobody(stage):
    """Section 3: watched time starts anew whenever two successive successful listings lie further apart than ttl/3."""
    writer = stage.peer(Mode.WRITE, beat=1)
    reader = stage.reader()
    stage.poll(reader, 60)
    reader.files.inject(Fails("listdir", errno.EIO, times=20))
    for _ in range(20):
        with pytest.raises(OSError, match="Input/output"):
            reader.advance()
        stage.clock.sleep(5)
    assert not stage.poll(reader, TTL - 5)
    assert writer.name in stage.server.announced
    assert stage.poll(reader, 10)


def test_an_observer_that_slept_begins_anew(stage):
    """Section 3: what passed while nobody looked was not watched."""
    stage.peer(Mode.WRITE, beat=1)
    reader = stage.reader()
    stage.poll(reader, 80)
    stage.clock.sleep(TTL / 3 + 20)
    assert not stage.poll(reader, TTL - 5)
    assert reader.evictions == 0


def test_a_look_that_fails_is_no_look(stage):
    """Section 3: successful listings only; here the lock directory can be listed and the announcement cannot."""
    stage.peer(Mode.WRITE, beat=1)
    reader = stage.reader()
    stage.poll(reader, 60)
    reader.files.inject(Fails("listdir", errno.EIO, on="write.", times=None))
    assert not stage.poll(reader, 40)
    reader.files.heal()
    assert not stage.poll(reader, TTL - 5)
    assert stage.poll(reader, 10)


def test_a_draining_writer_evicts_silent_readers_and_beats_meanwhile(stage):
    """Section 3: each announced process beats, a waiting writer too, or it would be evicted itself."""
    dead = [stage.peer(Mode.READ), stage.peer(Mode.READ, beat=2)]
    writer = stage.writer()
    assert stage.poll(writer, TTL + 10)
    assert writer.evictions == len(dead)
    assert stage.server.inside(writer.name) != set()
    assert not writer.lease.has_run_out(stage.clock())


def test_watching_costs_a_few_looks_in_a_lease(stage):
    """Sections 3 and 8: close enough to count as watching, rare enough to be cheap."""
    stage.peer(Mode.WRITE, beat=1, lease=10_000)
    reader = stage.reader()
    stage.poll(reader, 10_000 - 1, every=10.0)
    looks = [call for call in reader.files.calls if call[0] == "listdir" and call[1]]
    assert 4 <= len(looks) <= 10


def test_a_holder_that_leaves_soon_costs_no_look_at_all(stage):
    """Section 8: who waits for milliseconds only lists."""
    writer = stage.holding_writer()
    reader = stage.reader()
    reader.advance()
    stage.clock.sleep(0.05)
    reader.advance()
    writer.release()
    assert reader.advance()
    assert not [call for call in reader.files.calls if call[0] == "listdir" and call[1]]


@pytest.mark.parametrize("name", ["write.v2.x", "read.v2.x"])
def test_what_is_not_understood_ages_out_by_the_longer_of_the_default_and_the_own_lease(stage, name):
    """Section 1: it ages out like any other. Nobody knows its lease, so it gets the benefit of the doubt."""
    stage.server.mkdir(name)
    reader = stage.reader(ttl=30, interval=10)
    assert not stage.poll(reader, TTL - 1)
    assert stage.poll(reader, 6)
    reader.release()
    stage.server.mkdir(name)
    patient = stage.reader(ttl=200, interval=60)
    assert not stage.poll(patient, 199)
    assert stage.poll(patient, 6)


@pytest.mark.parametrize("entry", [b"a file", b""])
def test_a_file_under_an_announcements_name_ages_out(stage, entry):
    """Section 1: a hostile marker counts and ages out."""
    stage.server.entries["write.v2.x"] = entry
    reader = stage.reader()
    assert not stage.poll(reader, TTL - 1)
    assert stage.poll(reader, 6)
    assert stage.server.announced == {reader.name}


# -- dead at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beat", [None, 3])
@pytest.mark.parametrize("mode", Mode)
def test_a_process_that_this_kernel_knows_to_be_dead_is_evicted_at_once(stage, mode, beat):
    """Section 3: same boot id and pid namespace, and the process is gone."""
    peer = stage.peer(mode, beat=beat)
    stage.dead.add(peer.who)
    writer = stage.writer(ticket=9)
    assert not writer.advance()
    assert writer.evictions == 1
    assert writer.advance()
    assert stage.server.announced == {writer.name}


def test_a_process_that_is_not_known_to_be_dead_keeps_its_lease(stage):
    """Section 3: a stopped process is not a dead one, and one of another kernel cannot be known."""
    peer = stage.peer(Mode.WRITE)
    writer = stage.writer(ticket=9)
    assert not stage.poll(writer, TTL - 1)
    stage.dead.add(peer.who)
    stage.clock.sleep(0.1)
    assert not writer.advance()
    assert writer.advance()


def test_a_reader_does_not_mind_dead_readers(stage):
    """Section 2: they are not in its way, so it neither looks nor evicts; a writer will."""
    peer = stage.peer(Mode.READ)
    stage.dead.add(peer.who)
    reader = stage.reader()
    assert reader.advance()
    assert reader.files.ops() == ["mkdir", "listdir"]


# -- notes of callers that gave up -------------------------------------------------------------------------------------


def test_a_caller_that_gives_up_notes_what_it_watched(stage):
    """Section 3: seen.<token>.<k>.<ms>: "token still showed beat k after ms of watching"."""
    silent = stage.peer(Mode.WRITE, beat=4)
    watch_for(stage, 40, ttl=30, interval=10)
    ((note,),) = notes_in(stage).values()
    assert note.token == silent.token
    assert note.beat == 4
    assert 39_000 <= note.watched_ms <= 40_000


def test_a_note_on_an_announcement_without_a_beat_says_so(stage):
    """Section 3."""
    silent = stage.peer(Mode.WRITE)
    watch_for(stage, 40)
    ((note,),) = notes_in(stage).values()
    assert (note.token, note.beat) == (silent.token, None)


def test_a_draining_writer_that_gives_up_leaves_notes_too(stage):
    """Section 3."""
    silent = stage.peer(Mode.READ, beat=1)
    writer = stage.writer()
    stage.poll(writer, 40)
    writer.give_up()
    assert set(notes_in(stage)) == {silent.token}
    assert stage.server.announced == {silent.name}


@pytest.mark.parametrize("beat", [None, 4])
@pytest.mark.parametrize("mode", Mode)
def test_callers_with_short_timeouts_clear_a_dead_holder_one_after_the_other(stage, mode, beat):
    """Section 3: the next caller adds its own watching. Not one of them waits for as long as the lease."""
    stage.peer(Mode.WRITE, beat=beat, ticket=0)
    began, callers = stage.clock(), 0
    while True:
        caller = stage.participant(mode, ticket=5)
        if stage.poll(caller, 20, every=1.0):
            break
        caller.give_up()
        stage.clock.sleep(1)
        callers += 1
        assert callers < 10, "the chain got nowhere"
    assert stage.clock() - began >= TTL
    assert callers == 4
    assert caller.evictions == 1


def test_a_chain_of_notes_keeps_one_note(stage):
    """Section 3: the sum is written down; what it was made of is removed."""
    stage.peer(Mode.WRITE, beat=4)
    for _ in range(3):
        watch_for(stage, 20)
    ((note,),) = notes_in(stage).values()
    assert 57_000 <= note.watched_ms <= 60_000


def test_notes_written_side_by_side_count_as_their_maximum(stage):
    """Section 3: never as their sum: they tell of the same seconds."""
    silent = stage.peer(Mode.WRITE, beat=4)
    stage.server.mkdir(note_name(silent.token, 4, 60_000))
    stage.server.mkdir(note_name(silent.token, 4, 50_000))
    reader = stage.reader()
    assert not stage.poll(reader, 29, every=1.0)
    assert reader.evictions == 0
    assert stage.poll(reader, 3, every=1.0)


@pytest.mark.parametrize("beat", [None, 3, 5])
def test_a_note_on_another_beat_is_void(stage, beat):
    """Section 3: a note is void as soon as the beat differs."""
    silent = stage.peer(Mode.WRITE, beat=4)
    stage.server.mkdir(note_name(silent.token, beat, 80_000))
    reader = stage.reader()
    assert not stage.poll(reader, TTL - 1)
    assert stage.poll(reader, 6)


def test_a_note_on_the_time_before_the_first_beat_is_void_after_it(stage):
    """Section 3: "new" and beat.0 are two different names."""
    silent = stage.peer(Mode.WRITE, beat=0)
    stage.server.mkdir(note_name(silent.token, None, 80_000))
    assert not stage.poll(stage.reader(), TTL - 1)


def test_a_note_on_another_token_says_nothing(stage):
    """Section 3."""
    stage.peer(Mode.WRITE, beat=4)
    other = stage.peer(Mode.READ, beat=4)
    stage.server.mkdir(note_name(other.token, 4, 80_000))
    assert not stage.poll(stage.reader(), TTL - 1)


def test_a_note_that_was_written_after_we_began_does_not_count(stage):
    """Section 3: only what a caller finds when it *starts*; a later one tells of seconds that we watched, too."""
    silent = stage.peer(Mode.WRITE, beat=4)
    reader = stage.reader()
    reader.advance()
    stage.server.mkdir(note_name(silent.token, 4, 80_000))
    assert not stage.poll(reader, TTL - 1)
    assert stage.poll(reader, 6)


def test_a_note_does_not_count_again_after_the_peer_has_beaten(stage):
    """Section 3: notes count once, for the silence they were about."""
    silent = stage.peer(Mode.WRITE, beat=4)
    stage.server.mkdir(note_name(silent.token, 4, 80_000))
    reader = stage.reader()
    stage.poll(reader, 5)
    stage.show_beat(silent, 5)
    stage.poll(reader, 20)
    stage.server.mkdir(note_name(silent.token, 5, 80_000))
    assert not stage.poll(reader, TTL - 25)
    assert reader.evictions == 0


def test_a_caller_that_did_not_look_notes_nothing(stage):
    """Section 3: a caller that does not wait has watched nothing."""
    stage.peer(Mode.WRITE, beat=4)
    caller = stage.reader()
    caller.advance()
    caller.give_up()
    assert notes_in(stage) == {}


def test_a_caller_that_was_granted_the_lock_notes_nothing(stage):
    """Section 3: notes are left by callers that gave up waiting."""
    reader = stage.holding_reader()
    reader.give_up()
    assert stage.server.names == set()


def test_a_caller_that_evicts_in_its_last_moment_leaves_no_note_on_the_dead(stage):
    """Section 3: what it would be about is gone."""
    stage.peer(Mode.WRITE, beat=4)
    caller = stage.reader()
    stage.poll(caller, TTL - 5)
    stage.clock.sleep(10)
    caller.give_up()
    assert caller.evictions == 1
    assert stage.server.names == set()


def test_what_is_not_understood_is_aged_out_by_a_chain_of_callers(stage):
    """Sections 1 and 3: like any other; its name stands in for the token that nobody can read."""
    stage.server.mkdir("write.v2.x")
    for _ in range(4):
        watch_for(stage, 20)
        assert "write.v2.x" in stage.server.names
    reader = stage.reader()
    assert stage.poll(reader, 20)


def test_a_note_that_cannot_be_left_is_no_error(stage):
    """Section 3: a note is a favour to the next caller, and the disk may be full."""
    silent = stage.peer(Mode.WRITE, beat=4)
    caller = stage.reader()
    stage.poll(caller, 40)
    caller.files.inject(Fails("mkdir", errno.ENOSPC, times=None))
    caller.give_up()
    assert stage.server.names == {silent.name}
    assert caller.phase is Phase.ENDED


def test_one_caller_leaves_no_more_than_a_few_notes(stage):
    """Section 3: a lock with a hundred silent readers must not fill the disk."""
    for _ in range(100):
        stage.peer(Mode.READ, beat=1)
    writer = stage.writer()
    stage.poll(writer, 40)
    writer.give_up()
    assert 1 <= len(notes_in(stage)) <= 16


def test_a_note_never_makes_a_holder_that_beats_look_silent(stage):
    """Sections 3 and 4: whatever a note says, the compare-and-swap is with the beat that this observer saw."""
    writer = stage.peer(Mode.WRITE, beat=4)
    stage.server.mkdir(note_name(writer.token, 4, 10**12))
    reader = stage.reader()
    reader.advance()
    stage.clock.sleep(20)
    reader.files.inject(Before("unlink", lambda: stage.show_beat(writer, 5)))
    assert not reader.advance()
    assert stage.server.inside(writer.name) == {"beat.5"}
    assert not stage.poll(reader, TTL - 5)


def test_notes_survive_only_as_long_as_what_they_are_about(stage):
    """Section 3; cleaning is at leisure."""
    gone, here = stage.token(), stage.peer(Mode.READ)
    stage.server.mkdir(note_name(gone, 3, 5000))
    stage.server.mkdir(note_name(here.token, None, 5000))
    reader = stage.holding_reader()
    reader.release()
    assert set(notes_in(stage)) == {here.token}


def test_the_state_of_a_lock_after_all_this_is_read_from_names_alone(stage):
    """Section 1: nothing depends on the content of a beat."""
    holder = stage.holding_writer()
    holder.beat()
    stage.server.entries[holder.name] = {"beat.0": b"\xff\x00 no JSON at all" * 100}
    assert holder.beat() is Beat.DONE
    reader = stage.reader()
    assert not stage.poll(reader, 40)
    assert parse_announcement(holder.name).token in {peer.token for peer in reader.blockers}
    assert holder.release()
