"""What this kernel tells of its connection to an NFSv3 server, and how long others may stand still after a new one."""

from __future__ import annotations

import os

import pytest

from nfsrwlock import SoftReadWriteLock
from nfsrwlock_core.system import connection as module
from nfsrwlock_core.system import mounts
from nfsrwlock_core.system.connection import connection, standstill

DEVICE = os.makedev(0, 45)
MOUNTINFO = r"""22 27 0:20 / /sys rw,nosuid - sysfs sysfs rw
36 27 0:44 / /mnt/nfs rw,relatime shared:1 - nfs4 srv:/ rw,vers=4.2
37 27 0:45 / /mnt/nfs\0403 rw,relatime - nfs srv:/export rw,vers=3
half a line
"""
MOUNTSTATS = r"""device sysfs mounted on /sys with fstype sysfs
device srv:/ mounted on /mnt/nfs with fstype nfs4 statvers=1.1
	xprt:	tcp 875 1 1 0 24 1216 1216 0 1216 0 2 0 0
device srv:/export mounted on /mnt/nfs\0403 with fstype nfs statvers=1.1
	opts:	rw,vers=3
	xprt:	tcp {port} 1 {connects} 0 3 12 12 0 12 0 2 0 0
	xprt:	tcp 902 1 1 0 3 12 12 0 12 0 2 0 0
	per-op statistics
"""


@pytest.fixture
def stats(tmp_path, monkeypatch):
    """Let the kernel tell this; returns the file to change."""
    info, stats = tmp_path / "mountinfo", tmp_path / "mountstats"
    info.write_text(MOUNTINFO)
    stats.write_text(MOUNTSTATS.format(port=901, connects=1))
    monkeypatch.setattr(mounts, "_PROC", tmp_path)
    module._nfs3_mountpoint.cache_clear()
    yield stats
    module._nfs3_mountpoint.cache_clear()


@pytest.mark.parametrize("again", [{"port": 901, "connects": 2}, {"port": 733, "connects": 1}])
def test_a_new_connection_is_told_from_the_one_before(stats, again):
    before = connection(DEVICE)
    assert before is not None
    stats.write_text(stats.read_text().replace(" 12 12 ", " 990 990 "))
    assert connection(DEVICE) == before, "traffic is no news"
    stats.write_text(MOUNTSTATS.format(**again))
    assert None is not connection(DEVICE) != before


@pytest.mark.parametrize("device", [os.makedev(0, 44), os.makedev(0, 20), os.makedev(8, 1)])
def test_only_nfs3_has_one_that_matters(stats, device):
    """A waiter on NFSv4 is refused what a holder is refused, so it needs no such rule."""
    assert connection(device) is None


def test_where_the_kernel_tells_nothing_there_is_none(stats, monkeypatch):
    assert connection(DEVICE) is not None
    stats.unlink()
    assert connection(DEVICE) is None
    module._nfs3_mountpoint.cache_clear()
    (stats.parent / "mountinfo").unlink()
    assert connection(DEVICE) is None


def test_this_machine_tells_something(tmp_path):
    """No NFS here: the real files are read and understood."""
    assert connection(os.stat(tmp_path).st_dev) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 112.25), ("", 112.25), ("90", 112.25), ("45", 65.0), ("10", 23.0), ("0", 0.0)]
)
def test_others_stand_still_for_the_grace_period_and_their_next_try(monkeypatch, text, seconds):
    """105 % of the period and of a pause as long as it, at most 15 s; two seconds more."""
    monkeypatch.delenv("NFSRWLOCK_GRACE_PERIOD", raising=False)
    if text is not None:
        monkeypatch.setenv("NFSRWLOCK_GRACE_PERIOD", text)
    assert standstill() == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "90s"])
def test_what_is_no_time_is_refused_when_a_lock_is_made(monkeypatch, tmp_path, text):
    monkeypatch.setenv("NFSRWLOCK_GRACE_PERIOD", text)
    with pytest.raises(ValueError, match=f"NFSRWLOCK_GRACE_PERIOD must be .*, got '{text}'"):
        SoftReadWriteLock(tmp_path / "data")
