"""joblib's cache with compute-once, between two kernels over NFS."""

from __future__ import annotations

import pytest

from nfs.lanes import BOTH, LANES
from nfs.scene import Scene

pytest.importorskip("joblib")
pytest.importorskip("numpy")
pytestmark = pytest.mark.nfs

KEYS = 1000
#: Arrays of 1 MiB that one client stores and the other loads.
HITS = 12


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
