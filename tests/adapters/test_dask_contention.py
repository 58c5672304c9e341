"""Waiting in tasks: what gives the thread back, what does not, and who gives up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from adapters.dask_tasks import (
    PATIENCE_S,
    LockUser,
    count_threads,
    count_waiters,
    hold_until,
    hold_until_async,
    hold_with_subtasks,
    is_held,
    wait_until,
    work_alone,
    work_alone_async,
    work_alone_within,
)
from nfsrwlock import inspect
from nfsrwlock.dask import Lock

WAITERS = 30


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """One worker process with two threads."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("how", ["reschedule", "secede", "async with", "wait_for"])
def test_thirty_waiters_and_a_holder_with_tasks_of_its_own_finish_on_two_threads(
    small: Any, tmp_path: Path, how: str
) -> None:
    path, go = tmp_path / "x", tmp_path / "go"
    work: Any = {"async with": work_alone_async, "wait_for": work_alone_within}.get(how, work_alone)
    on_contention: Any = how if work is work_alone else "block"
    # So long an interval that the looks of the thirty do not come all at once on a busy machine.
    lock = Lock(path, on_contention=on_contention, poll_interval="4s")
    holder = small.submit(hold_with_subtasks, lock, 4, str(go), pure=False, priority=1)
    wait_until(lambda: is_held(path))
    waiters = [small.submit(work, lock, str(path), str(i), 0.0, pure=False) for i in range(WAITERS)]
    # Tasks that start over take turns in waiting; of the others all are there at once.
    wait_until(lambda: count_waiters(path) >= (1 if how == "reschedule" else WAITERS))
    if how == "async with":
        # After a stall of the machine all may look at one moment, each in a thread; those threads end soon.
        wait_until(lambda: small.run(count_threads).popitem()[1] < WAITERS / 2)
    go.touch()
    assert holder.result(timeout=60) == 6
    assert small.gather(waiters) == [False] * WAITERS


def test_block_takes_all_threads_so_that_the_holder_waits_for_ever(small: Any, tmp_path: Path) -> None:
    # Two waiters in two threads, behind a holder outside of the pool: no third task runs until it releases.
    path, lock = tmp_path / "x", Lock(tmp_path / "x")
    with Lock(path):
        waiters = [small.submit(work_alone, lock, str(path), str(i), 0.0, pure=False) for i in range(2)]
        bystander = small.submit(int, pure=False, priority=-1)
        wait_until(lambda: count_waiters(path) == 2)
        with pytest.raises(TimeoutError):
            bystander.result(timeout=2)
    assert small.gather(waiters) == [False, False]
    assert bystander.result() == 0


@pytest.mark.parametrize("on_contention", ["reschedule", "secede"])
def test_others_run_while_tasks_wait(small: Any, tmp_path: Path, on_contention: Any) -> None:
    path = tmp_path / "x"
    with Lock(path):
        lock = Lock(path, on_contention=on_contention)
        waiters = [small.submit(work_alone, lock, str(path), str(i), 0.0, pure=False) for i in range(3)]
        wait_until(lambda: bool(inspect(path).waiters))
        assert small.submit(int, pure=False, priority=1).result(timeout=PATIENCE_S) == 0
        assert not any(waiter.done() for waiter in waiters)
    assert small.gather(waiters) == [False] * 3


@pytest.mark.parametrize("on_contention", ["block", "reschedule", "secede"])
@pytest.mark.parametrize("method", ["work", "work_async"])
def test_a_method_of_an_actor_waits_whatever_tasks_do(
    small: Any, tmp_path: Path, on_contention: Any, method: str
) -> None:
    path = tmp_path / "x"
    with Lock(path):
        actor = small.submit(LockUser, Lock(path, on_contention=on_contention), actor=True).result()
        works = [getattr(actor, method)(str(path), str(number)) for number in range(2)]
        wait_until(lambda: bool(inspect(path).waiters))
        time.sleep(0.3)
    assert [work.result(timeout=PATIENCE_S) for work in works] == [False, False]


def test_a_lock_that_is_free_needs_neither(small: Any, tmp_path: Path) -> None:
    for on_contention in ("block", "reschedule", "secede"):
        lock = Lock(tmp_path / "x", on_contention=on_contention)  # type: ignore[arg-type]
        assert small.submit(work_alone, lock, str(tmp_path / "x"), "0", 0.0, pure=False).result() is False


def test_outside_of_tasks_a_lock_just_waits(tmp_path: Path) -> None:
    with Lock(tmp_path / "x"):
        for on_contention in ("reschedule", "secede"):
            lock = Lock(tmp_path / "x", on_contention=on_contention, timeout="50ms")  # type: ignore[arg-type]
            with pytest.raises(TimeoutError):
                lock.acquire()


@pytest.mark.parametrize("how", ["block", "reschedule", "secede", "async with"])
def test_a_cancelled_waiter_gives_up_leaves_nothing_and_harms_no_other(small: Any, tmp_path: Path, how: Any) -> None:
    path = tmp_path / "x"
    lock = Lock(path, on_contention="block" if how == "async with" else how)
    hold, work = (hold_until_async, work_alone_async) if how == "async with" else (hold_until, work_alone)
    with Lock(path):
        cancelled = small.submit(hold, lock, str(tmp_path / "never"), str(tmp_path / "note"), pure=False)
        wait_until(lambda: bool(inspect(path).waiters))
        other = small.submit(work, lock, str(path), "other", 0.0, pure=False)
        wait_until(lambda: how == "reschedule" or count_waiters(path) == 2)
        cancelled.cancel()
        # The worker forgets what was cancelled once it does not run any more.
        wait_until(lambda: cancelled.key not in small.run(known_keys).popitem()[1])
        wait_until(lambda: how == "reschedule" or count_waiters(path) == 1)
    assert other.result(timeout=PATIENCE_S) is False
    assert not (tmp_path / "note").exists()
    assert [entry.name for entry in Path(f"{path}.rwlock").iterdir() if not entry.name.startswith("gen.")] == []


def known_keys(dask_worker: Any) -> list[Any]:
    return list(dask_worker.state.tasks)


def test_a_coroutine_that_is_cancelled_while_it_waits_leaves_nothing_and_harms_no_other(tmp_path: Path) -> None:
    path, order = tmp_path / "x", []

    async def wait(number: int) -> None:
        async with Lock(path):
            order.append(number)

    async def program() -> list[Any]:
        async with Lock(path):
            waiters = []
            for number in range(4):
                waiters.append(asyncio.create_task(wait(number)))
                await asyncio.to_thread(wait_until, lambda number=number: count_waiters(path) > number)
            waiters[0].cancel()
            waiters[2].cancel()
            await asyncio.to_thread(wait_until, lambda: count_waiters(path) == 2)
        return await asyncio.gather(*waiters, return_exceptions=True)

    ends = asyncio.run(program())
    assert [isinstance(end, asyncio.CancelledError) for end in ends] == [True, False, True, False]
    assert sorted(order) == [1, 3]  # who is first is decided when the lock comes free: 1 may be giving way to 0 still
    assert [entry.name for entry in Path(f"{path}.rwlock").iterdir() if not entry.name.startswith("gen.")] == []
