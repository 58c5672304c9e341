"""A file server that is away, and comes back: everybody stood still, so nobody has lost anything."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

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
def test_a_hold_without_a_heartbeat_yet_outlives_a_grace_period(scene: Scene) -> None:
    """
    NFSv4 makes no file for anybody during its grace period (RFC 8881, 9.14.1), so not the first heartbeat either.

    A listing is allowed all the time, so to a watcher the holder is silent for more than its lease. But then the
    watcher's own `rmdir` has to wait, too, and its watching starts anew.
    """
    path = scene.path()
    holder = scene.locker(scene.n1, path, SETTINGS)
    waiter = scene.locker(scene.n2, path, SETTINGS)
    # The server ends the period early when all clients have reclaimed their state, so one that will not is needed.
    scene.n2.mount("4.0", "nosharecache", at="/mnt/straggler")
    scene.n2.check(["sh", "-c", ': >"/mnt/straggler/$1"', "sh", path.split("/", 3)[3]])
    scene.n2.umount("/mnt/straggler")
    holder.do("lock.acquire_write()")
    waiter.tell("lock.acquire_read()")
    scene.server.kill()
    scene.server.start()
    assert scene.server.check(["cat", "/proc/fs/nfsd/v4_end_grace"]).strip() == "N"
    time.sleep(LEASE_S * 1.2)
    assert scene.server.check(["cat", "/proc/fs/nfsd/v4_end_grace"]).strip() == "N", "it lasts longer than the lease"
    time.sleep(LEASE_S * 2)
    assert scene.server.check(["cat", "/proc/fs/nfsd/v4_end_grace"]).strip() == "Y"
    print(f"held again after {until_held_again(holder):.1f} s")
    holder.do("lock.check()")
    assert not waiter.has_answered()
    holder.do("lock.release()")
    waiter.answer(timeout=60)
    waiter.do("lock.release()")
