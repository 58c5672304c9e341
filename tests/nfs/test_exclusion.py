"""Two clients with two processes each storm one lock: what they say they held, and what became of the data."""

from __future__ import annotations

import itertools

import pytest

from nfs.campaign.history import Hold, conflicts, disorder, overlaps
from nfs.lanes import LANES
from nfs.scene import SETTINGS, Scene
from nfs.storms import storm

pytestmark = pytest.mark.nfs

STORM_S = 4.0


@pytest.mark.parametrize(("lane", "other"), [*((lane, lane) for lane in LANES), ("4.2", "3")])
def test_writers_are_alone_and_readers_see_one_version(scene: Scene, lane: str, other: str) -> None:
    """On each kind of mount, and with two versions of the protocol at once: one on each client."""
    paths = {scene.n1.name: scene.path(lane), scene.n2.name: scene.path(other)}
    path = paths[scene.n1.name]
    scene.n1.check(["sh", "-c", ': >"$1"', "sh", path])
    processes = [scene.process(node) for node in (scene.n1, scene.n2, scene.n1, scene.n2)]
    found = storm(processes, paths, STORM_S)
    said, holds, writes, error_s = found.said, found.holds, found.writes, found.error_s
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


@pytest.mark.parametrize("numbered", [False, True], ids=["without numbers", "pruned"])
@pytest.mark.parametrize("lane", ["4.2", "3"])
def test_a_directory_that_comes_and_goes_keeps_no_client_out(scene: Scene, lane: str, numbered: bool) -> None:
    """A client's cache of names shows the directory that another client has removed, and made anew, for a minute."""
    path = scene.path(lane)
    scene.n1.check(["sh", "-c", ': >"$1"', "sh", path])
    processes = [scene.process(node) for node in (scene.n1, scene.n2) * 3]
    for process in processes:
        process.tell(f"come_and_go({path!r}, {STORM_S}, 25, {numbered})")
    pruning = [scene.process(node) for node in (scene.n1, scene.n2)] if numbered else []
    for process in pruning:
        process.tell(f"prune_it({path!r}, {STORM_S})")
    writes = [process.answer(60) for process in processes]
    removed = [process.answer(60) for process in pruning]
    print(f"{lane}: {writes}, removed {removed}")
    assert len(scene.server.check(["cat", _on_the_server(path)]).split()) == sum(writes), "no update was lost"
    if numbered:
        assert sum(removed) > 3, "or this proves nothing"
    else:
        assert scene.server.run(["test", "-e", f"{_on_the_server(path)}.rwlock"]).returncode, "nor is anything left"


@pytest.mark.parametrize("is_above", [False, True], ids=["its own", "one above"])
@pytest.mark.parametrize("lane", LANES)
def test_a_client_that_saw_a_group_s_directory_being_made_is_not_kept_out(
    scene: Scene, lane: str, is_above: bool
) -> None:
    """What it saw is in its cache for half a minute. Its process is not the owner's, to whom all is open."""
    file = "shared/new/f" if is_above else "shared/f"
    seen = "shared/new" if is_above else "shared/f.rwlock"
    making = 'mkdir "$0" && chown :4000 "$0" && chmod 2770 "$0" && mkdir -m 3700 "$1"'
    scene.n1.check(["sh", "-c", making, scene.path(file="shared"), scene.path(file=seen)])
    other = scene.process(scene.n2, "import os; from nfs.campaign.actor import become; become(4001, 4000)")
    assert not other.do(f"os.access({scene.path(lane, seen)!r}, os.X_OK)")
    assert other.do(f"oct(os.stat({scene.path(lane, seen)!r}).st_mode)") == "0o43700"
    scene.n1.check(["chmod", "2770", scene.path(file=seen)])
    holder = scene.locker(scene.n1, scene.path(file=file), f"{SETTINGS}, share='group'")
    holder.do("lock.acquire_read(10)")
    other.do(f"lock = SoftReadWriteLock({scene.path(lane, file)!r}, {SETTINGS}, share='group')")
    other.do("lock.acquire_read(10)")
    for process in (other, holder):
        process.do("lock.release()")


def _granted(hold: Hold) -> float:
    return hold.granted


def _on_the_server(path: str) -> str:
    return "/mnt/disk/export/" + path.split("/", 3)[3]
