"""Who holds a lock already: such a thread or task must not wait for itself, and may join its own hold."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from actors import announcements
from nfsrwlock import (
    AsyncSoftReadWriteLock,
    DeadlockError,
    LockSet,
    SoftReadWriteLock,
    Timeout,
    fetch,
    joined,
    own_hold,
    shared_directory,
)


def single(path: Path, **settings: Any) -> SoftReadWriteLock:
    return SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02, **settings)


@pytest.mark.parametrize(("held", "doing"), [("read", "shared"), ("write", "exclusively")])
def test_a_thread_that_waits_for_its_own_hold_is_told_so(path: Path, held: str, doing: str) -> None:
    with single(path).read_lock() if held == "read" else single(path).write_lock():
        with pytest.raises(DeadlockError, match=rf"write lock on '.*data': this very thread holds it {doing}; waiting"):
            single(path).acquire_write()
        assert len(announcements(path)) == 1
        with pytest.raises(DeadlockError):
            LockSet(write=path).acquire()


def test_a_wait_that_something_can_end_is_no_deadlock(path: Path) -> None:
    holder = single(path)
    holder.acquire_write()
    with pytest.raises(Timeout):
        single(path).acquire_write(0.1)
    with pytest.raises(Timeout):
        single(path).acquire_write(until=iter([False, True]).__next__)
    with single(path).read_lock(on_wait=lambda _: holder.release(force=True)):
        pass


def test_another_thread_is_waited_for_and_so_is_what_another_thread_may_give_back(path: Path) -> None:
    waited, holder, locks = threading.Event(), single(path), LockSet(write=path)

    def wait() -> None:
        with single(path).read_lock(on_wait=lambda _: waited.set()), single(path).read_lock():
            pass

    for release in (holder.release, locks.release):
        _ = holder.acquire_write() if release == holder.release else locks.acquire()
        waited.clear()
        thread = threading.Thread(target=wait)
        thread.start()
        assert waited.wait(30)
        release()
        thread.join(30)
    with locks:
        ending = threading.Timer(0.2, lambda: locks.locks[0].release(force=True))
        ending.start()
        with single(path).read_lock():  # without any limit: the set may end in another thread
            ending.join()


def test_a_task_that_waits_for_its_own_hold_is_told_so(path: Path) -> None:
    async def wait() -> None:
        async with AsyncSoftReadWriteLock(path, is_singleton=False).read_lock():
            other = AsyncSoftReadWriteLock(path, is_singleton=False)
            with pytest.raises(DeadlockError, match="this very task holds it shared"):
                await other.acquire_write()
            with pytest.raises(DeadlockError, match="this very thread holds it shared"):
                single(path).acquire_write()  # the loop that would give it back waits
            assert own_hold(other.lock_path) is not None
            task = asyncio.create_task(other.acquire_write())
            await asyncio.sleep(0.1)
            assert not task.done(), "another task is waited for"
        await (await task).end()

    asyncio.run(wait())
    assert announcements(path) == []


def test_a_thread_joins_its_own_hold_by_whichever_form_it_has_it(path: Path) -> None:
    plain = SoftReadWriteLock(path)
    with plain.write_lock(), shared_directory(path).clean() as cleaner, shared_directory(path).use():
        assert cleaner is plain
        assert len(announcements(path)) == 1
    with plain.read_lock(), joined(single(path), "read") as lock:
        assert lock is plain
        with pytest.raises(DeadlockError, match="this very thread holds it shared"), joined(single(path), "write"):
            pass
        plain.release()
        assert lock.is_locked
        plain.acquire_read()
    path.rmdir()
    with plain.write_lock(), fetch(path, Path.touch) as got:
        got.check()
    assert announcements(path) == []
    assert own_hold(plain.lock_path) is None


def test_what_other_threads_hold_is_not_joined(path: Path) -> None:
    plain, seen = SoftReadWriteLock(path), []

    def look() -> None:
        seen.append(own_hold(plain.lock_path))
        with joined(single(path), "read") as lock:
            seen.append(lock is plain)

    with plain.read_lock():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(30)
    assert seen == [None, False]
