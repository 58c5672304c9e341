"""Acquire (PROTOCOL.md section 2): announce, list, wait; numbered grants; what a stale listing can and cannot do."""

from __future__ import annotations

import contextlib
import errno
import itertools

import pytest

from faults import INTERVAL, TTL, After, Before, CachingFiles, Fails, Late, LostReply, MemoryFiles, Shows, Stage
from nfsrwlock_core.errors import LockPathError
from nfsrwlock_core.names import Mode, parse_announcement
from nfsrwlock_core.protocol.heartbeat import Beat, Phase

LOW, HIGH = "1" * 32, "9" * 32


@pytest.fixture
def stage() -> Stage:
    return Stage()


def announced_as(stage: Stage) -> list:
    """The announcements that the directory shows, parsed."""
    return [parse_announcement(name) for name in stage.server.entries if name.startswith(("read.", "write."))]


def first_name(participant) -> str:
    """The name by which a participant announced itself first."""
    return next(call[1] for call in participant.files.calls if call[0] == "mkdir")


def tokens_used(files: MemoryFiles) -> list[str]:
    """The tokens by which a client announced itself, in order."""
    made = (parse_announcement(call[1]) for call in files.calls if call[0] == "mkdir")
    return [announcement.token for announcement in made if announcement is not None]


# -- announce, then list -----------------------------------------------------------------------------------------------


def test_a_reader_announces_itself_before_it_lists(stage):
    """Section 2, reader 1 and 2; section 8: mkdir, list, and rmdir at the end, nothing more."""
    reader = stage.reader()
    assert reader.advance()
    assert reader.files.calls == [("mkdir", reader.name), ("listdir", "")]
    assert reader.release()
    assert reader.files.ops() == ["mkdir", "listdir", "rmdir"]
    assert stage.server.names == set()


def test_a_writer_announces_itself_lists_numbers_the_grant_and_lists_again(stage):
    """Section 2, writer 1, 2 and 4."""
    writer = stage.writer()
    assert writer.advance()
    assert writer.files.calls == [("mkdir", writer.name), ("listdir", ""), ("mkdir", "gen.1"), ("listdir", "")]
    assert writer.generation == 1


def test_a_short_hold_never_pays_for_a_heartbeat(stage):
    """Sections 1 and 3: beat.<k> is absent until the first heartbeat, which is due after an interval."""
    for participant in (stage.reader(), stage.writer()):
        assert participant.advance()
        assert stage.server.inside(participant.name) == set()
        participant.release()
        assert not {"create", "rename", "unlink"} & set(participant.files.ops())


def test_an_announcement_states_all_that_peers_must_know(stage):
    """Section 1: one listing is the whole state: mode, ticket, lease, process, host."""
    who = stage.who("node9")
    writer = stage.holding_writer(ticket=0xABCDEF, ttl=42.5, who=who)
    (announcement,) = announced_as(stage)
    assert announcement.mode is Mode.WRITE
    assert announcement.ticket == 0xABCDEF
    assert announcement.lease_ms == 42_500
    assert announcement.who == who
    assert announcement.name == writer.name


def test_readers_share(stage):
    """Section 2: no write.* in the listing: granted."""
    first, second, third = stage.reader(), stage.reader(), stage.reader()
    assert first.advance()
    assert second.advance()
    assert third.advance()
    assert first.advance(), "asking again says what is known and costs nothing"
    assert first.files.ops() == ["mkdir", "listdir"]


@pytest.mark.parametrize("mode", Mode)
def test_a_writer_keeps_everybody_out(stage, mode):
    """Section 2: readers withdraw, writers wait."""
    writer = stage.holding_writer()
    late = stage.participant(mode, ticket=2)
    assert not stage.poll(late, 40)
    assert [peer.name for peer in late.blockers] == [writer.name]
    writer.release()
    assert stage.poll(late, 5)
    assert late.blockers == ()


def test_a_reader_keeps_a_writer_out(stage):
    """Section 2, writer 2 and 3: S holds the readers that were there."""
    reader = stage.holding_reader()
    writer = stage.writer()
    assert not stage.poll(writer, 40)
    assert [peer.name for peer in writer.blockers] == [reader.name]
    reader.release()
    assert writer.advance()


def test_a_reader_that_meets_a_writer_withdraws_and_waits_without_a_trace(stage):
    """Section 2, reader 3: withdraw, poll until no write.* is listed."""
    writer = stage.holding_writer()
    reader = stage.reader()
    assert not reader.advance()
    assert stage.server.announced == {writer.name}
    assert reader.files.ops() == ["mkdir", "listdir", "rmdir"]
    stage.clock.sleep(0.05)
    assert not reader.advance()
    assert reader.files.ops() == ["listdir"], "it only polls"


def test_a_reader_that_waited_announces_itself_anew_and_lists_again(stage):
    """Section 2, reader 3: go to 1 with a new T. The listing that showed no writer decides nothing."""
    writer = stage.holding_writer()
    reader = stage.reader()
    assert not reader.advance()
    writer.release()
    assert reader.advance()
    assert reader.files.ops() == ["mkdir", "listdir", "rmdir", "listdir", "mkdir", "listdir"]


