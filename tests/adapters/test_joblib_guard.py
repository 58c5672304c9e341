"""guard and locked, below each backend of joblib, and without it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import Stage, announcements, has_ended, wait_until
from nfsrwlock import (
    DeadlockError,
    LockLostError,
    LockNotHeldError,
    SoftReadWriteLock,
    Timeout,
    break_lock,
)
from nfsrwlock.joblib import guard, locked

joblib = pytest.importorskip("joblib")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import joblib_guarded as work  # noqa: E402

BACKENDS = ["loky", "multiprocessing", "threading"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Children find the module of their work by this; those of loky live on from test to test.
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _no_worker_outlives_the_module() -> Iterator[None]:
    yield
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def parallel(backend: str, calls: Any, n_jobs: int = 2, **options: Any) -> Any:
    return joblib.Parallel(n_jobs=n_jobs, backend=backend, batch_size=1, **options)(calls)


def call(function: Any, *args: Any) -> Any:
    return joblib.delayed(function)(*args)


# -- guard ------------------------------------------------------------------------------------------------------------


@each_backend
def test_children_check_their_parents_guard(backend: str, tmp_path: Path) -> None:
    with guard(read=tmp_path / "in", write=[tmp_path / "out"]) as held:
        assert parallel(backend, [call(work.check, i, held) for i in range(4)]) == [0, 1, 2, 3]
        assert [name.split(".")[0] for name in announcements(tmp_path / "in") + announcements(tmp_path / "out")] == [
            "read",
            "write",
        ]
    with pytest.raises((LockLostError, LockNotHeldError)):
        parallel(backend, [call(work.check, 0, held)])
    assert announcements(tmp_path / "out") == []


@each_backend
def test_a_child_that_asks_for_its_parents_path_in_conflict_is_told_at_once(backend: str, tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    with guard(write=path):
        assert parallel(backend, [call(work.attempt, mode, path) for mode in ("read", "write")]) == [
            "DeadlockError",
            "DeadlockError",
        ]
    with guard(read=path):
        assert parallel(backend, [call(work.attempt, mode, path) for mode in ("read", "write")]) == [
            "held",
            "DeadlockError",
        ]
    assert parallel(backend, [call(work.attempt, "write", path)]) == ["held"]


@each_backend
def test_a_child_reads_under_its_parents_read_although_a_writer_waits(
    backend: str, stage: Stage, tmp_path: Path
) -> None:
    path = str(tmp_path / "data")
    writer = stage.actor("lock = SoftReadWriteLock('data')")
    with guard(read=path):
        writer.tell("lock.acquire_write(); pass")
        wait_until(lambda: any(name.startswith("write.") for name in announcements(path)))
        assert parallel(backend, [call(work.attempt, "read", path)]) == ["held"]
    writer.answer()


@each_backend
def test_a_childs_exception_ends_the_guard(backend: str, tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError), guard(write=tmp_path / "out") as held:
        parallel(backend, [call(work.fail, held)])
    assert announcements(tmp_path / "out") == []


@pytest.mark.parametrize("backend", ["loky", "threading"])  # joblib has no generators with multiprocessing
def test_a_generator_of_results_is_under_the_guard_while_the_block_lasts(backend: str, tmp_path: Path) -> None:
    with guard(write=tmp_path / "out") as held:
        results = parallel(backend, [call(work.check, i, held) for i in range(3)], return_as="generator")
        assert list(results) == [0, 1, 2]


def test_guards_may_be_nested_where_that_asks_for_no_more(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    with guard(write=a) as outer, guard(read=a, write=b) as inner:
        inner.check()
        assert len(announcements(a)) == len(announcements(b)) == 1
        with guard(write=a):
            pass
        outer.check()
    with guard(read=a), pytest.raises(DeadlockError, match="take it exclusively at the outset"), guard(write=a):
        pass
    assert announcements(a) == announcements(b) == []


def test_a_forked_child_that_outlives_its_parents_guard_may_take_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    forks = multiprocessing.get_context("fork")
    with forks.Pool(1) as before, guard(write=path):
        pool = forks.Pool(1)
        assert pool.apply(work.attempt, ("read", path)) == "DeadlockError"
        assert before.apply(work.attempt, ("write", path)) == "DeadlockError"
    with pool:
        assert pool.apply(work.attempt, ("write", path)) == "held"
    pool.join()


def test_threads_that_are_strangers_wait_for_each_other(tmp_path: Path) -> None:
    order: list[str] = []

    def stranger() -> None:
        with guard(write=tmp_path / "a", timeout=30):
            order.append("stranger")

    with guard(write=tmp_path / "a"):
        thread = threading.Thread(target=stranger)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join()
    assert order == ["first", "stranger"]


def test_a_lost_lock_is_told_by_check_and_at_the_end(tmp_path: Path) -> None:
    def lose() -> None:
        with guard(write=tmp_path / "a", heartbeat_interval=0.1, stale_threshold=20) as held:
            break_lock(tmp_path / "a", force=True)
            copy = pickle.loads(pickle.dumps(held))
            with pytest.raises(LockLostError):
                copy.check()

    with pytest.raises(LockLostError):
        lose()


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_a_childs_check_fails_when_its_parent_is_killed_though_the_marker_is_there(
    backend: str, stage: Stage, tmp_path: Path
) -> None:
    parent = stage.actor(
        "import joblib; from joblib_guarded import *; from nfsrwlock.joblib import *", path=HERE, host="elsewhere"
    )
    run = (
        f"joblib.Parallel(n_jobs=2, backend={backend!r})(joblib.delayed(checks_until_it_fails)(g, 'log') for _ in '1')"
    )
    parent.tell(f"with guard(write='data', heartbeat_interval=1, stale_threshold=9) as g: {run}\n")
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and log.read_text().count("passed") > 3)
    killed = time.time()
    parent.kill()
    try:
        wait_until(lambda: "Error" in log.read_text(), timeout=30)
    finally:
        pid = int(log.read_text().split()[1])
        wait_until(lambda: has_ended(pid) or "Error" in log.read_text())
    failure, moment = log.read_text().splitlines()[-1].split()
    assert failure in ("LockLostError", "LeaseExpiredError")
    assert float(moment) - killed < 9
    assert len(announcements(tmp_path / "data")) == 1


def test_an_exception_right_after_the_locks_were_taken_leaves_them_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = SoftReadWriteLock.acquire_write

    def interrupted(lock: SoftReadWriteLock, *limit: float, **options: Any) -> None:
        acquire(lock, *limit, **options)
        raise KeyboardInterrupt

    held = guard(read=tmp_path / "a", write=tmp_path / "b")
    with monkeypatch.context() as patches:
        patches.setattr(SoftReadWriteLock, "acquire_write", interrupted)
        with pytest.raises(KeyboardInterrupt), held:
            pass
    assert announcements(tmp_path / "a") == announcements(tmp_path / "b") == []
    with held:
        held.check()


def test_wrong_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one path"):
        guard()
    with pytest.raises(TypeError, match=r"guard\(\) got an unexpected keyword argument 'wirte'"):
        guard(wirte="a")  # type: ignore[call-arg]
    held = guard(write=tmp_path / "a")
    with pytest.raises(LockNotHeldError, match="is not entered"):
        held.check()
    with held, pytest.raises(RuntimeError, match="entered already"), held:
        pass
    with held:
        copy = pickle.loads(pickle.dumps(held))
        with pytest.raises(DeadlockError, match="can only be checked"), copy:
            pass
    with pickle.loads(pickle.dumps(held)) as other:
        other.check()  # what was not held when it was passed on is a guard like any other


# -- limits -----------------------------------------------------------------------------------------------------------


@each_backend
def test_as_many_calls_at_a_time_as_there_are_permits_and_one_less_below_a_parent_that_has_one(
    backend: str, tmp_path: Path
) -> None:
    here = str(tmp_path)
    inside = parallel(backend, [call(work.use_licence, here, 2, 2) for _ in range(12)], n_jobs=4)
    assert max(inside) <= 2
    with guard(limited={tmp_path / "licence": 2}) as held:
        held.check()
        assert set(parallel(backend, [call(work.use_licence, here) for _ in range(6)])) == {1}
        assert work.use_licence(here) == 1, "the same thread's permit is not taken again"
    assert announcements(tmp_path / "licence") == []


@each_backend
def test_a_child_that_would_wait_for_its_parents_only_permit_is_told(
    backend: str, stage: Stage, tmp_path: Path
) -> None:
    here = str(tmp_path)
    with guard(limited={tmp_path / "licence": 1}):
        assert parallel(backend, [call(work.use_licence_or_say, here, 1)]) == ["DeadlockError"]
    with guard(write=tmp_path / "licence"):
        assert parallel(backend, [call(work.use_licence_or_say, here, 1)]) == ["DeadlockError"]
    writer = stage.actor("lock = SoftReadWriteLock('licence')")
    with guard(limited={tmp_path / "licence": 2}):
        writer.tell("lock.acquire_write(); pass")
        wait_until(lambda: any(name.startswith("write.") for name in announcements(tmp_path / "licence")))
        assert parallel(backend, [call(work.use_licence_or_say, here, 2)]) == ["DeadlockError"]
    writer.answer()


def test_a_guard_with_another_limit_than_the_one_around_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "licence"
    with guard(limited={path: 2}), guard(read=path), guard(limited={path: 2}):
        assert len(announcements(path)) == 1
        with pytest.raises(DeadlockError, match="take it with the limit 3 at the outset"), guard(limited={path: 3}):
            pass
    with guard(read=path), pytest.raises(DeadlockError, match="with the limit 2"), guard(limited={path: 2}):
        pass
    with guard(write=path), guard(limited={path: 2}):
        assert [name.split(".")[0] for name in announcements(path)] == ["write"]


def test_locked_coroutines_share_permits(tmp_path: Path) -> None:
    most = inside = 0

    @locked(limited={tmp_path / "licence": 2}, poll_interval=0.02)
    async def use() -> None:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.02)
        inside -= 1

    async def main() -> None:
        await asyncio.gather(*(use() for _ in range(6)))

    asyncio.run(main())
    assert most == 2


# -- locked -----------------------------------------------------------------------------------------------------------


@each_backend
def test_calls_of_a_locked_function_take_turns_where_they_must(backend: str, tmp_path: Path) -> None:
    assert sorted(parallel(backend, [call(work.add_one, i % 2, 0.05, str(tmp_path)) for i in range(8)])) == [
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]
    assert (tmp_path / "out-0").read_text() == (tmp_path / "out-1").read_text() == "4"


@each_backend
def test_a_locked_function_below_a_guard_on_its_path_is_told(backend: str, tmp_path: Path) -> None:
    here = str(tmp_path)
    with guard(read="ref"):
        assert parallel(backend, [call(work.add_one, 7, 0.0, here)]) == [1]
    with guard(write="ref"), pytest.raises(DeadlockError):
        parallel(backend, [call(work.add_one, 7, 0.0, here)])
    with guard(write=["ref", "out-7"]):
        assert work.add_one(7, 0.0, here) == 2, "in the same thread it is inside"


def test_a_locked_method_takes_its_paths_from_its_arguments(tmp_path: Path) -> None:
    counter = work.Counter(str(tmp_path))
    assert counter.add() == ["counter.rwlock", "other.rwlock"]
    assert counter.add("third", more=1) == ["other.rwlock", "third.rwlock"]
    assert work.Counter.add.__name__ == "add"
    with SoftReadWriteLock(tmp_path / "other").read_lock():
        blocked = locked(write=str(tmp_path / "other"), timeout=0.2)(lambda: None)
        with pytest.raises(Timeout):
            blocked()


def test_locked_coroutines_take_turns_and_nest(tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    inside: list[int] = []

    @locked(write=path)
    async def alone(i: int) -> int:
        inside.append(i)
        assert len(inside) == 1
        await asyncio.sleep(0.05)
        inside.remove(i)
        return await again(i)

    @locked(write=lambda i: path)
    async def again(i: int) -> int:
        return i

    @locked(write=path)
    async def starts_children() -> int:
        return (await asyncio.gather(again(1)))[0]

    async def main() -> None:
        assert await asyncio.gather(*(alone(i) for i in range(4))) == [0, 1, 2, 3]
        with pytest.raises(DeadlockError):
            await starts_children()

    asyncio.run(main())
    assert announcements(path) == []


def test_a_child_that_gets_a_locked_function_imports_the_core_and_no_joblib(tmp_path: Path) -> None:
    code = "import sys, pickle, joblib_guarded; pickle.loads(bytes.fromhex(sys.argv[1]))(3); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(work.add_one).hex()], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "nfsrwlock_core.lock" in loaded
    assert not {"joblib", "numpy", "click", "rich", "nfsrwlock.joblib.store"} & set(loaded)
    assert (tmp_path / "out-3").read_text() == "1"


def test_a_path_function_gets_its_arguments_by_their_names(tmp_path: Path) -> None:
    def locks() -> list[str]:
        return sorted(path.parent.name for path in tmp_path.glob("*.rwlock/write.*"))

    @locked(write=lambda i, base="base", j=0: f"{base}-{i}-{j}")
    def two(i: int, j: int) -> list[str]:
        return locks()

    @locked(write=lambda *, i, end="end": f"{i}-{end}")
    def any_names(i: int, **others: str) -> list[str]:
        return locks()

    @locked(write=lambda i, j=2, /: f"{i}-{j}")
    def by_position(i: int) -> list[str]:
        return locks()

    assert two(1, 2) == ["base-1-2.rwlock"]
    assert any_names(3) == ["3-end.rwlock"]
    assert any_names(3, end="x") == ["3-x.rwlock"]
    assert by_position(4) == ["4-2.rwlock"]
    with pytest.raises(TypeError, match=r"two\(\): missing a required argument: 'j'"):
        two(1)  # type: ignore[call-arg]


def test_an_object_that_is_called_with_await_is_locked_until_it_has_ended(tmp_path: Path) -> None:
    class Work:
        async def __call__(self) -> list[str]:
            await asyncio.sleep(0)
            return announcements(tmp_path / "a")

    def begin() -> Any:
        return Work()()

    async def main() -> None:
        assert len(await locked(write=tmp_path / "a")(Work())()) == 1
        with pytest.raises(TypeError, match="returned a coroutine, which would run after the locks are given back"):
            await locked(write=tmp_path / "a")(begin)()

    asyncio.run(main())
    assert announcements(tmp_path / "a") == []


def test_the_timeout_of_a_locked_coroutine_counts_for_all_its_locks_together(tmp_path: Path) -> None:
    first, second = (SoftReadWriteLock(tmp_path / name, is_singleton=False) for name in "ab")
    first.acquire_write()
    second.acquire_write()

    @locked(write=[tmp_path / "a", tmp_path / "b"], timeout=4)
    async def work() -> None:
        raise AssertionError("both locks are held by others")

    async def main() -> None:
        asyncio.get_running_loop().call_later(3, lambda: first.release(force=True))
        started = time.monotonic()
        with pytest.raises(Timeout):
            await work()
        assert time.monotonic() - started < 6.5, "not 3 s for the one and 4 s for the other"

    asyncio.run(main())
    second.release()


def test_what_cannot_be_locked_is_refused_when_it_is_decorated() -> None:
    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="use guard"):
        locked(write="a")(generator)
    with pytest.raises(TypeError, match="below @staticmethod"):
        locked(write="a")(staticmethod(len))
    with pytest.raises(TypeError, match="asks for an argument 'j', which the locked function does not have: i"):
        locked(write=lambda j: "a")(lambda i: i)
    with pytest.raises(ValueError, match="needs read=, write= or limited="):
        locked()
    with pytest.raises(TypeError, match="unexpected keyword argument 'rread'"):
        locked(rread="a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="not classes: put it on the methods of Stage"):
        locked(write="a")(Stage)
    with pytest.raises(TypeError, match="read= must be a path or several paths, got None"):
        locked(read=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at_most must be between 1"):
        locked(limited={"a": 0})
    with pytest.raises(TypeError, match="timeout must be a number"):
        locked(read=lambda: "a", timeout="long")  # type: ignore[typeddict-item]
    assert os.listdir() == []
