"""The real files (PROTOCOL.md sections 1 and 6): what is made and refused, the six operations, who may take part."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import signal
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from nfsrwlock_core.errors import LockPathError
from nfsrwlock_core.inspection import inspect
from nfsrwlock_core.names import Identity, Mode, announcement_name, parse_announcement
from nfsrwlock_core.protocol.heartbeat import Beat, Phase, World, fresh_token
from nfsrwlock_core.protocol.participant import Participant
from nfsrwlock_core.protocol.removal import evict
from nfsrwlock_core.system import directory, mounts
from nfsrwlock_core.system.directory import LockDirectory
from other_users import ALICE, BOB, EVE, TEAM, as_user, directory_of, needs_root
from small_disks import fill, fill_blocks, free_one, small_disk

assert pwd  # imported for the children that act as other users


@pytest.fixture
def lock_path(tmp_path: Path) -> str:
    return str(tmp_path / "data.rwlock")


@pytest.fixture
def files(lock_path: str) -> LockDirectory:
    opened = LockDirectory(lock_path)
    opened.open()
    return opened


def opened(path: str | Path, share: directory.Share = "user") -> LockDirectory:
    lock_directory = LockDirectory(str(path), share)
    lock_directory.open()
    return lock_directory


def refusal(path: str | Path, share: directory.Share = "user") -> str:
    """The one line that says why a lock cannot live at this path."""
    with pytest.raises(LockPathError) as caught:
        LockDirectory(str(path), share).open()
    message = str(caught.value)
    assert "\n" not in message
    assert repr(str(path)) in message, "it names the path"
    assert "; " in message, "and the remedy"
    return message


@pytest.mark.parametrize(("fstype", "allowed", "is_refused"), [("cifs", "", 1), ("cifs", "1", 0), ("nfs4", "", 0)])
def test_a_lock_on_smb_is_refused_unless_somebody_takes_the_risk(
    tmp_path: Path, lock_path: str, monkeypatch: pytest.MonkeyPatch, fstype: str, allowed: str, is_refused: int
) -> None:
    device = tmp_path.stat().st_dev
    monkeypatch.setattr(os, "major", lambda device: 0)  # as of every file system that has no disk of this machine
    number = f"{os.major(device)}:{os.minor(device)}"
    (tmp_path / "mountinfo").write_text(f"29 1 {number} / /mnt rw,relatime shared:1 - {fstype} //srv/fs rw\n")
    monkeypatch.setattr(mounts, "_PROC", str(tmp_path))
    directory._is_on_smb.cache_clear()
    monkeypatch.setenv("NFSRWLOCK_UNFIT", allowed)
    if is_refused:
        assert "lies on SMB" in refusal(lock_path)
    else:
        opened(lock_path)


def test_of_a_lock_on_a_disk_of_this_machine_the_mounts_are_not_asked(
    lock_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(mounts, "_read", lambda name: asked.append(name) or "")
    for major, expected in ((253, []), (0, ["mountinfo"])):
        monkeypatch.setattr(os, "major", lambda device, major=major: major)
        directory._is_on_smb.cache_clear()
        opened(lock_path)
        assert asked == expected


def participant(files: LockDirectory, mode: Mode = Mode.WRITE, *, ttl: float = 90.0, host: str = "here") -> Participant:
    """A participant of the shipped protocol on real files, on a clock that stands still."""
    return Participant(
        files,
        World(clock=lambda: 0.0, is_dead=lambda _: False, token=fresh_token),
        Identity(pid=os.getpid(), start=1, kernel="0", uid=os.geteuid(), host=host),
        mode,
        ttl=ttl,
        interval=ttl / 3,
        ticket=1,
        since_ms=0,
        record=b'{"user": "somebody"}',
    )


def looked_at(path: Path) -> str:
    with pytest.raises(LockPathError) as caught:
        inspect(path)
    return str(caught.value)


def announcement(mode: Mode = Mode.WRITE) -> str:
    who = Identity(pid=1, start=1, kernel="0", uid=0, host="elsewhere")
    return announcement_name(mode, token=fresh_token(), ticket=1, lease_ms=90_000, who=who, since_ms=0)


# -- making it ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_lock_directory_is_for_its_user_only(lock_path, umask):
    """Section 1: P.rwlock/ (mode 0700), whatever the umask."""
    before = os.umask(umask)
    try:
        opened(lock_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(lock_path).st_mode) == 0o700


def test_missing_parents_are_made(tmp_path):
    """As filelock does."""
    opened(tmp_path / "a" / "b" / "data.rwlock")
    assert (tmp_path / "a" / "b" / "data.rwlock").is_dir()


def test_parents_that_were_made_in_vain_are_removed(tmp_path):
    """An error leaves nothing behind."""
    with pytest.raises(OSError, match="too long"):
        opened(tmp_path / "a" / "b" / ("x" * 300))
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_was_there_stays_when_the_making_fails(tmp_path):
    """Only what was made is removed."""
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="too long"):
        opened(tmp_path / "a" / "b" / ("x" * 300))
    assert list((tmp_path / "a").iterdir()) == []


def test_a_lock_directory_that_is_there_is_used_and_not_changed(lock_path):
    """Any number of processes use it."""
    opened(lock_path).mkdir("gen.1")
    before = os.stat(lock_path)
    assert opened(lock_path).listdir() == ["gen.1"]
    after = os.stat(lock_path)
    assert (before.st_mode, before.st_ino) == (after.st_mode, after.st_ino)


def test_many_that_make_it_at_once_agree(lock_path):
    """Section 6 (a): mkdir of a name either makes it or fails, for all alike."""
    start, problems = threading.Barrier(8), []

    def make():
        start.wait()
        try:
            opened(lock_path).mkdir(announcement())
        except OSError as error:
            problems.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(os.listdir(lock_path)) == 8


def test_an_open_directory_tells_its_file_system(files, tmp_path):
    """Beats are kept per file system."""
    assert files.device == os.stat(tmp_path).st_dev


def test_descriptors_are_given_back_and_not_inherited(lock_path):
    """A program may hold thousands of locks, and start others."""

    def descriptors() -> set[str]:
        return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()

    before = descriptors()
    files = opened(lock_path)
    # The listing itself has one more, which is closed by now.
    assert not any(
        os.get_inheritable(int(new)) for new in descriptors() - before if os.path.exists(f"/proc/self/fd/{new}")
    )
    for _ in range(50):
        files.mkdir("write.x")
        files.create("write.x/beat.0", b"{}")
        files.listdir()
        files.listdir("write.x")
        files.rename("write.x/beat.0", "write.x/beat.1")
        files.unlink("write.x/beat.1")
        files.rmdir("write.x")
    files.close()
    files.close()
    assert len(descriptors()) <= len(before)
    files.open()
    assert files.listdir() == []


@pytest.mark.parametrize("op", ["mkdir", "rmdir", "listdir", "unlink"])
def test_a_lock_directory_that_was_removed_is_not_made_again_by_a_call(files, lock_path, op):
    """Only open() makes it; a call on the way says that it is missing."""
    os.rmdir(lock_path)
    with pytest.raises(FileNotFoundError):
        getattr(files, op)(*(("",) if op == "listdir" else ("x",)))
    assert not os.path.exists(lock_path)


# -- what is in its place ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dangling", [True, False])
def test_a_symbolic_link_is_refused_and_not_followed(tmp_path, dangling):
    """A link in a directory that others can write would let them choose where we make and remove entries."""
    target = tmp_path / "elsewhere"
    if not dangling:
        target.mkdir(mode=0o700)
    (tmp_path / "data.rwlock").symlink_to(target)
    message = refusal(tmp_path / "data.rwlock")
    assert "symbolic link" in message
    assert "remove the link" in message
    assert target.exists() is not dangling
    assert dangling or list(target.iterdir()) == []


def make_file(path: Path) -> None:
    path.write_text("data")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a device")
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError as error:
        pytest.skip(f"cannot make a device here: {error}")


@pytest.mark.parametrize("make", [make_file, os.mkfifo, make_socket, make_device])
@pytest.mark.parametrize("share", ["user", "group"])
def test_something_else_in_its_place_is_refused_at_once(tmp_path, share, make):
    """A FIFO that nobody writes to would block an open for ever."""
    path = tmp_path / "data.rwlock"
    make(path)
    before = path.lstat()
    message = refusal(path, share)
    assert "is no directory" in message
    assert "move it away" in message
    assert path.lstat() == before


def test_a_path_below_a_file_is_refused(tmp_path):
    """The data's directory is a file."""
    (tmp_path / "file").write_text("")
    message = refusal(tmp_path / "file" / "data.rwlock")
    assert "correct the path" in message


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o701, 0o770, 0o2770])
def test_a_directory_that_is_open_to_others_is_refused(lock_path, mode):
    """Section 1: in user mode, whoever can write here could evict at will."""
    os.mkdir(lock_path)
    os.chmod(lock_path, mode)
    message = refusal(lock_path)
    assert f"{mode:04o}" in message
    assert os.listdir(lock_path) == []