@pytest.mark.parametrize("mode", Mode)
def test_nobody_uses_a_token_twice(stage, mode):
    """Sections 2 and 4: no name is ever used twice, so a removal that lands late removes nothing of anybody."""
    late = stage.participant(mode, ticket=9)
    for _ in range(4):
        here = stage.peer(Mode.WRITE)
        assert not stage.poll(late, 20)
        following = []  # comes between the poll that shows nobody and the announcement
        late.files.inject(Before("mkdir", lambda next_=following: next_.append(stage.peer(Mode.WRITE))))
        stage.leave(here)
        if late.advance():
            late.release()
            late = stage.participant(mode, ticket=9, files=late.files)
        for peer in following:
            stage.leave(peer)
    used = tokens_used(late.files)
    assert len(used) > 4
    assert len(set(used)) == len(used)


def test_a_writer_that_comes_between_a_readers_two_steps_is_seen(stage):
    """Section 2, why it is safe: the reader's listing begins after the writer's mkdir, so the reader withdraws."""
    reader, writer = stage.reader(), stage.writer()
    met = []
    reader.files.inject(Before("listdir", lambda: met.append(writer.advance())))
    assert not reader.advance()
    assert met == [False], "the writer saw the reader and waits for it"
    assert writer.advance(), "the reader has withdrawn"


def test_a_reader_that_comes_between_a_writers_two_steps_is_seen(stage):
    """Section 2, why it is safe: R's mkdir reached the server before W's listing began, so W has R in S."""
    reader, writer = stage.reader(), stage.writer()
    met = []
    writer.files.inject(Before("listdir", lambda: met.append(reader.advance())))
    granted = writer.advance()
    assert met == [False]
    assert granted, "the reader withdrew before the writer listed"


def test_two_that_announce_before_either_lists_do_not_both_enter(stage):
    """Section 2, why it is safe."""
    reader, writer = stage.reader(), stage.writer()
    outcome = {}
    reader.files.inject(After("mkdir", lambda: outcome.update(writer=writer.advance())))
    outcome["reader"] = reader.advance()
    assert outcome == {"writer": False, "reader": False}, "the writer waits, the reader has withdrawn"
    assert writer.advance()


# -- writers among themselves ------------------------------------------------------------------------------------------


def test_the_writer_with_the_larger_ticket_withdraws(stage):
    """Section 2, writer 2: S holds a writer with a smaller (ticket, token): withdraw, so that it need not wait."""
    early = stage.peer(Mode.WRITE, ticket=5)
    writer = stage.writer(ticket=6)
    assert not stage.poll(writer, TTL / 2000)
    assert early.name in stage.server.announced
    assert first_name(writer) not in stage.server.announced
    assert [peer.name for peer in writer.blockers] == [early.name]


def test_the_writer_with_the_smaller_ticket_stays_and_waits(stage):
    """Section 2, writer 3: those with larger rank that were there before it may hold the lock."""
    holder = stage.peer(Mode.WRITE, ticket=7)
    writer = stage.writer(ticket=6)
    assert not writer.advance()
    assert writer.name in stage.server.announced
    assert writer.phase is Phase.DRAINING
    assert not stage.poll(writer, 20)
    stage.leave(holder)
    assert writer.advance()


def test_a_writer_does_not_overtake_a_holder_with_a_larger_ticket(stage):
    """Sections 2 and 7: not waiting for lower-priority writers was found to violate exclusion."""
    holder = stage.holding_writer(ticket=9)
    writer = stage.writer(ticket=1)
    assert not stage.poll(writer, 20)
    assert holder.release()
    assert writer.advance()


@pytest.mark.parametrize(("mine", "other", "stays"), [(LOW, HIGH, True), (HIGH, LOW, False)])
def test_equal_tickets_are_settled_by_the_token(stage, mine, other, stays):
    """Section 2: if two writers see each other, the one with the larger (ticket, token) withdraws."""
    stage.peer(Mode.WRITE, ticket=6, token=other)
    writer = stage.writer(ticket=6, tokens=[mine])
    assert not stage.poll(writer, TTL / 2000)
    assert (first_name(writer) in stage.server.announced) is stays


@pytest.mark.parametrize(("one", "two"), [((5, HIGH), (6, LOW)), ((6, LOW), (6, HIGH)), ((6, HIGH), (6, LOW))])
@pytest.mark.parametrize(("when", "op", "skip"), [(After, "mkdir", 0), (Before, "listdir", 1), (Before, "rmdir", 0)])
@pytest.mark.parametrize("late_one", [0, 1])
def test_two_writers_that_see_each_other_enter_one_after_the_other(stage, one, two, when, op, skip, late_one):
    """
    Section 2: the same argument holds for two writers; the smaller (ticket, token) stays, so none waits for ever.

    Whatever one of them has done when the other comes in between, even if that has been announced anew already.
    """
    both = [stage.writer(ticket=ticket, tokens=[token]) for ticket, token in (one, two)]
    late, other = both[late_one], both[1 - late_one]
    late.files.inject(when(op, other.advance, skip=skip))
    late.advance()
    order = []
    for _ in range(80):
        for writer in both:
            if writer.phase is Phase.GRANTED:
                assert [one.phase for one in both].count(Phase.GRANTED) == 1
                order.append(writer)
                writer.release()
            elif writer.phase is not Phase.ENDED:
                writer.advance()
        stage.clock.sleep(0.25)
    assert set(order) == set(both)


