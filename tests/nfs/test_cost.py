"""What a lock costs, in requests to the file server, by the client kernel's own count."""

from __future__ import annotations

import pytest

from nfs.lanes import BOTH, LANES
from nfs.scene import Scene

pytestmark = pytest.mark.nfs

ROUNDS = 200


@pytest.mark.parametrize("version", ["4.2", "3", "4.0", "nocto"])  # `noac` asks for attributes before every step
@pytest.mark.parametrize(("mode", "most"), [("read", 4.2), ("write", 9.0)])
def test_an_uncontended_cycle_is_cheap(scene: Scene, version: str, mode: str, most: float) -> None:
    process = scene.process(scene.n1, f"lock = SoftReadWriteLock({scene.path(version)!r})")
    work = f"lambda: (lock.acquire_{mode}(), lock.release())"
    used = process.do(f"cost({LANES[version].at!r}, {work}, {ROUNDS})")
    print(f"NFSv{version} {mode}: {sum(used.values()):.2f} requests: {used}")
    # The bare floor is announcing, opening the directory, listing it and withdrawing.
    assert 3 <= sum(used.values()) <= most, used


@pytest.mark.parametrize("version", BOTH)
def test_a_holder_at_rest_costs_at_most_one_request_a_heartbeat(scene: Scene, version: str) -> None:
    process = scene.process(
        scene.n1, f"lock = SoftReadWriteLock({scene.path(version)!r}, heartbeat_interval=0.25, stale_threshold=30)"
    )
    process.do("lock.acquire_write(); time.sleep(1)")
    used = process.do(f"cost({LANES[version].at!r}, lambda: time.sleep(2.5), 1)")
    print(f"NFSv{version} holder at rest: {sum(used.values()) / 10:.2f} requests a heartbeat: {used}")
    assert used.get("RENAME", 0) >= 7, "it beats"
    # NFSv4 keeps its session alive besides.
    assert sum(count for kind, count in used.items() if kind != "SEQUENCE") <= 11