def test_a_lock_of_one_user_is_refused_in_group_mode(lock_path, monkeypatch):
    """Issue: a lock of one mode opened in another gets a clear error, at once: it is not half made."""
    monkeypatch.setattr(directory, "_HALF_MADE_S", 1e6)
    opened(lock_path)
    message = refusal(lock_path, "group")
    assert "share='user'" in message
    assert stat.S_IMODE(os.stat(lock_path).st_mode) == 0o700, "nothing was changed"


def test_a_lock_of_a_group_is_refused_in_user_mode(lock_path):
    """Issue: a lock of one mode opened in another gets a clear error."""
    opened(lock_path, "group")
    assert "share='group'" in refusal(lock_path, "user")


def test_a_group_lock_that_is_being_made_is_waited_for(lock_path, monkeypatch):
    """Its mode is set right after its mkdir; who comes in between must not call it another user's."""
    monkeypatch.setattr(directory, "_HALF_MADE_S", 30.0)
    os.mkdir(lock_path, 0o1700)  # as it has just been made
    finish = threading.Timer(0.3, os.chmod, (lock_path, 0o2770))
    finish.start()
    opened(lock_path, "group")
    finish.join()


def test_a_group_lock_that_is_finished_right_after_the_look_is_no_other_users(lock_path, monkeypatch):
    os.mkdir(lock_path, 0o1700)
    check = LockDirectory._check

    def check_and_finish(files, found):
        try:
            return check(files, found)
        finally:
            os.chmod(lock_path, 0o2770)

    monkeypatch.setattr(LockDirectory, "_check", check_and_finish)
    opened(lock_path, "group")


