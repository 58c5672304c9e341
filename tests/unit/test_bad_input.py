"""
Bad input: one line that names the path and the remedy, and nothing left behind; or it simply works.

The Python classes here; what the command line makes of the same is tested with the command line.
"""

from __future__ import annotations

import asyncio
import math
import os
import pickle
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsrwlock_core import (
    AsyncSoftReadWriteLock,
    LockError,
    LockPathError,
    LockSet,
    SoftReadWriteLock,
    Timeout,
    break_lock,
    inspect,
)
from nfsrwlock_core.names import Identity, Mode, announcement_name
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.process import current_identity
from other_users import ALICE, BOB, EVE, as_user, directory_of, needs_root
from small_disks import fill, remount_read_only, small_disk

TOKEN = "ab" * 16
#: Long enough for a machine that is busy with other tests, short enough for many of them.
SOON = 20.0


def take_read(path, timeout=SOON, **settings):
    lock = SoftReadWriteLock(path, timeout, is_singleton=False, **settings)
    with lock.read_lock():
        return lock.lock_path


def take_write(path, timeout=SOON, **settings):
    lock = SoftReadWriteLock(path, timeout, is_singleton=False, **settings)
    with lock.write_lock():
        return lock.lock_path


def take_set(path, timeout=SOON, **settings):
    with LockSet(write=[path], timeout=timeout, **settings) as held:
        return held.locks[0].lock_path


def take_async(path, timeout=SOON, **settings):
    async def take():
        lock = AsyncSoftReadWriteLock(path, timeout, is_singleton=False, **settings)
        async with lock.write_lock():
            return lock.lock_path

    return asyncio.run(take())


WAYS = [take_read, take_write, take_set, take_async]
every_way = pytest.mark.parametrize("take", WAYS)

# Imported while the libraries can be read: children that act as other users cannot read them.
assert ALICE
assert pickle.dumps(current_identity())


@pytest.fixture(autouse=True)
def _lock_beside_the_data(monkeypatch):
    monkeypatch.delenv("NFSRWLOCK_DIR", raising=False)


def everything(top: Path) -> set[str]:
    """All that is below a directory."""
    return {
        os.path.join(where, name) for where, *kinds in os.walk(os.fsencode(top)) for names in kinds for name in names
    }


def refusal(take: Callable, path, *, top: Path, **settings) -> str:
    """Return the one line that says why the lock cannot live there, after making sure that it left nothing behind."""
    before = everything(top)
    with pytest.raises(LockPathError) as caught:
        take(path, **settings)
    assert everything(top) == before
    return one_line(caught.value, path)


def one_line(error: Exception, path) -> str:
    """Return the message, after making sure that it is one printable line with the path and a remedy."""
    message = str(error)
    assert message.isprintable(), "no line breaks, no terminal escapes"
    assert repr(os.fsdecode(path))[1:-1].rstrip("'") in message
    if isinstance(error, LockPathError):
        assert isinstance(error, LockError)
        assert isinstance(error, OSError)
        assert error.remedy in message
        assert str(pickle.loads(pickle.dumps(error))) == message
    return message


# -- where the lock should live ----------------------------------------------------------------------------------------


@every_way
def test_a_missing_directory_is_made(tmp_path, take):
    """As filelock does; the command line asks for --parents."""
    assert take(tmp_path / "a" / "b" / "data") == str(tmp_path / "a" / "b" / "data.rwlock")
    assert (tmp_path / "a" / "b" / "data.rwlock").is_dir()


@every_way
@pytest.mark.root
def test_a_read_only_file_system_is_refused(tmp_path, take):
    with small_disk(tmp_path / "disk") as disk:
        remount_read_only(disk)
        message = refusal(take, disk / "data", top=tmp_path)
        assert "read-only" in message
        assert "NFSRWLOCK_DIR" in message
        assert take(disk / "data", lock_dir=tmp_path / "locks"), "the remedy works"


