"""At most so many at a time: shared holds with a limit, and the semaphores made of them."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actors import Stage, announcements, wait_until
from interrupts import interrupted_at
from nfsrwlock import (
    AsyncSoftReadWriteLock,
    AsyncSoftSemaphore,
    DeadlockError,
    LimitMismatchError,
    LockLostError,
    LockNotHeldError,
    LockSet,
    SoftReadWriteLock,
    SoftSemaphore,
    Timeout,
    inspect,
)
from nfsrwlock_core import names, semaphore

SEMAPHORE = "from nfsrwlock import SoftSemaphore; permits = SoftSemaphore('data', 2, poll_interval=0.05)"

# -- how many --------------------------------------------------------------------------------------------------------


def test_processes_hold_as_many_as_there_are_permits_and_no_more(stage: Stage, path: Path) -> None:
    count = """
def work(n):
    for _ in range(n):
        with permits:
            name = f'inside.{os.getpid()}'
            open(name, 'w').close()
            inside = [entry for entry in os.listdir() if entry.startswith('inside.')]
            time.sleep(0.01)
            os.remove(name)
            yield len(inside)
"""
    processes = [stage.actor(f"import time; {SEMAPHORE}") for _ in range(6)]
    for process in processes:
        process.do(f"exec({count!r}, globals())")
        process.tell("print(max(work(10)), file=open(f'most.{os.getpid()}', 'w'))")
    for process in processes:
        process.answer()
    most = [int(file.read_text()) for file in path.parent.glob("most.*")]
    assert len(most) == 6
    assert max(most) == 2


def test_the_permit_of_a_killed_process_comes_free(stage: Stage, path: Path) -> None:
    holders = [stage.actor(SEMAPHORE) for _ in range(2)]
    for holder in holders:
        holder.do("permits.acquire()")
    permits = SoftSemaphore(path, 2, poll_interval=0.05)
    with pytest.raises(Timeout, match=r"and 1 more"):
        permits.acquire(0.2)
    holders[0].kill()
    with permits.acquire(20) as hold:
        hold.check()
        assert len(inspect(path).holders) == 2
    holders[1].do("permits.check()")


def test_a_permit_is_lost_like_any_hold_and_its_holder_is_told(stage: Stage, path: Path) -> None:
    holder = stage.actor(f"{SEMAPHORE.replace('2', '1, stale_threshold=1, heartbeat_interval=0.1')}", host="there")
    holder.do("permits.acquire()")
    wait_until(lambda: any(os.listdir(path.with_name("data.rwlock") / name) for name in announcements(path)))
    holder.stop()
    with SoftSemaphore(path, 1, poll_interval=0.05).acquire(30):
        holder.go_on()
        wait_until(lambda: holder.do("next(iter(permits._taken)).lock.status.value") == "lost")
        with pytest.raises(Exception, match=LockLostError.__name__):
            holder.do("permits.check()")


def test_threads_each_take_one_more_and_any_of_them_may_release(path: Path) -> None:
    permits = SoftSemaphore(path, 2, poll_interval=0.05)
    with permits as one, permits as other:
        assert one is not other
        assert permits.value == 0
        waiter = threading.Thread(target=permits.acquire)
        waiter.start()
        wait_until(lambda: len(inspect(path).waiters) == 1)
    waiter.join()
    assert permits.value == 1
    permits.release()
    assert permits.value == 2
    with pytest.raises(LockNotHeldError, match="none is held through this object"):
        permits.release()
    with pytest.raises(LockNotHeldError):
        permits.check()


def test_the_end_of_a_block_gives_back_its_own_threads_permit(path: Path) -> None:
    permits = SoftSemaphore(path, 2)
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with permits as hold:
            entered.set()
            leave.wait()
            hold.check()

    thread = threading.Thread(target=work)
    with permits as hold:
        thread.start()
        entered.wait()
    assert hold.status.value == "free"
    permits.check()
    leave.set()
    thread.join()
    assert permits.value == 2


def test_tasks_share_permits_and_any_of_them_may_release(path: Path) -> None:
    async def main() -> None:
        permits, inside, most = AsyncSoftSemaphore(path, 2, poll_interval=0.05), 0, 0

        async def work() -> None:
            nonlocal inside, most
            async with permits as permit:
                permit.check()
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.02)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(8)))
        assert most == 2
        await asyncio.create_task(permits.acquire())
        assert permits.value == 1
        await permits.release()
        assert permits.value == 2
        with pytest.raises(LockNotHeldError):
            await permits.release()

    asyncio.run(main())


def test_a_forked_child_has_no_permit(path: Path) -> None:
    permits = SoftSemaphore(path, 1)
    with permits:
        if (pid := os.fork()) == 0:
            try:
                permits.check()
            except LockNotHeldError:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        permits.check()


def test_it_pickles_as_what_it_is_and_arrives_not_held(path: Path) -> None:
    permits = SoftSemaphore(path, 3, poll_interval=0.05)
    with permits:
        arrived = pickle.loads(pickle.dumps(permits))
        assert (arrived.permits, arrived.lock_file, arrived.value) == (3, os.fspath(path), 2)
        with pytest.raises(LockNotHeldError):
            arrived.release()
    assert arrived == permits != SoftSemaphore(path, 2, poll_interval=0.05)
    assert repr(arrived) == f"<SoftSemaphore of 3 on {os.fspath(path)!r}>"


@pytest.mark.parametrize("meanwhile", ["acquire", "release"])
@pytest.mark.parametrize("call", ["acquire", "release"])
def test_what_another_thread_does_at_any_moment_of_a_call_counts(path: Path, call: str, meanwhile: str) -> None:
    permits, number, is_met = SoftSemaphore(path, 9), 0, True

    def in_another_thread() -> None:
        thread = threading.Thread(target=getattr(permits, meanwhile))
        thread.start()
        thread.join()

    while is_met:
        for _ in range(4):
            permits.acquire()
        is_met = interrupted_at(number, semaphore, getattr(permits, call), in_another_thread)
        left = 4 + (1 if call == "acquire" else -1) + is_met * (1 if meanwhile == "acquire" else -1)
        for _ in range(left):
            permits.release()
        assert permits.value == 9, f"after call {number}"
        with pytest.raises(LockNotHeldError):
            permits.release()
        number += 1
    assert number > 5


@pytest.mark.parametrize("call", ["acquire", "__enter__"])
def test_an_interrupt_at_any_moment_of_an_acquire_leaves_nothing_held(path: Path, call: str) -> None:
    permits, number = SoftSemaphore(path, 1), 0
    while interrupted_at(number, semaphore, getattr(permits, call)):
        wait_until(lambda: not announcements(path))
        with pytest.raises(LockNotHeldError):
            permits.release()
        number += 1
    assert number > 5
    permits.release()


@pytest.mark.parametrize("call", ["release", "__exit__"])
def test_an_interrupt_at_any_moment_of_a_release_gives_back_one_permit(path: Path, call: str) -> None:
    permits, number = SoftSemaphore(path, 2), 0
    end = permits.release if call == "release" else lambda: permits.__exit__(None, None, None)
    with permits:
        taken = [permits.acquire()]  # kept, lest its end is where the exception comes: nobody would see that
        while interrupted_at(number, semaphore, end):
            assert len(taken) == number + 1
            wait_until(lambda: len(announcements(path)) == 1)
            taken.append(permits.acquire(0))
            number += 1
        assert number > 5
    assert not announcements(path)


def test_what_an_acquire_returned_may_end_before_the_semaphore_gives_back_more(path: Path) -> None:
    permits = SoftSemaphore(path, 2)
    permits.acquire()
    with permits.acquire():
        pass
    permits.release()
    assert not announcements(path)


def test_a_task_may_end_what_its_acquire_returned(path: Path) -> None:
    async def main() -> None:
        permits = AsyncSoftSemaphore(path, 2)
        for _ in range(5):
            async with await permits.acquire():
                pass
        assert len(permits._taken) < 2
        with pytest.raises(LockNotHeldError):
            await permits.release()

    asyncio.run(main())


def test_what_nobody_holds_is_told_wherever_the_process_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    permits = SoftSemaphore(path.name, 2)
    assert permits.value == 2
    with permits:
        monkeypatch.chdir(path.anchor)
        assert permits.value == 1


# -- beside readers and writers --------------------------------------------------------------------------------------


def test_readers_without_a_limit_do_not_count(path: Path) -> None:
    one, other = (SoftReadWriteLock(path, is_singleton=False) for _ in range(2))
    with one.read_lock(), other.read_lock(at_most=1):
        state = inspect(path)
        assert sorted(peer.at_most for peer in state.holders) == [0, 1]
        assert not state.waiters


def test_a_writer_comes_before_those_who_wait_for_a_permit(path: Path) -> None:
    permits, order = SoftSemaphore(path, 1, poll_interval=0.02), list[str]()
    writer = SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02)

    def read() -> None:
        with permits:
            order.append("read")

    def write() -> None:
        with writer.write_lock():
            order.append("write")

    threads = threading.Thread(target=read), threading.Thread(target=write)
    with permits:
        threads[0].start()
        wait_until(lambda: len(inspect(path).waiters) == 1)
        threads[1].start()
        # Who waits for a permit makes room for the writer.
        wait_until(lambda: [peer.mode for peer in inspect(path).waiters] == ["write"])
    for thread in threads:
        thread.join()
    assert order == ["write", "read"]


def test_a_permit_excludes_a_writer_and_a_writer_all_permits(path: Path) -> None:
    permits, lock = SoftSemaphore(path, 2), SoftReadWriteLock(path, is_singleton=False)
    with permits, pytest.raises(Timeout):
        lock.acquire_write(0.1)
    with lock.write_lock(), pytest.raises(Timeout):
        permits.acquire(0.1)


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_host_with_version_0_1_waits_for_a_permit(path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    of_0_1 = re.compile(rf"(?:read|write\.[0-9a-f]{{16}})\.{names._FIELDS}").fullmatch
    old = SoftReadWriteLock(path, is_singleton=False, poll_interval=0.05)
    acquire = old.acquire_read if mode == "read" else old.acquire_write
    with SoftSemaphore(path, 5):
        monkeypatch.setattr(names, "_UNDERSTOOD", of_0_1)
        names.parse_announcement.cache_clear()
        with pytest.raises(Timeout, match="an entry of unknown format"):
            acquire(0.3)
    acquire(20)
    old.release()
    names.parse_announcement.cache_clear()


# -- what does not fit together --------------------------------------------------------------------------------------


def test_two_limits_for_one_lock_are_an_error_that_names_the_other(stage: Stage, path: Path) -> None:
    holder = stage.actor(SEMAPHORE)
    pid = holder.do("permits.acquire() and os.getpid()")
    with pytest.raises(LimitMismatchError, match=rf"at most 3 at a time here, but process {pid} on .* says 2; state"):
        SoftSemaphore(path, 3).acquire(5)
    assert len(announcements(path)) == 1
    holder.do("permits.check()")
    with pytest.raises(LimitMismatchError):
        asyncio.run(AsyncSoftSemaphore(path, 3).acquire(5))


def test_an_instance_has_one_limit_at_a_time(path: Path) -> None:
    lock = SoftReadWriteLock(path, is_singleton=False)
    with lock.read_lock(at_most=2), lock.read_lock(), lock.read_lock(at_most=2):
        assert len(announcements(path)) == 1
        with pytest.raises(RuntimeError, match="with at_most=3: this instance holds it with at_most=2"):
            lock.acquire_read(at_most=3)
    with lock.read_lock(), pytest.raises(RuntimeError, match="with at_most=2: this instance holds it without a limit"):
        lock.acquire_read(at_most=2)


def test_a_task_has_one_limit_at_a_time(path: Path) -> None:
    async def main() -> None:
        lock = AsyncSoftReadWriteLock(path)
        async with lock.read_lock(at_most=2), await lock.acquire_read(at_most=2):
            with pytest.raises(RuntimeError, match="with at_most=3: this task holds it with at_most=2"):
                await lock.acquire_read(at_most=3)

    asyncio.run(main())


def test_the_only_permit_is_not_waited_for_by_its_own_thread(path: Path) -> None:
    one, other = (SoftReadWriteLock(path, is_singleton=False) for _ in range(2))
    with one.read_lock(at_most=1), pytest.raises(DeadlockError):
        other.acquire_read(at_most=1)
    with one.read_lock(at_most=2), other.read_lock(at_most=2):
        assert len(announcements(path)) == 2
        with pytest.raises(DeadlockError):
            SoftReadWriteLock(path, is_singleton=False).acquire_read(at_most=2)


@pytest.mark.parametrize(
    ("limit", "error"), [(0, ValueError), (-1, ValueError), (10**6, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_a_limit_is_an_integer_from_1_to_999_999(path: Path, limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="permits must be"):
        SoftSemaphore(path, limit)
    with pytest.raises(error, match="at_most must be"):
        SoftReadWriteLock(path).acquire_read(at_most=limit)
    with pytest.raises(error, match="at_most must be"):
        LockSet(limited={path: limit})


def test_a_hold_with_a_limit_is_not_kept(path: Path) -> None:
    lock = SoftReadWriteLock(path, is_singleton=False, linger=10)
    for _ in range(3):
        with lock.read_lock(at_most=2):
            pass
    assert not announcements(path)


# -- in a set --------------------------------------------------------------------------------------------------------


def test_a_set_takes_permits_beside_its_other_locks(path: Path) -> None:
    data, licence = os.fspath(path), os.fspath(path.with_name("licence"))
    first, second = (LockSet(data, limited={licence: 1}) for _ in range(2))
    with first:
        assert first.paths_read == (data, licence)
        with pytest.raises(Timeout, match="licence"):
            second.acquire(0.1)
    with second:
        assert [peer.at_most for peer in inspect(licence).holders] == [1]
    both = LockSet(write=licence, limited={licence: 1})
    assert both.paths_write == (licence,)


def test_two_sets_with_two_limits_are_not_joined(path: Path) -> None:
    with pytest.raises(ValueError, match="two different settings"):
        LockSet.joined([LockSet(limited={path: 1}), LockSet(limited={path: 2})])
    joined = LockSet.joined([LockSet(limited={path: 1}), LockSet(limited={path: 1})])
    with joined:
        started = time.time()
        assert [peer.at_most for peer in inspect(path).holders] == [1]
        assert inspect(path).holders[0].since == pytest.approx(started, abs=60)


def test_a_set_has_one_limit_for_each_path(path: Path) -> None:
    other = os.path.join(path.parent, ".", path.name)
    with pytest.raises(ValueError, match="is limited to 1 and to 2 at a time"):
        LockSet(limited={os.fspath(path): 1, other: 2})
    assert LockSet(limited={os.fspath(path): 2, other: 2}).paths_read == (os.fspath(path),)
