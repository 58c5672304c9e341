"""joblib's cache with compute-once, between two kernels over NFS."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Final

import pytest

from nfs.lanes import BOTH, LANES
from nfs.scene import TESTS, Scene

pytest.importorskip("joblib")
pytest.importorskip("numpy")
pytestmark = pytest.mark.nfs

KEYS = 1000
#: Arrays of 1 MiB that one client stores and the other loads.
HITS = 12
#: Who shares a store that is being cleared (`adapters/joblib_storm.py`), in turns on the two clients, and how long.
STORM: Final = [*["reader"] * 6, "reducer", "clearer"]
STORM_S: Final = 6


def test_each_of_a_thousand_keys_is_computed_once_by_two_clients(scene: Scene) -> None:
    location = scene.path(file="cache")
    clients = [scene.process(node, "from nfs.joblib_client import *") for node in (scene.n1, scene.n2)]
    for seed, client in enumerate(clients):
        client.tell(f"call_all({location!r}, {KEYS}, {seed})")
    one, other = (client.answer(110) for client in clients)
    assert sorted(one + other) == list(range(KEYS))
    print(f"computed {len(one)} and {len(other)}")
    assert min(len(one), len(other)) > KEYS / 20, "they really worked side by side"


@pytest.mark.parametrize("version", BOTH)
def test_a_hit_costs_at_most_three_times_that_of_plain_joblib(scene: Scene, version: str) -> None:
    reader, writer = (scene.process(node, "from nfs.joblib_client import *") for node in (scene.n1, scene.n2))
    location = scene.path(version, "cache")
    writer.do(f"fill({location!r}, {HITS})", 110)
    ratios = {}
    for kind, keys in {"cold": range(HITS), "warm": [1] * 300}.items():
        plain, ours, each = reader.do(f"milliseconds_per_hit({location!r}, {list(keys)!r})", 110)
        ratios[kind] = ours / plain
        by_each = f"; with a lock for each {each:.2f} ms: {each / plain:.2f} times" if kind == "warm" else ""
        print(f"v{version} {kind}: {ours:.2f} ms a hit, joblib {plain:.2f} ms: {ours / plain:.2f} times{by_each}")
    used = reader.do(f"requests_per_hit({location!r}, {LANES[version].at!r}, 300)")
    plain, ours, each = (sum(kinds.values()) for kinds in used)
    print(f"requests a warm hit: {ours:.2f}, joblib {plain:.2f}; with a lock for each {each:.2f} {used[2]}")
    assert ratios["cold"] <= 3
    assert ratios["warm"] <= 3
    assert ours <= plain + 1.5, "a lock is taken a few times a second, not for each hit"


@pytest.mark.parametrize("version", BOTH)
def test_a_hit_on_a_small_result_asks_for_one_thing_more_than_plain_joblib(scene: Scene, version: str) -> None:
    reader, writer = (scene.process(node, "from nfs.joblib_client import *") for node in (scene.n1, scene.n2))
    location = scene.path(version, "small")
    writer.do(f"fill_small({location!r}, 20)", 110)
    used = reader.do(f"requests_per_small_hit({location!r}, {LANES[version].at!r}, 20, 200)", 110)
    print(f"v{version}: requests a hit on a small result: joblib {used[0]}, ours {used[1]}")
    plain, ours = (sum(kinds.values()) for kinds in used)
    assert ours <= plain + 1.5


def test_results_are_right_on_both_clients_while_each_removes_what_the_other_loads(scene: Scene) -> None:
    """Small ones are loaded without a lock. NFSv3, whose clients learn latest that something has gone."""
    here = os.path.dirname(scene.path("3"))
    program = [sys.executable, str(TESTS / "adapters/joblib_storm.py"), "--directory", here, "--seconds", str(STORM_S)]
    program += ["--meet", str(len(STORM))]
    jobs = [
        (scene.n1, scene.n2)[number % 2].popen([*program, "--role", role, "--seed", str(number)])
        for number, role in enumerate(STORM)
    ]
    done = Counter[str]()
    for job in jobs:
        ended = job.wait()
        assert ended.returncode == 0, ended.stderr.decode()
        done.update(json.loads(ended.stdout.splitlines()[-1]))
    print(dict(done))
    assert min(done[what] for what in ("calls", "computed", "reduced", "cleared")) > 3, "or nothing was put to the test"
    assert not scene.server.run(["find", f"/mnt/disk/export/{scene.name}", "-name", "*.rwlock"]).stdout, "what is left"