class TestOtherUsers:
    pytestmark = needs_root

    @every_way
    def test_a_directory_without_the_right_to_write_is_refused(self, take):
        with directory_of(ALICE, mode=0o755) as place:
            message = as_user(BOB, lambda: refusal(take, place / "data", top=place))
            assert "permission" in message
            assert "NFSRWLOCK_DIR" in message

    @every_way
    def test_a_directory_that_one_may_not_even_enter_is_refused(self, take):
        with directory_of(ALICE, mode=0o700) as place:
            message = as_user(BOB, lambda: refusal(take, place / "data", top=place.parent))
            assert "permission" in message

    @every_way
    def test_another_users_lock_directory_is_refused(self, take):
        with directory_of(0, mode=0o1777) as place:
            as_user(EVE, lambda: take_write(place / "data"))
            message = as_user(ALICE, lambda: refusal(take, place / "data", top=place))
            assert str(EVE) in message
            assert "share='group'" in message

    def test_the_state_of_another_users_lock_cannot_be_shown(self):
        with directory_of(0, mode=0o1777) as place:
            as_user(EVE, lambda: take_write(place / "data"))

            def alice():
                with pytest.raises(LockPathError) as caught:
                    inspect(place / "data")
                return one_line(caught.value, place / "data")

            assert "permission" in as_user(ALICE, alice)

    def test_another_users_markers_cannot_be_broken(self):
        with directory_of(0, mode=0o1777) as place:
            (place / "data.rwlock").mkdir(mode=0o755)
            (place / "data.rwlock").chmod(0o755)
            (place / "data.rwlock" / foreign_name(Mode.WRITE)).mkdir()

            def alice():
                with pytest.raises(LockPathError) as caught:
                    break_lock(place / "data")
                return one_line(caught.value, place / "data")

            assert "permission" in as_user(ALICE, alice)
            assert len(everything(place)) == 2


@every_way
def test_a_lock_directory_that_is_a_symbolic_link_is_refused(tmp_path, take):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "data.rwlock").symlink_to("elsewhere")
    message = refusal(take, tmp_path / "data", top=tmp_path)
    assert "symbolic link" in message
    assert "remove the link" in message


@every_way
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "FIFO"])
def test_a_lock_directory_that_is_something_else_is_refused(tmp_path, take, make):
    make(tmp_path / "data.rwlock")
    message = refusal(take, tmp_path / "data", top=tmp_path)
    assert "move it away" in message


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("ask", [inspect, break_lock])
def test_the_state_of_a_lock_directory_that_is_something_else_is_an_error_too(tmp_path, ask, make):
    make(tmp_path / "data.rwlock")
    with pytest.raises(LockPathError) as caught:
        ask(tmp_path / "data")
    one_line(caught.value, tmp_path / "data")


@every_way
def test_data_below_a_file_is_refused(tmp_path, take):
    (tmp_path / "file").write_text("")
    message = refusal(take, tmp_path / "file" / "data", top=tmp_path)
    assert "correct the path" in message


@every_way
def test_a_lock_of_a_group_is_refused_to_a_single_user(tmp_path, take):
    take_write(tmp_path / "data", share="group")
    assert "share='group'" in refusal(take, tmp_path / "data", top=tmp_path)


@every_way
@pytest.mark.root
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_is_refused(tmp_path, take, there):
    with small_disk(tmp_path / "disk") as disk:
        if there:
            take_write(disk / "data")
        fill(disk)
        message = refusal(take, disk / "data", top=disk)
        assert "space" in message
        assert "NFSRWLOCK_DIR" in message


@every_way
@pytest.mark.root
def test_a_lock_that_is_held_is_released_on_a_full_disk(tmp_path, take):
    with small_disk(tmp_path / "disk") as disk:
        lock = SoftReadWriteLock(disk / "data", SOON, is_singleton=False)
        with lock.write_lock():
            fill(disk)
        for filler in list(disk.glob("filler-*"))[:4]:
            filler.rmdir()
        take(disk / "data")


@every_way
def test_a_file_system_without_a_needed_guarantee_is_refused(tmp_path, take, monkeypatch):
    """PROTOCOL.md section 6 (b): a listing must show what this process has just made."""

    def blind(self, name=""):
        return []

    monkeypatch.setattr(LockDirectory, "listdir", blind)
    with pytest.raises(LockPathError) as caught:
        take(tmp_path / "data")
    message = one_line(caught.value, tmp_path / "data")
    assert "listings" in message
    assert "another file system" in message
    assert os.listdir(tmp_path / "data.rwlock") == []


