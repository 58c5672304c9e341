"""Locks below a directory: found, and removed where nobody uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nfsrwlock_core import LockPathError, SoftReadWriteLock, Timeout, find_locks, prune, pruning
from nfsrwlock_core.inspection import list_lock
from nfsrwlock_core.names import Listing, parse_listing


def made(path: Path, **settings: object) -> SoftReadWriteLock:
    """Return a lock that was written under once and is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = SoftReadWriteLock(path, is_singleton=False, **settings)  # type: ignore[arg-type]
    with lock.write_lock():
        pass
    return lock


def test_all_locks_below_are_found_and_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    for name in ("data", "deep/er/data", "locked.rwlocks/data"):
        made(tmp_path / "tree" / name)
    made(tmp_path / "elsewhere" / "data")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / "file.rwlock").touch()
    (tmp_path / "way").symlink_to(tmp_path / "tree")
    found = list(find_locks(tmp_path / "way"))
    assert found == [f"{tmp_path}/tree/{name}" for name in ("data", "deep/er/data", "locked.rwlocks/data")]


@pytest.mark.parametrize("name", [".rwlock", "..rwlock", "...rwlock"])
def test_what_has_no_name_before_the_suffix_stands_for_no_other_directory_s_lock(tmp_path: Path, name: str) -> None:
    (tmp_path / "tree" / name).mkdir(parents=True)
    made(tmp_path / "tree")
    assert list(find_locks(tmp_path / "tree")) == []


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LockPathError, match=r"cannot be searched for locks: n.* directory.*name a directory"):
        list(find_locks(tmp_path / name))


def test_a_lock_that_nobody_uses_is_removed_and_its_numbers_begin_anew(tmp_path: Path) -> None:
    lock = made(tmp_path / "data")
    with lock.write_lock():
        assert lock.generation == 2
    assert prune(tmp_path / "data", unused_s=0) is None
    assert os.listdir(tmp_path) == []
    assert prune(tmp_path / "data", unused_s=0) is None, "it is gone"
    with lock.write_lock():
        assert lock.generation == 1


def test_the_lock_of_a_group_and_one_in_a_directory_of_locks_are_removed(tmp_path: Path) -> None:
    made(tmp_path / "data", share="group")
    home = tmp_path / "home"
    made(tmp_path / "other", lock_dir=home)
    assert prune(tmp_path / "data", unused_s=0) is None
    (name,) = find_locks(home)
    assert prune(name, unused_s=0, lock_dir="") is None
    assert os.listdir(tmp_path) == ["home"]
    assert os.listdir(home) == []


def test_it_is_kept_while_it_is_used_and_a_while_after(tmp_path: Path) -> None:
    lock = made(tmp_path / "data")
    with lock.read_lock():
        before = os.stat(lock.lock_path).st_mtime_ns
        assert prune(tmp_path / "data", unused_s=0) == "it is in use"
        assert os.stat(lock.lock_path).st_mtime_ns == before, "nobody was disturbed"
        assert lock.generation == 1
    assert (prune(tmp_path / "data", unused_s=3600) or "").startswith("it was used")
    os.utime(lock.lock_path, (time.time() - 4000,) * 2)
    assert prune(tmp_path / "data", unused_s=3600) is None
    made(tmp_path / "data")
    os.utime(lock.lock_path, (time.time() + 60,) * 2)  # the server's clock is ahead
    assert prune(tmp_path / "data", unused_s=3600) == "it was used 0 s ago"
    assert prune(tmp_path / "data", unused_s=0) is None