def test_a_writer_that_was_announced_anew_before_the_first_one_listed_makes_room_again(stage):
    """Section 2, writer 2: each would wait for the other for ever, for both are announced in time for both listings."""
    first, second = stage.writer(ticket=5), stage.writer(ticket=6)
    first.files.inject(Before("listdir", second.advance))
    assert not first.advance()
    assert first.blockers != (), "it waits for the second's latest announcement"
    for _ in range(80):
        if first.advance():
            break
        assert not second.advance()
        stage.clock.sleep(0.25)
    assert first.phase is Phase.GRANTED
    assert not second.advance()
    first.release()
    assert stage.poll(second, 10)


def test_a_writer_that_waits_gives_way_ever_more_rarely(stage):
    """Section 2, writer 3: after 1/2880 of the lease, doubling up to 1/12."""
    stage.peer(Mode.WRITE, ticket=5, lease=10_000)
    writer = stage.writer(ticket=6)
    times = []
    writer.files.inject(Before("mkdir", lambda: times.append(stage.clock()), on="write.", times=None))
    assert not stage.poll(writer, 60, every=0.005)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    expected = [min(TTL / 2880 * 2**number, TTL / 12) for number in range(len(pauses))]
    assert len(pauses) > 8
    assert pauses == pytest.approx(expected, abs=0.006)
    assert writer.name in stage.server.announced


def test_a_writer_behind_which_others_move_on_stays_in_line(stage):
    """Section 2, writer 3: who gives way without need makes those behind it wait for what it announces anew."""
    ahead = [stage.peer(Mode.WRITE, ticket=number) for number in range(1, 30)]
    writer = stage.writer(ticket=99)
    assert not writer.advance()
    first = writer.name
    while ahead:
        assert not stage.poll(writer, TTL / 3000, every=TTL / 6000)
        stage.leave(ahead.pop(0))
    assert writer.advance()
    assert writer.name == first


def test_a_writer_whose_caller_has_gone_announces_nothing_while_it_gives_way(stage):
    """Its caller may leave while a step hangs, and end its process as soon as nothing of it is announced."""
    holder = stage.peer(Mode.WRITE, ticket=5)
    writer = stage.writer(ticket=6)
    assert not writer.advance()
    writer.files.inject(Before("rmdir", lambda: setattr(writer, "is_over", True), on="write."))
    assert not stage.poll(writer, 1, every=0.005)
    assert stage.server.announced == {holder.name}


def test_a_writer_gives_way_once_nothing_moves_any_more(stage):
    """Section 2, writer 3: two that wait for each other may both have seen others go before."""
    first, second = stage.writer(ticket=5), stage.writer(ticket=6)
    early = stage.peer(Mode.WRITE, ticket=1)
    first.files.inject(Before("listdir", second.advance))
    assert not first.advance()
    stage.leave(early)
    for _ in range(80):
        stage.clock.sleep(TTL / 2880)
        assert not second.advance()
        if first.advance():
            break
    assert first.phase is Phase.GRANTED


def test_a_writer_that_gave_way_is_granted_as_soon_as_those_before_it_are_gone(stage):
    """Section 2, writer 2: poll, go to 1."""
    early = stage.peer(Mode.WRITE, ticket=5)
    writer = stage.writer(ticket=6)
    assert not stage.poll(writer, 20)
    stage.leave(early)
    assert stage.poll(writer, 1, every=0.25)


def test_no_reader_slips_in_between_two_writers(stage):
    """Section 2, writer preference: readers that come after a waiting writer wait behind it, whoever holds the lock."""
    holder = stage.holding_writer(ticket=5)
    writer, reader = stage.writer(ticket=6), stage.reader()
    for _ in range(40):
        assert not writer.advance()
        assert not reader.advance()
        stage.clock.sleep(0.25)
        assert holder.beat()
    holder.release()
    assert not reader.advance()
    assert stage.poll(writer, 1)
    assert not reader.advance()


def test_a_slow_server_does_not_keep_a_writer_in_one_step(stage):
    """Section 2, writer 2: each step ends, or no time-out could be kept."""
    early = stage.peer(Mode.WRITE, ticket=5, lease=10_000)
    writer = stage.writer(ticket=6)
    writer.files.inject(After("mkdir", lambda: stage.clock.sleep(TTL / 3), times=None))
    for _ in range(5):
        writer.files.ops()
        assert not writer.advance()
        assert len(writer.files.ops()) < 30
    assert early.name in stage.server.announced


