"""A listing is whole, or it is an error."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsrwlock_core import SoftReadWriteLock, Timeout, inspect
from nfsrwlock_core.system import listing
from nfsrwlock_core.system.directory import LockDirectory, opened
from nfsrwlock_core.system.listing import names_in

#: Too many for one call of getdents64.
MANY = 1_500


def filled(directory: Path, number: int) -> list[str]:
    names = [f"write.{place:060d}.{'x' * 40}" for place in range(number)]
    for name in names:
        (directory / name).mkdir()
    return names


def breaking_off(call: int, times: float, number: int = errno.ENOENT) -> Callable[..., int]:
    """What the kernel says if the server breaks off the first ``times`` listings, each at the ``call``-th call."""
    kernel, at, broken = listing._getdents, 0, 0
    assert kernel is not None

    def getdents(fd: int, buffer: object, room: int, base: object) -> int:
        nonlocal at, broken
        at += 1
        if at == call and broken < times:
            at, broken = 0, broken + 1
            ctypes.set_errno(number)
            return -1
        size = kernel(fd, buffer, room, base)
        at = at if size else 0
        return size

    return getdents


@pytest.mark.parametrize("number", [0, 1, MANY])
def test_it_shows_all_entries(tmp_path: Path, number: int) -> None:
    names = filled(tmp_path, number)
    with opened(str(tmp_path)) as fd:
        assert sorted(names_in(fd)) == names


@pytest.mark.parametrize("name", [b"\xff\xfe", "Ω".encode(), b"..x", b"a" * 255, b"new\nline"])
def test_names_are_those_of_listdir(tmp_path: Path, name: bytes) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    with opened(str(tmp_path)) as fd:
        assert names_in(fd) == os.listdir(tmp_path) == [os.fsdecode(name)]


def test_a_directory_that_does_not_list_itself_may_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_getdents", lambda *_: 0)  # POSIX allows that; file systems of programs do it
    with opened(str(tmp_path)) as fd:
        assert names_in(fd) == []


def test_where_the_kernel_cannot_be_asked_the_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_getdents", None)
    filled(tmp_path, 3)
    with opened(str(tmp_path)) as fd:
        assert len(names_in(fd)) == 3


def test_a_directory_that_was_removed_is_not_an_empty_one(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    with opened(str(directory)) as fd:
        directory.rmdir()
        assert os.listdir(fd) == [], "or there is no need for names_in any more"
        with pytest.raises(FileNotFoundError):
            names_in(fd)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
@pytest.mark.parametrize("call", [1, 2])
def test_a_listing_that_the_server_breaks_off_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, number: int
) -> None:
    names = filled(tmp_path, MANY)
    monkeypatch.setattr(listing, "_getdents", breaking_off(call, 4, number))
    assert sorted(LockDirectory(str(tmp_path)).listdir()) == names


def test_a_lock_that_another_nfs_client_removes_while_it_is_inspected_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on NFSv4.2: the directory is opened, and its listing meets a stale handle."""
    monkeypatch.setattr(os, "major", lambda device: 0)  # a file system without a disk of this machine
    directory = tmp_path / "data.rwlock"
    directory.mkdir()

    def getdents(*_: object) -> int:
        directory.rmdir()
        ctypes.set_errno(errno.ESTALE)
        return -1

    monkeypatch.setattr(listing, "_getdents", getdents)
    assert not inspect(tmp_path / "data").exists


@pytest.mark.parametrize("call", [1, 2])
def test_a_server_that_breaks_off_all_is_an_error_and_gives_no_part_of_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    filled(tmp_path, MANY)
    monkeypatch.setattr(listing, "_getdents", breaking_off(call, float("inf")))
    with pytest.raises(OSError, match="breaks off") as error:
        LockDirectory(str(tmp_path)).listdir()
    assert error.value.errno == errno.ESTALE


def test_nobody_gets_in_by_a_part_of_a_listing_and_the_number_is_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "major", lambda device: 0)  # a file system without a disk of this machine
    monkeypatch.setattr(listing, "_ROOM", 300)  # two names a call: holders' and numbers in different ones
    path = tmp_path / "data"
    holder, other = (SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02) for _ in range(2))
    with holder.write_lock(5):
        pass
    with holder.read_lock(5):
        with monkeypatch.context() as patch:
            patch.setattr(listing, "_getdents", breaking_off(1, 3))
            assert holder.generation == 1
        for call in (1, 2, 3):
            with monkeypatch.context() as patch:
                patch.setattr(listing, "_getdents", breaking_off(call, float("inf")))
                with pytest.raises(Timeout):
                    other.acquire_write(0.3)
    with other.write_lock(5):
        assert other.generation == 2
