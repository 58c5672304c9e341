"""Memory besides compute-once: memory maps, removal, coroutines, loss, the registered backend."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import PATIENCE_S, Raised, Stage, announcements, wait_until
from nfsrwlock import DeadlockError, LockPathError, break_lock, freshness
from nfsrwlock.joblib import Memory, register_store_backend
from nfsrwlock_core.system import workers

joblib = pytest.importorskip("joblib")
np = pytest.importorskip("numpy")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from joblib_scene import CHANGED, FUNCTIONS  # noqa: E402

#: joblib warns of a slow disk, which a busy machine has as well.
pytestmark = pytest.mark.filterwarnings("ignore:Persisting input arguments took")

STORM = HERE / "joblib_storm.py"
#: What a heartbeat logs that has found its hold gone.
NOTICED = "somebody evicted this holder"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    with Stage(tmp_path) as stage:
        yield stage


def holders(directory: Path) -> list[str]:
    """How each lock below is held."""
    return sorted(path.name.split(".")[0] for path in directory.rglob("*.rwlock/*") if path.name[0] in "rw")


def items(directory: Path) -> int:
    return sum(1 for _ in directory.rglob("output.pkl"))


def full(size: int, value: int) -> Any:
    return np.full(size, value)


def pair(size: int) -> Any:
    return {"a": [np.zeros(size), np.ones(size)], "b": "text"}


# -- removal beside use -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"timeout": 5}])
def test_removing_idle_results_asks_no_other_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, **options)
    cached = memory.cache(full)
    for value in range(4):
        cached(1, value)
    monkeypatch.setattr(workers, "call", lambda *_: pytest.fail("a look of its own for each result"))
    memory.reduce_size(items_limit=2)
    assert items(tmp_path) == 2
    memory.clear(warn=False)
    assert items(tmp_path) == 0


def test_clearing_in_a_loop_disturbs_no_reader_and_leaves_no_lock() -> None:
    # A minute of it: make storm-joblib.
    command = [sys.executable, str(STORM), "--seconds", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["troubles"] == []
    assert outcome["calls"] > outcome["computed"] > 24, "there were hits, and results were removed and made anew"
    assert outcome["cleared"] > 0
    assert outcome["reduced"] > 0
    assert outcome["locks"] > 1


@pytest.mark.peers
def test_the_same_storm_breaks_plain_joblib() -> None:
    command = [sys.executable, str(STORM), "--seconds", "40", "--kind", "joblib"]  # it ends with the first failure
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "ended with code 1" in done.stdout


def test_what_is_in_use_stays_and_so_do_files_of_the_users(stage: Stage, tmp_path: Path) -> None:
    user = stage.actor("from joblib_scene import *", path=HERE)
    user.do("f = cached('item', 'work')")
    assert user.do("[f(1), f(2)]") == [[1, 1], [2, 1]]
    user.do("lock = f.store_backend.lock_for((f.func_id, f._get_args_id(1))); lock.acquire_read(); pass")
    memory = Memory(tmp_path / "cache" / "joblib", verbose=0)
    (tmp_path / "cache" / "joblib" / "notes.txt").write_text("a user's")
    memory.clear(warn=False)
    assert items(tmp_path) == 1
    memory.reduce_size(items_limit=0)
    assert items(tmp_path) == 1
    user.do("lock.release()")
    memory.reduce_size(items_limit=0)
    assert items(tmp_path) == 0
    memory.clear(warn=False)
    assert os.listdir(tmp_path / "cache" / "joblib") == ["notes.txt"]
    assert user.do("f(1)") == [1, 1]


def test_reduce_size_goes_on_with_the_other_results_if_the_lock_of_one_cannot_be_had(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", verbose=0)
    cached = memory.cache(full)
    for value in (1, 2, 3):
        cached(2, value)
    call_id = (cached.func_id, cached._get_args_id(2, 1))
    Path(memory.store_backend.lock_for(call_id).lock_path).write_text("no directory")
    assert items(tmp_path) == 3
    memory.reduce_size(items_limit=0)
    assert items(tmp_path) == 1


def test_the_locks_lie_beside_the_store_where_joblib_lists_nothing_and_leave_nothing(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, linger=0)

    def look(number: int) -> list[str]:
        return sorted(os.path.relpath(path, tmp_path).split(os.sep)[0] for path in tmp_path.rglob("*.rwlock"))

    cached = memory.cache(look)
    assert cached(1) == ["cache.locks"]
    assert cached(1) == ["cache.locks"]
    assert len(memory.store_backend.get_items()) == 1
    assert list(tmp_path.rglob("*.rwlock")) == []
    memory.reduce_size(items_limit=0)
    assert list(tmp_path.rglob("*.rwlock")) == []


def test_a_store_at_rest_has_as_many_inodes_as_joblibs_own(tmp_path: Path) -> None:
    def inodes(memory: Any) -> int:
        cached = memory.cache(full)
        for _ in range(2):
            for number in range(200):
                cached(number, 3)
        deadline = time.monotonic() + 30
        while list(tmp_path.rglob("*.rwlock")) and time.monotonic() < deadline:
            time.sleep(0.05)
        return sum(1 for _ in Path(memory.location).parent.rglob("*"))

    plain = inodes(joblib.Memory(tmp_path / "plain" / "cache", verbose=0))
    ours = inodes(Memory(tmp_path / "ours" / "cache", verbose=0))
    assert plain > 600
    assert ours <= 1.01 * plain


def test_a_relative_store_stays_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its locks do, and results elsewhere would be under other locks than those of programs that are there."""
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    for memory in (Memory("cache", verbose=0), joblib.Memory("plain", backend="nfsrwlock", verbose=0)):
        monkeypatch.chdir(tmp_path / "other")
        cached = memory.cache(full)
        cached(2, 3)
        assert cached.check_call_in_cache(2, 3)
        monkeypatch.chdir(tmp_path / "one")
        assert cached.check_call_in_cache(2, 3)
    assert list((tmp_path / "other").iterdir()) == []


