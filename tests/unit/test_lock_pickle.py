"""A lock crosses to another process as its settings, and arrives not held; equal settings are equal locks."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from actors import Stage, announcements
from nfsrwlock import (
    AsyncSoftReadWriteLock,
    HoldStatus,
    LockNotHeldError,
    LockPathError,
    LockSet,
    SoftReadWriteLock,
    Timeout,
)

SETTINGS: dict[str, Any] = {
    "timeout": 3.5,
    "blocking": False,
    "is_singleton": False,
    "heartbeat_interval": 2.0,
    "stale_threshold": 7.0,
    "poll_interval": 0.5,
    "heartbeat": "process",
    "share": "group",
}

KINDS = pytest.mark.parametrize("cls", [SoftReadWriteLock, AsyncSoftReadWriteLock])


def sent(lock: Any) -> Any:
    return pickle.loads(pickle.dumps(lock))


@KINDS
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_lock_arrives_with_its_settings(cls: type, protocol: int, path: Path) -> None:
    lock = cls(path, lock_dir=path.parent / "locks", on_compromise=print, **SETTINGS)
    arrived = pickle.loads(pickle.dumps(lock, protocol))
    assert type(arrived) is cls
    assert arrived == lock
    assert hash(arrived) == hash(lock)
    assert arrived.lock_file == lock.lock_file == str(path)
    assert arrived.lock_path == lock.lock_path
    for name in ("timeout", "blocking", "heartbeat_interval", "stale_threshold", "poll_interval"):
        assert getattr(arrived, name) == SETTINGS[name]
    if cls is SoftReadWriteLock:
        assert (arrived.heartbeat, arrived.share) == ("process", "group")
        assert arrived.lock_dir == str(path.parent / "locks")


def test_a_lock_that_is_held_arrives_not_held(path: Path) -> None:
    lock = SoftReadWriteLock(path)
    with lock.write_lock():
        arrived = sent(lock)
        assert (lock.status, arrived.status) == (HoldStatus.HELD, HoldStatus.FREE)
        with pytest.raises(LockNotHeldError):
            arrived.release()
        with pytest.raises(LockNotHeldError):
            arrived.check()
        with pytest.raises(Timeout):
            arrived.acquire_read(0)
        assert SoftReadWriteLock(path) is lock
    with arrived.write_lock(timeout=5):
        assert not lock.is_locked


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_lock_of_its_own(path: Path, duplicate: Any) -> None:
    lock = SoftReadWriteLock(path)
    with lock.read_lock():
        other = duplicate(lock)
        assert other == lock
        assert not other.is_locked
        with other.read_lock():
            assert len(announcements(path)) == 2


def test_the_first_to_arrive_becomes_the_instance_of_its_path(path: Path) -> None:
    data = pickle.dumps(SoftReadWriteLock(path))  # nobody refers to that one any more
    arrived = pickle.loads(data)
    assert SoftReadWriteLock(path) is arrived


@KINDS
def test_locks_are_compared_by_their_settings(cls: type, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    lock = cls(path, is_singleton=False)
    assert lock == cls("data", is_singleton=False)  # another spelling of the same lock
    assert hash(lock) == hash(cls("./data", is_singleton=False))
    assert lock != cls(path.parent / "other", is_singleton=False)
    for name, value in {
        "timeout": 5,
        "blocking": False,
        "heartbeat_interval": 5,
        "stale_threshold": 100,
        "poll_interval": 1,
        "on_compromise": print,
        "heartbeat": "process",
        "share": "group",
        "lock_dir": path.parent / "locks",
    }.items():
        assert lock != cls(path, is_singleton=False, **{name: value}), name
    assert lock != str(path)
    assert len({lock, cls(path, is_singleton=False)}) == 1


def test_a_lock_for_threads_and_one_for_tasks_are_not_equal(path: Path) -> None:
    assert SoftReadWriteLock(path, is_singleton=False) != AsyncSoftReadWriteLock(path, is_singleton=False)


def test_a_subclass_arrives_as_itself(path: Path) -> None:
    arrived = sent(Special(path))
    assert type(arrived) is Special
    assert arrived != SoftReadWriteLock(path)


class Special(SoftReadWriteLock):
    pass


def test_a_relative_path_means_the_same_lock_in_another_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(SoftReadWriteLock("data"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pickle.loads(data).write_lock():
        assert len(announcements(path)) == 1
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_directory_of_locks_from_the_environment_travels_with_the_lock(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NFSRWLOCK_DIR", str(tmp_path / "locks"))
    data = pickle.dumps(SoftReadWriteLock(path))
    monkeypatch.delenv("NFSRWLOCK_DIR")
    arrived = pickle.loads(data)
    assert Path(arrived.lock_path).parent == tmp_path / "locks"
    with arrived.read_lock():
        assert len(os.listdir(tmp_path / "locks")) == 1


def test_another_process_uses_what_it_was_sent(stage: Stage, path: Path) -> None:
    lock = SoftReadWriteLock(path, poll_interval=0.02)
    with lock.write_lock():
        actor = stage.actor(f"lock = pickle.loads({pickle.dumps(lock)!r})")
        assert actor.do("lock.status") == "free"
        actor.tell("lock.acquire_write(30)")
    actor.answer()
    with pytest.raises(Timeout, match=f"pid {actor.pid}"):
        lock.acquire_read(0)


def test_a_spawned_worker_takes_the_lock_it_was_given(path: Path) -> None:
    lock = SoftReadWriteLock(path, timeout=30)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with lock.read_lock():
        process = context.Process(target=hold_and_tell, args=(lock, queue))
        process.start()
        assert queue.get() == ("free", "held", 2)
        process.join(30)
    assert process.exitcode == 0
    process.close()
    queue.close()
    assert announcements(path) == []


def hold_and_tell(lock: SoftReadWriteLock, queue: Any) -> None:
    before = str(lock.status)
    with lock.read_lock():
        queue.put((before, str(lock.status), len(announcements(lock.lock_file))))


def test_a_set_of_locks_arrives_not_held_and_equal(path: Path) -> None:
    several = LockSet(read=[path], write=[f"{path}2"], timeout=4)
    with several:
        arrived = sent(several)
        assert arrived == several
        assert hash(arrived) == hash(several)
        assert arrived.status is HoldStatus.FREE
        with pytest.raises(LockNotHeldError):
            arrived.release()
    with arrived as held:
        assert held.paths_write == (f"{path}2",)
        held.check()


def test_errors_cross_to_another_process(stage: Stage, path: Path) -> None:
    with SoftReadWriteLock(path).write_lock(), pytest.raises(Timeout) as caught:
        SoftReadWriteLock(path, is_singleton=False).acquire_read(0)
    arrived = sent(caught.value)
    assert str(arrived) == str(caught.value)
    assert arrived.holders == caught.value.holders
    assert arrived.holders[0].pid == os.getpid()
    error = LockPathError("data", "is wrong", "make it right", 5)
    arrived = sent(error)
    assert (str(arrived), arrived.errno, arrived.remedy) == (str(error), 5, "make it right")