def test_a_writer_keeps_its_ticket_across_retries(stage):
    """Section 2: go to 1 with the same ticket, so that nobody who came later overtakes."""
    early = stage.peer(Mode.WRITE, ticket=5)
    writer = stage.writer(ticket=6)
    assert not stage.poll(writer, 1, every=0.05)
    stage.leave(early)
    assert stage.poll(writer, 1)
    made = [parse_announcement(call[1]) for call in writer.files.calls if call[0] == "mkdir"]
    made = [announcement for announcement in made if announcement is not None]
    assert len(made) >= 2
    assert {announcement.ticket for announcement in made} == {6}
    assert len({announcement.token for announcement in made}) == len(made), "but never its token"


def test_a_waiting_writer_that_was_evicted_comes_back_with_the_same_ticket(stage):
    """Section 2, fairness: the ticket is the time of the first attempt."""
    reader = stage.peer(Mode.READ)
    writer = stage.writer(ticket=6)
    writer.advance()
    evicted = writer.name
    del stage.server.entries[evicted]
    assert not writer.advance()
    assert not writer.advance()
    (again,) = [announcement for announcement in announced_as(stage) if announcement.is_writer]
    assert again.ticket == 6
    assert again.name != evicted
    stage.leave(reader)
    assert writer.advance()


# -- the wait set ------------------------------------------------------------------------------------------------------


def test_a_writer_waits_for_all_who_were_there_and_nobody_else(stage):
    """Section 2, writer 3: announcements that were not in the first listing are ignored: they will see this writer."""
    first, second = stage.peer(Mode.READ), stage.peer(Mode.READ)
    writer = stage.writer(ticket=6)
    assert not writer.advance()
    later_reader, later_writer = stage.peer(Mode.READ), stage.peer(Mode.WRITE, ticket=1)
    stage.leave(first)
    assert not writer.advance()
    assert [peer.name for peer in writer.blockers] == [second.name]
    stage.leave(second)
    assert writer.advance()
    assert {later_reader.name, later_writer.name} <= stage.server.announced


def test_the_wait_set_only_shrinks(stage):
    """Section 2, writer 3: S := S n listed. A stale listing that shows a name again does not put it back."""
    first, second = stage.peer(Mode.READ), stage.peer(Mode.READ)
    writer = stage.writer()
    writer.advance()
    stage.leave(first)
    assert not writer.advance()
    stage.leave(second)
    writer.files.inject(Shows([first.name, writer.name]))
    assert writer.advance(), "the first has been seen to be gone, and a name never comes back"


def test_a_stale_listing_delays_a_writer_and_never_gives_it_the_lock(stage):
    """Section 2, why a cache cannot break it: all other listings only remove names from a wait set."""
    reader = stage.peer(Mode.READ)
    writer = stage.writer(files=CachingFiles(stage.server))
    writer.advance()
    stage.leave(reader)
    assert not writer.advance(), "its cache still shows the reader"
    writer.files.expire()
    assert writer.advance()


@pytest.mark.parametrize("mode", Mode)
def test_a_listing_that_stays_stale_delays_a_waiter_for_a_while_only(stage, mode):
    """
    Sections 2 and 6: a client may keep its listing until the directory changes again, and nobody else may change it.

    Seen on NFSv3, where a listing is checked by a time stamp, which is the same for two changes within a few ms.
    """
    peer = stage.peer(Mode.WRITE if mode is Mode.READ else Mode.READ)
    waiter = stage.participant(mode, files=CachingFiles(stage.server))
    assert not waiter.advance()
    assert not waiter.advance()
    stage.leave(peer)
    assert stage.poll(waiter, TTL / 3, every=0.25)
    assert stage.server.announced == {waiter.name}
    waiter.release()
    assert {name.partition(".")[0] for name in stage.server.names} <= {"gen"}, "it has cleaned up after itself"


@pytest.mark.parametrize("mode", Mode)
def test_a_waiter_makes_its_listing_fresh_ever_more_rarely(stage, mode):
    """Sections 2 and 8: it costs two calls; after 1/90 of its lease, doubling up to 1/6."""
    stage.peer(Mode.WRITE if mode is Mode.READ else Mode.READ, lease=10_000)
    waiter = stage.participant(mode)
    times = []
    waiter.files.inject(Before("mkdir", lambda: times.append(stage.clock()), on="gone.", times=None))
    began = stage.clock()
    assert not stage.poll(waiter, 120, every=0.05)
    pauses = [later - earlier for earlier, later in itertools.pairwise([began, *times])]
    assert pauses == pytest.approx([min(TTL / 90 * 2**number, TTL / 6) for number in range(len(pauses))], abs=0.06)
    assert not any(name.startswith("gone.") for name in stage.server.names)


@pytest.mark.parametrize("mode", Mode)
def test_a_waiter_that_cannot_make_its_listing_fresh_goes_on_with_what_it_has(stage, mode):
    """Section 2: on a full disk, say; a lock can be waited for there, and be released by its holder."""
    peer = stage.peer(Mode.WRITE if mode is Mode.READ else Mode.READ)
    waiter = stage.participant(mode)
    assert not waiter.advance()
    full = Fails("mkdir", errno.ENOSPC, on="gone.", times=None)
    waiter.files.inject(full)
    assert not stage.poll(waiter, 20)
    assert full.struck > 0
    stage.leave(peer)
    assert waiter.advance()


