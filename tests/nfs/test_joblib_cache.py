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
        plain_ms, our_ms = reader.do(f"milliseconds_per_hit({location!r}, {list(keys)!r})", 110)
        ratios[kind] = our_ms / plain_ms
        print(f"NFSv{version}, {kind}: {our_ms:.2f} ms a hit, plain joblib {plain_ms:.2f} ms: {ratios[kind]:.2f} times")
    plain, ours = reader.do(f"requests_per_hit({location!r}, {LANES[version].at!r}, 300)")
    print(f"requests a hit, warm: ours {sum(ours.values()):.2f} {ours}, plain {sum(plain.values()):.2f} {plain}")
    assert ratios["cold"] <= 3
    assert ratios["warm"] <= 3
    assert sum(ours.values()) <= sum(plain.values()) + 1.5, "a lock is taken a few times a second, not for each hit"