def test_a_group_lock_that_comes_and_goes_may_be_met_half_made_many_times(lock_path, monkeypatch):
    """Each time it is finished right after the look, and another one has begun to be made before the next look."""
    os.mkdir(lock_path, 0o1700)
    check, anew = LockDirectory._check, iter(range(5))

    def check_and_finish(files, found):
        try:
            return check(files, found)
        finally:
            os.chmod(lock_path, 0o2770)

    def another(seconds):
        if next(anew, None) is not None:
            os.rmdir(lock_path)
            os.mkdir(lock_path, 0o1700)

    monkeypatch.setattr(LockDirectory, "_check", check_and_finish)
    monkeypatch.setattr(directory.time, "sleep", another)
    opened(lock_path, "group")
    assert next(anew, None) is None


def test_what_is_no_half_made_group_lock_is_not_removed(lock_path, monkeypatch):
    """A half-made one is empty."""
    monkeypatch.setattr(directory, "_HALF_MADE_S", 0.1)
    os.mkdir(lock_path, 0o1700)
    Path(lock_path, "precious").touch()
    assert "share='user'" in refusal(lock_path, "group")
    assert os.listdir(lock_path) == ["precious"]


def test_a_half_made_group_lock_that_another_one_removes_and_makes_first_is_waited_for_anew(lock_path, monkeypatch):
    """Several who have waited for one maker come at a time."""
    monkeypatch.setattr(directory, "_HALF_MADE_S", 0.1)
    os.mkdir(lock_path, 0o1700)
    rmdir = os.rmdir

    def too_late(path: str) -> None:
        monkeypatch.setattr(os, "rmdir", rmdir)
        rmdir(path)
        os.mkdir(path, 0o1700)  # the other one's, who is killed as well
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    monkeypatch.setattr(os, "rmdir", too_late)
    opened(lock_path, "group")
    assert os.rmdir is rmdir
    assert stat.S_IMODE(os.stat(lock_path).st_mode) == 0o2770


def test_a_directory_that_is_removed_while_its_owner_is_looked_at_is_nobody_elses(lock_path, monkeypatch):
    """Where a server maps all users to one, a probe tells whose it is; a probe that cannot be made tells nothing."""
    user, mkdir = os.geteuid(), os.mkdir
    os.mkdir(lock_path, 0o700)
    monkeypatch.setattr(directory.os, "geteuid", lambda: user + 1)  # what is made belongs to another user
    opened(lock_path).close()

    def removed_before(path, mode=0o777, *, dir_fd=None):
        if dir_fd is not None:
            os.rmdir(lock_path)
        mkdir(path, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(directory.os, "mkdir", removed_before)
        with pytest.raises(FileNotFoundError):
            opened(lock_path)
    opened(lock_path).close()


# -- the six operations ------------------------------------------------------------------------------------------------


def test_a_name_is_made_once(files):
    """Section 6 (a)."""
    files.mkdir("write.x")
    with pytest.raises(FileExistsError):
        files.mkdir("write.x")
    files.create("write.x/beat.0", b"{}")
    with pytest.raises(FileExistsError):
        files.create("write.x/beat.0", b"other")
    assert os.readlink(Path(files.path, "write.x", "beat.0")) == "{}"


def failing(monkeypatch, number, *, if_longer_than=0):
    """Let ``symlink`` fail."""
    symlink = os.symlink

    def fail(text, *names, **places):
        if len(text) > if_longer_than:
            raise OSError(number, os.strerror(number))
        symlink(text, *names, **places)

    monkeypatch.setattr(os, "symlink", fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG])
