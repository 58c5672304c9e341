"""What the logger ``nfsrwlock`` says of each step of a lock, for those who look for the cause of a wait."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nfsrwlock import LockSet, SoftReadWriteLock, Timeout


def steps(caplog: pytest.LogCaptureFixture, path: Path) -> list[str]:
    """The first word of each record about ``path``."""
    records = [record for record in caplog.records if str(path) in record.getMessage()]
    assert {(record.name, record.levelno) for record in records} <= {("nfsrwlock", logging.DEBUG)}
    return [record.getMessage().split()[0] for record in records]


def test_each_step_has_one_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data"
    with caplog.at_level(logging.DEBUG, "nfsrwlock"):
        holder = SoftReadWriteLock(path, is_singleton=False)
        other = SoftReadWriteLock(path, is_singleton=False, poll_interval=0.01)
        with holder.write_lock():
            assert steps(caplog, path) == ["acquired"]
            with pytest.raises(Timeout):
                other.acquire_read(timeout=0.1)
            assert steps(caplog, path) == ["acquired", "waiting", "gave"]
        assert steps(caplog, path)[-1] == "released"


def test_a_set_of_locks_has_the_records_of_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "nfsrwlock"), LockSet(read=[tmp_path / "a"], write=[tmp_path / "b"]):
        pass
    for name in "ab":
        assert steps(caplog, tmp_path / name) == ["acquired", "released"]


def test_nothing_is_logged_unasked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SoftReadWriteLock(tmp_path / "data", is_singleton=False).write_lock():
        pass
    assert caplog.records == []
