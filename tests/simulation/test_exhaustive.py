"""Every interleaving of a few participants of the shipped protocol, within bounds."""

from __future__ import annotations

import pytest

from nfsrwlock_core.names import Mode

from . import schedules
from .exhaustive import Bounds, Search
from .mutants import MUTANTS
from .test_campaign import ELSEWHERE
from .witness import Violation

#: Bounds, and about how many states lie within them, so that a search that has become blind is noticed.
#: `thorough.py` has larger ones.
SEARCHES = [
    pytest.param(Bounds(modes="WR"), 30_000, id="writer, reader"),
    pytest.param(Bounds(modes="WW"), 80_000, id="two writers"),
    pytest.param(
        Bounds(modes="WW", announcements=(1, 2), gives_way=True, beats=0, crashes=0),
        90_000,
        id="two writers, one gives way",
    ),
    pytest.param(
        Bounds(modes="WR", faults=1, expiries=(1, 0), beats=(1, 0), crashes=0), 35_000, id="writer, reader, a fault"
    ),
    pytest.param(
        Bounds(modes="WR", faults=1, announcements=(1, 2), expiries=0, beats=0, crashes=0),
        2_000,
        id="writer, reader, a fault, and another try",
    ),
    pytest.param(
        Bounds(modes="WR", generation=True, expiries=(1, 0), beats=0, crashes=0), 9_000, id="writer, reader of numbers"
    ),
    pytest.param(
        Bounds(modes="WR", generation=True, faults=1, expiries=0, beats=0, crashes=0),
        4_000,
        id="writer, reader of numbers, a fault",
    ),
    pytest.param(Bounds(modes="wR", beats=0), 6_000, id="writer without a number, reader"),
    pytest.param(Bounds(modes="Ww", beats=0), 28_000, id="writer, writer without a number"),
    pytest.param(Bounds(modes="WRR", beats=0, expiries=(1, 0, 0)), 130_000, id="writer, two readers"),
    pytest.param(
        Bounds(modes="WWR", announcements=(1, 2, 1), gives_way=True, beats=0, expiries=0, crashes=0),
        25_000,
        id="two writers, one gives way, reader",
    ),
    pytest.param(Bounds(modes="WWR", beats=0, expiries=(0, 0, 1), crashes=0), 60_000, id="two writers, reader"),
    pytest.param(Bounds(modes="11"), 50_000, id="one permit, two readers"),
    pytest.param(
        Bounds(modes="11", announcements=(1, 2), gives_way=True, beats=0, crashes=0), 15_000, id="one gives way"
    ),
    pytest.param(Bounds(modes="222", beats=0, expiries=(1, 0, 0), crashes=0), 100_000, id="two permits, three readers"),
    pytest.param(Bounds(modes="W1", beats=0), 9_000, id="writer, one permit"),
]

#: The same for schedules of whole steps, with the shipped watch and notes.
SCHEDULES = [
    pytest.param(schedules.Bounds(ticks=4, calls=2, beats=1, shared_watch=(False,)), 1_000, id="writer, callers"),
    pytest.param(
        schedules.Bounds(holder=Mode.READ, ticks=4, calls=2, beats=1, shared_watch=(True,)), 500, id="reader, callers"
    ),
]

#: Found by readers with a limit.
BROKEN_LIMITS = {
    "forget_lower_writers": Bounds(modes="11", expiries=0, beats=0, crashes=0),
    "one_more_than_the_limit": Bounds(modes="11", expiries=0, beats=0, crashes=0),
    "no_lease_check_at_grant": Bounds(modes="11", beats=0, crashes=0),
}
#: And by writers without numbers.
BROKEN_UNNUMBERED = {
    "forget_lower_writers": Bounds(modes="ww", expiries=0, beats=0, crashes=0),
    "no_lease_check_at_grant": Bounds(modes="wR", beats=0),
    "blind_removal": Bounds(modes="wR"),
}
BROKEN = {
    "forget_lower_writers": Bounds(modes="WW", expiries=0, beats=0, crashes=0),
    "reuse_token": Bounds(modes="WW", announcements=(1, 2), crashes=0),
    "no_lease_check_at_grant": Bounds(modes="WR"),
    "recreate_after_eviction": Bounds(modes="WR"),
    "blind_removal": Bounds(modes="WR"),
    "no_margin": Bounds(modes="WR"),
    "own_eexist_is_success": Bounds(modes="WR", faults=1, expiries=0, beats=0, crashes=0),
    "forget_litter": Bounds(modes="WR", faults=1, announcements=(1, 2), expiries=0, beats=0, crashes=0),
    "generation_of_any_listing": Bounds(modes="WR", generation=True, expiries=0, beats=0, crashes=0),
    "generation_without_its_probe": Bounds(modes="WR", generation=True, faults=1, expiries=0, beats=0, crashes=0),
    "announcement_counts_from_after_the_call": Bounds(modes="WR"),
    "taken_number_is_fine": Bounds(modes="WW"),
}
#: Found by schedules of whole steps.
UNTIMELY_BOUNDS = schedules.Bounds(ticks=4, calls=2, beats=1, shared_watch=(False,))
UNTIMELY = ("note_counts_at_any_time", "count_on_after_a_beat", "no_margin")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("bounds", "states"), SEARCHES)
def test_no_interleaving_breaks_a_promise(bounds: Bounds, states: int) -> None:
    explored = Search(bounds).run()
    assert explored.states > states
    assert explored.grants
    assert explored.evictions or not bounds.expiries


@pytest.mark.parametrize(("name", "bounds"), [*BROKEN.items(), *BROKEN_LIMITS.items(), *BROKEN_UNNUMBERED.items()])
def test_the_search_finds_a_broken_protocol(name: str, bounds: Bounds) -> None:
    with MUTANTS[name].applied(), pytest.raises(Violation):
        Search(bounds).run()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("bounds", "states"), SCHEDULES)
def test_no_schedule_calls_a_holder_silent_too_early(bounds: schedules.Bounds, states: int) -> None:
    found, evicted = schedules.search(bounds)
    assert found > states
    assert evicted


@pytest.mark.parametrize("name", UNTIMELY)
def test_the_schedules_find_a_broken_watch(name: str) -> None:
    with MUTANTS[name].applied(), pytest.raises(Violation, match="while its own lease stood"):
        schedules.search(UNTIMELY_BOUNDS)


def test_it_finds_whatever_the_random_runs_do_not() -> None:
    assert BROKEN.keys() >= ELSEWHERE