def test_a_first_heartbeat_for_whose_record_there_is_no_room_is_made_without_it(files, monkeypatch, number):
    """Section 5: a full disk must not cost a hold; a short text lies in the inode."""
    files.mkdir("write.x")
    failing(monkeypatch, number, if_longer_than=59)
    files.create("write.x/beat.0", b"long" * 100)
    assert os.readlink(Path(files.path, "write.x", "beat.0")) == "{}"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_symbolic_links_a_file_is_the_heartbeat(files, monkeypatch, number):
    """symlink(2) says EPERM for a file system without them."""
    files.mkdir("write.x")
    failing(monkeypatch, number)
    files.create("write.x/beat.0", b"{}")
    assert Path(files.path, "write.x", "beat.0").read_bytes() == b""
    with pytest.raises(FileExistsError):
        files.create("write.x/beat.0", b"{}")
    files.rename("write.x/beat.0", "write.x/beat.1")
    files.unlink("write.x/beat.1")
    files.rmdir("write.x")


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, errno.ESTALE, errno.EACCES, errno.ENOSPC])
def test_any_other_trouble_with_a_first_heartbeat_is_told(files, monkeypatch, number):
    files.mkdir("write.x")
    failing(monkeypatch, number)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked
        files.create("write.x/beat.0", b"{}")
    assert caught.value.errno == number
    assert files.listdir("write.x") == []


def test_a_directory_with_an_entry_is_not_removed(files):
    """Section 6 (c), the compare-and-swap of section 4."""
    files.mkdir("write.x")
    files.create("write.x/beat.0", b"{}")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked
        files.rmdir("write.x")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    assert files.listdir("write.x") == ["beat.0"]


def test_a_beat_is_renamed_or_removed_once(files):
    """Section 6 (c)."""
    files.mkdir("write.x")
    files.create("write.x/beat.0", b"{}")
    files.rename("write.x/beat.0", "write.x/beat.1")
    for call in (lambda: files.rename("write.x/beat.0", "write.x/beat.1"), lambda: files.unlink("write.x/beat.0")):
        with pytest.raises(FileNotFoundError):
            call()
    files.unlink("write.x/beat.1")
    with pytest.raises(FileNotFoundError):
        files.rename("write.x/beat.1", "write.x/beat.2")
    files.rename("write.x", "gone.1")
    assert files.listdir() == ["gone.1"]


def test_of_a_rename_and_an_unlink_of_one_name_exactly_one_succeeds(files):
    """Section 6 (c), raced."""
    files.mkdir("write.x")
    outcomes = set()
    barrier, won = threading.Barrier(2), []

    def race(call, *args):
        barrier.wait()
        try:
            call(*args)
        except FileNotFoundError:
            return
        won.append(call.__name__)

    for _ in range(100):
        won.clear()
        files.create("write.x/beat.0", b"")
        other = threading.Thread(target=race, args=(files.unlink, "write.x/beat.0"))
        other.start()
        race(files.rename, "write.x/beat.0", "write.x/beat.1")
        other.join()
        assert len(won) == 1
        outcomes.update(won)
        if won == ["rename"]:
            files.unlink("write.x/beat.1")
    assert outcomes <= {"rename", "unlink"}


def test_of_a_first_beat_and_an_eviction_exactly_one_succeeds(files):
    """Section 6 (c), raced: holder's create of beat.0 against observer's rmdir of the announcement: never both."""
    barrier = threading.Barrier(2)
    evicted = []

    def observe():
        barrier.wait()
        try:
            files.rmdir("write.x")
        except OSError:
            evicted.append(False)
        else:
            evicted.append(True)

    for _ in range(100):
        files.mkdir("write.x")
        other = threading.Thread(target=observe)
        other.start()
        barrier.wait()
        try:
            files.create("write.x/beat.0", b"")
        except FileNotFoundError:
            beaten = False
        else:
            beaten = True
        other.join()
        assert beaten is not evicted[-1]
        if beaten:
            files.unlink("write.x/beat.0")
            files.rmdir("write.x")


def test_a_listing_opens_the_directory_anew(files, lock_path, tmp_path):
    """Sections 2 and 7: a descriptor kept open was seen to list 55 s late on NFS; a fresh open asks the server."""
    os.rename(lock_path, tmp_path / "moved")
    os.mkdir(lock_path)
    os.mkdir(f"{lock_path}/gen.7")
    assert files.listdir() == ["gen.7"]