@pytest.mark.parametrize("mode", Mode)
def test_nobody_is_in_its_own_way(stage, mode):
    """Section 2: what a participant announced before is nobody else, not even in a listing that is stale."""
    stage.peer(Mode.WRITE, ticket=0)
    waiter = stage.participant(mode, ticket=5, files=CachingFiles(stage.server))
    for _ in range(80):
        assert not waiter.advance()
        mine = {call[1] for call in waiter.files.calls if call[0] == "mkdir"}
        assert not mine & {peer.name for peer in (*waiter.blockers, *waiter.others)}
        assert waiter.blockers != ()
        stage.clock.sleep(0.25)


def test_readers_that_come_later_do_not_starve_a_writer(stage):
    """Section 2, why writers do not starve: they withdraw at once, so the writer waits for those before it only."""
    here = stage.holding_reader()
    writer = stage.writer()
    assert not writer.advance()
    crowd = [stage.reader() for _ in range(5)]
    assert not any(reader.advance() for reader in crowd)
    assert stage.server.announced == {here.name, writer.name}
    here.release()
    assert not any(reader.advance() for reader in crowd)
    assert writer.advance()
    assert not any(reader.advance() for reader in crowd)
    writer.release()
    assert all(reader.advance() for reader in crowd)


# -- only the listing after one's own successful mkdir decides ---------------------------------------------------------


def test_a_cached_listing_that_hides_a_writer_does_not_let_a_reader_in(stage):
    """Section 2, why a cache cannot break it: the mutation before the deciding listing makes it fresh."""
    files = CachingFiles(stage.server)
    assert files.listdir() == []
    writer = stage.holding_writer()
    reader = stage.reader(files=files)
    assert not reader.advance()
    assert [peer.name for peer in reader.blockers] == [writer.name]


def test_a_poll_that_shows_nobody_decides_nothing(stage):
    """Section 2, reader 3: after polling it begins again at 1, and the listing after that mkdir shows who came."""
    writer = stage.holding_writer(ticket=1)
    reader = stage.reader()
    reader.advance()
    writer.release()
    reader.files.inject(After("listdir", lambda: stage.peer(Mode.WRITE)))
    assert not reader.advance()
    assert reader.phase is Phase.POLLING


@pytest.mark.parametrize("mode", Mode)
def test_a_name_that_is_taken_decides_nothing_and_a_fresh_token_is_used(stage, mode):
    """
    Sections 2 and 6: EEXIST can only be our own mkdir whose reply was lost, but it does not make the listing fresh.

    The client's cache here hides a writer, and only a mkdir that succeeds empties it.
    """
    files = CachingFiles(stage.server, LostReply("mkdir"))
    assert files.listdir() == []
    writer = stage.holding_writer(ticket=0)
    late = stage.participant(mode, ticket=1, files=files)
    with pytest.raises(FileExistsError):
        late.advance()
    assert not late.advance()
    used = tokens_used(files)
    assert len(used) >= 2
    assert len(set(used)) == len(used)
    assert first_name(late) not in stage.server.announced, "the first announcement was found and removed"
    assert [peer.name for peer in late.blockers] == [writer.name]


@pytest.mark.parametrize("mode", Mode)
def test_a_listing_that_fails_is_not_made_up_for_later(stage, mode):
    """Section 2: a listing made at another time is not the one after the mkdir; start over with a fresh token."""
    late = stage.participant(mode)
    late.files.inject(Fails("listdir"))
    with pytest.raises(OSError, match="Input/output"):
        late.advance()
    assert late.advance()
    assert len(set(tokens_used(late.files))) == 2
    assert stage.server.announced == {late.name}


@pytest.mark.parametrize("mode", Mode)
def test_a_file_system_that_does_not_show_what_was_just_made_is_refused(stage, mode):
    """Section 6 (b): the guarantee that everything rests on; one line that names the path and the remedy."""
    late = stage.participant(mode)
    late.files.inject(Shows([], times=None))
    with pytest.raises(LockPathError, match=r"memory\.rwlock.*listings.*; .*another file system") as caught:
        stage.poll(late, 5)  # once may be chance: the directory may have been moved away between the two calls
    assert "\n" not in str(caught.value)
    assert stage.server.names == set()


@pytest.mark.parametrize("mode", Mode)
def test_a_lock_directory_that_comes_back_is_no_reason_to_refuse_it(stage, mode):
    """Section 6: it was moved away between the two calls, and back before the removal of what they made."""
    late = stage.participant(mode)
    late.files.inject(Shows([], times=2))
    assert stage.poll(late, 5)
    assert stage.server.announced == {late.name}


def test_only_misses_in_a_row_are_a_reason_to_refuse_it(stage):
    writer, late = stage.holding_writer(), stage.reader()
    late.files.inject(Shows([], times=2))
    stage.poll(late, 3)
    assert [peer.name for peer in late.blockers] == [writer.name]
    writer.release()
    late.files.inject(Shows([], times=2))  # the look while it waits, and the one that decides
    assert stage.poll(late, 3)


