"""Who holds a lock and who waits for it, for people; and the operator's way to end a hold."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors import in_forked_child
from nfsrwlock_core import (
    HoldStatus,
    LockBusyError,
    LockError,
    LockLostError,
    LockState,
    PeerInfo,
    SoftReadWriteLock,
    Timeout,
    break_lock,
    inspect,
)
from nfsrwlock_core.inspection import watched_peers
from nfsrwlock_core.names import Identity, Mode, announcement_name, parse_announcement
from nfsrwlock_core.protocol.heartbeat import fresh_token
from nfsrwlock_core.protocol.watch import Watch
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.process import current_identity, own_record

ELSEWHERE = Identity(pid=4711, start=1, kernel="feedfeedfeedfeed", uid=os.geteuid(), host="node7")


def own_name() -> str:
    """This user's name, or number where the system knows no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@pytest.fixture(autouse=True)
def _lock_beside_the_data(monkeypatch):
    monkeypatch.delenv("NFSRWLOCK_DIR", raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def lock_on(data: Path, **settings) -> SoftReadWriteLock:
    return SoftReadWriteLock(data, 30, is_singleton=False, **settings)


def announce(
    data: Path,
    mode: Mode = Mode.WRITE,
    *,
    who: Identity = ELSEWHERE,
    silent: float = 0.0,
    lease: float = 90.0,
    since: float | None = None,
    beat: int | None = None,
    record: bytes = b"{}",
) -> Path:
    """Put somebody into the lock directory who has been silent for so many seconds."""
    name = announcement_name(
        mode,
        token=fresh_token(),
        ticket=1,
        lease_ms=round(lease * 1000),
        who=who,
        since_ms=round((time.time() if since is None else since) * 1000),
    )
    path = Path(f"{data}.rwlock", name)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir()
    if beat is not None:
        os.symlink(record, path / f"beat.{beat}")
    moment = time.time() - silent
    os.utime(path, (moment, moment))
    return path


def token_of(path: Path) -> str:
    announcement = parse_announcement(path.name)
    assert announcement is not None
    return announcement.token


def only(peers: tuple[PeerInfo, ...]) -> PeerInfo:
    (peer,) = peers
    return peer


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_a_lock_that_nobody_ever_took_has_an_empty_state(data):
    state = inspect(data)
    assert state == LockState(lock_file=str(data), lock_path=f"{data}.rwlock", exists=False)
    assert (state.holders, state.waiters, state.generation) == ((), (), None)
    assert not os.path.exists(state.lock_path), "asking makes nothing"


def test_a_lock_that_nobody_holds_has_nobody_in_its_state(data):
    with lock_on(data).write_lock():
        pass
    state = inspect(data)
    assert state.exists
    assert (state.holders, state.waiters, state.generation) == ((), (), 1)


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_holder_is_shown_with_all_that_its_name_states(data, mode):
    """PROTOCOL.md section 1: one listing is the whole state of the lock."""
    before = time.time()
    lock = lock_on(data, heartbeat_interval=20, stale_threshold=50)
    with lock.read_lock() if mode == "read" else lock.write_lock():
        peer = only(inspect(data).holders)
    me = current_identity()
    assert (peer.mode, peer.state, peer.understood) == (mode, "holding", True)
    assert (peer.host, peer.pid, peer.user) == (me.host, os.getpid(), own_name())
    assert before - 1 <= peer.since <= time.time()
    assert 0 <= peer.silent_for < 30
    assert peer.lease == 50.0
    assert 20 < peer.evictable_in <= 50
    assert re.fullmatch(r"[0-9a-f]{32}", peer.token)
    assert peer.token in peer.name
    assert peer.same_kernel is (me.kernel != "0")
    assert peer.alive is (True if peer.same_kernel else None)


def test_readers_that_share_are_all_shown_the_oldest_first(data):
    now = time.time()
    for since in (now - 10, now - 30, now - 20):
        announce(data, Mode.READ, since=since)
    state = inspect(data)
    assert [round(now - peer.since) for peer in state.holders] == [30, 20, 10]
    assert state.waiters == ()


def test_a_writer_beside_readers_waits(data):
    """Section 2: readers stay announced only while they hold."""
    reader, writer = announce(data, Mode.READ), announce(data, Mode.WRITE)
    state = inspect(data)
    assert only(state.holders).name == reader.name
    assert only(state.waiters).name == writer.name
    assert only(state.waiters).state == "waiting"
    assert "waiting for writing" in only(state.waiters).describe()


def test_of_two_writers_the_one_that_was_first_holds(data):
    now = time.time()
    late, early = announce(data, since=now - 5), announce(data, since=now - 50)
    state = inspect(data)
    assert only(state.holders).name == early.name
    assert only(state.waiters).name == late.name


def test_an_earlier_look_tells_who_held_the_lock_then(data):
    """Clocks of hosts differ, so who was first cannot be told from one listing alone; who held it goes on holding."""
    now = time.time()
    holder = announce(data, since=now + 300)
    seen = inspect(data)
    other = announce(data, since=now)
    assert only(inspect(data).holders).name == other.name
    state = inspect(data, previous=seen)
    assert only(state.holders).name == holder.name
    assert only(state.waiters).name == other.name


def test_the_number_of_the_latest_grant_is_shown(data):
    for _ in range(3):
        with lock_on(data).write_lock():
            pass
    assert inspect(data).generation == 3


def test_silence_is_estimated_from_the_time_stamp_of_the_server(data):
    announce(data, silent=45)
    peer = only(inspect(data).holders)
    assert peer.silent_for == pytest.approx(45, abs=5)
    assert peer.evictable_in == pytest.approx(45, abs=5)


def test_who_was_silent_for_longer_than_its_lease_may_be_evicted_now(data):
    announce(data, silent=1000)
    assert only(inspect(data).holders).evictable_in == 0.0


def test_a_time_stamp_in_the_future_is_no_negative_silence(data):
    """The server's clock may be ahead of ours."""
    announce(data, silent=-500)
    peer = only(inspect(data).holders)
    assert peer.silent_for == 0.0
    assert peer.evictable_in == 90.0


def test_a_peer_of_another_machine_is_neither_alive_nor_dead(data):
    """Section 3: it cannot be known."""
    announce(data)
    peer = only(inspect(data).holders)
    assert (peer.alive, peer.same_kernel) == (None, False)
    assert "ended" not in peer.describe()


@pytest.mark.skipif(current_identity().kernel == "0", reason="this system does not tell its kernels apart")
def test_a_process_of_this_machine_that_has_ended_is_shown_as_such(data):
    announce(data, who=replace(current_identity(), start=1))
    peer = only(inspect(data).holders)
    assert (peer.alive, peer.same_kernel, peer.evictable_in) == (False, True, 0.0)
    assert "its process has ended" in peer.describe()


def test_a_process_above_this_one_is_known_as_an_ancestor(data):
    lock = SoftReadWriteLock(data)

    def is_ancestor() -> bool:
        return inspect(data).holders[0].is_ancestor

    with lock.read_lock():
        assert not is_ancestor(), "nobody is above himself"
        assert in_forked_child(is_ancestor)
        assert in_forked_child(lambda: in_forked_child(is_ancestor))


def test_a_heartbeat_tells_the_command_and_the_job(data):
    """Section 1: beat.<k> holds a small JSON record for people."""
    announce(data, beat=3, record=json.dumps({"command": "align reads.fq", "job": "4242.server"}).encode())
    peer = only(inspect(data).holders)
    assert (peer.command, peer.job) == ("align reads.fq", "4242.server")
    assert "(job 4242.server)" in peer.describe()


@pytest.mark.parametrize(
    "record",
    [b" ", b"{", b"\xff\xfe", b"[]", b"7", b"null", b'{"command": 7, "job": ["x"]}', b"[" * 4000, b"{}" * 2000],
    ids=lambda record: f"{record[:20]!r}-{len(record)}",
)
def test_nothing_depends_on_what_a_heartbeat_says(data, record):
    """Section 1: a record that is damaged, or for which a full disk had no room, only says nothing."""
    announce(data, beat=0, record=record)
    peer = only(inspect(data).holders)
    assert (peer.command, peer.job, peer.mode) == (None, None, "write")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, Path.touch, lambda path: os.symlink("/dev/zero", path)])
