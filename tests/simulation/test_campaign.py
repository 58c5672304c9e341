"""The shipped protocol under random runs, and broken ones that the same runs must find."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from . import campaign, long
from .mutants import MUTANTS, Mutant
from .witness import Violation

#: Numbers of the runs, in parts that workers share. `long.py` plays as many more as there is time for.
PARTS = [range(first, first + 100) for first in range(0, 2000, 100)]
#: Up to this number a mutant must have been found; each was found by half of it when this was written.
SEEDS = 1800
#: So many lines of a failing run's history are printed.
TOLD = 100
#: What these runs do not find within :data:`SEEDS`, and `test_exhaustive.py` does.
ELSEWHERE = frozenset(
    {
        "announcement_counts_from_after_the_call",
        "forget_litter",
        "generation_of_any_listing",
        "generation_without_its_probe",
        "own_eexist_is_success",
        "taken_number_is_fine",
    }
)


@pytest.fixture(autouse=True)
def _garbage_is_collected_afterwards() -> Iterator[None]:
    """Spare the runs of a test the garbage collector: it takes a tenth of their time, for half a megabyte a run."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seeds", PARTS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_no_promise_is_broken_in_random_runs(seeds: range) -> None:
    for seed in seeds:
        try:
            campaign.run(seed)
        except Exception as failure:
            failure.add_note("\n".join(["What happened last, by time, process and call:", *end_of_history(seed)]))
            failure.add_note(
                f"run {seed} ({campaign.kind_of(seed)}); all of it: python tests/simulation/replay.py {seed}"
            )
            raise


def end_of_history(seed: int) -> list[str]:
    """The last lines of a run's history, which is written only now: it takes most of a run's time."""
    try:
        _, history = campaign.run(seed, record=True)
    except Exception as failure:
        history = getattr(failure, "history", [])
    return history[-TOLD:]


def test_a_failing_run_tells_its_history_and_plays_again_by_its_number() -> None:
    with MUTANTS["list_before_announcing"].applied(), pytest.raises(Violation) as first:
        test_no_promise_is_broken_in_random_runs(range(1))
    with MUTANTS["list_before_announcing"].applied(), pytest.raises(Violation) as again:
        campaign.run(0)
    assert str(first.value) == str(again.value)
    history, command = first.value.__notes__
    assert "IS GRANTED" in history
    assert "mkdir write." in history
    assert command.endswith("python tests/simulation/replay.py 0")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - ELSEWHERE))
def test_a_broken_protocol_is_found(name: str) -> None:
    assert found_by_run(MUTANTS[name]) is not None, f"{SEEDS} runs did not find: {MUTANTS[name].rule}"


def found_by_run(mutant: Mutant) -> int | None:
    """The number of a run that finds a mutant, if any does."""
    with mutant.applied():
        for seed in (mutant.run, *range(SEEDS)):
            try:
                campaign.run(seed, kind=mutant.kind)
            except Violation:  # anything else is a mutant that no longer fits the code
                return seed
    return None


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_long_campaign_ends_when_its_time_is_over(jobs: str) -> None:
    command = [sys.executable, long.__file__, "--seconds", "0.5", "--kind", "turn", "--jobs", jobs]
    said = re.search(r"(\d+) runs \(\d+ turn\), 0 broken", subprocess.check_output(command, text=True))
    assert said is not None
    assert 0 < int(said[1]) < 500, "a pool takes in more numbers than it has time for"


def test_there_are_enough_ways_to_break_it() -> None:
    assert len(MUTANTS) >= 45
