"""Locks without numbers: they exclude as all do, and leave no directory behind."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfsrwlock_core import AsyncSoftReadWriteLock, LockPathError, LockSet, SoftReadWriteLock, Timeout
from nfsrwlock_core.system.directory import LockDirectory

ROUNDS = 60
#: Adds one to a number in a file, so many times, under a lock that is made and removed each time.
ADD = """
import sys
from pathlib import Path
from nfsrwlock_core import SoftReadWriteLock

data, numbered, rounds = Path(sys.argv[1]), sys.argv[2] == "numbered", int(sys.argv[3])
for _ in range(rounds):
    lock = SoftReadWriteLock(data, is_singleton=False, numbered=numbered, poll_interval=0.02)
    with lock.write_lock():
        data.write_text(str(int(data.read_text()) + 1))
    with lock.read_lock():
        assert data.read_text()
"""


def directory(path: Path) -> Path:
    return Path(f"{path}.rwlock")


@pytest.mark.parametrize("mode", ["read", "write"])
def test_who_leaves_last_removes_the_directory(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "data"
    first, second = (SoftReadWriteLock(path, is_singleton=False, numbered=False) for _ in range(2))
    with first.read_lock() if mode == "read" else first.write_lock():
        if mode == "read":
            with second.read_lock():
                pass
            assert directory(path).is_dir(), "the first is there still"
        else:
            with pytest.raises(Timeout):
                second.acquire_read(timeout=0)
    assert not directory(path).exists()
    with first.write_lock():
        assert os.listdir(directory(path))[0].startswith("write.")
        assert first.generation == 0
    assert os.listdir(tmp_path) == []


def test_a_lock_with_numbers_keeps_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with SoftReadWriteLock(path).write_lock():
        pass
    with SoftReadWriteLock(path, is_singleton=False, numbered=False).write_lock():
        pass
    assert os.listdir(directory(path)) == ["gen.1"]


def test_a_reader_that_has_seen_a_number_does_not_try_to_remove_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tried, rmdir = tmp_path / "data", [], LockDirectory.rmdir

    def noted(self: LockDirectory, name: str = "") -> None:
        tried.append(name)
        rmdir(self, name)

    monkeypatch.setattr(LockDirectory, "rmdir", noted)
    reader, writer = (SoftReadWriteLock(path, is_singleton=False, numbered=numbered) for numbered in (False, True))
    for lock, mode in ((reader, "read"), (writer, "write"), (reader, "read")):
        with lock.read_lock() if mode == "read" else lock.write_lock():
            pass
    assert tried.count("") == 1, "before there was a number"
    assert os.listdir(directory(path)) == ["gen.1"]


def test_an_empty_directory_that_is_refused_stays(tmp_path: Path) -> None:
    directory(tmp_path / "data").mkdir(mode=0o755)
    with pytest.raises(LockPathError, match="open to others"):
        SoftReadWriteLock(tmp_path / "data", numbered=False).acquire_read(1)
    assert directory(tmp_path / "data").exists()


@pytest.mark.parametrize("others", ["unnumbered", "numbered"])
def test_no_update_is_lost_while_the_directory_comes_and_goes(tmp_path: Path, others: str) -> None:
    path = tmp_path / "data"
    path.write_text("0")
    kinds = ["unnumbered", "unnumbered", others, others]
    workers = [subprocess.Popen([sys.executable, "-c", ADD, str(path), kind, str(ROUNDS)]) for kind in kinds]
    assert [worker.wait(120) for worker in workers] == [0] * len(kinds)
    assert int(path.read_text()) == ROUNDS * len(kinds)
    assert directory(path).exists() == (others == "numbered")


def test_threads_and_tasks_and_sets_and_kept_holds_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data"
    lock = SoftReadWriteLock(path, is_singleton=False, numbered=False, linger=0.2)
    for _ in range(3):
        with lock.read_lock():
            assert directory(path).is_dir()
    deadline = time.monotonic() + 30
    while directory(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with LockSet(read=[path], write=[tmp_path / "other"], numbered=False):
        assert directory(path).is_dir()
    assert os.listdir(tmp_path) == []


async def use(path: Path) -> None:
    async with AsyncSoftReadWriteLock(path, numbered=False).write_lock():
        assert directory(path).is_dir()


def test_a_task_leaves_nothing(tmp_path: Path) -> None:
    asyncio.run(use(tmp_path / "data"))
    assert os.listdir(tmp_path) == []


def test_who_was_evicted_or_gives_up_leaves_nothing_once_somebody_comes_by(tmp_path: Path) -> None:
    path = tmp_path / "data"
    settings = "heartbeat_interval=0.2, poll_interval=0.02, numbered=False"
    dies = f"import os; from nfsrwlock_core import SoftReadWriteLock as Lock; Lock({str(path)!r}, {settings})"
    subprocess.run([sys.executable, "-c", f"{dies}.acquire_write(); os._exit(0)"], check=True)
    assert os.listdir(directory(path))

    def lock() -> SoftReadWriteLock:
        return SoftReadWriteLock(path, is_singleton=False, heartbeat_interval=0.2, poll_interval=0.02, numbered=False)

    with lock().write_lock(timeout=30), pytest.raises(Timeout):
        lock().acquire_read(0.3)  # which notes for the next one how long the holder has been silent
    with lock().read_lock():
        pass
    assert os.listdir(tmp_path) == []


#: Ends while a worker is about to remove the directory of a hold that was kept.
LEAVES = """
import sys, threading, time
from nfsrwlock_core import SoftReadWriteLock
from nfsrwlock_core.system.directory import LockDirectory