@pytest.mark.parametrize("mode", Mode)
def test_an_announcement_that_was_evicted_at_once_does_not_blame_the_file_system(stage, mode):
    """Sections 2 and 6: missing from the listing and gone from the server: start over."""
    late = stage.participant(mode)
    late.files.inject(After("mkdir", stage.server.entries.clear))
    assert not late.advance()
    assert late.advance()


# -- numbers of grants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "expected"), [([], 1), ([4], 5), ([2, 7, 3], 8)])
def test_a_grant_gets_the_number_after_the_highest(stage, there, expected):
    """Section 2, writer 4."""
    for number in there:
        stage.server.mkdir(f"gen.{number}")
    assert stage.holding_writer().generation == expected
    assert f"gen.{expected}" in stage.server.names


def test_a_number_that_is_taken_is_left_to_its_owner(stage):
    """Section 2, writer 4: taken: list again and retry."""
    writer = stage.writer()
    writer.files.inject(Before("mkdir", lambda: stage.server.mkdir("gen.1"), on="gen."))
    assert writer.advance()
    assert writer.generation == 2


def test_a_number_that_is_taken_and_not_listed_does_not_hold_a_writer_up(stage):
    """Sections 2 and 6: a mkdir that failed does not make the next listing fresh, so it may not show what it met."""
    files = CachingFiles(stage.server)
    writer = stage.writer(files=files)
    others = iter(range(1, 4))
    files.inject(*(Before("mkdir", lambda: stage.server.mkdir(f"gen.{next(others)}"), on="gen.") for _ in range(3)))
    assert writer.advance()
    assert writer.generation == 4


def test_a_number_whose_making_was_not_heard_of_is_not_used(stage):
    """Sections 2 and 6: a lost reply looks like a number that is taken; the next one is as good."""
    writer = stage.writer()
    writer.files.inject(LostReply("mkdir", on="gen."))
    assert writer.advance()
    assert writer.generation == 2


def test_a_number_from_a_stale_first_listing_is_not_granted(stage):
    """
    Section 2, writer 4: N+1 must be the highest in the second listing.

    The first listing may be old: it shows gen.3, while gen.7 was granted and gen.4 cleaned since.
    """
    stage.server.mkdir("gen.7")
    writer = stage.writer()
    writer.files.inject(Shows(lambda: [writer.name, "gen.3"]))
    assert writer.advance()
    assert writer.generation == 8
    assert ("mkdir", "gen.4") in writer.files.calls, "it tried the number that the stale listing suggested"


def test_the_announcement_must_still_be_there_in_the_second_listing(stage):
    """Section 2, writer 4: it may have been evicted while it slept between its two listings."""
    writer = stage.writer()

    def evicted_and_overtaken():
        del stage.server.entries[writer.name]
        stage.peer(Mode.READ)

    writer.files.inject(Before("mkdir", evicted_and_overtaken, on="gen."))
    assert not writer.advance()
    assert writer.generation is None
    assert writer.phase is not Phase.GRANTED


@pytest.mark.parametrize("digits", range(1, 21))
def test_no_number_sends_a_writer_round_for_ever(stage, digits):
    """Section 1, hostile names: a writer gets a higher number, or says what is wrong, within a few calls."""
    huge = "gen." + "9" * digits
    stage.server.mkdir(huge)
    writer = stage.writer()
    writer.files.inject(Fails("mkdir", errno.EDQUOT, on="gen.", times=None, skip=50))
    with contextlib.suppress(LockPathError):
        assert writer.advance()
        assert huge in stage.server.names
    assert len(writer.files.calls) < 20


def test_a_server_that_calls_every_number_taken_hangs_no_step(stage):
    """Section 2, writer 4: each step ends; the caller's time-out decides when the waiting does."""
    writer = stage.writer()
    writer.files.inject(Fails("mkdir", errno.EEXIST, on="gen.", times=10_000))
    with contextlib.suppress(OSError):
        assert not writer.advance()
    assert len(writer.files.calls) < 2_000


def test_numbers_rise_through_failures_evictions_and_cleaning(stage):
    """Section 2, writer 4: every granted generation is higher than all earlier ones."""
    granted = []
    for round_ in range(12):
        writer = stage.writer(ticket=round_)
        if round_ % 3 == 1:
            writer.files.inject(LostReply("mkdir", on="gen."))
        if round_ % 3 == 2:
            writer.files.inject(After("mkdir", lambda w=writer: stage.server.entries.pop(w.name), on="gen."))
        while not writer.advance():
            pass
        granted.append(writer.generation)
        writer.release()
    assert granted == sorted(set(granted))
    assert [name for name in stage.server.names if name.startswith("gen.")] == [f"gen.{granted[-1]}"]


def test_older_numbers_are_cleaned_and_the_own_one_stays(stage):
    """Section 2, writer 4: older gen.* are removed at leisure."""
    for number in (1, 2, 5):
        stage.server.mkdir(f"gen.{number}")
    writer = stage.holding_writer()
    writer.release()
    assert stage.server.names == {"gen.6"}


