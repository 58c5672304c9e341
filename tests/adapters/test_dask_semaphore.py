"""What ``distributed.Semaphore`` promises: ours, in `make test-newest` itself, and where ours differs on purpose."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import distributed
import pytest
from distributed import Client

from adapters.dask_tasks import PATIENCE_S, die_first_time, hold_until, is_held, use_together, wait_until
from nfsrwlock import DeadlockError, LimitMismatchError, LockLostError, SoftSemaphore, Timeout, break_lock, inspect
from nfsrwlock.dask import Lock, RWLock, Semaphore, combine

Make = Callable[..., Any]


@pytest.fixture(
    params=[
        pytest.param(distributed.Semaphore, id="distributed", marks=pytest.mark.peers),
        pytest.param(Semaphore, id="nfsrwlock"),
    ]
)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes semaphores by one name, of one class."""
    name = f"{tmp_path.name}-{tmp_path.parent.name}" if request.param is distributed.Semaphore else tmp_path / "data"
    return lambda max_leases=1, **more: request.param(max_leases, name, **more)


def test_as_many_leases_as_were_asked_for_and_no_more(make: Make, client: Any) -> None:
    semaphore = make(2, scheduler_rpc=None, loop=None)
    assert (semaphore.acquire(), semaphore.acquire(timeout="10s")) == (True, True)
    assert semaphore.acquire(timeout=0.05) is False
    assert semaphore.max_leases == 2
    assert semaphore.release() is True
    assert semaphore.acquire(0) is True
    assert make(2).acquire(timeout=0) is False


def test_get_value_counts_the_leases_of_all(make: Make, client: Any) -> None:
    one, other = make(3), make(3)
    one.register()
    assert one.get_value() == 0
    one.acquire()
    with other:
        assert (one.get_value(), other.get_value()) == (2, 2)
    assert one.get_value() == 1
    one.release()
    assert one.get_value() == 0


def test_releasing_too_often_is_an_error_and_changes_nothing(make: Make, client: Any) -> None:
    semaphore, other = make(2), make(2)
    with other:
        semaphore.acquire()
        semaphore.release()
        with pytest.raises(RuntimeError, match="Released too often"):
            semaphore.release()
        assert other.get_value() == 1


def test_another_thread_may_release(make: Make, client: Any) -> None:
    semaphore = make()
    assert semaphore.acquire()
    thread = threading.Thread(target=semaphore.release)
    thread.start()
    thread.join()
    assert make().acquire(timeout=10)


def test_the_object_of_a_block_may_ask_again_and_is_refused(make: Make, client: Any) -> None:
    semaphore = make()
    with semaphore as held:
        assert held is semaphore
        assert semaphore.acquire(timeout=0.05) is False
    assert semaphore.acquire(timeout=10)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_it_pickles_as_name_and_number_and_arrives_without_leases(make: Make, client: Any, dumps: Any) -> None:
    semaphore = make(2)
    with semaphore:
        arrived = pickle.loads(dumps(semaphore))
        assert (arrived.name, arrived.max_leases, arrived.get_value()) == (semaphore.name, 2, 1)
        with pytest.raises(RuntimeError, match="Released too often"):
            arrived.release()
        assert arrived.acquire(timeout=10)
        assert semaphore.acquire(timeout=0.05) is False
        arrived.release()


def test_tasks_are_inside_together_up_to_the_number(make: Make, client: Any, tmp_path: Path) -> None:
    semaphore = make(2)
    futures = [client.submit(use_together, semaphore, str(tmp_path), str(i), 2, pure=False) for i in range(12)]
    assert max(client.gather(futures)) <= 2
    assert semaphore.get_value() == 0


def test_tasks_that_are_coroutines_await(make: Make, client: Any) -> None:
    async def task(semaphore: Any, other: Any) -> list[Any]:
        said = [await semaphore.acquire(), await other.acquire(timeout="50ms"), await semaphore.get_value()]
        said.append(await asyncio.create_task(semaphore.release()))
        async with semaphore as held:
            return [*said, held is semaphore, await other.acquire(timeout=0)]

    assert client.submit(task, make(), make()).result() == [True, False, 1, True, True, False]


def test_with_an_asynchronous_client_it_is_awaited(make: Make, cluster: Any) -> None:
    async def main() -> list[Any]:
        async with Client(cluster.scheduler_address, asynchronous=True):
            semaphore = await make(2)
            said = [await semaphore.acquire(), await semaphore.acquire(timeout=10), await semaphore.acquire(timeout=0)]
            await semaphore.release()
            said.append(await semaphore.get_value())
            await semaphore.release()
            async with semaphore:
                said.append(await semaphore.get_value())
            return said

    assert asyncio.run(main()) == [True, True, False, 1, 1]


def test_two_numbers_for_one_name_are_an_error(make: Make, client: Any) -> None:
    with make(2), pytest.raises(ValueError, match="2"):
        make(3).acquire(timeout=5)