# -- names of the data -------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("length", [249, 255])
def test_a_name_that_is_too_long_is_refused_and_the_remedy_works(tmp_path, take, length):
    """The lock's name is seven bytes longer than the data's, which may be as long as the file system allows."""
    path = tmp_path / ("x" * length)
    path.write_text("the data may have such a name")
    message = refusal(take, path, top=tmp_path)
    assert "too long" in message
    assert "lock_dir=" in message
    assert take(path, lock_dir=tmp_path / "locks")


@every_way
def test_the_longest_name_that_fits_works(tmp_path, take):
    assert take(tmp_path / ("x" * 248))


@every_way
def test_a_name_that_is_too_long_leaves_no_directories_behind_either(tmp_path, take):
    refusal(take, tmp_path / "new" / "er" / ("x" * 255), top=tmp_path)


@every_way
def test_a_path_that_is_too_long_is_refused(tmp_path, take):
    refusal(take, str(tmp_path) + "/x" * 4096, top=tmp_path)


STRANGE = [
    b"two\nlines",
    b"\n",
    b"tab\tand \x1b[31mred",
    b"no utf-8 \xff\xfe\x80",
    b"caf\xe9",
    "größe 🧬".encode(),
    b" leading and trailing ",
    b"-n",
    b"%s {0} $HOME `id` ;",
    b"'quote\"",
    b"\\back\\slash",
    b"*?[a-z]",
]


@every_way
@pytest.mark.parametrize("name", STRANGE)
def test_a_path_with_newlines_or_bytes_that_are_no_utf8_works(tmp_path, take, name):
    path = os.fsencode(tmp_path) + b"/" + name
    assert os.fsencode(take(path)) == path + b".rwlock"
    assert os.fsencode(take(os.fsdecode(path))) == path + b".rwlock", "bytes and text name the same lock"
    assert os.path.isdir(path + b".rwlock")
    assert inspect(path).exists
    assert inspect(path).holders == ()