def test_a_heartbeat_is_never_opened(data, make):
    """A FIFO that nobody writes to would block whoever opens it for ever, and a link may lead anywhere."""
    make(announce(data) / "beat.7")
    peer = only(inspect(data).holders)
    assert (peer.command, peer.job) == (None, None)


def test_a_record_of_another_place_is_not_shown_as_a_peers(data, tmp_path):
    """A link under an announcement's name is not followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "beat.0").write_text('{"command": "secret"}')
    path = announce(data)
    path.rmdir()
    path.symlink_to(tmp_path / "elsewhere")
    assert only(inspect(data).holders).command is None


def test_the_record_of_this_process_fits_and_names_its_job(monkeypatch):
    for variable in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"):
        monkeypatch.delenv(variable, raising=False)
    make = own_record.__wrapped__
    assert json.loads(make(7))["job"] is None
    for variable in ("JOB_ID", "LSB_JOBID", "PBS_JOBID", "SLURM_JOB_ID"):
        monkeypatch.setenv(variable, f"number of {variable}")
        assert json.loads(make(7))["job"] == f"number of {variable}", "the batch system's own comes first"
    monkeypatch.setattr("sys.argv", ["program", "🧬" * 5000])
    monkeypatch.setenv("SLURM_JOB_ID", "🧬" * 5000)
    record = make(7)
    assert len(record) <= 1000, "more is no symbolic link's text on XFS"
    assert json.loads(record)["pid"] == 7
    assert json.loads(record)["user"] == own_name()


@pytest.mark.parametrize(
    ("argv", "command"), [([], ""), (None, ""), ([Path("tool"), 7], "tool 7")], ids=["empty", "none", "odd"]
)
def test_whatever_a_program_has_done_to_its_arguments_it_has_a_record(monkeypatch, argv, command):
    """Programs that embed Python, or run others in their own process, leave anything there."""
    monkeypatch.setattr("sys.argv", argv)
    assert json.loads(own_record.__wrapped__(7))["command"] == command


def test_asking_changes_nothing(data):
    """Issue: needs no lock and changes nothing."""
    announce(data, Mode.READ, beat=2, silent=5)
    announce(data, Mode.WRITE, silent=500)
    Path(f"{data}.rwlock", "write.v2").touch()

    def stamps():
        found = {}
        for where, directories, files in os.walk(f"{data}.rwlock"):
            for name in [".", *directories, *files]:
                status = os.lstat(os.path.join(where, name))
                found[os.path.join(where, name)] = (status.st_mtime_ns, status.st_ctime_ns, status.st_mode)
        return found

    before = stamps()
    for _ in range(3):
        inspect(data)
    assert stamps() == before


def test_asking_does_not_wait_for_the_lock(data):
    with lock_on(data).write_lock():
        began = time.monotonic()
        assert only(inspect(data).holders).mode == "write"
        assert time.monotonic() - began < 5


def test_a_state_is_plain_values_for_json(data):
    """Issue: status --json."""
    announce(data, Mode.READ, beat=1, record=b'{"command": "x"}')
    announce(data, Mode.WRITE)
    Path(f"{data}.rwlock", "read.v2.\udcff").mkdir()
    state = inspect(data)
    plain = json.loads(json.dumps(state.to_dict()))
    assert set(plain) == {"lock_file", "lock_path", "exists", "holders", "waiters", "generation"}
    assert len(plain["holders"]) + len(plain["waiters"]) == 3
    for peer in plain["holders"] + plain["waiters"]:
        assert {"token", "mode", "state", "host", "pid", "user", "since", "silent_for", "evictable_in"} <= set(peer)
    assert plain["generation"] == 0


def test_an_empty_state_is_plain_values_too(data):
    assert json.loads(json.dumps(inspect(data).to_dict()))["exists"] is False


def test_a_state_below_a_lock_dir_is_found_by_the_path_of_the_data(data, tmp_path, monkeypatch):
    with lock_on(data, lock_dir=tmp_path / "locks").write_lock():
        assert only(inspect(data, lock_dir=tmp_path / "locks").holders).mode == "write"
        assert not inspect(data).exists
        monkeypatch.setenv("NFSRWLOCK_DIR", str(tmp_path / "locks"))
        assert only(inspect(data).holders).mode == "write"


def test_one_line_says_who_it_is(data):
    """STYLE.md: every error says who holds it (host, pid, since when)."""
    since = time.time() - 600
    announce(data, silent=45, since=since)
    line = only(inspect(data).holders).describe()
    clock = time.strftime("%H:%M:%S", time.localtime(since))
    user = own_name()
    assert re.fullmatch(rf"{re.escape(user)}@node7 pid 4711, writing since {clock}, silent for 4[0-9] s", line), line


def test_a_waiter_shows_the_silence_that_it_has_watched_itself():
    """Section 3: the message of the time-out names the holder and how long it has been silent."""
    name = announcement_name(Mode.WRITE, token="a" * 32, ticket=1, lease_ms=90_000, who=ELSEWHERE, since_ms=0)
    peer, watch = parse_announcement(name), Watch()
    for now in (100.0, 120.0, 140.0):
        watch.look(name, 3, lease=90.0, now=now)
    shown = only(watched_peers((peer,), watch, 145.0))
    assert (shown.silent_for, shown.evictable_in) == (45.0, 45.0)
    assert shown.describe().endswith("silent for 45 s")


def test_a_timeout_names_who_was_in_the_way_and_since_when(data):
    """Section 3; issue: Timeout says who holds the lock, on which host, since when."""
    since = time.time() - 600
    announce(data, since=since)
    with pytest.raises(Timeout) as caught:
        lock_on(data, poll_interval=0.05).acquire_write(timeout=0.3)
    message = str(caught.value)
    assert repr(str(data)) in message
    assert "@node7 pid 4711, writing since " + time.strftime("%H:%M:%S", time.localtime(since)) in message
    assert re.search(r"silent for \d+ s", message)
    assert only(caught.value.holders).host == "node7"


@pytest.mark.parametrize("ask", [SoftReadWriteLock.acquire_read, SoftReadWriteLock.acquire_write])
def test_a_timeout_tells_those_who_hold_the_lock_from_those_who_wait(data, ask):
    """A reader in the way of a writer that is in our way holds the lock; the writer does not."""
    reader, writer = announce(data, Mode.READ), announce(data, Mode.WRITE)
    with pytest.raises(Timeout) as caught:
        ask(lock_on(data, poll_interval=0.05), timeout=0.2)
    assert {peer.name for peer in caught.value.holders} <= {reader.name, writer.name}, "we are not in our own way"
    assert reader.name in {peer.name for peer in caught.value.holders}
    message = str(caught.value)
    assert "reading since" in message
    assert "waiting for writing since" in message
    assert f"pid {os.getpid()}" not in message


# -- break_lock --------------------------------------------------------------------------------------------------------


def announced_in(data: Path) -> set[str]:
    """The announcements that are left; a word for those that were removed (gone.*) does not count."""
    return {name for name in os.listdir(f"{data}.rwlock") if parse_announcement(name) is not None}


def test_breaking_what_is_free_or_was_never_taken_removes_nothing(data):
    assert break_lock(data) == ()
    assert not os.path.exists(f"{data}.rwlock")
    with lock_on(data).write_lock():
        pass
    assert break_lock(data) == ()
    assert os.listdir(f"{data}.rwlock") == ["gen.1"]


@pytest.mark.parametrize("beat", [None, 0, 17])
def test_an_operator_removes_those_of_other_machines(data, beat):
    """They may be dead for all anybody knows; the operator knows."""
    paths = {announce(data, Mode.READ, beat=beat), announce(data, Mode.WRITE, beat=beat)}
    removed = break_lock(data)
    assert {peer.name for peer in removed} == {path.name for path in paths}
    assert announced_in(data) == set()
    with lock_on(data).read_lock():
        pass
    assert os.listdir(f"{data}.rwlock") == [], "whoever comes next cleans up"


def test_an_operator_removes_one_of_several(data):
    stays, goes = announce(data, Mode.READ, beat=1), announce(data, Mode.READ, beat=1)
    assert only(break_lock(data, token=token_of(goes))).token == token_of(goes)
    assert announced_in(data) == {stays.name}
    assert break_lock(data, token=token_of(goes)) == ()
    assert break_lock(data, token="no such token") == ()
    assert announced_in(data) == {stays.name}


@pytest.mark.skipif(current_identity().kernel == "0", reason="this system does not tell its kernels apart")
def test_a_live_holder_of_this_machine_is_not_removed(data):
    """Issue: refuses live holders of this host without --force; then nothing at all is removed."""
    other = announce(data, Mode.READ)
    lock = lock_on(data)
    with lock.read_lock():
        with pytest.raises(LockBusyError) as caught:
            break_lock(data)
        message = str(caught.value)
        assert f"pid {os.getpid()}" in message
        assert "force" in message
        assert message.isprintable()
        assert isinstance(caught.value, LockError)
        assert len(inspect(data).holders) == 2
        assert only(break_lock(data, token=token_of(other))).name == other.name, "another one may be"
        lock.check()


def test_force_removes_a_live_holder_and_it_learns_of_that(data):
    """Section 4: at its next heartbeat."""
    lock = lock_on(data, heartbeat_interval=0.2, stale_threshold=60)
    lock.acquire_write()
    assert only(break_lock(data, force=True)).pid == os.getpid()
    assert inspect(data).holders == ()
    deadline = time.monotonic() + 30
    while lock.status is not HoldStatus.LOST:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lock.release(force=True)


def test_force_removes_a_holder_that_beats_all_the_time(data, monkeypatch):
    """The beat that was observed is gone a moment later, again and again; the operator insists."""
    path = announce(data, beat=0)
    unlink = LockDirectory.unlink
    beats = iter(range(5))

    def too_late(self, name):
        for beat in beats:
            (path / f"beat.{beat}").rename(path / f"beat.{beat + 1}")
            break
        unlink(self, name)

    monkeypatch.setattr(LockDirectory, "unlink", too_late)
    assert only(break_lock(data, force=True)).name == path.name
    assert inspect(data).holders == ()


def test_breaking_deletes_nothing_that_is_no_heartbeat(data):
    """A newer format may keep more than heartbeats in its announcements."""
    path = announce(data, beat=2)
    (path / "notes.txt").write_text("somebody's")
    assert only(break_lock(data)).name == path.name
    (left,) = os.listdir(f"{data}.rwlock")
    assert left.startswith("gone.")
    assert Path(f"{data}.rwlock", left, "notes.txt").read_text() == "somebody's"
    with lock_on(data).write_lock():
        pass


def test_what_another_nfs_client_removes_while_it_is_being_broken_is_gone(data, monkeypatch):
    """Seen on NFSv3: the handle that the client had of it was stale when it was to be listed."""
    path = announce(data, beat=None)
    listdir, stale = LockDirectory.listdir, []

    def removed_just_now(files, name=""):
        if name == path.name and not stale:
            path.rmdir()
            stale.append(OSError(errno.ESTALE, os.strerror(errno.ESTALE), name))
            raise stale[0]
        return listdir(files, name)

    monkeypatch.setattr(LockDirectory, "listdir", removed_just_now)
    assert break_lock(data) == ()
    assert stale


def test_a_lock_below_a_lock_dir_is_broken_by_the_path_of_the_data(data, tmp_path):
    lock = lock_on(data, lock_dir=tmp_path / "locks")
    lock.acquire_write()
    assert break_lock(data, force=True) == (), "beside the data there is none"
    assert len(break_lock(data, force=True, lock_dir=tmp_path / "locks")) == 1
    lock.release(force=True)


@pytest.mark.parametrize("beats", [True, False])
def test_a_broken_holder_that_ends_before_its_next_heartbeat_learns_of_that(data, beats):
    """Nobody may mistake overlapped work for guarded work, although the lease has not run out."""
    lock = lock_on(data, heartbeat_interval=0.1 if beats else 30, stale_threshold=90)

    def work():
        with lock.write_lock():
            while beats and not any(Path(f"{data}.rwlock").glob("write.*/beat.*")):
                time.sleep(0.01)
            break_lock(data, force=True)

    with pytest.raises(LockLostError):
        work()
    with lock_on(data).write_lock():
        pass
    assert {name.partition(".")[0] for name in os.listdir(f"{data}.rwlock")} == {"gen"}, "the word for it is cleaned"


@pytest.mark.skipif(current_identity().kernel == "0", reason="this system does not tell its kernels apart")
def test_no_word_is_left_for_the_dead(data):
    announce(data, who=replace(current_identity(), start=1), beat=1)
    assert len(break_lock(data)) == 1
    assert os.listdir(f"{data}.rwlock") == []


def test_after_a_break_the_lock_is_free_at_once(data):
    announce(data, lease=10_000, beat=1)
    with pytest.raises(Timeout):
        lock_on(data).acquire_write(timeout=0)
    break_lock(data)
    with lock_on(data).write_lock(timeout=0):
        pass