def test_the_lock_directory_of_a_groups_store_is_the_groups(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Memory(tmp_path / "cache", verbose=0, share="group", lock_dir=tmp_path / "locks").cache(full)(2, 3)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o2770


def test_a_lock_directory_of_the_users_choice(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, lock_dir=tmp_path / "locks")
    cached = memory.cache(full)
    cached(2, 3)
    with memory.store_backend.lock_for((cached.func_id, cached._get_args_id(2, 3))).read_lock():
        assert len(list((tmp_path / "locks").glob("*.rwlock"))) == 1
    assert not (tmp_path / "cache.locks").exists()


@pytest.mark.parametrize("writer", ["item", "joblib"])
def test_the_wipe_of_a_changed_function_passes_by_what_is_in_use_and_nobody_takes_that_for_new(
    stage: Stage, tmp_path: Path, writer: str
) -> None:
    old = stage.actor("from joblib_scene import *", path=HERE, PYTHONDONTWRITEBYTECODE="1")
    assert old.do(f"[cached({writer!r}, 'work')(x) for x in (1, 2, 3)]") == [[1, 1], [2, 1], [3, 1]]
    old.do("f = cached('item', 'work'); reader = f.store_backend.lock_for((f.func_id, f._get_args_id(1)))")
    old.do("reader.acquire_read(); pass")
    (tmp_path / "functions.py").write_text(CHANGED)
    new = stage.actor("from joblib_scene import *; f = cached('item', 'work')", path=HERE)
    assert new.do("f(2)") == [2, 2, "changed"]
    assert items(tmp_path) == 2, "the new one, and the one in use"
    assert old.do("f(1)") == [1, 1]
    assert items(tmp_path) == 2, "it was loaded by whom it is for, and not computed"
    old.do("reader.release()")
    assert new.do("f(1)") == [1, 2, "changed"]


def test_a_result_of_joblibs_that_is_marked_while_it_is_looked_at_is_taken_for_what_it_is(
    stage: Stage, tmp_path: Path
) -> None:
    old = stage.actor("from joblib_scene import *", path=HERE, PYTHONDONTWRITEBYTECODE="1")
    assert old.do("[cached('joblib', 'work')(x) for x in (1, 2)]") == [[1, 1], [2, 1]]
    old.do("f = cached('item', 'work'); reader = f.store_backend.lock_for((f.func_id, f._get_args_id(1)))")
    old.do("reader.acquire_read(); pass")
    (tmp_path / "functions.py").write_text(CHANGED)
    new, other = (stage.actor("from joblib_scene import *; f = cached('item', 'work')", path=HERE) for _ in range(2))
    new.do("pause_before(f, 'stored_tag'); pass")
    new.tell("f(1)")
    wait_until((tmp_path / "waits").exists)
    assert other.do("f(2)") == [2, 2, "changed"]
    (tmp_path / "go").touch()
    wait_until(lambda: "write" in holders(tmp_path), timeout=10)
    old.do("reader.release()")
    assert new.answer() == [1, 2, "changed"]


def test_a_process_marks_what_it_computes_with_the_code_that_it_has_and_not_with_that_of_the_file(
    stage: Stage, tmp_path: Path
) -> None:
    old = stage.actor("from joblib_scene import *; f = cached('item', 'work')", path=HERE, PYTHONDONTWRITEBYTECODE="1")
    (tmp_path / "functions.py").write_text(CHANGED)
    assert old.do("f(1)") == [1, 1]
    new = stage.actor("from joblib_scene import *; f = cached('item', 'work')", path=HERE)
    assert new.do("f(1)") == [1, 2, "changed"]


def test_programs_that_disagree_on_what_a_lock_is_for_are_told(tmp_path: Path) -> None:
    for lock_dir in (None, tmp_path / "locks"):
        store = tmp_path / f"cache-{lock_dir is None}"
        Memory(store, verbose=0, granularity="function", lock_dir=lock_dir).cache(full)(2, 3)
        with pytest.raises(ValueError, match="is used with granularity='function', not 'item'"):
            Memory(store, verbose=0, lock_dir=lock_dir)
        Memory(store, verbose=0, granularity="function", lock_dir=lock_dir).clear(warn=False)
        assert items(store) == 0


# -- new results ------------------------------------------------------------------------------------------------------


def test_a_new_result_takes_one_lock_and_one_that_is_being_computed_is_waited_for_as_a_reader(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "nfsrwlock")
    memory = Memory(tmp_path / "cache", verbose=0, poll_interval=0.05)
    cached = memory.cache(full)

    def taken() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [text.rsplit(" ", 1)[1] for text in texts if text.startswith("acquired the lock")]

    cached(2, 7)
    assert taken() == ["write"]
    lock_file = memory.store_backend.lock_file((cached.func_id, cached._get_args_id(2, 8)))
    computing = stage.actor(f"lock = SoftReadWriteLock({lock_file!r}, numbered=False); lock.acquire_write(); pass")
    waiting = threading.Thread(target=cached, args=(2, 8))
    waiting.start()
    wait_until(lambda: "waiting for the lock" in caplog.text)
    assert [name.split(".")[0] for name in announcements(Path(lock_file))] == ["write"], "nobody else is announced"
    computing.do("lock.release()")
    waiting.join(PATIENCE_S)
    assert taken() == ["read", "write"]


def test_all_is_known_of_a_result_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the process is killed in between."""
    cached = Memory(tmp_path / "cache", verbose=0).cache(full)
    store = cached.store_backend
    dump, known = store.dump_item, []

    def look_and_dump(call_id: Any, *args: Any, **options: Any) -> None:
        known.append(store.get_metadata(call_id))
        dump(call_id, *args, **options)

    monkeypatch.setattr(store, "dump_item", look_and_dump)
    reference = cached.call_and_shelve(2, 7)
    assert known[0]["input_args"] == {"size": "2", "value": "7"}
    assert known == [store.get_metadata((cached.func_id, cached._get_args_id(2, 7)))]
    assert reference.metadata["input_args"] == known[0]["input_args"]


# -- small results ----------------------------------------------------------------------------------------------------


def test_a_small_result_is_loaded_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def later(x: int) -> int:
        return x

    memory = Memory(tmp_path / "cache", verbose=0)
    cached, of_tasks = memory.cache(full), memory.cache(later)
    register_store_backend()
    of_joblib = joblib.Memory(tmp_path / "cache", backend="nfsrwlock", verbose=0).cache(full)
    large = (1 << 17, 7)
    cached(2, 7), cached(*large), asyncio.run(of_tasks(3))
    monkeypatch.setattr(type(memory.store_backend), "lock_for", lambda *_: pytest.fail("a lock was asked for"))
    assert cached(2, 7).tolist() == of_joblib(2, 7).tolist() == cached.call_and_shelve(2, 7).get().tolist() == [7, 7]
    assert asyncio.run(of_tasks(3)) == 3
    for function in (cached, of_joblib):
        with pytest.raises(pytest.fail.Exception, match="a lock was asked for"):
            function(*large)


@pytest.mark.parametrize("meanwhile", ["removed", "computed anew by other code"])
def test_a_small_result_that_goes_while_it_is_loaded_is_computed_and_no_other_is_taken_for_it(
    stage: Stage, tmp_path: Path, meanwhile: str
) -> None:
    old = stage.actor("from joblib_scene import *; f = cached('item', 'work')", path=HERE, PYTHONDONTWRITEBYTECODE="1")
    assert old.do("f(1)") == [1, 1]
    old.do("pause_before(f, 'load_under'); pass")
    old.tell("f(1)")
    wait_until((tmp_path / "waits").exists)
    if meanwhile == "removed":
        Memory(tmp_path / "cache" / "joblib", verbose=0).clear(warn=False)
        assert items(tmp_path) == 0
    else:
        (tmp_path / "functions.py").write_text(CHANGED)
        new = stage.actor("from joblib_scene import *; f = cached('item', 'work')", path=HERE)
        assert new.do("f(1)") == [1, 2, "changed"]
    (tmp_path / "go").touch()
    assert old.answer() == [1, 1]
    assert (tmp_path / "log").read_text().count("work-1 1") == 2


def test_no_reference_is_given_to_a_small_result_that_goes_while_it_is_looked_at(stage: Stage, tmp_path: Path) -> None:
    user = stage.actor("from joblib_scene import *; f = cached('item', 'work')", path=HERE)
    assert user.do("f(1)") == [1, 1]
    user.do("pause_before(f, 'get_metadata'); pass")
    user.tell("f.call_and_shelve(1).get()")
    wait_until((tmp_path / "waits").exists)
    Memory(tmp_path / "cache" / "joblib", verbose=0).clear(warn=False)
    (tmp_path / "go").touch()
    assert user.answer() == [1, 1]


def test_a_callback_is_asked_once_about_a_small_result(tmp_path: Path) -> None:
    computed: list[int] = []
    asked: list[Any] = []

    def work(x: int) -> int:
        computed.append(x)
        return x

    def refuse_the_first(metadata: Any) -> bool:
        asked.append(metadata)
        return len(asked) > 1

    cached = Memory(tmp_path / "cache", verbose=0).cache(work, cache_validation_callback=refuse_the_first)
    assert [cached(1), cached(1), cached(1)] == [1, 1, 1]
    assert (computed, len(asked)) == ([1, 1], 2)


def test_a_callback_is_not_asked_about_a_small_result_before_all_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    memory = Memory(tmp_path / "cache", verbose=0, poll_interval=0.1)
    cached = memory.cache(full)
    reader = memory.cache(full, cache_validation_callback=lambda metadata: not asked.append(metadata["input_args"]))
    other = threading.Thread(target=reader, args=(2, 7))
    persist = cached._persist_input

    def persist_later(*args: Any, **options: Any) -> Any:
        other.start()
        other.join(0.5)  # it waits for the lock
        return persist(*args, **options)

    monkeypatch.setattr(cached, "_persist_input", persist_later)
    cached(2, 7)
    other.join(PATIENCE_S)
    assert asked == [{"size": "2", "value": "7"}]


def test_a_verbose_memory_says_how_long_a_small_result_took_to_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached = Memory(tmp_path / "cache", verbose=5).cache(full)
    cached(2, 7), capsys.readouterr()
    cached(2, 7)
    assert "full cache loaded - " in capsys.readouterr().out


class SignalsWhenLoaded:
    def __reduce__(self) -> tuple[Any, ...]:
        return signal.raise_signal, (int(signal.SIGALRM),)


def test_a_signals_exception_ends_the_load_of_a_small_result(tmp_path: Path) -> None:
    def give_up(*_: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        raise TimeoutError("it takes too long")

    shelved = Memory(tmp_path / "cache", verbose=0).cache(SignalsWhenLoaded).call_and_shelve()
    before = signal.signal(signal.SIGALRM, give_up)
    try:
        with pytest.raises(TimeoutError, match="it takes too long"):
            shelved.get()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_result_whose_directory_goes_while_it_is_looked_at_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    cached = Memory(tmp_path / "cache", verbose=0).cache(full)
    shelved = cached.call_and_shelve(2, 7)
    monkeypatch.setattr(freshness, "_look_into", stale)  # only a file server says so, of what another host removes
    assert cached(2, 7).tolist() == shelved.get().tolist() == [7, 7]
    for output in tmp_path.rglob("output.pkl"):
        output.unlink()
    assert cached(2, 7).tolist() == [7, 7]


# -- memory maps ------------------------------------------------------------------------------------------------------


def test_a_reference_to_what_was_removed_says_so_also_where_this_client_believes_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client may believe so until it opens the file."""
    memory = Memory(tmp_path / "cache", verbose=0)
    shelved = memory.cache(full).call_and_shelve(2, 7)
    memory.clear(warn=False)
    monkeypatch.setattr(shelved.store_backend, "_item_exists", lambda name: True)
    with pytest.raises(KeyError):
        shelved.get()


class LooksForAFile:
    """A result that needs a file of its own when it is loaded, and enough room to be loaded under its lock."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, bytes(2 << 20)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["path"].read_text()


@pytest.mark.parametrize("is_large", [True, False])
def test_a_file_that_a_result_itself_needs_is_not_taken_for_the_result(tmp_path: Path, is_large: bool) -> None:
    def compute(path: Path, is_large: bool) -> LooksForAFile:
        result = LooksForAFile(path)
        result.content = result.content if is_large else b""
        return result

    shelved = Memory(tmp_path / "cache", verbose=0).cache(compute).call_and_shelve(tmp_path / "gone", is_large)
    with pytest.raises(FileNotFoundError, match="gone"):
        shelved.get()


def test_a_mapped_result_is_in_use_until_its_last_view_is_gone(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", mmap_mode="r", verbose=0)
    other = Memory(tmp_path / "cache", verbose=0)
    array = memory.cache(full)(1000, 7)
    assert isinstance(array, np.memmap), "at the first call already, as joblib's"
    again = memory.cache(full)(1000, 7)[10:]
    assert holders(tmp_path) == ["read", "read"]
    other.clear(warn=False)
    assert items(tmp_path) == 1
    del array
    gc.collect()
    assert holders(tmp_path) == ["read"]
    other.reduce_size(items_limit=0)
    assert int(again.sum()) == 7 * 990
    del again
    gc.collect()
    assert holders(tmp_path) == []
    other.clear(warn=False)
    assert items(tmp_path) == 0


def test_maps_deep_in_a_result_count_each(tmp_path: Path) -> None:
    cached = Memory(tmp_path / "cache", mmap_mode="r", verbose=0).cache(pair)
    result = cached(1000)
    ones = result["a"][1]
    del result
    gc.collect()
    assert holders(tmp_path) == ["read"]
    assert float(ones.sum()) == 1000
    shelved = cached.call_and_shelve(1000)
    del ones
    gc.collect()
    assert holders(tmp_path) == []
    got = pickle.loads(pickle.dumps(shelved)).get()
    assert holders(tmp_path) == ["read"]
    del got
    gc.collect()
    assert holders(tmp_path) == []


def test_a_result_without_maps_holds_nothing(tmp_path: Path) -> None:
    cached = Memory(tmp_path / "cache", mmap_mode="r", verbose=0).cache(str)
    kept = [cached(1), cached(1)]
    assert holders(tmp_path) == []
    assert kept == ["1", "1"]


def test_what_this_process_has_mapped_is_computed_without_being_stored_and_nobody_hangs(tmp_path: Path) -> None:
    cached = Memory(tmp_path / "cache", mmap_mode="r", verbose=0).cache(full)
    array = cached(1000, 7)
    with pytest.warns(UserWarning.__base__, match="in use by a memory map of this process"):
        output, _ = cached.call(1000, 7)
    assert output.tolist() == array.tolist()
    assert not isinstance(output, np.memmap)


def test_what_this_process_has_mapped_it_may_read_again_although_a_writer_waits(stage: Stage, tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", mmap_mode="r", verbose=0)
    cached = memory.cache(full)

    async def later(size: int, value: int) -> Any:
        return np.full(size, value)

    of_tasks = memory.cache(later)
    mapped = [cached(1000, 7), asyncio.run(of_tasks(1000, 7))]
    locks = [str(path).removesuffix(".rwlock") for path in (tmp_path / "cache.locks").rglob("*.rwlock")]
    for lock in locks:
        stage.actor("from nfsrwlock import SoftReadWriteLock").tell(
            f"SoftReadWriteLock({lock!r}).acquire_write(); pass"
        )
    wait_until(lambda: holders(tmp_path) == ["read", "read", "write", "write"])
    again = [cached(1000, 7), asyncio.run(of_tasks(1000, 7))]
    plain = Memory(tmp_path / "cache", verbose=0).cache(full)(1000, 7)
    del mapped
    gc.collect()
    assert holders(tmp_path) == ["read", "read", "write", "write"], "the second maps keep the holds of the first"
    assert int(again[0][3]) == int(again[1][3]) == int(plain[3]) == 7
    assert all(isinstance(array, np.memmap) for array in again)
    del again
    gc.collect()
    assert holders(tmp_path) == ["write", "write"]


# -- calls within calls -----------------------------------------------------------------------------------------------


def test_a_computation_that_asks_for_its_own_result_is_told_so(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", verbose=0)

    @memory.cache
    def endless(x: int) -> int:
        return int(endless(x))

    with pytest.raises(DeadlockError, match="asks for its own result"):
        endless(1)
    assert holders(tmp_path) == []


def test_a_computation_may_ask_whether_it_is_cached(tmp_path: Path) -> None:
    cached: Any = None

    def work(x: int) -> bool:
        return bool(cached.check_call_in_cache(x))

    cached = Memory(tmp_path / "cache", verbose=0).cache(work)
    assert cached(1) is False
    assert cached.check_call_in_cache(1) is True


@pytest.mark.parametrize("granularity", ["item", "function"])
def test_a_function_may_call_itself_with_other_arguments(tmp_path: Path, granularity: Any) -> None:
    mmap_mode = "r" if granularity == "item" else None
    memory = Memory(tmp_path / "cache", verbose=0, granularity=granularity, mmap_mode=mmap_mode)
    calls: list[int] = []

    @memory.cache(ignore=["calls"])
    def fibonacci(n: int, calls: list[int]) -> Any:
        calls.append(n)
        return np.array([n]) if n < 2 else np.array(fibonacci(n - 1, calls) + fibonacci(n - 2, calls))

    assert fibonacci(10, calls).tolist() == [55]
    assert sorted(calls) == list(range(11)), "each once"
    gc.collect()
    assert holders(tmp_path) == []


# -- coroutines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_of_eight_tasks_one_computes(tmp_path: Path, mmap_mode: str | None) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, poll_interval=0.1, mmap_mode=mmap_mode, linger=0)
    calls: list[int] = []

    @memory.cache(ignore=["calls"])
    async def work(x: int, calls: list[int]) -> Any:
        calls.append(x)
        await asyncio.sleep(0.3)
        if len(calls) == 1:
            raise ArithmeticError
        return np.full(10, x)

    async def main() -> list[Any]:
        return await asyncio.gather(*(work(3, calls) for _ in range(8)), return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result) for result in results].count(ArithmeticError) == 1
    assert sum(isinstance(result, np.ndarray) and result.tolist() == [3] * 10 for result in results) == 7
    assert calls == [3, 3]
    del results
    gc.collect()
    assert holders(tmp_path) == []


def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, poll_interval=0.1)
    begun, done = asyncio.Event(), asyncio.Event()

    @memory.cache
    async def work(x: int) -> int:
        begun.set()
        await done.wait()
        return x

    async def main() -> None:
        first = asyncio.create_task(work(1))
        await begun.wait()
        second = asyncio.create_task(work(1))
        await asyncio.sleep(0.3)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        done.set()
        assert await first == 1

    asyncio.run(main())
    assert holders(tmp_path) == []


# -- what is not stored -----------------------------------------------------------------------------------------------


def test_a_result_that_is_ready_when_the_lock_was_lost_is_returned_and_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, heartbeat_interval=0.1, stale_threshold=20)

    @memory.cache
    def slow(x: int) -> int:
        (lock,) = (tmp_path / "cache.locks").rglob("*.rwlock")
        break_lock(str(lock).removesuffix(".rwlock"), force=True)
        wait_until(lambda: NOTICED in caplog.text)
        return x

    with pytest.warns(Warning, match="Unable to cache to disk: The lock on .* was lost"):
        assert slow(4) == 4
    assert items(tmp_path) == 0


def test_a_lock_that_is_lost_while_the_result_is_written_keeps_it_from_being_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(tmp_path / "cache", verbose=0, heartbeat_interval=0.1, stale_threshold=20)

    class Slow:
        def __reduce__(self) -> tuple[Any, ...]:
            (lock,) = (tmp_path / "cache.locks").rglob("*.rwlock")
            break_lock(str(lock).removesuffix(".rwlock"), force=True)
            wait_until(lambda: NOTICED in caplog.text)
            return str, ("pickled",)

    @memory.cache
    def work() -> Any:
        return Slow()

    with pytest.warns(Warning, match="Unable to cache to disk"):
        assert isinstance(work(), Slow)
    assert items(tmp_path) == 0
    assert list((tmp_path / "cache").rglob("output.pkl*")) == []


def test_who_waits_longer_than_the_timeout_is_told_who_computes(stage: Stage, tmp_path: Path) -> None:
    busy = stage.actor("from joblib_scene import *", path=HERE)
    waits = stage.actor("from joblib_scene import *; SETTINGS['timeout'] = 0.3; pass", path=HERE)
    busy.tell("cached('item', 'hangs_once')(1)")
    wait_until((tmp_path / "hung").exists)
    with pytest.raises(Raised) as raised:
        waits.do("cached('item', 'hangs_once')(1)")
    assert "Timeout" in raised.value.names
    assert f"pid {busy.pid}" in raised.value.message


def test_a_forced_call_that_raises_leaves_the_result_that_was_there(tmp_path: Path) -> None:
    @Memory(tmp_path / "cache", verbose=0).cache
    def work(x: int) -> int:
        if (tmp_path / "broken").exists():
            raise ArithmeticError
        return x

    work(1)
    (tmp_path / "broken").touch()
    with pytest.raises(ArithmeticError):
        work.call(1)
    assert work(1) == 1


def test_a_result_that_cannot_be_written_leaves_no_half_of_it(tmp_path: Path) -> None:
    @Memory(tmp_path / "cache", verbose=0).cache
    def work() -> Any:
        return [np.zeros(1000), open(os.devnull)]

    with pytest.warns(Warning, match="Unable to cache to disk"):
        work()[1].close()
    assert list((tmp_path / "cache").rglob("output.pkl*")) == []


def test_metadata_that_are_not_joblibs_are_none(tmp_path: Path) -> None:
    cached = Memory(tmp_path / "cache", verbose=0).cache(full)
    cached(2, 3)
    (found,) = (tmp_path / "cache").rglob("metadata.json")
    found.write_text("[1]")
    assert cached(2, 3).tolist() == [3, 3]


@pytest.mark.parametrize(
    "left", [None, "", '{"duration": 1, "inp', "null", "[1, 2]", '{"duration": 1, "input_args": {}}']
)
@pytest.mark.parametrize("kind", [Memory, joblib.Memory], ids=["ours", "joblib's"])
def test_a_callback_is_not_asked_about_an_item_without_whole_metadata_which_is_computed_anew(
    tmp_path: Path, kind: Any, left: str | None
) -> None:
    computed: list[int] = []
    asked: list[float] = []

    def work(x: int) -> int:
        computed.append(x)
        return 2 * x

    kind(tmp_path / "cache", verbose=0).cache(work)(3)
    (found,) = (tmp_path / "cache").rglob("metadata.json")
    found.unlink() if left is None else found.write_text(left)
    memory = Memory(tmp_path / "cache", verbose=0)
    cached = memory.cache(work, cache_validation_callback=lambda metadata: not asked.append(metadata["time"]))
    assert (cached(3), computed, asked) == (6, [3, 3], [])
    assert (cached(3), computed, len(asked)) == (6, [3, 3], 1)


# -- the registered backend -------------------------------------------------------------------------------------------


def test_a_plain_memory_with_our_backend_reads_under_locks(tmp_path: Path) -> None:
    register_store_backend()
    memory = joblib.Memory(
        tmp_path / "cache", backend="nfsrwlock", verbose=0, mmap_mode="r", backend_options={"timeout": 20}
    )
    cached = pickle.loads(pickle.dumps(memory)).cache(full)
    cached(1000, 7)
    array = cached(1000, 7)
    assert isinstance(array, np.memmap)
    assert "read" in holders(tmp_path)
    memory.reduce_size(items_limit=0)
    assert items(tmp_path) == 1
    del array
    gc.collect()
    memory.clear(warn=False)
    assert items(tmp_path) == 0
    assert holders(tmp_path) == []


# -- wrong input ------------------------------------------------------------------------------------------------------


def test_wrong_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="backend must be 'local' or 'nfsrwlock'"):
        Memory(tmp_path, backend="s3")
    with pytest.raises(TypeError, match=r"Memory\(\) got an unexpected keyword argument 'leas'"):
        Memory(tmp_path, leas=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="granularity must be 'item' or 'function'"):
        Memory(tmp_path, granularity="file")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stale_threshold must exceed"):
        Memory(tmp_path, stale_threshold=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached = Memory(tmp_path / "cache", verbose=0).cache(str)
        assert cached(1) == "1"
    with pytest.raises(ValueError, match="mmap_mode needs granularity='item'"):
        Memory(tmp_path, granularity="function", mmap_mode="r")
    (tmp_path / "cache.locks").rename(tmp_path / "old")
    (tmp_path / "cache.locks").write_text("not a directory")
    with pytest.raises(LockPathError, match="Not a directory; correct the path"):
        cached(2)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_children_of_a_computation_that_call_its_function_do_not_wait_for_its_one_lock(
    tmp_path: Path, backend: str
) -> None:
    (tmp_path / "parents.py").write_text(
        "from joblib import Parallel, delayed\nfrom nfsrwlock.joblib import Memory\n"
        "def f(n, store, backend):\n"
        "    if n == 0: return 1\n"
        "    g = Memory(store, verbose=0, granularity='function').cache(f)\n"
        "    return sum(Parallel(n_jobs=2, backend=backend)(delayed(g)(n - 1, store, backend) for _ in range(2)))\n"
    )
    code = (
        "import sys, parents; from nfsrwlock.joblib import Memory; store, backend = sys.argv[1:]\n"
        "Memory(store, verbose=0, granularity='function').cache(parents.f)(1, store, backend)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store"), backend],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 1
    assert "use granularity='item'" in done.stderr.splitlines()[-1]
