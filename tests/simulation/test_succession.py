"""Helper processes that succeed each other, and many holds in line, with the shipped scheduler in virtual time."""

from __future__ import annotations

import pytest

from . import campaign
from .witness import Counts

#: Numbers of the runs, in parts that workers share.
PARTS = [range(first, first + 100) for first in range(0, 200, 100)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seeds", PARTS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_no_promise_is_broken_whenever_a_helper_dies(seeds: range) -> None:
    total = Counts()
    for seed in seeds:
        total.add(campaign.run(seed, kind="succession")[0])
    # Otherwise it proves little.
    assert total.evictions > 50
    assert total.revivals > 20
    assert total.losses > 10


@pytest.mark.timeout(400)
def test_no_hold_runs_out_because_of_its_neighbours() -> None:
    for seed in range(12):
        counts, _ = campaign.run(seed, kind="in_line")
        assert counts.grants > 100


def test_the_same_number_plays_the_same_run() -> None:
    assert campaign.run(7, kind="succession", record=True) == campaign.run(7, kind="succession", record=True)
