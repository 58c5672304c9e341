"""The ready-made forms for plain Python: fetch, shared_directory and FileLock, with real processes."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import filelock
import pytest

from actors import Raised, Stage, announcements, in_forked_child, wait_until
from nfsrwlock import (
    DeadlockError,
    FileLock,
    LockLostError,
    LockNotHeldError,
    LockPathError,
    LockSet,
    SoftReadWriteLock,
    Timeout,
    break_lock,
    fetch,
    shared_directory,
)
from nfsrwlock.freshness import Signature, look_afresh, signature_afresh
from nfsrwlock.joblib import guard

IMPORTS = "from nfsrwlock import *\nfrom pathlib import Path\nimport os, time\n"
#: A build that leaves a line behind each time it begins.
BUILD = IMPORTS + (
    "def build(path):\n"
    "    with open('builds', 'a') as log: log.write(f'{os.getpid()}\\n')\n"
    "    time.sleep(0.5)\n"
    "    Path(path).write_text('made by %d' % os.getpid())\n"
)


def builds(directory: Path) -> list[str]:
    return (directory / "builds").read_text().split()


# -- fetch ------------------------------------------------------------------------------------------------------------


def test_of_eight_processes_that_fetch_at_once_one_builds_and_all_get_its_file(stage: Stage, tmp_path: Path) -> None:
    actors = [stage.actor(BUILD) for _ in range(8)]
    for actor in actors:
        actor.tell("got = fetch('data', build)")
    for actor in actors:
        actor.answer()
    assert len({actor.do("Path(got).read_text()") for actor in actors}) == 1
    assert len(builds(tmp_path)) == 1
    assert len(announcements(tmp_path / "data")) == 8, "each has a shared hold"
    with pytest.raises(Timeout):
        SoftReadWriteLock(tmp_path / "data").acquire_write(blocking=False)
    for actor in actors:
        actor.do("got.check(); got.release(); got.release()")
    assert announcements(tmp_path / "data") == []
    assert sorted(os.listdir(tmp_path)) == ["builds", "data", "data.rwlock"]


def test_if_the_builder_is_killed_the_next_one_builds(stage: Stage, tmp_path: Path) -> None:
    victim = stage.actor(BUILD.replace("0.5", "60"))
    victim.tell("fetch('data', build)")
    wait_until((tmp_path / "builds").exists)
    (tmp_path / ".data.mine.partial").write_text("a user's file")
    (tmp_path / f".data.{'0' * 32}.partial").write_text("half a file of another victim")
    heir = stage.actor(BUILD)
    heir.tell("got = fetch('data', build)")
    victim.kill()
    heir.answer()
    assert builds(tmp_path) == [str(victim.pid), str(heir.pid)]
    assert sorted(path.name for path in tmp_path.glob(".data*")) == [".data.mine.partial"]


def test_if_the_builder_raises_nothing_is_published_and_the_next_one_builds(stage: Stage, tmp_path: Path) -> None:
    first, second = stage.actor(BUILD), stage.actor(BUILD)
    first.do("def fail(path):\n    Path(path).write_text('half'); time.sleep(0.5); raise ZeroDivisionError")
    first.tell("fetch('data', fail)")
    wait_until(lambda: list(tmp_path.glob(".data*")))
    second.tell("got = fetch('data', build)")
    with pytest.raises(Raised) as raised:
        first.answer()
    assert "ZeroDivisionError" in raised.value.names
    second.answer()
    assert (tmp_path / "data").read_text() == f"made by {second.pid}"
    assert list(tmp_path.glob(".data*")) == []


def test_a_directory_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "data"

    def build(place: Path) -> None:
        place.mkdir()
        (place / "new").touch()

    target.mkdir()
    (target / "old").touch()
    real = os.rename

    def rename(source: Path, place: Path) -> None:
        if place == target and "new" in os.listdir(source):
            raise OSError(errno.EIO, "refused")
        real(source, place)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="refused"):
        fetch(target, build, is_valid=lambda place: (place / "new").exists())
    assert os.listdir(target) == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["data", "data.rwlock"]


def test_a_builder_that_lost_the_lock_publishes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def build(path: Path) -> None:
        path.write_text("late")
        break_lock(tmp_path / "data", force=True)
        wait_until(lambda: "somebody evicted this holder" in caplog.text)

    with pytest.raises(LockLostError):
        fetch(tmp_path / "data", build, heartbeat_interval=0.1, stale_threshold=20)
    assert not (tmp_path / "data").exists()


def test_a_build_that_fetches_its_own_path_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DeadlockError, match="being built by this very call"):
        fetch(tmp_path / "data", lambda path: fetch(tmp_path / "data", Path.touch))


@pytest.mark.parametrize("name", ["x" * 213, "x" * 214, "x" * 248, "\u540d" * 82, "\U0001f600" * 62], ids=len)
def test_what_may_be_locked_may_be_built_however_long_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(RuntimeError), fetch(path, _fails):
        pass
    with fetch(path, lambda mine: mine.write_text("built")) as got:
        assert Path(got).read_text() == "built"
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def _fails(mine: Path) -> None:
    mine.write_text("half")
    raise RuntimeError


def test_a_build_that_makes_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(LockPathError, match=r"was not made by build\(\)"):
        fetch(tmp_path / "data", lambda path: None)


def test_a_build_whose_result_is_refused_is_told_so_and_not_repeated(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(path: Path) -> None:
        built.append(path)
        path.touch()

    with pytest.raises(LockPathError, match=r"is not valid, says is_valid\(\), though build\(\) has just made it"):
        fetch(tmp_path / "data", build, is_valid=lambda path: False)
    assert len(built) == 1
    with pytest.raises(LockPathError, match="is a symbolic link that leads nowhere"):
        fetch(tmp_path / "link", lambda path: path.symlink_to("nowhere"))
    assert announcements(tmp_path / "data") == announcements(tmp_path / "link") == []
    with pytest.raises(TypeError, match="build must be a function of the path, got 'data'"):
        fetch(tmp_path / "data", "data")  # type: ignore[arg-type]

    async def later(path: Path) -> None:
        pass

    with pytest.raises(TypeError, match="build must not be a coroutine function"):
        fetch(tmp_path / "data", later)


def waits_to_write(path: Path) -> bool:
    return any(name.startswith("write.") for name in announcements(path))


def test_a_thread_that_has_a_path_fetches_it_again_although_a_writer_waits(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "data"
    writer = stage.actor(IMPORTS)
    first = fetch(path, Path.touch)
    writer.tell("SoftReadWriteLock('data').acquire_write(); pass")
    wait_until(lambda: waits_to_write(path))
    second = fetch(path, Path.touch)
    first.release()
    with pytest.raises(LockNotHeldError):
        first.check()
    with pytest.raises(DeadlockError, match="this very thread holds it shared"):
        fetch(path, Path.touch, is_valid=lambda path: False)
    second.check()
    second.release()
    writer.answer()


def test_a_directory_that_is_no_longer_valid_is_built_anew_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()

    def build(path: Path) -> None:
        path.mkdir()
        (path / "new").touch()

    with fetch(tmp_path / "data", build, is_valid=lambda path: (path / "new").exists()) as got:
        assert os.listdir(got) == ["new"]
        assert got.generation == 1
    with fetch(tmp_path / "data", build, is_valid=lambda path: (path / "new").exists()) as got:
        assert got.generation == 1, "it was not built again"
    assert sorted(os.listdir(tmp_path)) == ["data", "data.rwlock"]


def test_what_was_there_already_has_no_lock_directory_at_rest_and_what_was_built_keeps_its_number(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").touch()
    for _ in range(2):
        with fetch(tmp_path / "there", Path.touch) as got, fetch(tmp_path / "there", Path.touch):
            assert got.generation == 0
            assert (tmp_path / "there.rwlock").is_dir()
        assert os.listdir(tmp_path) == ["there"]
    for generation in (1, 2):
        (tmp_path / "there").unlink()
        for _ in range(2):
            with fetch(tmp_path / "there", Path.touch) as got:
                assert got.generation == generation


def test_what_is_gone_again_at_the_second_look_is_no_timeout(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    reader = stage.actor(IMPORTS + "lock = SoftReadWriteLock('data')\nlock.acquire_read()")
    looks = []

    def look(target: Path) -> Signature | None:
        looks.append(target)
        if len(looks) != 2:
            return signature_afresh(target)
        # Others have made it while this one waits, and remove it right after it was seen.
        path.touch()
        found = signature_afresh(target)
        path.unlink()
        reader.do("lock.release()")
        return found

    monkeypatch.setattr("nfsrwlock.fetching.signature_afresh", look)
    with fetch(path, lambda mine: mine.write_text("built")):
        assert path.read_text() == "built"


def test_what_was_in_a_directory_that_another_client_removes_meanwhile_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Removed(AbstractContextManager["Removed"]):  # NFS says so after the directory was opened
        def __init__(self, directory: str) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

        def __next__(self) -> str:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "scandir", Removed)
    assert signature_afresh(tmp_path / "data") is None


def test_what_was_fetched_cannot_be_handed_to_another_process_which_is_told_what_to_do(tmp_path: Path) -> None:
    with fetch(tmp_path / "x", lambda path: path.write_text("x")) as fetched:
        with pytest.raises(TypeError, match=r"belongs to this process: pass on the path"):
            pickle.dumps(fetched)
        fetched.check()


def test_a_wrong_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"fetch\(\) got an unexpected keyword argument 'time_out'"):
        fetch(tmp_path / "data", Path.touch, time_out=3)  # type: ignore[call-arg]


# -- shared_directory -------------------------------------------------------------------------------------------------


def test_users_share_a_directory_and_a_cleaner_has_it_alone(stage: Stage, tmp_path: Path) -> None:
    user, other, cleaner = (stage.actor(IMPORTS + "it = shared_directory('cache')") for _ in range(3))
    user.do("use = it.use(); lock = use.__enter__()")
    assert other.do("with it as path: seen = os.path.isdir(path)\n") is None
    assert other.do("seen") is True
    with pytest.raises(Raised) as raised:
        cleaner.do("it.clean(blocking=False).__enter__()")
    assert "Timeout" in raised.value.names
    user.do("lock.check(); use.__exit__(None, None, None)")
    cleaner.do("clean = it.clean(); _ = clean.__enter__()")
    with pytest.raises(Raised) as raised:
        other.do("it.use(timeout=0.2).__enter__()")
    assert "Timeout" in raised.value.names
    cleaner.do("os.rmdir('cache'); clean.__exit__(None, None, None)")
    other.do("with it as path: assert os.path.isdir(path)\n")
    assert announcements(tmp_path / "cache") == []


def test_a_shared_directory_is_used_by_threads_through_one_object_and_pickles(tmp_path: Path) -> None:
    directory = pickle.loads(pickle.dumps(shared_directory(tmp_path / "cache", timeout=20)))
    meeting = threading.Barrier(3)

    def use() -> None:
        with directory:
            meeting.wait(20)
            assert len(announcements(tmp_path / "cache")) == 2
            meeting.wait(20)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    meeting.wait(20)
    meeting.wait(20)
    for thread in threads:
        thread.join()
    assert announcements(tmp_path / "cache") == []


def test_a_thread_that_uses_a_directory_uses_it_again_although_a_cleaner_waits(stage: Stage, tmp_path: Path) -> None:
    directory = shared_directory(tmp_path / "cache")
    cleaner = stage.actor(IMPORTS + "it = shared_directory('cache')")
    with directory.use() as outer:
        cleaner.tell("it.clean().__enter__(); pass")
        wait_until(lambda: waits_to_write(tmp_path / "cache"))
        first, second = directory.use(), directory.use()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        with pytest.raises(DeadlockError), directory.clean():
            pass
        second.__exit__(None, None, None)
        outer.check()
    cleaner.answer()
    cleaner.kill()
    with directory.clean(), directory, directory.clean():
        pass
    assert announcements(tmp_path / "cache") == []


# -- FileLock ---------------------------------------------------------------------------------------------------------


def test_a_file_lock_excludes_other_processes_and_raises_filelocks_timeout(stage: Stage, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock", timeout=20)
    other = stage.actor(IMPORTS + "lock = FileLock('x.lock', timeout=0.2)")
    with lock.acquire() as held:
        assert held is lock
        assert lock.is_locked
        with pytest.raises(Raised) as raised:
            other.do("lock.acquire()")
        assert "Timeout" in raised.value.names
    assert not lock.is_locked
    other.do("lock.acquire()")
    with pytest.raises(filelock.Timeout):
        lock.acquire(timeout=0.2)
    with pytest.raises(filelock.Timeout):
        lock.acquire(timeout=20, cancel_check=lambda: True)
    with pytest.raises(filelock.Timeout):
        lock.acquire(blocking=False)


@pytest.mark.parametrize("timeout", [-1, 60])
def test_a_check_ends_also_a_wait_behind_another_thread_on_one_file_lock(tmp_path: Path, timeout: float) -> None:
    lock, stop = FileLock(tmp_path / "x.lock", thread_local=False, poll_interval=0.02), threading.Event()
    with FileLock(tmp_path / "x.lock"), ThreadPoolExecutor(2) as threads:
        first = threads.submit(lock.acquire, timeout=60, cancel_check=stop.is_set)
        wait_until(lambda: len(announcements(tmp_path / "x.lock")) == 2)  # it waits on disk
        asked = threading.Event()
        second = threads.submit(lock.acquire, timeout=timeout, cancel_check=lambda: asked.set() or stop.is_set())
        assert asked.wait(30)
        stop.set()
        for waiting in (second, first):
            with pytest.raises(filelock.Timeout):
                waiting.result(30)
    assert not lock.is_locked


def test_a_file_lock_is_re_entrant_a_decorator_and_forgiving_at_release(tmp_path: Path) -> None:
    lock = FileLock(str(tmp_path / "x.lock"), 5, 0o664)

    @lock
    def work() -> int:
        return lock.lock_counter

    lock.release()
    with lock, lock:
        assert work() == 3
    assert (lock.lock_counter, lock.is_locked) == (0, False)
    lock.acquire()
    lock.acquire()
    lock.release(force=True)
    assert announcements(tmp_path / "x.lock") == []


@pytest.mark.parametrize("thread_local", [True, False])
def test_the_hold_of_a_file_lock_is_the_threads_or_the_objects(tmp_path: Path, thread_local: bool) -> None:
    lock = FileLock(tmp_path / "x.lock", timeout=0.2, thread_local=thread_local)
    seen: list[object] = []

    def elsewhere() -> None:
        seen.append(lock.is_locked)
        try:
            with lock:
                seen.append(lock.lock_counter)
        except Timeout:
            seen.append("Timeout")

    with lock:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == ([False, "Timeout"] if thread_local else [True, 2])
    assert announcements(tmp_path / "x.lock") == []


def test_a_file_lock_that_was_lost_says_so_at_the_end_of_the_block(tmp_path: Path) -> None:
    def lose() -> None:
        with FileLock(tmp_path / "x.lock", heartbeat_interval=0.1, stale_threshold=20):
            break_lock(tmp_path / "x.lock", force=True)

    with pytest.raises(LockLostError):
        lose()


def test_a_file_lock_pickles_as_its_settings_and_is_released_when_nobody_has_it_any_more(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock", timeout=7, thread_local=False, share="group")
    lock.acquire()
    copy = pickle.loads(pickle.dumps(lock))
    assert (copy.timeout, copy.is_locked, copy.is_thread_local(), copy.lock_file) == (7, False, False, lock.lock_file)
    del lock
    wait_until(lambda: announcements(tmp_path / "x.lock") == [])


def test_a_file_locks_own_time_limit_pickles_as_it_was_set_and_may_be_infinite(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock", thread_local=False)
    lock.timeout = 3
    assert pickle.loads(pickle.dumps(lock)).timeout == 3
    with lock.acquire(timeout=float("inf")):
        assert lock.is_locked


def test_the_path_of_a_file_lock_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the program goes, the threads of one object exclude each other, and so does what is unpickled."""
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    lock, timeouts = FileLock("data", timeout=0.5), []
    pickled = pickle.dumps(lock)
    monkeypatch.chdir(tmp_path / "other")

    def enter() -> None:
        for mine in (lock, pickle.loads(pickled)):
            with pytest.raises(Timeout):
                mine.acquire()
            timeouts.append(mine.lock_file)

    with lock:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert timeouts == ["data", "data"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["data.rwlock"]
    assert list((tmp_path / "other").iterdir()) == []


def test_a_thread_that_waits_for_itself_by_another_file_lock_is_told_so(tmp_path: Path) -> None:
    with FileLock(tmp_path / "x.lock"):
        with pytest.raises(DeadlockError, match="this very thread holds it exclusively; waiting would never end"):
            FileLock(tmp_path / "x.lock").acquire()
        with pytest.raises(Timeout):
            FileLock(tmp_path / "x.lock", timeout=0.1).acquire()
    FileLock(tmp_path / "x.lock").acquire().lock.release()


def test_a_file_lock_decorates_no_function_whose_body_runs_after_the_call(tmp_path: Path) -> None:
    async def later() -> None:
        pass

    def one_by_one() -> Iterator[int]:
        yield 1

    for function in (later, one_by_one):
        with pytest.raises(TypeError, match="runs after the call, without the lock"):
            FileLock(tmp_path / "x.lock")(function)


def test_threads_that_have_ended_leave_nothing_in_a_file_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")

    def use() -> None:
        with lock:
            alive.append(weakref.ref(lock._context))

    alive: list[weakref.ref[object]] = []
    for _ in range(3):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    gc.collect()
    assert [context() for context in alive] == [None] * 3


def test_a_forked_child_is_told_that_a_file_lock_is_void(tmp_path: Path) -> None:
    with FileLock(tmp_path / "x.lock") as lock:
        pid = os.fork()
        if pid == 0:
            try:
                lock.acquire()
            except RuntimeError as error:
                os._exit(0 if "invalidated by fork" in str(error) and lock.lock_counter == 0 else 1)
            os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        lock.check()


BLOCKS: dict[str, Callable[[Path], Any]] = {
    "read_lock": lambda path: SoftReadWriteLock(path).read_lock(),
    "write_lock": lambda path: SoftReadWriteLock(path).write_lock(),
    "acquire_write": lambda path: SoftReadWriteLock(path).acquire_write(),
    "LockSet": lambda path: LockSet(write=[path]),
    "FileLock": FileLock,
    "FileLock.acquire": lambda path: FileLock(path).acquire(),
    "fetch": lambda path: fetch(path, Path.touch),
    "shared_directory": lambda path: shared_directory(path).use(),
    "guard": lambda path: guard(write=[path]),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_forked_child_leaves_each_kind_of_block_quietly(tmp_path: Path, kind: str) -> None:
    block = BLOCKS[kind](tmp_path / "data")
    with block:
        held = announcements(tmp_path / "data")
        assert not in_forked_child(lambda: block.__exit__(None, None, None))
        assert announcements(tmp_path / "data") == held != []
    assert announcements(tmp_path / "data") == []


def test_an_exception_right_after_a_file_lock_was_taken_leaves_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FileLock(tmp_path / "x.lock")

    def interrupt(lock: FileLock) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr("nfsrwlock.filelock_shape.FileLockProxy", interrupt)
        for take in (lock.acquire, lock.__enter__):
            with pytest.raises(KeyboardInterrupt):
                take()
            assert announcements(tmp_path / "x.lock") == []
    with lock:
        assert lock.lock_counter == 1


def test_looking_afresh_at_a_pipe_does_not_open_it_and_passes_over_what_is_not_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").open("wb").close())
    writer.start()
    look_afresh([tmp_path / "pipe", tmp_path / "not/there", tmp_path])
    writer.join(0.2)
    assert writer.is_alive(), "it still waits for a reader"
    (tmp_path / "pipe").open("rb").close()
    writer.join()