def test_entries_are_for_their_user_only(files):
    """Section 1."""
    before = os.umask(0)
    try:
        files.mkdir("write.x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.lstat(f"{files.path}/write.x").st_mode) == 0o700


def test_the_protocol_runs_on_real_files(files):
    """All of sections 2 to 5 in one story; what each step must do is in the tests with files in memory."""
    writer = participant(files)
    assert writer.advance()
    assert (writer.generation, writer.beat(), writer.beat()) == (1, Beat.DONE, Beat.DONE)
    record = os.readlink(os.fsencode(Path(files.path, writer.name, "beat.1")))
    assert record == b'{"user": "somebody"}'
    other = opened(files.path)
    reader = participant(other, Mode.READ)
    assert not reader.advance()
    assert reader.phase is Phase.POLLING
    assert writer.release()
    assert reader.advance()
    assert reader.read_generation() == 1
    assert reader.release()
    assert files.listdir() == ["gen.1"]


# -- links inside ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(files, tmp_path) -> Path:
    """An announcement that is a symbolic link to a directory of ours; only an attacker makes such a thing."""
    target = tmp_path / "precious"
    target.mkdir(mode=0o700)
    (target / "beat.3").write_text("precious")
    os.symlink(target, f"{files.path}/write.trap")
    return target


@pytest.mark.parametrize("share", ["user", "group"])
def test_no_operation_follows_a_link_inside_the_lock_directory(tmp_path, share):
    """In a directory that a group shares, another member could put it there."""
    files = opened(tmp_path / "data.rwlock", share)
    target = tmp_path / "precious"
    target.mkdir(mode=0o700)
    (target / "beat.3").write_text("precious")
    os.symlink(target, f"{files.path}/write.trap")
    for call in (
        lambda: files.listdir("write.trap"),
        lambda: files.create("write.trap/beat.0", b"{}"),
        lambda: files.rename("write.trap/beat.3", "write.trap/beat.4"),
        lambda: files.unlink("write.trap/beat.3"),
        lambda: files.rmdir("write.trap"),
    ):
        with pytest.raises(OSError):  # noqa: PT011 - which one differs between systems
            call()
    assert [entry.name for entry in target.iterdir()] == ["beat.3"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


@pytest.mark.parametrize("beat", [None, 3])
def test_an_announcement_that_is_a_link_is_removed_without_its_target(files, trap, beat):
    """Section 1: it cannot beat, and nobody holds by it."""
    assert evict(files, parse_announcement("write.trap"), beat)
    assert files.listdir() == []
    assert (trap / "beat.3").read_text() == "precious"


@pytest.mark.parametrize(
    "make", [make_file, os.mkfifo, make_socket, make_device, lambda path: path.symlink_to("nowhere")]
)
def test_what_is_no_directory_ages_out_and_is_removed(files, make):
    """Section 1, issue: a FIFO or device where a directory should be. Looking at it must not block."""
    make(Path(files.path, "write.v2"))
    now = [0.0]
    reader = Participant(
        files,
        World(clock=lambda: now[0], is_dead=lambda _: False, token=fresh_token),
        Identity(pid=1, start=1, kernel="0", uid=0, host="here"),
        Mode.READ,
        ttl=90,
        interval=30,
        ticket=1,
        since_ms=0,
    )
    for _ in range(100):
        assert not reader.advance() or now[0] > 90
        if reader.phase is Phase.GRANTED:
            break
        now[0] += 1
    assert reader.phase is Phase.GRANTED
    assert files.listdir() == [reader.name]


def test_a_directory_that_cannot_be_read_counts_and_ages_out_on_the_servers_word(tmp_path):
    """Section 4: whether it has a beat cannot be seen, so the rmdir decides: it fails if there is one."""
    files = opened(tmp_path / "data.rwlock")
    name = announcement()
    files.mkdir(name)
    files.create(f"{name}/beat.0", b"")
    os.chmod(f"{files.path}/{name}", 0o300)
    try:
        assert not evict(files, parse_announcement(name), None)
    except PermissionError:
        pass
    finally:
        os.chmod(f"{files.path}/{name}", 0o700)
    assert files.listdir(name) == ["beat.0"]


# -- full and read-only disks ------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_full_disk_stops_announcements_but_no_heartbeat_but_the_first_and_no_release(tmp_path):
    """Section 5: a lock can be released on a full disk. Section 3: later beats are renames, which need no space."""
    with small_disk(tmp_path / "disk") as disk:
        files = opened(disk / "data.rwlock")
        reader = participant(files, Mode.READ)
        beating = participant(opened(disk / "data.rwlock"), Mode.READ)
        assert reader.advance()
        assert beating.advance()
        assert beating.beat() is Beat.DONE
        fill(disk)
        assert beating.beat() is Beat.DONE
        assert reader.beat() is Beat.UNKNOWN
        assert reader.beat_error is not None
        assert reader.beat_error.errno == errno.ENOSPC
        with pytest.raises(OSError, match="No space left"):
            participant(opened(disk / "data.rwlock"), Mode.READ).advance()
        free_one(disk)
        assert reader.beat() is Beat.DONE
        fill(disk)
        assert reader.release()
        assert beating.release()
        assert os.listdir(disk / "data.rwlock") == []


@pytest.mark.root
def test_a_beat_counts_although_its_record_does_not_fit(tmp_path):
    """Section 1: nothing depends on its content."""
    with small_disk(tmp_path / "disk", "size=64k,nr_inodes=64") as disk:
        files = opened(disk / "data.rwlock")
        reader = participant(files, Mode.READ)
        assert reader.advance()
        fill_blocks(disk)
        files.mkdir("write.x")
        files.create("write.x/beat.0", b"x" * 900)
        assert os.readlink(Path(files.path, "write.x", "beat.0")) == "{}", "there was no room for it"
        assert reader.beat() is Beat.DONE
        assert files.listdir(reader.name) == ["beat.0"]


# -- several users -----------------------------------------------------------------------------------------------------


def test_a_group_lock_is_made_for_the_group_of_its_parent(tmp_path):
    """Issue: markers that members of the directory's group can see, evict and clean."""
    before = os.umask(0o077)
    try:
        path = tmp_path / "data.rwlock"
        opened(path, "group")
    finally:
        os.umask(before)
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o2770
    assert found.st_gid == tmp_path.stat().st_gid


def swapped_after_the_making(monkeypatch, name, swap):
    """Let an attacker act right after our mkdir of ``name``."""
    mkdir = os.mkdir

    def make(path, *mode, **place):
        mkdir(path, *mode, **place)
        if os.path.basename(path) == name:
            monkeypatch.undo()
            swap(path)

    monkeypatch.setattr(os, "mkdir", make)


@pytest.mark.parametrize("made", ["data.rwlock", "new"])
@pytest.mark.parametrize("kind", ["file", "directory", "link to a file", "link to a directory"])
def test_what_takes_the_place_of_a_new_directory_of_a_group_is_not_changed(tmp_path, monkeypatch, kind, made):
    """Whoever may write the parent can put there what is not meant for the group: by a link, or by moving it."""
    precious = tmp_path / "precious"
    precious.write_text("secret") if "file" in kind else precious.mkdir()
    precious.chmod(0o700 if "directory" in kind else 0o600)

    def swap(path):
        os.rmdir(path)
        os.symlink(precious, path) if "link" in kind else os.rename(precious, path)

    swapped_after_the_making(monkeypatch, made, swap)
    before = precious.stat()
    with suppress(OSError):  # a directory in the place of a parent is as good as another
        LockDirectory(str(tmp_path / "new" / "data.rwlock"), "group").open()
    (found,) = (path for path in (precious, tmp_path / "new", tmp_path / "new" / "data.rwlock") if same(path, before))
    assert (found.stat().st_mode, found.stat().st_gid) == (before.st_mode, before.st_gid)


def same(path, before):
    return path.exists() and not path.is_symlink() and path.stat().st_ino == before.st_ino


def test_a_directory_whose_making_was_disturbed_is_made_again(tmp_path, monkeypatch):
    swapped_after_the_making(monkeypatch, "data.rwlock", os.rmdir)
    opened(tmp_path / "data.rwlock", "group")
    assert stat.S_IMODE((tmp_path / "data.rwlock").stat().st_mode) == 0o2770


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_directories_made_above_a_lock_of_a_group_are_the_groups(tmp_path, umask):
    """Or the first one would shut the others out from the next lock there."""
    before = os.umask(umask)
    try:
        opened(tmp_path / "a" / "b" / "data.rwlock", "group")
        directory.make_directories(str(tmp_path / "c" / "d"), "group")
    finally:
        os.umask(before)
    for made in ("a", "a/b", "c", "c/d"):
        found = (tmp_path / made).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o2770, tmp_path.stat().st_gid)


class TestSeveralUsers:
    pytestmark = needs_root

    def test_a_new_directory_above_a_groups_lock_is_waited_for_until_it_is_the_groups(self, monkeypatch):
        monkeypatch.setattr(directory, "_HALF_MADE_S", 30.0)
        with directory_of(ALICE, gid=TEAM, mode=0o2770) as place:
            (place / "new").mkdir()
            os.chown(place / "new", ALICE, TEAM)
            (place / "new").chmod(0o3700)  # as Alice has just made it
            finish = threading.Timer(0.3, os.chmod, (place / "new", 0o2770))
            finish.start()
            as_user(BOB, lambda: opened(place / "new" / "data.rwlock", "group") and None, groups=[BOB, TEAM])
            finish.join()

    @pytest.mark.parametrize("heir", [ALICE, BOB], ids=["its owner", "another member"])
    def test_a_lock_whose_maker_was_killed_before_it_was_the_groups_is_made_again(self, monkeypatch, heir):
        monkeypatch.setattr(directory, "_HALF_MADE_S", 0.2)
        with directory_of(0, gid=TEAM, mode=0o2770) as place:
            path = place / "data.rwlock"

            def alice() -> None:
                with suppress(OSError):
                    opened(path, "group")

            with monkeypatch.context() as patch:
                patch.setattr(os, "fchmod", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                with pytest.raises(EOFError):
                    as_user(ALICE, alice, groups=[ALICE, TEAM])
            assert path.stat().st_mode & 0o1777 == 0o1700
            as_user(heir, lambda: participant(opened(path, "group")).advance(), groups=[heir, TEAM])
            assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o2770, heir)

    def test_a_new_directory_above_a_groups_lock_whose_maker_was_killed_is_made_again(self, monkeypatch):
        monkeypatch.setattr(directory, "_HALF_MADE_S", 0.2)
        with directory_of(0, gid=TEAM, mode=0o2770) as place:
            new = place / "new"
            new.mkdir()
            os.chown(new, ALICE, TEAM)
            new.chmod(0o3700)  # as Alice made it
            as_user(BOB, lambda: opened(new / "data.rwlock", "group") and None, groups=[BOB, TEAM])
            assert (stat.S_IMODE(new.stat().st_mode), new.stat().st_uid) == (0o2770, BOB)

    def test_a_directory_that_is_not_the_groups_is_no_reason_to_wait(self, monkeypatch):
        monkeypatch.setattr(directory, "_HALF_MADE_S", 1e6)
        with directory_of(ALICE, gid=TEAM, mode=0o2770) as place:
            (place / "new").mkdir(mode=0o700)
            with pytest.raises(PermissionError):
                as_user(BOB, lambda: opened(place / "new" / "data.rwlock", "group") and None, groups=[BOB, TEAM])

    def test_the_owner_of_the_data_can_move_the_lock_of_root_away(self):
        """Root took the lock once, in a container perhaps: the remedy that the error names works."""
        with directory_of(ALICE, mode=0o755) as place:
            path = place / "data.rwlock"
            assert participant(opened(path)).advance()
            assert "move it away (mv)" in as_user(ALICE, lambda: refusal(path))
            assert "move it away (mv)" in as_user(ALICE, lambda: looked_at(place / "data"))
            as_user(ALICE, lambda: os.rename(path, place / "data.rwlock.old"))
            as_user(ALICE, lambda: opened(path) and None)

    def test_a_directory_of_another_user_is_refused_and_nothing_is_left_in_it(self):
        """Issue: another user's lock directory: one line that names the path and the remedy."""
        with directory_of(0, mode=0o1777) as place:
            as_user(EVE, lambda: opened(place / "data.rwlock") and None)

            def alice():
                return refusal(place / "data.rwlock")

            message = as_user(ALICE, alice)
            assert str(EVE) in message
            assert str(ALICE) in message
            assert "share='group'" in message
            assert "belongs to user" in refusal(place / "data.rwlock"), "not even root takes it for its own"
            assert os.listdir(place / "data.rwlock") == []

    def test_a_directory_of_another_user_that_all_can_write_is_refused(self):
        """It may be a trap: whoever owns it can remove what we announce."""
        with directory_of(0, mode=0o1777) as place:
            (place / "data.rwlock").mkdir()
            os.chown(place / "data.rwlock", EVE, EVE)
            (place / "data.rwlock").chmod(0o777)
            assert "belongs to user" in as_user(ALICE, lambda: refusal(place / "data.rwlock"))
            assert os.listdir(place / "data.rwlock") == []

    def test_a_directory_that_one_may_not_write_in_is_an_error_of_permission(self):
        """Issue: a read-only directory."""
        with directory_of(ALICE, mode=0o755) as place:
            with pytest.raises(PermissionError):
                as_user(BOB, lambda: opened(place / "data.rwlock") and None)
            assert list(place.iterdir()) == []

    def test_members_of_the_group_share_a_lock_whatever_their_umasks(self):
        """Issue: members of the directory's group can see, evict and clean."""
        with directory_of(ALICE, gid=TEAM, mode=0o2770) as place:
            path = place / "data.rwlock"

            def alice() -> str:
                os.umask(0o077)
                holder = participant(opened(path, "group"))
                assert holder.advance()
                assert (holder.beat(), holder.beat()) == (Beat.DONE, Beat.DONE)
                return holder.name

            name = as_user(ALICE, alice, groups=[ALICE, TEAM])
            assert path.stat().st_gid == TEAM

            def bob() -> tuple[list[str], bool, list[str]]:
                os.umask(0o077)
                files = opened(path, "group")
                seen = files.listdir(name)
                evicted = evict(files, parse_announcement(name), 1)
                writer = participant(files)
                assert writer.advance()
                assert writer.beat() is Beat.DONE
                assert writer.release()
                return seen, evicted, files.listdir()

            seen, evicted, left = as_user(BOB, bob, groups=[BOB, TEAM])
            assert seen == ["beat.1"]
            assert evicted
            assert left == ["gen.2"], "alice's number was cleaned by bob"

    def test_a_member_evicts_what_has_not_beaten_yet(self):
        """Section 4: rmdir needs the right to the lock directory only; the announcement itself may be closed to us."""
        with directory_of(ALICE, gid=TEAM, mode=0o2770) as place:
            path = place / "data.rwlock"

            def alice() -> str:
                os.umask(0o077)
                holder = participant(opened(path, "group"), Mode.READ)
                assert holder.advance()
                return holder.name

            name = as_user(ALICE, alice, groups=[ALICE, TEAM])

            def bob() -> bool:
                now = [0.0]
                writer = Participant(
                    opened(path, "group"),
                    World(clock=lambda: now[0], is_dead=lambda _: False, token=fresh_token),
                    Identity(pid=1, start=1, kernel="0", uid=BOB, host="here"),
                    Mode.WRITE,
                    ttl=90,
                    interval=30,
                    ticket=1,
                    since_ms=0,
                )
                while now[0] < 100 and not writer.advance():
                    now[0] += 1
                return writer.phase is Phase.GRANTED and now[0] >= 90

            assert as_user(BOB, bob, groups=[BOB, TEAM])
            assert name not in os.listdir(path)

    def test_who_is_no_member_is_refused(self):
        """Issue: the group of the directory decides who takes part."""
        with directory_of(ALICE, gid=TEAM, mode=0o2771) as place:
            path = place / "data.rwlock"
            as_user(ALICE, lambda: opened(path, "group") and None, groups=[ALICE, TEAM])

            def eve() -> None:
                writer = participant(opened(path, "group"))
                writer.advance()

            with pytest.raises(PermissionError):
                as_user(EVE, eve)
            assert os.listdir(path) == []

    def test_who_is_no_member_cannot_make_a_lock_for_the_group(self):
        """The directory would belong to another group than its parent, and the members could not take part."""
        with directory_of(ALICE, gid=TEAM, mode=0o777) as place:
            message = as_user(EVE, lambda: refusal(place / "data.rwlock", "group"))
            assert str(TEAM) in message
            assert "member" in message
            assert list(place.iterdir()) == []

    def test_a_member_cannot_turn_our_heartbeat_against_our_own_directories(self):
        """A beat sets a mode. If a link has taken the announcement's place, it must not set it on the link's target."""
        with directory_of(ALICE, gid=TEAM, mode=0o2770) as place:
            path = place / "data.rwlock"
            home = place.parent / "home"
            home.mkdir()
            os.chown(home, ALICE, ALICE)
            home.chmod(0o700)

            def alice() -> str:
                holder = participant(opened(path, "group"))
                assert holder.advance()
                os.rename(path / holder.name, path / "gone.1")  # what Eve, a member, may do
                os.symlink(home, path / holder.name)
                return holder.beat().value

            assert as_user(ALICE, alice, groups=[ALICE, TEAM]) != "done"
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            assert list(home.iterdir()) == []
            shutil.rmtree(home)


def test_a_directory_that_is_called_missing_until_its_parent_is_read_is_found(tmp_path, monkeypatch):
    """What Linux 7.2 does on NFSv4 with a name that it had looked for before another client made it."""
    path = tmp_path / "data.rwlock"
    path.mkdir(mode=0o700)
    opened, read = directory._open, []

    def is_missing(name, flags, dir_fd=None):
        if name == str(path) and not read:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return opened(name, flags, dir_fd)

    scandir = os.scandir
    monkeypatch.setattr(directory, "_open", is_missing)
    monkeypatch.setattr(os, "scandir", lambda where: read.append(where) or scandir(where))
    files = LockDirectory(str(path))
    files.open()
    files.close()
    assert read == [str(tmp_path)]