# -- where ours differs -----------------------------------------------------------------------------------------------


def test_it_is_the_same_one_for_programs_outside_dask(client: Any, tmp_path: Path) -> None:
    path, go, note = tmp_path / "data", tmp_path / "go", tmp_path / "note"
    task = client.submit(hold_until, Semaphore(2, path), str(go), str(note), pure=False)
    wait_until(note.exists)
    permits = SoftSemaphore(path, 2, poll_interval=0.05)
    with permits:
        program = Path(sys.executable).with_name("nfsrwlock")
        run = [program, "run", "--nonblock", "--permits", "2", path, "--", "true"]
        assert subprocess.run(run, capture_output=True, timeout=60).returncode == 75
        assert Semaphore(2, path).acquire(timeout=0) is False
        assert Semaphore(2, path).locked() is True
    go.touch()
    task.result(timeout=PATIENCE_S)
    assert Semaphore(2, path).locked() is False


def test_the_lease_of_a_worker_that_was_killed_comes_free_at_once(client: Any, tmp_path: Path) -> None:
    semaphore = Semaphore(1, tmp_path / "data", heartbeat_interval="10m", stale_threshold="1h")
    future = client.submit(die_first_time, semaphore, str(tmp_path / "note"), pure=False, retries=3)
    assert len(future.result(timeout=2 * PATIENCE_S)) == 2


def test_the_wrong_number_names_who_came_first(tmp_path: Path) -> None:
    with (
        Semaphore(2, tmp_path / "data"),
        pytest.raises(LimitMismatchError, match=f"process {os.getpid()} on .* says 2"),
    ):
        Semaphore(3, tmp_path / "data").acquire(timeout=5)


def test_a_lost_lease_is_told_by_check_and_release(tmp_path: Path) -> None:
    path = tmp_path / "data"
    semaphore = Semaphore(2, path, heartbeat_interval="100ms", stale_threshold="20s")
    semaphore.acquire()
    semaphore.check()
    break_lock(path, force=True)
    wait_until(lambda: _is_lost(semaphore))
    with pytest.raises(LockLostError):
        semaphore.release()


def _is_lost(semaphore: Semaphore) -> bool:
    try:
        semaphore.check()
    except LockLostError:
        return True
    return False


def test_close_gives_back_what_the_object_holds_and_others_go_on(tmp_path: Path) -> None:
    one, other = Semaphore(3, tmp_path / "data"), Semaphore(3, tmp_path / "data")
    other.acquire()
    one.acquire()
    one.acquire()
    one.close()
    assert other.get_value() == 1
    other.check()
    other.release()


def test_a_lease_of_a_dropped_object_is_given_back(tmp_path: Path) -> None:
    def work() -> None:
        assert Semaphore(1, tmp_path / "data").acquire()

    work()
    with Semaphore(1, tmp_path / "data", timeout=PATIENCE_S):
        pass


def test_its_own_timeout_is_an_error_in_a_block(tmp_path: Path) -> None:
    with Semaphore(1, tmp_path / "data"), pytest.raises(Timeout), Semaphore(1, tmp_path / "data", timeout="50ms"):
        pass


def test_readers_and_writers_of_the_path(tmp_path: Path) -> None:
    rw, semaphore = RWLock(tmp_path / "data"), Semaphore(1, tmp_path / "data")
    with rw.read:
        assert semaphore.get_value() == 0
        with semaphore, rw.read:
            assert rw.write.acquire(timeout=0) is False
            with pytest.raises(DeadlockError):
                rw.write.acquire()
    with rw.write:
        assert semaphore.acquire(timeout=0) is False
        assert semaphore.locked() is True


def test_in_a_combination_the_limit_counts(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for order in ((RWLock(path).read, Semaphore(2, path)), (Semaphore(2, path), RWLock(path).read)):
        with combine(*order):
            assert [peer.at_most for peer in inspect(path).holders] == [2]
    with combine(Semaphore(2, path), Lock(path)):
        assert [peer.mode for peer in inspect(path).holders] == ["write"]


def test_a_name_that_is_no_path_lives_below_the_root(tmp_path: Path) -> None:
    with dask.config.set({"nfsrwlock.root": str(tmp_path)}), Semaphore(name="licences") as semaphore:
        assert semaphore.path == str(tmp_path / "licences")
        assert is_held(tmp_path / "licences")
        assert Semaphore().name != Semaphore().name
        assert repr(semaphore) == "<Semaphore 'licences' of 1>"


@pytest.mark.parametrize(
    ("number", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (None, TypeError)]
)
def test_a_number_that_is_none_is_refused(tmp_path: Path, number: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="must be"):
        Semaphore(number, tmp_path / "data")


def test_it_has_no_mode(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'mode'"):
        Semaphore(1, tmp_path / "data", mode="write")
