"""The cheapest of the other file systems, for a glance; ``make test-filesystems`` tries all of them for long."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from debian import Unavailable, install
from nfs.filesystems import trials
from nfs.filesystems.__main__ import programs_missing
from nfs.filesystems.changes import changes, states
from nfs.filesystems.descriptions import DESCRIPTIONS
from nfs.lab import Lab, LabError, to_bind

pytestmark = pytest.mark.nfs


@pytest.fixture(scope="module", params=["9p", "ganesha-3", "linux-4.2"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, Lab]]:
    kind = DESCRIPTIONS[request.param]
    try:
        install("tests/nfs/filesystems", lambda: programs_missing(kind), kind.packages.split())
    except Unavailable as error:
        pytest.skip(str(error))
    lab = Lab(Path(tempfile.gettempdir()) / f"nfslab-glance-{os.getpid()}")
    try:
        trials.prepare(lab, kind, to_bind())
        yield request.param, lab
    finally:
        lab.down()


def test_writers_are_alone(served: tuple[str, Lab]) -> None:
    name, lab = served
    found = trials.exclusion(lab, DESCRIPTIONS[name], trials.QUICK)
    assert (found["overlaps"], found["disorder"], found["old reads"], found["lost updates"]) == (0, 0, 0, 0), found
    assert found["writes"] >= 12


def test_what_another_client_has_just_made_is_found(served: tuple[str, Lab]) -> None:
    name, lab = served
    found = trials.names(lab, DESCRIPTIONS[name], trials.QUICK)
    assert (found["unseen"], found["unlocked"]) == (0, 0)


def test_a_hold_outlives_a_full_disk_and_who_wants_one_is_told_the_reason(served: tuple[str, Lab]) -> None:
    name, lab = served
    found = trials.full(lab, DESCRIPTIONS[name], trials.QUICK)
    assert (found["kept"], found["released"]) == (True, True)
    assert found["refused"].startswith("LockPathError")
    assert "without free space" in found["refused"]


def test_joblib_computes_once_and_snakemake_s_jobs_read_the_newest(served: tuple[str, Lab]) -> None:
    name, lab = served
    found = trials.adapters(lab, DESCRIPTIONS[name], trials.QUICK)
    assert found["computed"] == found["values"]
    assert (found["builds"], found["wrong"]) == (found["versions"], 0), found["examples"]


def test_what_a_kernel_server_acknowledged_survives_a_power_cut(served: tuple[str, Lab]) -> None:
    """Of the others this is known not to be so: the table in docs/concepts/file-systems.md."""
    name, lab = served
    found = trials.crashes(lab, DESCRIPTIONS[name], trials.QUICK)
    assert found["changes"] > 200
    assert (found["undone"] == 0) == (name == "linux-4.2"), found


def test_what_must_be_there_after_a_crash_follows_from_what_was_acknowledged() -> None:
    made: set[str] = set()
    for acknowledged, (call, *names) in enumerate(itertools.islice(changes("a"), 200)):
        wanted, unsure = states("a", acknowledged)
        assert {name for name, is_there in wanted.items() if is_there} == made
        assert set(names) == unsure
        if call in ("rmdir", "unlink", "rename"):
            made.remove(names[0])
        made |= {names[-1]} if call in ("mkdir", "create", "rename") else set()


def test_rounds_reached_in_time_count() -> None:
    batches: list[int] = []

    def race(rounds: int) -> dict[str, Any]:
        time.sleep(rounds * 1e-3)
        batches.append(rounds)
        if len(batches) == 9:
            raise LabError("the server has gone")
        worse = len(batches) == 2
        facts = {"rounds": rounds, "missed": int(worse), "median_apart_ms": 9.0 - len(batches)}
        check = {"level": "unfit" if worse else "ok", "text": f"{len(batches)}", **facts}
        cost = {"level": "ok", "text": "", "read": {"median_ms": float(len(batches))}}
        return {"level": check["level"], "verdict": check["text"], "checks": {"listing": check, "cost": cost}}

    enough = trials.in_batches(race, 130, math.inf)
    assert batches == [20, 100, 10]
    assert enough["level"] == "unfit"
    assert enough["verdict"] == "2"
    assert enough["checks"]["listing"] == {
        "level": "unfit", "text": "2", "rounds": 130, "missed": 1, "median_apart_ms": 8.0,
    }  # fmt: skip
    assert enough["checks"]["cost"]["read"] == {"median_ms": 3.0}

    batches.clear()
    short = trials.in_batches(race, 10_000, 0.15)
    assert short["checks"]["listing"]["rounds"] == sum(batches) < 250

    batches.clear()
    cut_short = trials.in_batches(race, 10_000, math.inf)
    assert cut_short["checks"]["listing"]["rounds"] == sum(batches[:8]) == 720
    assert "after 720 rounds: the server has gone" in cut_short["error"]