def test_a_higher_number_than_the_own_is_never_cleaned(stage):
    """Section 2, writer 4: a zombie that cleans late must leave the number of the latest grant."""
    writer = stage.holding_writer()
    stage.server.mkdir("gen.9")
    writer.release()
    assert "gen.9" in stage.server.names


@pytest.mark.parametrize("ended", ["release", "give_up"])
def test_readers_and_writers_without_a_grant_clean_no_numbers(stage, ended):
    """Section 2: they have no number of their own that would make an older one needless."""
    for number in (1, 2):
        stage.server.mkdir(f"gen.{number}")
    reader = stage.holding_reader()
    waiting = stage.writer()
    assert not waiting.advance()
    waiting.give_up()
    getattr(reader, ended)()
    assert stage.server.names == {"gen.1", "gen.2"}


# -- a reader's generation ---------------------------------------------------------------------------------------------


def test_a_readers_generation_is_read_after_its_grant(stage):
    """
    Section 2: the listing that decided the grant may be one behind.

    It read gen.* first; then a writer made gen.4 and left, before the listing came to write.*.
    """
    stage.server.mkdir("gen.4")
    reader = stage.reader()
    reader.files.inject(Shows(lambda: [reader.name, "gen.3"]))
    assert reader.advance()
    assert reader.read_generation() == 4


def test_a_readers_generation_comes_from_a_listing_that_is_fresh(stage):
    """Sections 2 and 6 (b): the client may still have the grant's listing; an own mkdir empties the cache."""
    stage.server.mkdir("gen.3")
    files = CachingFiles(stage.server)
    reader = stage.holding_reader(files=files)
    stage.server.mkdir("gen.4")
    assert reader.read_generation() == 4
    assert stage.server.names == {reader.name, "gen.3", "gen.4"}, "nothing is left of the probe"


def test_a_readers_generation_is_read_although_a_9p_client_calls_what_it_made_missing(stage):
    """Section 6: anyone may clean the probe; a 9P client that looks for what it has just made then says ENOENT."""
    reader = stage.holding_reader()
    stage.server.mkdir("gen.4")
    reader.files.inject(LostReply("mkdir", errno.ENOENT))
    assert reader.read_generation() == 4
    stage.server.exists = False
    reader.generation = None
    with pytest.raises(FileNotFoundError):
        reader.read_generation()


def test_a_readers_generation_is_read_once(stage):
    """Section 2: no writer can be granted during a shared hold, so it cannot change."""
    reader = stage.holding_reader()
    assert reader.generation is None
    assert reader.read_generation() == 0, "no write was ever granted"
    reader.files.ops()
    assert reader.read_generation() == 0
    assert reader.files.ops() == []


def test_a_readers_generation_is_that_of_the_latest_write(stage):
    """Section 2: it serves as the version of the data."""
    versions = []
    for _ in range(3):
        writer = stage.holding_writer()
        writer.release()
        reader = stage.holding_reader()
        versions.append((writer.generation, reader.read_generation()))
        reader.release()
    assert versions == [(1, 1), (2, 2), (3, 3)]


def test_a_writers_generation_costs_nothing_to_read(stage):
    """Section 2."""
    writer = stage.holding_writer()
    writer.files.ops()
    assert writer.read_generation() == writer.generation == 1
    assert writer.files.ops() == []


# -- a grant needs the lease -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_a_grant_after_the_lease_ran_out_needs_a_heartbeat_that_succeeds(stage, mode):
    """Section 2: a grant also requires that the lease has not run out since the announcement."""
    late = stage.participant(mode)
    late.files.inject(After("listdir", lambda: stage.clock.sleep(TTL)))
    assert late.advance()
    assert stage.server.inside(late.name) == {"beat.0"}
    assert not late.lease.has_run_out(stage.clock())


@pytest.mark.parametrize("mode", Mode)
def test_a_grant_is_refused_when_the_lease_ran_out_and_the_heartbeat_fails(stage, mode):
    """Section 2: who slept since the announcement may have been evicted."""
    late = stage.participant(mode)
    late.files.inject(After("listdir", lambda: stage.clock.sleep(TTL)), Fails("create"))
    assert not late.advance()
    assert late.phase is not Phase.GRANTED
    assert late.generation is None
    assert late.advance(), "and later it is granted"


@pytest.mark.parametrize("mode", Mode)
def test_a_grant_is_refused_when_the_answer_to_the_heartbeat_takes_a_lease(stage, mode):
    """Sections 2 and 3: it counts from before it was sent, so it may have been evicted after that, too."""
    late = stage.participant(mode)
    late.files.inject(After("listdir", lambda: stage.clock.sleep(TTL)), After("create", lambda: stage.clock.sleep(TTL)))
    assert not late.advance()
    assert late.phase is not Phase.GRANTED
    assert late.advance(), "and later it is granted"


