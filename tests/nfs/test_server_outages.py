"""A file server that is away, and comes back: everybody stood still, so nobody has lost anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from nfs.lanes import NFS4_LEASE_S
from nfs.scene import Remote, Scene, wait_until_announced

pytestmark = pytest.mark.nfs

#: Clients find a server again at moments of their own, some seconds apart (TCP repeats itself less and less often); for
#: the lease of a holder that comes late this is silence. So it is longer here than in the other scenarios.
LEASE_S = 6.0
SETTINGS = f"heartbeat_interval={LEASE_S / 3}, stale_threshold={LEASE_S}, poll_interval=0.1"


#: How long the server is out of reach, seconds; `make test-nfs-long` sets 300.
OUTAGE_S = float(os.environ.get("NFSRWLOCK_TEST_OUTAGE_S", "20"))


def out_of_reach(scene: Scene) -> None:
    scene.server.cut()
    time.sleep(OUTAGE_S)
    scene.server.heal()


def crashed(scene: Scene) -> None:
    scene.server.kill()
    time.sleep(2)
    scene.server.start()


def crashed_without_grace(scene: Scene) -> None:
    crashed(scene)
    scene.server.check(["sh", "-c", "echo Y >/proc/fs/nfsd/v4_end_grace"])


def service_restarted(scene: Scene) -> None:
    scene.lab.restart_nfsd(down_s=LEASE_S)


@pytest.mark.timeout(180 + 3 * OUTAGE_S)
@pytest.mark.parametrize("outage", [out_of_reach, crashed, crashed_without_grace, service_restarted])
def test_nobody_loses_a_hold_when_the_server_is_away(scene: Scene, outage: Callable[[Scene], None]) -> None:
    path = scene.path()
    readers = [scene.locker(node, path, SETTINGS) for node in (scene.n1, scene.n2)]
    writer = scene.locker(scene.n2, path, SETTINGS)
    for reader in readers:
        reader.do("lock.acquire_read()")
    writer.tell("lock.acquire_write()")
    wait_until_announced(scene, path, 3)
    time.sleep(LEASE_S / 2)
    for reader in readers:
        reader.tell("time.sleep(1); statuses_until(lock, 'lost', 0)")
        reader.answer()
    began = time.monotonic()
    outage(scene)
    lasted = time.monotonic() - began
    waited = [until_held_again(reader) for reader in readers]
    print(f"outage of {lasted:.1f} s; holds confirmed again after {[round(s, 1) for s in waited]} s more")
    time.sleep(LEASE_S * 1.5)  # an eviction that the outage has prepared would have come by now
    for reader in readers:
        reader.do("lock.check()")
    assert not writer.has_answered()
    for reader in readers:
        reader.do("lock.release()")
    writer.answer(timeout=180)
    writer.do("lock.release()")
    assert not scene.announcements(path)


def until_held_again(reader: Remote) -> float:
    """Wait until a heartbeat has reached the server again; return how long that took."""
    changes = reader.do("statuses_until(lock, 'held', 180)", timeout=190)
    assert changes[-1][0] == "held", changes
    return float(changes[-1][1] - changes[0][1])


@pytest.mark.timeout(180)
def test_a_hold_on_nfs4_outlives_a_grace_period_beside_a_waiter_on_nfs3(scene: Scene) -> None:
    """
    During NFSv4's grace period nothing may be opened, renamed or removed (RFC 8881, 8.4.2.1); NFSv3 knows none.

    A listing is allowed all the time, so to a watcher the holder is silent for more than its lease. A watcher on NFSv4
    has to wait itself, and its watching starts anew; one on NFSv3 must go by its new connection.
    """
    path = scene.path()
    holder = scene.locker(scene.n1, path, SETTINGS)
    waiters = [scene.locker(scene.n2, scene.path(lane), SETTINGS) for lane in ("4.2", "3")]
    keep_the_next_grace_period_from_ending_early(scene, path)
    holder.do("lock.acquire_write()")
    for waiter in waiters:
        waiter.do(f"import os; os.environ['NFSRWLOCK_GRACE_PERIOD'] = '{NFS4_LEASE_S}'")
        waiter.tell("lock.acquire_read()")
    time.sleep(0.5)  # they have looked at the holder, which has not beaten yet
    scene.server.kill()
    scene.server.start()
    began = time.monotonic()
    beats: set[str] = set()
    statuses: set[str] = set()
    while in_grace(scene):
        (announcement,) = [name for name in scene.announcements(path) if name.startswith("write.")]
        beats.update(scene.inside(path, announcement))
        statuses.add(holder.do("lock.status.value"))
        time.sleep(0.1)
    assert time.monotonic() - began > LEASE_S, "it lasted longer than the lease"
    assert "beat.0" in beats, "the first heartbeat needs nothing that is refused"
    assert "suspect" in statuses
    print(f"held again after {until_held_again(holder):.1f} s")
    holder.do("lock.check()")
    assert not any(waiter.has_answered() for waiter in waiters)
    holder.do("lock.release()")
    for waiter in waiters:
        waiter.answer(timeout=60)
        waiter.do("lock.release()")


def keep_the_next_grace_period_from_ending_early(scene: Scene, path: str) -> None:
    """The server ends it as soon as all clients have reclaimed their state, so one is needed that will not."""
    scene.n2.mount("4.0", "nosharecache", at="/mnt/straggler")
    scene.n2.check(["sh", "-c", ': >"/mnt/straggler/$1"', "sh", path.split("/", 3)[3]])
    scene.n2.umount("/mnt/straggler")


def in_grace(scene: Scene) -> bool:
    """Whether the server only lets clients reclaim what they had before it was restarted."""
    return scene.server.check(["cat", "/proc/fs/nfsd/v4_end_grace"]).strip() == "N"
