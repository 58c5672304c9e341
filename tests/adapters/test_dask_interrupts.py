"""Ctrl-C, or another exception of a signal's handler, in the main thread of a program that uses the Dask adapter."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.dask_tasks import is_held, wait_until
from interrupts import interrupted_at
from nfsrwlock import LockLostError, LockNotHeldError, break_lock
from nfsrwlock.dask import Lock, RWLock, Semaphore, combine
from nfsrwlock.dask.combine import CombinedLock
from nfsrwlock.dask.holding import activity

MODULES = [sys.modules[f"nfsrwlock.dask.{name}"] for name in ("lock", "holding", "combine")]
Make = Callable[[Path], Any]


@pytest.fixture(params=["write", "read", "semaphore", "combination"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes something that can be taken once, or as often as one likes, on a path and a second one."""
    kinds: dict[str, Make] = {
        "write": Lock,
        "read": lambda path: RWLock(path).read,
        "semaphore": lambda path: Semaphore(9, path),
        "combination": lambda path: combine(Lock(path), RWLock(f"{path}.other").read),
    }
    return kinds[request.param]


def takes_part(module: Any, lock: Any) -> bool:
    """Whether what the lock does runs through the module, so that there are moments to try."""
    return module is not MODULES[2] or isinstance(lock, CombinedLock)


def is_free(path: Path) -> bool:
    return not is_held(path) and not is_held(f"{path}.other")


def assert_that_nothing_is_held(lock: Any, path: Path, number: int) -> None:
    """Check that an interrupt at a call, by its number, has left nothing that anybody holds or could release."""
    wait_until(lambda: is_free(path))
    assert (activity.held, activity.awaited) == ([], []), f"after call {number}"
    with pytest.raises(LockNotHeldError):
        lock.release()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("call", ["acquire", "__enter__"])
def test_an_interrupt_at_any_moment_of_an_acquire_leaves_nothing_held(
    make: Make, tmp_path: Path, module: Any, call: str
) -> None:
    path, number = tmp_path / "x", 0
    lock = make(path)
    while interrupted_at(number, module, getattr(lock, call)):
        assert_that_nothing_is_held(lock, path, number)
        number += 1
    lock.release()
    assert is_free(path)
    assert number > 5 or not takes_part(module, lock)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("call", ["release", "__exit__"])
def test_an_interrupt_at_any_moment_of_a_release_gives_back_one_hold(
    make: Make, tmp_path: Path, module: Any, call: str
) -> None:
    path, number = tmp_path / "x", 0
    lock = make(path)
    end = lock.release if call == "release" else lambda: lock.__exit__(None, None, None)
    lock.acquire()
    kept = [lock._levels[-1]]  # lest its end is where the exception comes: nobody would see that
    while interrupted_at(number, module, end):
        assert_that_nothing_is_held(lock, path, number)
        assert lock.acquire(timeout=0)
        kept.append(lock._levels[-1])
        number += 1
    assert is_free(path)
    assert number > 5 or not takes_part(module, lock)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_an_interrupt_of_a_release_is_raised_and_leaves_nothing_also_if_a_member_was_lost(
    tmp_path: Path, module: Any
) -> None:
    """The error of one member must not hide the exception that came while another one was given back."""
    kept, lost = tmp_path / "a", tmp_path / "b"
    lock, number = combine(Lock(kept), Lock(lost)), 0

    def release() -> None:
        with pytest.raises(LockLostError):
            lock.release()

    while True:
        lock.acquire()
        levels = [lock._levels[-1], *activity.holds]  # lest their end is where the exception comes
        break_lock(lost, force=True)
        is_interrupted = interrupted_at(number, module, release)
        wait_until(lambda: not is_held(kept))
        assert not activity.holds, f"after call {number}"
        if not is_interrupted:
            break
        levels.clear()
        number += 1
    assert number > 5


@pytest.mark.parametrize("is_end", [False, True], ids=["take", "give back"])
def test_a_coroutine_that_is_cancelled_at_any_moment_leaves_nothing_held(
    make: Make, tmp_path: Path, is_end: bool
) -> None:
    path = tmp_path / "x"
    lock = make(path)

    async def program() -> int:
        steps = 1  # it has begun
        while True:
            if is_end:
                await lock.__aenter__()
            task = asyncio.create_task(lock.__aexit__(None, None, None) if is_end else lock.__aenter__())
            for _ in range(steps):
                await asyncio.sleep(0)
            if task.done():
                return steps
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not activity.holds
            wait_until(lambda: is_free(path))
            steps += 1

    assert asyncio.run(program()) > 2
    if not is_end:
        lock.release()
    assert is_free(path)


# Not in `holding`, where an executor ends: an exception there is one that nobody would see.
@pytest.mark.parametrize("module", [MODULES[0], MODULES[2]], ids=["lock", "combine"])
def test_an_interrupt_of_a_thread_that_releases_what_a_coroutine_took_gives_it_back(
    make: Make, tmp_path: Path, module: Any
) -> None:
    path, number = tmp_path / "x", 0
    lock = make(path)
    kept: list[Any] = []  # lest its end is where the exception comes: nobody would see that
    while True:
        asyncio.run(lock.__aenter__())
        kept.append(lock._levels[-1])
        is_interrupted = interrupted_at(number, module, lock.release)
        wait_until(lambda: is_free(path))
        assert not activity.holds, f"after call {number}"
        if not is_interrupted:
            break
        number += 1
    assert number > 5 or not takes_part(module, lock)


def test_what_a_coroutine_took_is_given_back_when_nobody_has_the_lock_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def take(lock: Lock) -> None:
        await lock.__aenter__()

    asyncio.run(take(Lock(tmp_path / "x")))
    wait_until(lambda: is_free(tmp_path / "x"))
    assert not activity.holds
    assert [record.name for record in caplog.records] == ["nfsrwlock.dask"]  # and not the core, at the last moment


@pytest.mark.parametrize("module", MODULES[:2], ids=["lock", "holding"])
def test_an_interrupt_of_a_reader_who_joins_itself_leaves_its_first_hold(tmp_path: Path, module: Any) -> None:
    path = tmp_path / "x"
    first, again = RWLock(path).read, RWLock(path).read
    with first:
        (hold,) = activity.holds
        number = 0
        while interrupted_at(number, module, again.acquire):
            assert activity.holds == [hold]
            with pytest.raises(LockNotHeldError):
                again.check()
            number += 1
        assert number > 5
        kept, number = [again._levels[-1]], 0
        while interrupted_at(number, module, again.release):
            assert activity.holds == [hold]
            again.acquire()
            kept.append(again._levels[-1])
            number += 1
        assert number > 5
        first.check()
        assert activity.holds == [hold]
        assert is_held(path)
    assert is_free(path)