def test_who_waits_for_the_pruning_finds_the_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "data")
    other = SoftReadWriteLock(tmp_path / "data", is_singleton=False)
    program = "import sys; from nfsrwlock_core import *; SoftReadWriteLock(sys.argv[1]).acquire_write(60); input()"
    waiter: list[subprocess.Popen[bytes]] = []

    def listed(_: list[str]) -> Listing:
        monkeypatch.undo()
        waiter.append(subprocess.Popen([sys.executable, "-c", program, other.lock_file], stdin=subprocess.PIPE))
        while len(os.listdir(other.lock_path)) < 3:
            time.sleep(0.01)
        return list_lock(other.lock_path)

    monkeypatch.setattr(pruning, "parse_listing", listed)
    assert prune(tmp_path / "data", unused_s=0) == "it is in use"
    try:
        deadline = time.monotonic() + 30
        while "gen.2" not in os.listdir(other.lock_path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(Timeout):
            other.acquire_read(timeout=0)
    finally:
        waiter[0].communicate(b"\n")


def test_nobody_gets_in_while_the_number_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = made(tmp_path / "data")

    tried = []

    def listed(names: list[str]) -> Listing:
        with pytest.raises(Timeout):
            lock.acquire_read(timeout=0)
        tried.append(names)
        return parse_listing(names)

    monkeypatch.setattr(pruning, "parse_listing", listed)
    assert prune(tmp_path / "data", unused_s=0) is None
    assert tried


@pytest.mark.parametrize("name", ["notes.txt", "gone.0123/notes.txt"])
def test_a_directory_with_something_else_in_it_is_kept_with_its_number(tmp_path: Path, name: str) -> None:
    lock = made(tmp_path / "data")
    mine = Path(lock.lock_path, name)
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    assert prune(tmp_path / "data", unused_s=0) == "something else is in it"
    assert mine.read_text() == "mine"
    with lock.write_lock():
        assert lock.generation == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_one_that_cannot_be_removed_from_where_it_is_keeps_its_number(mode: int) -> None:
    program = "import os, sys; from nfsrwlock_core import *; os.setuid(65534); print(prune(sys.argv[1], unused_s=0))"
    with tempfile.TemporaryDirectory() as here:
        lock = made(Path(here, "data"), share="group")
        os.chmod(here, mode)
        pruned = subprocess.run(
            [sys.executable, "-c", program, lock.lock_file], check=True, capture_output=True, text=True
        )
        assert pruned.stdout == "you may not remove it from the directory around it\n"
        assert os.listdir(lock.lock_path) == ["gen.1"]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_holder_that_is_dead_does_not_keep_it(tmp_path: Path, mode: str) -> None:
    lock = made(tmp_path / "data")
    program = (
        f"import os, sys; from nfsrwlock_core import *; SoftReadWriteLock(sys.argv[1]).acquire_{mode}(); os.abort()"
    )
    subprocess.run([sys.executable, "-c", program, lock.lock_file], check=False)
    assert len(os.listdir(lock.lock_path)) > 1
    assert prune(tmp_path / "data", unused_s=0) is None
    assert os.listdir(tmp_path) == []


def test_who_stands_still_while_it_prunes_removes_no_number_of_a_later_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = made(tmp_path / "data")

    def listed(names: list[str]) -> Listing:
        monkeypatch.undo()
        listing = parse_listing(names)
        (announcement,) = listing.announcements

        def check(_: SoftReadWriteLock) -> None:  # passed; then it stands still, its lease runs out, and others go on
            monkeypatch.undo()
            os.rmdir(f"{lock.lock_path}/{announcement}")
            assert prune(tmp_path / "data", unused_s=0) is None
            lock.acquire_write()
            assert lock.generation == 1

        monkeypatch.setattr(SoftReadWriteLock, "check", check)
        return listing

    monkeypatch.setattr(pruning, "parse_listing", listed)
    assert prune(tmp_path / "data", unused_s=0) == "it is in use"
    assert "gen.1" in os.listdir(lock.lock_path)
    lock.release()


def test_nobody_loses_a_hold_an_update_or_a_number_while_it_is_pruned(tmp_path: Path) -> None:
    script = Path(__file__).with_name("pruning_storm.py")
    subprocess.run([sys.executable, script, "--seconds", "4"], check=True, timeout=100)
