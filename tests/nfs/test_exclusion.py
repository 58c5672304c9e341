"""Two clients with two processes each storm one lock: what they say they held, and what became of the data."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from nfs.campaign.history import Hold, conflicts, disorder, overlaps
from nfs.lanes import LANES
from nfs.scene import Scene

pytestmark = pytest.mark.nfs

STORM_S = 4.0
#: Such short holds need no heartbeat; a machine that stands still for seconds must not end a test about exclusion.
SETTINGS = {"heartbeat_interval": 10, "poll_interval": 0.02, "timeout": 20}


@pytest.mark.parametrize(("lane", "other"), [*((lane, lane) for lane in LANES), ("4.2", "3")])
def test_writers_are_alone_and_readers_see_one_version(scene: Scene, lane: str, other: str) -> None:
    """On each kind of mount, and with two versions of the protocol at once: one on each client."""
    paths = {scene.n1.name: scene.path(lane), scene.n2.name: scene.path(other)}
    path = paths[scene.n1.name]
    scene.n1.check(["sh", "-c", ': >"$1"', "sh", path])
    clocks_before = clocks_of(scene)
    processes = [scene.process(node) for node in (scene.n1, scene.n2, scene.n1, scene.n2)]
    for seed, process in enumerate(processes):
        process.tell(f"storm({paths[process.node.name]!r}, {SETTINGS!r}, {STORM_S}, {seed})")
    said: list[tuple[str, dict[str, Any]]] = []
    for number, process in enumerate(processes):
        said += [(f"{process.node.name} process {number}", record) for record in process.answer(timeout=STORM_S + 75)]
    clocks_after = clocks_of(scene)

    # A clock may be wrong by half the time its answer took, and by as much as it moved meanwhile.
    error_s = 0.0
    for (offset, error), (later, later_error) in zip(clocks_before.values(), clocks_after.values(), strict=True):
        error_s += error + later_error + abs(later - offset)
    holds = [_on_the_hosts_clock(who, record, clocks_before[who.split()[0]][0], error_s) for who, record in said]
    writes = [hold for hold in holds if hold.mode == "write"]
    print(
        f"{lane} and {other}: {len(holds)} holds, {len(writes)} writes, clocks wrong by {error_s * 1e3:.1f} ms at most"
    )

    assert not list(conflicts(holds))
    assert not list(disorder(holds))
    # What an application reads is as fresh as the mount lets it be; the lock is exact on all of them.
    for who, record in said if LANES[lane].keeps_data_fresh else []:
        if record["mode"] == "read":
            assert record["seen"] == record["generation"], (who, record, "a reader's version is that of the data")
            assert record["count_at_the_end"] == record["count"], (who, record, "nobody wrote meanwhile")
        else:
            assert record["seen"] < record["generation"], (who, record)
            assert record["count_at_the_end"] == record["count"] + 1, (who, record)
    if LANES[lane].keeps_data_fresh:
        lines = [int(line) for line in scene.server.check(["cat", _on_the_server(path)]).split()]
        assert len(lines) == len(writes), "no update was lost"
        assert lines == sorted(hold.generation for hold in writes)
    assert not scene.announcements(path)

    # Otherwise nothing was put to the test.
    assert error_s < 0.02
    for number in range(len(processes)):
        for mode in ("read", "write"):
            assert sum(hold.mode == mode and hold.who.endswith(str(number)) for hold in holds) >= 3, (number, mode)
    assert any(one.who[:2] != other.who[:2] for one, other in overlaps(holds)), "readers of two clients share"
    assert any(one.who[:2] != other.who[:2] for one, other in itertools.pairwise(sorted(writes, key=_granted)))


def clocks_of(scene: Scene) -> dict[str, tuple[float, float]]:
    """How far each client's clock is off, and how uncertain that is; asked often, for a machine that is busy."""
    asked = {node.name: [node.clock() for _ in range(5)] for node in (scene.n1, scene.n2)}
    return {name: min(answers, key=lambda answer: answer[1]) for name, answers in asked.items()}


def _granted(hold: Hold) -> float:
    return hold.granted


def _on_the_hosts_clock(who: str, record: dict[str, Any], offset: float, error_s: float) -> Hold:
    released = record["released"] - offset
    return Hold(
        *(who, 0, record["mode"], record["granted"] - offset),
        lease_s=0.0,  # nobody loses a hold here
        error_s=error_s / 2,  # of both holds of a pair together, no more than of all clocks
        generation=record["generation"],
        until=released,
        end=released,
    )


def _on_the_server(path: str) -> str:
    return "/mnt/disk/export/" + path.split("/", 3)[3]
