"""A file server that is full to the last block."""

from __future__ import annotations

import time

import pytest

from actors import Raised
from nfs.full_disk import empty, fill
from nfs.scene import LEASE_S, Scene

pytestmark = pytest.mark.nfs


def test_a_lock_on_a_full_disk_can_be_released_and_not_be_had(scene: Scene) -> None:
    path = scene.path()
    holder, other = scene.locker(scene.n1, path), scene.locker(scene.n2, path)
    holder.do("lock.acquire_write()")
    try:
        assert fill(scene.server)
        time.sleep(LEASE_S * 1.5)
        holder.do("lock.check()")  # heartbeats need no space
        holder.do("lock.release()")
        assert not scene.announcements(path)
        assert fill(scene.server)  # the release has freed a block
        for mode in ("read", "write"):
            with pytest.raises(Raised) as raised:
                other.do(f"lock.acquire_{mode}(timeout=5)")
            print(raised.value.message)
            assert "LockPathError" in raised.value.names
            assert "\n" not in raised.value.message
            assert "space" in raised.value.message
        assert not scene.announcements(path)
    finally:
        empty(scene.server)
    other.do("lock.acquire_write(timeout=10)")
    other.do("lock.release()")
    assert [entry.partition(".")[0] for entry in scene.entries(path)] == ["gen"]
