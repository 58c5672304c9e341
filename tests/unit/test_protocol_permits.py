"""Readers of which at most so many may hold at a time (PROTOCOL.md section 2): who counts, who waits, who gives way."""

from __future__ import annotations

import pytest

from faults import TTL, CachingFiles, Stage
from nfsrwlock_core.errors import LimitMismatchError
from nfsrwlock_core.protocol.heartbeat import Phase


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_permit_costs_what_a_read_costs(stage):
    reader = stage.reader(at_most=2)
    assert reader.advance()
    assert reader.name.startswith("read.at2.0000000000000001.")
    assert reader.release()
    assert reader.files.ops() == ["mkdir", "listdir", "rmdir"]
    assert stage.server.names == set()


def test_as_many_as_the_limit_hold_and_the_next_waits_announced(stage):
    first, second = (stage.holding_reader(at_most=2, ticket=ticket) for ticket in (1, 2))
    third = stage.reader(at_most=2, ticket=3)
    assert not third.advance()
    assert third.phase is Phase.DRAINING
    assert {peer.name for peer in third.blockers} == {first.name, second.name}
    second.release()
    assert third.advance()
    assert stage.server.announced == {first.name, third.name}


def test_who_comes_later_counts_for_nobody_before(stage):
    holder = stage.holding_reader(at_most=1, ticket=1)
    waiter, late = stage.reader(at_most=1, ticket=2), stage.reader(at_most=1, ticket=3)
    assert not waiter.advance()
    assert not late.advance()
    holder.release()
    assert not late.advance()
    assert waiter.advance()


def test_readers_without_a_limit_do_not_count_and_do_not_wait(stage):
    stage.holding_reader()
    stage.holding_reader(at_most=1)
    stage.holding_reader()
    assert not stage.reader(at_most=1).advance()


def test_a_writer_that_comes_is_given_way_to_and_the_place_in_line_is_kept(stage):
    holder, waiter = stage.holding_reader(at_most=1, ticket=1), stage.reader(at_most=1, ticket=2)
    assert not waiter.advance()
    writer = stage.writer(ticket=3)
    assert not writer.advance()
    assert not waiter.advance()
    assert (waiter.name, waiter.phase) == ("", Phase.POLLING)
    holder.release()
    assert writer.advance()
    late = stage.reader(at_most=1, ticket=4)
    assert not late.advance()
    writer.release()
    assert waiter.advance()
    assert waiter.name.startswith("read.at1.0000000000000002.")


def test_two_that_wait_for_each_other_do_not_wait_for_ever(stage):
    first, second = (stage.reader(at_most=1, ticket=ticket) for ticket in (1, 2))
    # Each announces itself before either lists.
    first._announce()
    second._announce()
    for one in (first, second):
        one._ahead = frozenset(stage.server.announced - {one.name})
        one.phase = Phase.DRAINING
    assert not first.advance()
    assert not second.advance()
    stage.clock.sleep(TTL / 12)
    assert not second.advance(), "it came later, so it makes room"
    assert first.advance()
    first.release()
    assert second.advance()


def test_a_stale_listing_delays_a_permit_and_never_gives_one(stage):
    holder = stage.holding_reader(at_most=1, ticket=1)
    waiter = stage.reader(at_most=1, ticket=2, files=CachingFiles(stage.server))
    assert not waiter.advance()
    holder.release()
    assert not waiter.advance(), "its cache still shows the holder"
    waiter.files.expire()
    assert waiter.advance()


@pytest.mark.parametrize(("limit", "other"), [(1, 2), (2, 1), (999_999, 3)])
def test_who_comes_later_with_another_limit_is_refused_and_leaves_nothing(stage, limit, other):
    holder = stage.holding_reader(at_most=limit, ticket=1)
    late = stage.reader(at_most=other, ticket=2)
    with pytest.raises(LimitMismatchError, match=rf"at most {other} at a time here, but .* says {limit}"):
        late.advance()
    late.give_up()
    assert stage.server.announced == {holder.name}


def test_another_limit_of_a_dead_process_is_evicted_with_it(stage):
    holder = stage.holding_reader(at_most=1, ticket=1)
    stage.dead.add(holder._who)
    waiter = stage.reader(at_most=2, ticket=2)
    assert waiter.advance()
    assert waiter.evictions == 1
    assert stage.server.announced == {waiter.name}


def test_of_two_that_come_at_one_moment_with_two_limits_only_the_later_is_refused(stage):
    late = stage.reader(at_most=2, ticket=2)
    late._announce()
    assert stage.reader(at_most=3, ticket=1).advance()
    with pytest.raises(LimitMismatchError):
        late.advance()


def test_who_waits_for_one_of_many_permits_looks_the_more_often_the_more_there_are(stage):
    for ticket in range(1, 5):
        stage.holding_reader(at_most=4, ticket=ticket)
    waiter = stage.reader(at_most=4, ticket=5)
    waiter.advance()
    one = stage.writer(ticket=6)
    one.advance()
    assert waiter.pause(0.0, 1.0, 0.5) < one.pause(0.0, 1.0, 0.5)