def test_a_grant_is_refused_when_an_operator_used_that_the_lease_seemed_to_run_out(stage):
    """Sections 2 and 3: one of its heartbeats turns up and renews the lease, and the next one finds that it is gone."""
    reader = stage.peer(Mode.READ)
    writer = stage.writer()
    assert not writer.advance()
    writer.beat()
    unheard = Late("rename")
    writer.files.inject(unheard)
    stage.clock.sleep(INTERVAL - 1)
    assert writer.beat() is Beat.UNKNOWN
    unheard.arrive()
    stage.leave(reader)
    remove = Before("rename", lambda: stage.server.entries.pop(writer.name), on="beat.1")
    writer.files.inject(After("listdir", lambda: stage.clock.sleep(0.7 * TTL), skip=1), remove)
    assert not writer.advance()
    assert remove.struck
    assert writer.phase is not Phase.GRANTED


@pytest.mark.parametrize("mode", Mode)
def test_a_grant_is_refused_when_somebody_used_that_the_lease_ran_out(stage, mode):
    """Sections 2 and 4: evicted between the announcement and the grant, and a successor has entered."""
    late = stage.participant(mode)

    def sleep_and_be_evicted():
        stage.clock.sleep(TTL)
        stage.server.entries.pop(late.name or next(iter(stage.server.announced)), None)
        stage.peer(Mode.WRITE, ticket=0)

    late.files.inject(After("listdir", sleep_and_be_evicted))
    assert not late.advance()
    assert not stage.poll(late, 20)


def test_the_lease_counts_from_before_the_announcement_was_sent(stage):
    """Section 3: the call itself may take long, and peers may begin to watch as soon as the server has the name."""
    reader = stage.reader()
    began = stage.clock()
    reader.files.inject(After("mkdir", lambda: stage.clock.sleep(TTL)))
    assert reader.advance()
    assert "create" in reader.files.ops(), "it needed a heartbeat to trust the grant"
    assert reader.lease.renewed >= began + TTL


def test_an_announcement_that_is_quick_needs_no_heartbeat(stage):
    """Section 3: within the lease, less the margin, the grant stands on the announcement alone."""
    reader = stage.reader()
    began = stage.clock()
    reader.files.inject(After("listdir", lambda: stage.clock.sleep(TTL * 0.9)))
    assert reader.advance()
    assert reader.lease.renewed == began
    assert "create" not in reader.files.ops()


def test_a_writer_that_waited_longer_than_its_lease_is_granted_on_its_heartbeats(stage):
    """Sections 2 and 3: a waiting writer beats, too."""
    reader = stage.holding_reader()
    writer = stage.writer()
    for _ in range(30):
        assert not stage.poll(writer, 10)
        reader.beat()
    assert stage.clock() > 1000 + 3 * TTL
    assert reader.release()
    assert writer.advance()
    assert not writer.lease.has_run_out(stage.clock())


# -- what is not understood --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["read.v2.x", "write.v2.x", "read.", "write.\udcff"])
@pytest.mark.parametrize("mode", Mode)
def test_an_announcement_of_unknown_format_keeps_everybody_out(stage, mode, name):
    """Section 1: it counts as a live conflicting holder."""
    stage.server.mkdir(name)
    late = stage.participant(mode)
    assert not stage.poll(late, 60)
    assert [peer.name for peer in late.blockers] == [name]
    stage.server.rmdir(name)
    assert late.advance()


def test_a_writer_of_unknown_format_is_given_way(stage):
    """Section 1: it may itself wait for us; if both stayed announced, they would wait for each other for ever."""
    stage.server.mkdir("write.v2.x")
    writer = stage.writer(ticket=0)
    assert not stage.poll(writer, TTL / 2000)
    assert first_name(writer) not in stage.server.announced


@pytest.mark.parametrize("name", ["README", "read", "writes.x", ".nfs0001", "lost+found", "x" * 255, "gen.x", "\n"])
def test_entries_that_are_not_ours_are_nobody(stage, name):
    """Section 1: any name yields a value or "not mine"."""
    stage.server.mkdir(name)
    for participant in (stage.reader(), stage.writer()):
        assert participant.advance()
        participant.release()
    assert name in stage.server.names, "and they are not cleaned either"


# -- leaving before the grant ------------------------------------------------------------------------------------------


def test_giving_up_leaves_nothing_behind_in_any_phase(stage):
    """Section 2: withdraw."""
    outside = stage.writer()
    outside.give_up()
    granted = stage.holding_reader()
    draining, polling = stage.writer(), stage.reader()
    draining.advance()
    draining.beat()
    polling.advance()
    assert (draining.phase, polling.phase) == (Phase.DRAINING, Phase.POLLING)
    for participant in (draining, polling, granted):
        participant.give_up()
        assert participant.phase is Phase.ENDED
    assert stage.server.names == set()


def test_a_waiting_writer_beats_once_an_interval(stage):
    """Section 3: each announced process beats, a waiting writer too."""
    stage.peer(Mode.READ, lease=10_000)
    writer = stage.writer()
    writer.advance()
    stage.clock.sleep(INTERVAL - 0.1)
    writer.advance()
    assert stage.server.inside(writer.name) == set(), "none before the first interval is over"
    stage.clock.sleep(0.1)
    writer.advance()
    assert stage.server.inside(writer.name) == {"beat.0"}
    stage.poll(writer, 4 * INTERVAL, every=1.0)
    assert stage.server.inside(writer.name) == {"beat.4"}