@pytest.mark.parametrize("name", STRANGE)
def test_errors_about_strange_paths_are_one_line(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    held = SoftReadWriteLock(path, is_singleton=False)
    with held.write_lock(), pytest.raises(Timeout) as caught:
        take_read(path, timeout=0)
    one_line(caught.value, path)
    os.rmdir(path + b".rwlock/gen.1")
    os.rmdir(path + b".rwlock")
    os.symlink(b"nowhere", path + b".rwlock")
    with pytest.raises(LockPathError) as refused:
        take_read(path)
    one_line(refused.value, path)


@pytest.mark.parametrize("name", STRANGE)
def test_strange_paths_work_below_a_lock_directory_too(tmp_path, name):
    path = os.fsencode(tmp_path) + b"/" + name
    lock_path = take_write(path, lock_dir=tmp_path / "locks")
    assert os.path.basename(lock_path).isascii()
    assert os.path.basename(lock_path).isprintable()


@pytest.mark.parametrize("take", [*WAYS, inspect, break_lock])
@pytest.mark.parametrize("path", ["", b"", "a\0b", b"a\0b"])
def test_what_cannot_be_a_path_is_refused(tmp_path, monkeypatch, take, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path") as caught:
        take(path)
    assert str(caught.value).isprintable()
    assert everything(tmp_path) == set()


@every_way
@pytest.mark.parametrize("path", [None, 7, 1.5, object()])
def test_what_is_no_path_at_all_is_a_type_error(take, path):
    with pytest.raises(TypeError):
        take(path)


# -- settings ----------------------------------------------------------------------------------------------------------

BAD_SETTINGS = [
    {"heartbeat_interval": -1},
    {"heartbeat_interval": 0},
    {"heartbeat_interval": math.nan},
    {"heartbeat_interval": math.inf},
    {"heartbeat_interval": 30, "stale_threshold": 30},
    {"heartbeat_interval": 30, "stale_threshold": 10},
    {"stale_threshold": -90},
    {"stale_threshold": math.nan},
    {"stale_threshold": math.inf},
    {"heartbeat_interval": 1e-5, "stale_threshold": 2e-4, "poll_interval": 1e-5},
    {"heartbeat_interval": 1, "stale_threshold": 1e9},
    {"poll_interval": 0},
    {"poll_interval": -0.25},
    {"poll_interval": math.nan},
    {"poll_interval": 90},
    {"heartbeat_interval": 0.05, "poll_interval": 0.25},
    {"heartbeat": "fork"},
    {"share": "world"},
]


@every_way
@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_negative_nan_or_inconsistent_settings_are_refused(tmp_path, take, settings):
    with pytest.raises(ValueError, match="must") as caught:
        take(tmp_path / "data", **settings)
    message = str(caught.value)
    assert message.isprintable()
    assert any(name in message for name in settings)
    assert everything(tmp_path) == set()


@every_way
@pytest.mark.parametrize("timeout", [-2, -0.5, math.nan])
def test_a_timeout_that_is_no_time_is_refused(tmp_path, take, timeout):
    with pytest.raises(ValueError, match="timeout must be"):
        take(tmp_path / "data", timeout=timeout)
    assert everything(tmp_path) == set()


@pytest.mark.parametrize("interval", [1e9, threading.TIMEOUT_MAX])
def test_an_interval_that_makes_the_lease_too_long_is_named(tmp_path, interval):
    with pytest.raises(ValueError, match=r"stale_threshold must be between .*heartbeat_interval\)"):
        SoftReadWriteLock(tmp_path / "data", heartbeat_interval=interval)


@every_way
@pytest.mark.parametrize("timeout", [1e10, 1e300])
def test_a_timeout_beyond_what_clocks_can_count_is_none(tmp_path, take, timeout):
    take(tmp_path / "data", timeout=timeout)


def test_a_path_below_a_current_directory_that_was_removed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    for ask in (take_read, inspect):
        with pytest.raises(LockPathError, match="relative to the current directory, which has been removed"):
            ask("data")


def test_a_directory_of_locks_whose_name_holds_a_null_byte_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lock_dir must be the path of a directory"):
        take_read(tmp_path / "data", lock_dir="a\0b")


@every_way
@pytest.mark.parametrize(
    "settings",
    [
        {"heartbeat_interval": "30"},
        {"heartbeat_interval": True},
        {"stale_threshold": "90"},
        {"poll_interval": None},
        {"timeout": "5"},
        {"timeout": True},
        {"blocking": "no"},
    ],
    ids=str,
)
def test_settings_of_a_wrong_type_are_refused(tmp_path, take, settings):
    with pytest.raises(TypeError) as caught:
        take(tmp_path / "data", **settings)
    assert any(name in str(caught.value) for name in settings)
    assert everything(tmp_path) == set()


# -- hostile and unknown entries ---------------------------------------------------------------------------------------


def foreign_name(
    mode: Mode, *, token: str = TOKEN, lease_ms: int = 90_000, since_ms: int = 0, who: Identity | None = None
):
    """The name of an announcement of another host."""
    who = who or Identity(pid=4711, start=1, kernel="0", uid=0, host="node9")
    return announcement_name(mode, token=token, ticket=1, lease_ms=lease_ms, who=who, since_ms=since_ms)


def ours(**changes) -> Identity:
    """This process, but for some fields."""
    me = current_identity()
    fields = {"pid": me.pid, "start": me.start, "kernel": me.kernel, "uid": me.uid, "host": me.host}
    return Identity(**{**fields, **changes})


UNKNOWN = [
    "write.v2.0123",
    "read.v2.0123",
    "write.",
    "read.",
    "write." + "x" * 249,
    "write.\udcff\udcfe",
    "write.\x1b[2J\n",
]

HOSTILE = {
    "no such pid": foreign_name(Mode.WRITE, who=ours(pid=10**18)),
    "pid 0": foreign_name(Mode.WRITE, who=ours(pid=0)),
    "pid 1": foreign_name(Mode.WRITE, who=ours(pid=1, start=1)),
    "a user that nobody is": foreign_name(Mode.WRITE, who=ours(uid=10**18)),
    "a time that no calendar has": foreign_name(Mode.WRITE, since_ms=10**18, who=ours(host="node9")),
    "a lease of months": foreign_name(Mode.WRITE, lease_ms=10**10 - 1),
    "a lease of a millisecond": foreign_name(Mode.WRITE, lease_ms=1),
    "a host with line breaks": foreign_name(Mode.WRITE, who=ours(host="a\nb\x1b[2J\x07", kernel="0")),
    "a host with markup": foreign_name(Mode.WRITE, who=ours(host="[red]%s{0}", kernel="0")),
    "a host without a name": foreign_name(Mode.WRITE, who=ours(host="", kernel="0")),
    "a note": f"seen.{TOKEN}.9999999999999999999.9999999999999999999",
    "a number": "gen.9" + "9" * 11,
    "junk": "\x01" * 255,
    "a leftover": "gone." + "f" * 64,
    **{f"unknown {number}": name for number, name in enumerate(UNKNOWN)},
}


def make_directory(path) -> None:
    os.mkdir(path)


def make_full_directory(path) -> None:
    os.mkdir(path)
    Path(path, "beat.0").write_bytes(b"\xff" * 10_000)
    Path(path, "beat.9999999999999999999").symlink_to("/dev/zero")
    os.mkfifo(os.path.join(path, "beat.18"))
    os.mkdir(os.path.join(path, "beat.19"))


def make_file(path) -> None:
    Path(path).write_bytes(b"")


def make_link(path) -> None:
    os.symlink("nowhere", path)


def make_loop(path) -> None:
    os.symlink(os.path.basename(path), path)


def make_device(path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero never ends
    except OSError as error:
        pytest.skip(f"cannot make a device here: {error}")


KINDS = [make_directory, make_full_directory, make_file, os.mkfifo, make_link, make_loop, make_device]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", UNKNOWN)
def test_a_marker_of_an_unknown_format_counts_as_held_and_says_so(tmp_path, name, make):
    lock_path = tmp_path / "data.rwlock"
    lock_path.mkdir(mode=0o700)
    make(lock_path / name)
    for take in (take_read, take_write):
        with pytest.raises(Timeout) as caught:
            take(tmp_path / "data", timeout=0)
        message = one_line(caught.value, tmp_path / "data")
        assert "unknown format" in message
        assert "nfsrwlock break" in message
        assert [peer.understood for peer in caught.value.holders] == [False]
    state = inspect(tmp_path / "data")
    (holder,) = state.holders
    assert (holder.mode, holder.understood, holder.name) == ("unknown", False, name)
    assert holder.describe().isprintable()
    # But a note, where the machine was so busy that the marker was watched for a while.
    left = {entry for entry in os.listdir(lock_path) if not entry.startswith("seen.")}
    assert left == {name}, "nothing of ours is left"


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", UNKNOWN)
def test_a_marker_of_an_unknown_format_can_be_broken(tmp_path, name, make):
    """What its message advises works, and takes nothing but the marker."""
    lock_path = tmp_path / "data.rwlock"
    lock_path.mkdir(mode=0o700)
    make(lock_path / name)
    removed = break_lock(tmp_path / "data")
    assert [peer.name for peer in removed] == [name]
    take_write(tmp_path / "data")
    assert name not in os.listdir(lock_path)


@every_way
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_name_however_hostile_makes_an_acquire_fail_in_another_way_than_a_timeout(tmp_path, take, kind):
    """It is had, or it is held; and what is said of it is one printable line."""
    lock_path = tmp_path / "data.rwlock"
    lock_path.mkdir(mode=0o700)
    (lock_path / HOSTILE[kind]).mkdir()
    try:
        take(tmp_path / "data", timeout=0)
    except Timeout as timeout:
        message = one_line(timeout, tmp_path / "data")
        assert len(message) < 1000
    for peer in inspect(tmp_path / "data").holders:
        assert peer.describe().isprintable()
        assert len(peer.describe()) < 1000
    break_lock(tmp_path / "data", force=True)
    take(tmp_path / "data")


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("make", [make_full_directory, make_file, os.mkfifo, make_link])
def test_no_kind_of_entry_however_hostile_blocks_or_breaks_the_readers_of_a_lock(tmp_path, make, kind):
    """A FIFO that nobody writes to must not be opened and waited for, and /dev/zero must not be read to its end."""
    lock_path = tmp_path / "data.rwlock"
    lock_path.mkdir(mode=0o700)
    make(lock_path / HOSTILE[kind])
    state = inspect(tmp_path / "data")
    assert all(peer.describe().isprintable() for peer in state.holders)
    state.to_dict()
    try:
        take_write(tmp_path / "data", timeout=0)
    except Timeout as timeout:
        one_line(timeout, tmp_path / "data")


def test_thousands_of_foreign_entries_are_only_slow(tmp_path):
    lock_path = tmp_path / "data.rwlock"
    lock_path.mkdir(mode=0o700)
    for number in range(3000):
        (lock_path / f"{number}{'x' * 240}").touch()
    assert take_write(tmp_path / "data")
    assert len(os.listdir(lock_path)) == 3001
