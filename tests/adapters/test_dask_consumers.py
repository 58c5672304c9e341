"""Whom Dask's users hand a lock to: Dask's own functions, xarray, zarr; and what makes two locks one."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import filelock
import h5py
import numpy as np
import pytest
import zarr
from dask.base import tokenize
from dask.dataframe.io.utils import SupportsLock
from dask.utils import SerializableLock

from actors import in_forked_child
from adapters.dask_tasks import add_one, is_held, read_both, run_program, wait_until
from nfsrwlock import FileLock, LockLostError, LockNotHeldError, break_lock, inspect
from nfsrwlock.dask import CombinedLock, Lock, RWLock, combine

# -- stores -----------------------------------------------------------------------------------------------------------


class Hdf5File:
    """A target for ``da.store`` whose every write opens the file, as each of several processes has to."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __setitem__(self, where: Any, values: Any) -> None:
        with h5py.File(self.path, "r+", locking=False) as file:
            file["x"][where] = values


class Counter:
    """A target that counts writes by read, pause, and write: each overlap loses some."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setitem__(self, where: Any, values: Any) -> None:
        import time

        before = int(self.path.read_text())
        time.sleep(0.005)
        self.path.write_text(str(before + 1))


def chunks_of_64() -> da.Array:
    return da.arange(6400, chunks=100, dtype="i8").reshape(80, 80).rechunk((10, 10))


@pytest.mark.parametrize("is_locked", [True, False])
def test_64_chunks_go_into_one_hdf5_file_by_four_processes_and_without_the_lock_they_do_not(
    client: Any, tmp_path: Path, is_locked: bool
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (80, 80), "i8", chunks=(10, 10), compression="gzip")
    array = chunks_of_64()
    assert array.npartitions == 64
    try:
        da.store(array, Hdf5File(tmp_path / "x.h5"), lock=Lock(tmp_path / "x.h5") if is_locked else False)
        with h5py.File(tmp_path / "x.h5") as file:
            stored = file["x"][:]
    except Exception:  # a file that is no HDF5 any more
        assert not is_locked
        return
    assert np.array_equal(stored, np.arange(6400).reshape(80, 80)) is is_locked


@pytest.mark.parametrize("is_locked", [True, False])
def test_64_chunks_go_into_four_of_zarr_and_without_the_lock_some_are_lost(
    client: Any, tmp_path: Path, is_locked: bool
) -> None:
    # Each zarr chunk is written in sixteen parts: read, modify, write.
    target = zarr.create_array(str(tmp_path / "x.zarr"), shape=(80, 80), chunks=(40, 40), dtype="i8")
    with dask.config.set({"array.store.safe-chunks": False}):
        da.store(chunks_of_64(), target, lock=Lock(tmp_path / "x.zarr") if is_locked else False)
    assert np.array_equal(target[:], np.arange(6400).reshape(80, 80)) is is_locked


@pytest.mark.parametrize("is_locked", [True, False])
def test_no_two_of_64_writes_overlap_and_without_the_lock_some_do(client: Any, tmp_path: Path, is_locked: bool) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    count = tmp_path / "count"
    count.write_text("0")
    try:
        da.store(chunks_of_64(), Counter(count), lock=Lock(count) if is_locked else False)
    except ValueError:
        assert not is_locked  # it met an empty file
        return
    assert (int(count.read_text()) == 64) is is_locked


def frame_of_64() -> Any:
    import dask.dataframe as dd
    import pandas as pd

    return dd.from_pandas(pd.DataFrame({"x": np.arange(640), "y": np.arange(640) / 2}), npartitions=64)


@pytest.mark.parametrize("is_locked", [True, False])
def test_64_partitions_go_into_one_hdf_file_by_to_hdf_and_without_the_lock_they_do_not(
    client: Any, tmp_path: Path, is_locked: bool
) -> None:
    import dask.dataframe as dd

    path, frame, rw = tmp_path / "x.h5", frame_of_64(), RWLock(tmp_path / "x.h5")
    # PyTables is not safe in threads, and readers share the file's lock.
    read = combine(SerializableLock("pytables"), rw.read)
    try:
        # HDF5 refuses to open what another process writes, where it can see that: two that overlap are an error.
        frame.to_hdf(path, key="/part_*", lock=rw.write if is_locked else False)
        back = dd.read_hdf(str(path), "/part_*", lock=read).compute()
    except Exception:
        assert not is_locked
        return
    assert (len(back) == 640 and back.sort_index().equals(frame.compute())) is is_locked


def test_reading_through_from_array_takes_the_lock_and_gives_it_back(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.arange(100)
    with h5py.File(tmp_path / "x.h5") as file:
        array = da.from_array(file["x"], chunks=10, lock=RWLock(tmp_path / "x.h5").read)
        assert int(array.sum().compute(scheduler="threads")) == 4950
    assert not is_held(tmp_path / "x.h5")


def test_one_netcdf_file_is_changed_by_eight_tasks_while_others_read_it(client: Any, tmp_path: Path) -> None:
    import xarray as xr

    path = tmp_path / "a.nc"
    xr.Dataset({"a": ("t", np.zeros(4, "i8")), "b": ("t", np.zeros(4, "i8"))}).to_netcdf(path, engine="h5netcdf")
    rw = RWLock(path)
    writes = [client.submit(add_one, str(path), rw.write, pure=False) for _ in range(8)]
    reads = [client.submit(read_both, str(path), rw.read, pure=False) for _ in range(8)]
    assert client.gather(reads) == [True] * 8
    client.gather(writes)
    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        assert [int(dataset["a"][0]), int(dataset["b"][3])] == [8, 8]


@pytest.mark.timeout(300)  # a cluster starts and writes 64 chunks: long, beside others who compute
def test_the_tutorial_s_program_runs_as_it_stands(tmp_path: Path) -> None:
    tutorial = (Path(__file__).parents[2] / "docs" / "tutorial-dask.md").read_text()
    program = tutorial.split("```python\n")[1].split("```")[0]
    (tmp_path / "store.py").write_text(program)
    done = subprocess.run([sys.executable, "store.py"], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        assert (file["x"][:] > 0).all()
    assert not is_held(tmp_path / "out.h5")


def test_xarray_opens_with_a_combined_lock_and_reads_lazily_on_the_cluster(client: Any, tmp_path: Path) -> None:
    import xarray as xr
    from xarray.backends.locks import HDF5_LOCK

    path = tmp_path / "a.nc"
    xr.Dataset({"a": ("t", np.arange(40))}).to_netcdf(path, engine="h5netcdf")
    rw = RWLock(path)
    with xr.open_dataset(path, engine="h5netcdf", chunks={"t": 10}, lock=combine(HDF5_LOCK, rw.read)) as dataset:
        assert int(dataset["a"].sum()) == 780
    assert not is_held(path)


def test_xarray_s_way_of_taking_locks(tmp_path: Path) -> None:
    from xarray.backends.locks import CombinedLock as XarrayLock
    from xarray.backends.locks import acquire

    lock = combine(SerializableLock("x"), Lock(tmp_path / "x"))
    assert acquire(lock, blocking=False) is True
    assert acquire(pickle.loads(pickle.dumps(lock)), blocking=False) is False
    lock.release()
    together = XarrayLock([Lock(tmp_path / "x")])
    assert together.acquire(False)
    together.release()
    assert not is_held(tmp_path / "x")


def test_a_file_that_is_given_up_on_the_loop_is_not_closed_under_another_s_lock(client: Any, tmp_path: Path) -> None:
    # Python may call `__del__` of xarray's files on any thread.
    lock = Lock(tmp_path / "x")

    def give_up(guard: Any) -> bool:
        return True if guard.acquire(False) else False  # noqa: SIM210 - as xarray asks

    def give_up_each() -> list[bool]:
        return [give_up(guard) for guard in (lock, combine(lock), RWLock(tmp_path / "y").read)]

    async def in_task() -> list[bool]:
        return give_up_each()

    async def outside_of_tasks() -> list[bool]:
        given_up: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: given_up.set_result(give_up_each()))
        return await given_up

    for on_loop in (in_task, outside_of_tasks):
        with lock as held:
            assert client.sync(on_loop) == [False] * 3
            held.check()
    assert not is_held(tmp_path / "x")


def test_each_key_of_a_zarr_2_synchronizer_has_a_lock_of_its_own(tmp_path: Path) -> None:
    synchronizer = Lock(tmp_path / "x.zarr")
    with synchronizer["0.0"], pickle.loads(pickle.dumps(synchronizer))["0.1"] as other:
        assert synchronizer["0.0"].acquire(blocking=False) is False
        other.check()
    with pytest.raises(TypeError):
        list(synchronizer)  # type: ignore[call-overload]


def test_locks_are_what_to_hdf_asks_for_and_never_count_as_false(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "x")
    for candidate in (lock, RWLock(tmp_path / "x").read, combine(lock)):
        assert isinstance(candidate, SupportsLock)
        assert candidate


# -- equal locks ------------------------------------------------------------------------------------------------------


def views(path: Path) -> list[Any]:
    pair = RWLock(path)
    return [Lock(path), pair.read, pair, combine(SerializableLock("hdf5"), pair.read)]


@pytest.mark.parametrize("index", range(4))
def test_equal_locks_compare_hash_and_tokenize_equal_held_or_not(tmp_path: Path, index: int) -> None:
    lock, same = views(tmp_path / "x")[index], views(tmp_path / "x")[index]
    token = tokenize(lock)
    with lock.write if isinstance(lock, RWLock) else lock:
        for copied in (same, copy.copy(lock), copy.deepcopy(lock), pickle.loads(cloudpickle.dumps(lock))):
            assert copied == lock
            assert hash(copied) == hash(lock)
            assert tokenize(copied) == token == tokenize(lock)
            with pytest.raises(RuntimeError):
                (copied.write if isinstance(copied, RWLock) else copied).release()


def test_different_locks_differ(tmp_path: Path) -> None:
    path = tmp_path / "x"
    locks = [*views(path)[1:], *views(tmp_path / "y"), Lock(path), Lock(path, on_contention="secede")]
    assert len({tokenize(lock) for lock in locks}) == len(set(locks)) == len(locks)


def test_a_function_of_main_takes_its_lock_along(tmp_path: Path) -> None:
    program = (
        "import sys, pickle, cloudpickle; from nfsrwlock.dask import Lock, RWLock\n"
        "rw = RWLock(sys.argv[1])\n"
        "def f():\n"
        "    with rw.write as held: held.check(); return rw.write.acquire(blocking=False)\n"
        "with rw.read: again = pickle.loads(cloudpickle.dumps(f))\n"
        "print(again())\n"
    )
    done = run_program(program, tmp_path / "x")
    assert (done.stdout.strip(), done.stderr) == ("False", "")


# -- readers ----------------------------------------------------------------------------------------------------------


def test_readers_share_and_writers_do_not(tmp_path: Path) -> None:
    one, other = RWLock(tmp_path / "x"), RWLock(tmp_path / "x")
    with one.read, other.read:
        assert _elsewhere(lambda: (other.read.acquire(timeout=5), other.read.release())) == (True, True)
        assert other.write.acquire(blocking=False) is False
        assert (one.read.locked(), one.write.locked()) == (False, True)
    with one.write:
        assert _elsewhere(lambda: other.read.acquire(blocking=False)) is False


def test_who_reads_again_joins_itself_even_past_a_waiting_writer(tmp_path: Path) -> None:
    rw, again = RWLock(tmp_path / "x"), RWLock(tmp_path / "x")
    with rw.read:
        writer = threading.Thread(target=lambda: rw.write.acquire(timeout="30s"))
        writer.start()
        while not inspect(rw.path).waiters:
            assert writer.is_alive()
        assert again.read.acquire(timeout=5)
        again.read.release()
        assert is_held(rw.path)
    writer.join()
    rw.write.release()
    assert not is_held(rw.path)


def test_a_writer_may_read_what_it_has_and_keeps_it_to_the_end(tmp_path: Path) -> None:
    rw = RWLock(tmp_path / "x")
    with rw.write:
        with rw.read:
            pass
        assert _elsewhere(lambda: RWLock(tmp_path / "x").read.acquire(blocking=False)) is False


def test_a_reader_that_asks_to_write_is_refused_instead_of_waiting_for_itself(tmp_path: Path) -> None:
    rw = RWLock(tmp_path / "x")
    with rw.read:
        with pytest.raises(RuntimeError, match="would wait for itself"):
            rw.write.acquire()
        assert rw.write.acquire(blocking=False) is False


def _elsewhere(call: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


# -- combine ----------------------------------------------------------------------------------------------------------


def test_combinations_have_one_order_and_each_path_once(tmp_path: Path) -> None:
    from xarray.backends.locks import CombinedLock as XarrayLock

    a, b, hdf5 = RWLock(tmp_path / "a"), RWLock(tmp_path / "b"), SerializableLock("hdf5")
    expected = combine(a.write, b.read, hdf5)
    assert expected.locks == (a.write, b.read, hdf5)
    for members in (
        (hdf5, b.read, a.write),
        (b.read, a.read, None, hdf5, a.write, a.read),
        (combine(b.read, hdf5), combine(a.write)),
        (XarrayLock([b.read, hdf5]), a.write, SerializableLock("hdf5")),
    ):
        assert combine(*members) == expected
    (tmp_path / "link").symlink_to(tmp_path)
    assert combine(a.write, Lock(tmp_path / "link" / "a")).locks == (a.write,)


def test_a_combination_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    a, b, plain = Lock(tmp_path / "a"), Lock(tmp_path / "b"), threading.Lock()
    with Lock(tmp_path / "b"):
        assert combine(a, b, plain).acquire(timeout="50ms") is False
        assert not is_held(tmp_path / "a")
    with plain:
        assert combine(a, b, plain).acquire(False) is False
        assert not is_held(tmp_path / "b")
    with combine(a, b, plain) as held:
        held.check()
        assert plain.locked()
        assert held.locked()
    assert [plain.locked(), is_held(tmp_path / "a"), is_held(tmp_path / "b")] == [False] * 3


def test_two_orders_in_many_tasks_do_not_block_each_other(client: Any, tmp_path: Path) -> None:
    def both(one: Any, other: Any) -> bool:
        with combine(one, other):
            return True

    a, b = Lock(tmp_path / "a"), Lock(tmp_path / "b")
    futures = [client.submit(both, *((a, b) if i % 2 else (b, a)), pure=False) for i in range(20)]
    assert all(client.gather(futures))


@pytest.mark.parametrize("kind", [filelock.FileLock, FileLock, threading.Lock, threading.RLock, multiprocessing.Lock])
def test_locks_of_every_shape_are_taken_for_a_time_or_not_at_all(tmp_path: Path, kind: Any) -> None:
    def make() -> Any:
        return kind(str(tmp_path / "foreign")) if "FileLock" in kind.__name__ else foreign

    foreign = None if "FileLock" in kind.__name__ else kind()
    together = combine(make(), Lock(tmp_path / "x"))
    with make():
        assert _elsewhere(together.locked) is True
        assert _elsewhere(lambda: together.acquire(False)) is False
        assert _elsewhere(lambda: together.acquire(timeout="50ms")) is False
        assert not is_held(tmp_path / "x")
    assert together.locked() is False
    for arguments in ((), (False,), (True, 5)):
        assert together.acquire(*arguments) is True
        assert together.locked() is True
        together.release()


@pytest.mark.parametrize("kind", [filelock.FileLock, FileLock])
def test_a_file_lock_is_one_member_at_one_place_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    for directory, spellings in (
        (tmp_path, ("here/a", "./here/a", "link/a", str(tmp_path / "here" / "a"), "z")),
        (tmp_path / "here", ("../z", "a", "./a")),
    ):
        monkeypatch.chdir(directory)
        together = combine(*map(kind, spellings))
        assert [Path(lock.lock_file).name for lock in together.locks] == ["a", "z"]
        assert together.acquire(timeout=5) is True
        together.release()


def test_on_the_loop_a_combination_is_asked_like_its_members(client: Any, tmp_path: Path) -> None:
    import distributed

    async def task(together: Any, member: Any) -> list[Any]:
        said = [await together.locked()]
        async with member:
            said.append(await together.locked())
        return [*said, await together.locked()]

    lock, theirs = Lock(tmp_path / "x"), distributed.Lock(str(tmp_path / "x"))
    for member in (lock, theirs):
        assert client.submit(task, combine(lock, theirs), member).result() == [False, True, False]


def test_a_coroutine_that_is_cancelled_while_it_gives_a_combination_back_gives_all_back(
    client: Any, tmp_path: Path
) -> None:
    async def task(one: Any, other: Any) -> list[Any]:
        together = combine(one, other)
        await together.acquire()
        release = asyncio.ensure_future(together.release())
        await asyncio.sleep(0)
        release.cancel()
        said = await asyncio.gather(release, return_exceptions=True)
        return [*map(type, said), await one.locked(), await other.locked()]

    said = client.submit(task, Lock(tmp_path / "x"), Lock(tmp_path / "y")).result()
    assert said == [asyncio.CancelledError, False, False]


@pytest.mark.parametrize("members", [(), (None,), ("lock",), (7,), (Lock,), (asyncio.Lock(),), (asyncio.Semaphore(),)])
def test_what_cannot_be_combined_is_refused(members: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="lock"):
        combine(*members)


def test_a_member_that_fails_quietly_is_not_taken_for_held() -> None:
    class Failing:
        def acquire(self, *_: Any) -> bool:
            return False

        def release(self) -> None:
            raise AssertionError("it was not taken")

    with pytest.raises(TimeoutError):
        CombinedLock((Failing(),)).acquire()


# -- lost holds -------------------------------------------------------------------------------------------------------


def evict_all(path: Path) -> None:
    assert break_lock(path, force=True)


def _fail(_: object) -> None:
    raise KeyError


def test_a_hold_that_was_lost_is_an_error_at_its_end(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "x")
    lock.acquire()
    evict_all(tmp_path / "x")
    with pytest.raises(LockLostError):
        lock.release()
    for guard in (lock, combine(lock)):
        with pytest.raises(LockLostError), guard:
            evict_all(tmp_path / "x")
        with pytest.raises(KeyError), guard:  # the block's own exception says more
            _fail(evict_all(tmp_path / "x"))
    with lock:  # and the next hold begins anew
        lock.check()


def test_a_store_whose_lock_was_lost_fails(tmp_path: Path) -> None:
    class Evicting:
        def __setitem__(self, where: Any, values: Any) -> None:
            evict_all(tmp_path / "x")

    with pytest.raises(LockLostError):
        da.store(da.ones(4), Evicting(), lock=Lock(tmp_path / "x"), scheduler="synchronous")


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_hold_of_a_coroutine_that_was_lost_is_an_error_at_its_end(tmp_path: Path, is_elsewhere: bool) -> None:
    async def program() -> None:
        lock = await Lock(tmp_path / "x")  # its first heartbeat is half a minute away
        await lock.__aenter__()
        evict_all(tmp_path / "x")
        leave = lock.__aexit__(None, None, None)
        await (asyncio.create_task(leave) if is_elsewhere else leave)

    with pytest.raises(LockLostError):
        asyncio.run(program())


@pytest.mark.parametrize("where", ["on its loop", "after its loop has ended", "after its loop has stopped"])
def test_what_a_coroutine_took_may_be_given_back_by_synchronous_code(tmp_path: Path, where: str) -> None:
    program = (
        "import asyncio, sys; from nfsrwlock.dask import Lock\n"
        "lock, loop = Lock(sys.argv[1]), asyncio.new_event_loop()\n"
        "async def take(): await lock.__aenter__()\n"
        "async def take_and_release(): await take(); lock.release()\n"
    ) + {
        "on its loop": "loop.run_until_complete(take_and_release())\n",
        "after its loop has ended": "loop.run_until_complete(take()); loop.close(); lock.release()\n",
        "after its loop has stopped": "loop.run_until_complete(take()); lock.release()\n",
    }[where]
    done = run_program(program + "print(lock.acquire(blocking=False))\n", tmp_path / "x")
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_close_gives_back_every_hold_also_where_one_was_lost(tmp_path: Path) -> None:
    lock = RWLock(tmp_path / "x").read
    lock.acquire()
    evict_all(tmp_path / "x")
    _elsewhere(lock.acquire)
    _elsewhere(lock.acquire)
    with pytest.raises(LockLostError):
        lock.close()
    assert not is_held(tmp_path / "x")
    lock.close()


def test_check_speaks_of_the_caller_s_hold(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "x")
    with pytest.raises(LockNotHeldError):
        lock.check()
    with lock:
        lock.check()
    with pytest.raises(LockNotHeldError):
        lock.check()


def test_check_in_a_notebook_speaks_of_the_cell_s_hold_not_of_that_of_a_thread(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    lock = RWLock(tmp_path / "x", heartbeat_interval="100ms", stale_threshold="20s").read

    def is_lost() -> bool:
        try:
            lock.check()
        except LockLostError:
            return True
        return False

    def lose() -> None:
        lock.acquire()
        (peer,) = inspect(tmp_path / "x").holders
        assert break_lock(tmp_path / "x", token=peer.token, force=True)
        wait_until(is_lost)

    async def cell() -> bool:
        with lock:
            return is_lost()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lose).result()
        assert asyncio.run(cell()) is False
        with pytest.raises(LockLostError):
            thread.submit(lock.release).result()


def test_a_forked_child_holds_nothing_and_takes_nothing_away(tmp_path: Path) -> None:
    rw = RWLock(tmp_path / "x")

    def child() -> list[bool]:
        block.__exit__(None, None, None)
        found = [rw.write.acquire(blocking=False)]
        with rw.read:
            found.append(rw.read.acquire(blocking=False))
            rw.read.release()
        return found

    for block in (rw.read, combine(rw.read, threading.Lock())):
        with block:
            assert in_forked_child(child) == [False, True]
            rw.read.check()
            assert is_held(rw.path)
    with pytest.raises(RuntimeError, match="Released too often"):
        rw.read.release()
