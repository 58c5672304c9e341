"""What ``distributed.Lock`` promises: ours, and in `make test-newest` itself; and where ours differs on purpose."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import inspect
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import distributed
import pytest

import nfsrwlock.dask
from adapters.dask_tasks import PATIENCE_S, is_held, overlap, wait_until, work_alone, work_alone_async
from nfsrwlock import LockPathError, Timeout
from nfsrwlock.dask.holding import activity

Make = Callable[[], Any]
THEIRS = pytest.param(distributed.Lock, id="distributed", marks=pytest.mark.peers)


@pytest.fixture(params=[THEIRS, pytest.param(nfsrwlock.dask.Lock, id="nfsrwlock")])
def make(request: pytest.FixtureRequest, client: Any, tmp_path: Path) -> Make:
    """Makes locks by one name, of one class."""
    name = f"{tmp_path.name}-{tmp_path.parent.name}" if request.param is distributed.Lock else tmp_path / "data"
    return lambda: request.param(name)


def test_it_is_made_with_the_original_s_arguments(make: Make) -> None:
    lock = make()
    assert list(inspect.signature(type(lock)).parameters)[:3] == ["name", "scheduler_rpc", "loop"]
    same = type(lock)(lock.name, None, None)
    with lock:
        assert same.acquire(timeout=0.05) is False


def test_acquire_and_release_return_true(make: Make) -> None:
    lock = make()
    assert lock.acquire() is True
    assert lock.release() is True


def test_a_second_object_of_that_name_is_excluded_until_the_release(make: Make) -> None:
    one, other = make(), make()
    assert one.acquire()
    assert other.acquire(timeout=0.05) is False
    assert one.release()
    assert other.acquire(timeout=10) is True
    other.release()


def test_it_is_not_re_entrant(make: Make) -> None:
    lock = make()
    with lock:
        assert lock.acquire(timeout=0.05) is False


@pytest.mark.parametrize("form", [0.05, "50ms", dt.timedelta(milliseconds=50), "0.05", 0], ids=repr)
def test_a_time_out_may_have_every_form_that_dask_takes(make: Make, form: Any) -> None:
    with make():
        assert make().acquire(timeout=form) is False


@pytest.mark.parametrize("form", ["soon", "5 parsecs"])
def test_what_is_no_time_is_refused(make: Make, form: Any) -> None:
    with pytest.raises((ValueError, KeyError)):
        make().acquire(timeout=form)


@pytest.mark.parametrize("blocking", [False, 0], ids=repr)
def test_a_call_that_does_not_wait_says_so_by_its_result(make: Make, blocking: Any) -> None:
    with make():
        assert make().acquire(blocking) is False
    lock = make()
    assert lock.acquire(blocking=blocking) is True
    lock.release()


def test_a_time_out_for_a_call_that_does_not_wait_is_refused_at_once(make: Make) -> None:
    with pytest.raises(ValueError, match="can't specify a timeout for a non-blocking call"):
        make().acquire(blocking=False, timeout=1)


def test_releasing_what_is_not_held_is_an_error(make: Make) -> None:
    with pytest.raises(RuntimeError, match="Released too often"):
        make().release()


def test_releasing_through_another_object_is_an_error(make: Make) -> None:
    with make(), pytest.raises(RuntimeError, match="Released too often"):
        make().release()


def test_another_thread_may_release(make: Make) -> None:
    lock = make()
    assert lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    with make() as other:
        assert other.locked()


def test_locked_and_get_value_tell_of_holders_anywhere(make: Make) -> None:
    lock, other = make(), make()
    lock.register()
    assert (lock.locked(), lock.get_value()) == (False, 0)
    with other:
        assert (lock.locked(), lock.get_value()) == (True, 1)


def test_with_gives_the_lock_and_releases_after_an_exception(make: Make) -> None:
    lock = make()

    def work() -> None:
        with lock as held:
            assert held is lock
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert lock.acquire(timeout=10)
    lock.release()


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_it_pickles_as_its_name_and_arrives_not_held(make: Make, dumps: Any) -> None:
    lock = make()
    with lock:
        copied = pickle.loads(dumps(lock))
        assert copied.name == lock.name
        assert copied.acquire(timeout=0.05) is False
        with pytest.raises(RuntimeError):
            copied.release()
    assert copied.acquire(timeout=10)
    copied.release()


def test_each_object_has_an_id_of_its_own(make: Make) -> None:
    lock = make()
    assert len({lock.id, make().id, pickle.loads(pickle.dumps(lock)).id}) == 3
    assert isinstance(lock.id, str)


@pytest.mark.parametrize("kind", [THEIRS, pytest.param(nfsrwlock.dask.Lock, id="nfsrwlock")])
@pytest.mark.parametrize("name", [1, ("a", 1), ["a", 1], b"123", "123"], ids=repr)
def test_a_name_may_be_other_than_a_string(client: Any, tmp_path: Path, kind: Any, name: Any) -> None:
    with dask.config.set({"nfsrwlock.root": str(tmp_path)}), kind(name) as lock:
        assert lock.name == name
        assert kind(copy.copy(name)).acquire(timeout=0) is False


def test_tasks_exclude_each_other(make: Make, client: Any, tmp_path: Path) -> None:
    futures = [client.submit(work_alone, make(), str(tmp_path / "x"), str(i), pure=False) for i in range(12)]
    assert client.gather(futures) == [False] * 12


def test_tasks_that_are_coroutines_exclude_each_other(make: Make, client: Any, tmp_path: Path) -> None:
    futures = [client.submit(work_alone_async, make(), str(tmp_path / "x"), str(i), pure=False) for i in range(12)]
    assert client.gather(futures) == [False] * 12


def test_the_judge_sees_an_overlap(client: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    one = client.submit(overlap, str(tmp_path / "x"), "one", 0.0, str(go), pure=False)
    wait_until((tmp_path / "x.inside.one").exists)
    other = client.submit(overlap, str(tmp_path / "x"), "other", 0.0, pure=False)
    assert other.result(timeout=PATIENCE_S) is True
    go.touch()
    assert one.result(timeout=PATIENCE_S) is False  # for the other one has left


def test_in_a_coroutine_the_methods_are_awaited(make: Make, client: Any) -> None:
    async def task(lock: Any, other: Any) -> list[Any]:
        said = [await lock.acquire(), await other.acquire(timeout="50ms"), await lock.locked(), await lock.release()]
        async with lock as held:
            return [*said, held is lock, await other.acquire(blocking=False)]

    assert client.submit(task, make(), make()).result() == [True, False, True, True, True, False]


def test_another_coroutine_may_release(make: Make, client: Any) -> None:
    async def task(lock: Any, other: Any) -> list[Any]:
        import asyncio

        await lock.acquire()
        said = await asyncio.create_task(lock.release())
        return [said, await other.acquire(timeout=10), await other.release()]

    assert client.submit(task, make(), make()).result() == [True, True, True]


def test_a_result_may_be_awaited_in_every_way(make: Make, client: Any) -> None:
    async def task(lock: Any) -> list[Any]:
        import asyncio

        said = [await asyncio.wait_for(lock.acquire(), 30), *await asyncio.gather(lock.locked(), lock.get_value())]
        return [*said, await asyncio.ensure_future(lock.release())]

    assert client.submit(task, make()).result() == [True, True, 1, True]


# -- where ours differs -----------------------------------------------------------------------------------------------


def test_with_in_a_coroutine_raises_where_the_original_runs_the_block_unlocked(client: Any, tmp_path: Path) -> None:
    lock = nfsrwlock.dask.Lock(tmp_path / "data")

    async def task(lock: Any) -> str:
        try:
            with lock:
                return "ran"
        except RuntimeError as error:
            return str(error)

    assert "use 'async with'" in client.submit(task, lock).result()
    assert "use 'async with'" in client.submit(task, nfsrwlock.dask.combine(lock)).result()
    assert not is_held(tmp_path / "data")


def test_with_in_a_plain_function_that_dask_calls_on_its_loop_raises(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"

    def function() -> str:
        try:
            with nfsrwlock.dask.Lock(path):
                return "held"
        except RuntimeError as error:
            return str(error)

    with nfsrwlock.dask.Lock(path):  # it would keep the loop from all else
        said = [
            *client.run(function).values(),
            *client.run(function, nanny=True).values(),
            client.run_on_scheduler(function),
        ]
    assert len(said) == 9
    assert all("would block Dask's event loop" in answer for answer in said)


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_what_a_task_that_raised_has_dropped_is_given_back(client: Any, tmp_path: Path, is_coroutine: bool) -> None:
    path = tmp_path / "data"

    def task() -> None:
        lock = nfsrwlock.dask.Lock(path)
        assert lock.acquire()
        raise KeyError

    async def coroutine() -> None:
        lock = nfsrwlock.dask.Lock(path)
        assert await lock.acquire()
        raise KeyError

    future = client.submit(coroutine if is_coroutine else task, pure=False)
    assert isinstance(future.exception(timeout=PATIENCE_S), KeyError)
    with nfsrwlock.dask.Lock(path, timeout=PATIENCE_S):
        pass


def test_what_is_not_awaited_in_a_coroutine_is_not_taken_for_its_result(client: Any, tmp_path: Path) -> None:
    async def task(lock: Any) -> list[Any]:
        said: list[Any] = []
        for call in (lock.acquire, lambda: lock.acquire(timeout=1), lock.locked):
            with pytest.raises(RuntimeError, match="must be awaited"):
                said.append(bool(call()))
        said.append(bool(lock.acquire(blocking=False)))
        await lock.acquire()
        lock.release().close()  # nobody awaits it
        return [*said, await lock.locked(), await lock.release(), await lock.locked()]

    assert client.submit(task, nfsrwlock.dask.Lock(tmp_path / "data")).result() == [False, True, True, False]


def test_what_is_awaited_later_has_not_waited_before(client: Any, tmp_path: Path) -> None:
    async def program() -> tuple[float, float]:
        lock, before = nfsrwlock.dask.Lock(tmp_path / "data"), activity.waited_s()
        steps = lock.acquire()
        await asyncio.sleep(1.5)
        began = time.monotonic()
        await steps
        took = time.monotonic() - began
        await lock.release()
        return activity.waited_s() - before, took

    waited, took = client.sync(program)
    assert waited <= took


def test_the_lock_of_a_key_is_synchronous_for_zarr_2_takes_it_where_dask_unpickles(client: Any, tmp_path: Path) -> None:
    # `make test-dask-zarr2` is the real thing.
    async def task(lock: Any) -> list[Any]:
        with lock["0.0"] as held:
            held.check()
            return [pickle.loads(pickle.dumps(held)).acquire(False), lock["0.1"].acquire(timeout="10s")]

    assert client.submit(task, nfsrwlock.dask.Lock(tmp_path / "data")).result() == [False, True]


def test_no_client_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No client"):
        distributed.Client.current()
    with nfsrwlock.dask.Lock(tmp_path / "data") as lock:
        lock.check()
        assert is_held(tmp_path / "data")


def test_an_acquire_that_may_wait_raises_when_it_cannot_succeed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LockPathError):
        nfsrwlock.dask.Lock(tmp_path / "file" / "data").acquire()
    held, impatient = nfsrwlock.dask.Lock(tmp_path / "data"), nfsrwlock.dask.Lock(tmp_path / "data", timeout="50ms")
    with held:
        with pytest.raises(Timeout):
            impatient.acquire()
        with pytest.raises(Timeout), impatient:
            pass
        assert impatient.acquire(timeout="50ms") is False


def test_in_a_running_loop_that_is_not_dasks_it_stays_synchronous(tmp_path: Path) -> None:
    import asyncio

    async def cell() -> bool:
        with nfsrwlock.dask.Lock(tmp_path / "data") as lock:  # as in a notebook
            said: bool = lock.locked()
            return said

    assert asyncio.run(cell()) is True


def test_async_with_works_on_any_loop(tmp_path: Path) -> None:
    import asyncio

    async def program() -> bool:
        async with nfsrwlock.dask.RWLock(tmp_path / "data").read as lock:
            lock.check()
            return is_held(tmp_path / "data")

    assert asyncio.run(program()) is True


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_no_path_needs_a_root_and_lives_below_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nfsrwlock\.root"):
        nfsrwlock.dask.Lock("x")
    with dask.config.set({"nfsrwlock.root": str(tmp_path)}):
        for name in ("x", "a b%é", ".", "..", "x" * 500, "x" * 499 + "y"):
            with nfsrwlock.dask.Lock(name) as lock:
                assert lock.name == name
                assert Path(lock.path).parent == tmp_path
                assert nfsrwlock.dask.Lock(name).acquire(blocking=False) is False
        assert nfsrwlock.dask.Lock().name != nfsrwlock.dask.Lock().name


def test_names_that_differ_name_different_locks(tmp_path: Path) -> None:
    names = ["1", 1, 1.0, True, None, b"1", ("1",), (1,), ((1,),), "1.0", "True", "int.1", "('1',)", b"int.1"]
    with dask.config.set({"nfsrwlock.root": str(tmp_path)}):
        paths = {nfsrwlock.dask.Lock(name).path for name in names}
        assert len(paths) == len(names)
        assert nfsrwlock.dask.Lock(["a", [1]]).path == nfsrwlock.dask.Lock(("a", (1,))).path
    assert nfsrwlock.dask.Lock(b"%s/a" % bytes(tmp_path)).path == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "error"),
    [(object(), TypeError), ({1}, TypeError), ((1, Path("x")), TypeError), ("", ValueError), ("/", ValueError)],
)
def test_what_is_no_name_is_refused(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        nfsrwlock.dask.Lock(name)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "append"},
        {"on_contention": "give up"},
        {"heartbeat": "drum"},
        {"timeout": "soon"},
        {"timeout": ""},
        {"poll_interval": " "},
        {"stale_threshold": "1s", "heartbeat_interval": "2s"},
        {"share": "everybody"},
    ],
    ids=repr,
)
def test_bad_settings_are_refused_when_the_lock_is_made(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        nfsrwlock.dask.Lock(tmp_path / "x", **settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in ("root", "lock-dir") for value in ("", "locks", "./locks", 7, True)),
        *(("reschedule-after", value) for value in (0, -1, "soon", "1e400")),
        ("stale-threshold", "1s"),
        ("share", "everybody"),
        ("heartbeat", "drum"),
        ("poll-interval", None),
    ],
)
def test_what_is_wrong_in_dasks_configuration_is_refused_and_named(tmp_path: Path, key: str, value: Any) -> None:
    # A relative directory would be another one in each process, and locks there would exclude nobody.
    with (
        dask.config.set({f"nfsrwlock.{key}": value}),
        pytest.raises((TypeError, ValueError)) as caught,
    ):
        nfsrwlock.dask.Lock("x" if key == "root" else tmp_path / "x")
    assert f"nfsrwlock.{key}" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_directories_in_dasks_configuration_may_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with dask.config.set({"nfsrwlock.root": "~/locks", "nfsrwlock.lock-dir": "~/elsewhere"}):
        lock = nfsrwlock.dask.Lock("x")
    assert Path(lock.path) == tmp_path / "locks" / "x"
    assert Path(lock.lock_path).parent == tmp_path / "elsewhere"


def test_a_relative_lock_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On each worker it would be another one."""
    with pytest.raises(ValueError, match="lock_dir must be an absolute path"):
        nfsrwlock.dask.Lock(tmp_path / "x", lock_dir="locks")
    monkeypatch.setenv("NFSRWLOCK_DIR", "~/locks")
    with pytest.raises(ValueError, match="NFSRWLOCK_DIR must be an absolute path"):
        nfsrwlock.dask.Lock(tmp_path / "x")


