"""A file server that is full to the last block."""

from __future__ import annotations

import time

import pytest

from actors import Raised
from nfs.scene import LEASE_S, Scene

pytestmark = pytest.mark.nfs

#: Takes what is left of the file system, down to single blocks, and shows that nothing is.
FILL = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
size = 1 << 30
while size >= 1024:
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, size)
    except OSError:
        size >>= 1
os.fsync(fd)
try:
    os.mkdir(sys.argv[1] + ".directory")
except OSError as error:
    print(error.strerror)
"""
FILLER = "/mnt/disk/export/filler"


def fill(scene: Scene) -> None:
    assert "No space left" in scene.server.check(["/usr/bin/python3", "-c", FILL, FILLER])


def test_a_lock_on_a_full_disk_can_be_released_and_not_be_had(scene: Scene) -> None:
    path = scene.path()
    holder, other = scene.locker(scene.n1, path), scene.locker(scene.n2, path)
    holder.do("lock.acquire_write()")
    try:
        fill(scene)
        time.sleep(LEASE_S * 1.5)
        holder.do("lock.check()")  # heartbeats need no space
        holder.do("lock.release()")
        assert not scene.announcements(path)
        fill(scene)  # the release has freed a block
        for mode in ("read", "write"):
            with pytest.raises(Raised) as raised:
                other.do(f"lock.acquire_{mode}(timeout=5)")
            print(raised.value.message)
            assert "LockPathError" in raised.value.names
            assert "\n" not in raised.value.message
            assert "space" in raised.value.message
        assert not scene.announcements(path)
    finally:
        scene.server.check(["rm", "-rf", FILLER, f"{FILLER}.directory"])
    other.do("lock.acquire_write(timeout=10)")
    other.do("lock.release()")
    assert [entry.partition(".")[0] for entry in scene.entries(path)] == ["gen"]