begun, rmdir = threading.Event(), LockDirectory.rmdir

def slow(self, name=""):
    if not name and threading.current_thread() is not threading.main_thread():
        begun.set()
        time.sleep(0.5)
    rmdir(self, name)

LockDirectory.rmdir = slow
lock = SoftReadWriteLock(sys.argv[1], numbered=False, linger=0.1)
for _ in range(2):
    with lock.read_lock():
        pass
assert begun.wait(30)
"""


def test_a_process_that_ends_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path / "data")], check=True, timeout=60)
    assert os.listdir(tmp_path) == []


def remove_after(monkeypatch: pytest.MonkeyPatch, method: str, times: int) -> Iterator[int]:
    """Remove the directory right after a method of it, so many times, as who was last in it does; return those left."""
    left, wrapped = iter(range(times)), getattr(LockDirectory, method)

    def call(files: LockDirectory) -> None:
        wrapped(files)
        if next(left, None) is not None:
            os.rmdir(files.path)

    monkeypatch.setattr(LockDirectory, method, call)
    return left


@pytest.mark.parametrize("mode", ["read", "write"])
def test_who_is_overtaken_by_the_last_users_removal_does_not_wait(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that must not wait would fail for a lock that nobody holds."""
    path, removals = tmp_path / "data", remove_after(monkeypatch, "open", 3)
    lock = SoftReadWriteLock(path, is_singleton=False, numbered=False)
    with lock.acquire_read(blocking=False) if mode == "read" else lock.acquire_write(blocking=False):
        assert os.listdir(directory(path))
    assert next(removals, None) is None
    assert os.listdir(tmp_path) == []


def test_a_directory_that_others_remove_at_once_again_and_again_is_no_bad_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, removals = tmp_path / "data", remove_after(monkeypatch, "_make", 40)
    with SoftReadWriteLock(path, is_singleton=False, numbered=False).write_lock(timeout=60):
        assert os.listdir(directory(path))
    assert next(removals, None) is None


def test_each_directory_is_checked(tmp_path: Path) -> None:
    """Once it is gone, somebody else may make it, for all to write."""
    path = tmp_path / "data"
    lock = SoftReadWriteLock(path, is_singleton=False, numbered=False)
    with lock.write_lock():
        pass
    directory(path).mkdir()
    directory(path).chmod(0o777)
    with pytest.raises(LockPathError, match="is open to others"):
        lock.acquire_write(timeout=0)


def test_an_attempt_that_fails_at_once_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: LockDirectory, name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(LockDirectory, "mkdir", full)
    with pytest.raises(LockPathError):
        SoftReadWriteLock(tmp_path / "data", is_singleton=False, numbered=False).acquire_write()
    assert os.listdir(tmp_path) == []