def test_the_directory_of_a_stores_locks_is_the_groups(tmp_path: Path) -> None:
    with nfsrwlock.dask.Lock(tmp_path / "x.zarr", share="group")["0.0"]:
        assert stat.S_IMODE((tmp_path / "x.zarr.keys").stat().st_mode) == 0o2770


def test_without_distributed_the_import_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['distributed'] = None; import nfsrwlock.dask"],
        capture_output=True,
        text=True,
    )
    assert "pip install 'nfsrwlock[dask]'" in done.stderr.splitlines()[-1]


def test_a_lock_lives_where_its_maker_s_environment_says_wherever_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = nfsrwlock.dask.Lock(tmp_path / "x")
    monkeypatch.setenv("NFSRWLOCK_DIR", str(tmp_path / "there"))
    there = nfsrwlock.dask.Lock(tmp_path / "x")
    monkeypatch.setenv("NFSRWLOCK_DIR", str(tmp_path / "elsewhere"))
    for lock in (beside, there):
        with pickle.loads(pickle.dumps(lock)) as arrived:
            assert Path(arrived.lock_path).is_dir()
            assert arrived.locked()
            assert lock.acquire(blocking=False) is False
    assert not (tmp_path / "elsewhere").exists()
    assert beside.lock_path == f"{beside.path}.rwlock"
    assert Path(there.lock_path).parent == tmp_path / "there"


def test_settings_come_from_dasks_configuration_and_travel_with_the_lock(tmp_path: Path) -> None:
    with dask.config.set({"nfsrwlock.stale-threshold": "6s", "nfsrwlock.heartbeat-interval": "2s"}):
        lock = nfsrwlock.dask.Lock(tmp_path / "x")
    with copy.deepcopy(pickle.loads(pickle.dumps(lock))):
        from nfsrwlock import inspect

        assert inspect(tmp_path / "x").holders[0].lease == 6
    assert nfsrwlock.dask.Lock(tmp_path / "x").acquire(blocking=False) is True
