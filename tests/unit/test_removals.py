"""Who waits for its turn hears of what other processes of this host remove, and does without where it cannot hear."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actors import Stage, announcements, in_forked_child, wait_until
from nfsrwlock import AsyncSoftReadWriteLock, SoftReadWriteLock, Timeout
from nfsrwlock_core.holding.waiting import Attempt, Wait
from nfsrwlock_core.names import Mode
from nfsrwlock_core.system import removals
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.removals import Removals

#: A pause of who is next is a 64th of this at first.
RARELY = 1280.0


def instances() -> list[str]:
    """The descriptors of this process by which the kernel tells it of removals."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of the listing itself
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify":
                found.append(fd)
    return found


def watched() -> int:
    """How many directories this process is told of once they are removed."""
    found = 0
    for fd in instances():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += Path(f"/proc/self/fdinfo/{fd}").read_text().count("inotify wd:")
    return found


@pytest.fixture(autouse=True)
def _closes_what_it_opens() -> Iterator[None]:
    yield
    wait_until(lambda: not instances(), 10)


def by_thread(path: Path, poll_interval: float, at_most: int | None) -> None:
    lock = SoftReadWriteLock(path, poll_interval=poll_interval, stale_threshold=6000, is_singleton=False)
    if at_most is None:
        lock.acquire_write(30)
    else:
        lock.acquire_read(30, at_most=at_most)
    lock.release()


def by_task(path: Path, poll_interval: float, at_most: int | None) -> None:
    async def take() -> None:
        lock = AsyncSoftReadWriteLock(path, poll_interval=poll_interval, stale_threshold=6000, is_singleton=False)
        await (lock.acquire_write(30) if at_most is None else lock.acquire_read(30, at_most=at_most))
        await lock.release()

    asyncio.run(take())


def seconds_until_granted(
    stage: Stage,
    path: Path,
    take: Callable[[Path, float, int | None], None],
    poll_interval: float,
    at_most: int | None,
    is_waiting: Callable[[], bool],
) -> float:
    """How long after the release by another process it is granted here."""
    holding = "write()" if at_most is None else f"read(at_most={at_most})"
    holders = [
        stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_{holding}")
        for _ in range(at_most or 1)
    ]
    waiter = threading.Thread(target=take, args=(path, poll_interval, at_most))
    waiter.start()
    wait_until(is_waiting, 10)
    began = time.monotonic()
    holders[0].do("lock.release()")
    waiter.join(30)
    assert not waiter.is_alive()
    return time.monotonic() - began


@pytest.mark.parametrize("at_most", [None, 1, 4])
@pytest.mark.parametrize("take", [by_thread, by_task])
def test_who_is_next_does_not_sleep_through_a_release_on_this_host(
    stage: Stage, path: Path, take: Callable[[Path, float, int | None], None], at_most: int | None
) -> None:
    assert seconds_until_granted(stage, path, take, RARELY, at_most, lambda: watched() == (at_most or 1)) < 3


@pytest.mark.parametrize("take", [by_thread, by_task])
def test_who_cannot_be_told_looks_after_its_pause(
    stage: Stage, path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path, float, int | None], None]
) -> None:
    """As where all instances that a user may have are taken."""
    monkeypatch.setattr(removals, "_init", lambda flags: -1)
    assert seconds_until_granted(stage, path, take, 64.0, None, lambda: len(announcements(path)) == 2) < 20


def test_who_waits_on_a_loop_without_readers_looks_after_its_pause(
    stage: Stage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise NotImplementedError

    for name in ("add_reader", "remove_reader"):
        monkeypatch.setattr(asyncio.SelectorEventLoop, name, without)
    assert seconds_until_granted(stage, path, by_task, 64.0, None, lambda: len(announcements(path)) == 2) < 20


def test_who_was_told_and_cannot_look_pauses_between_its_tries(
    stage: Stage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the file server restarts: what it was told does not end each of its pauses."""
    holder = stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")
    waiter = threading.Thread(target=by_thread, args=(path, 64.0, None))
    waiter.start()
    wait_until(lambda: watched() == 1, 10)
    tries = []

    def fail(self: LockDirectory) -> None:
        tries.append(self)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(LockDirectory, "open", fail)
        holder.do("lock.release()")
        wait_until(lambda: tries, 10)
        time.sleep(0.5)  # in which there is time for one more, or for thousands
    waiter.join(30)
    assert not waiter.is_alive()
    assert len(tries) < 10


def test_a_dead_holder_s_removal_by_another_one_is_told(stage: Stage, path: Path) -> None:
    """Whoever removes it: here, who waits as well, and looks more often."""
    holder = stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")
    waiters = [threading.Thread(target=by_thread, args=(path, poll, None)) for poll in (RARELY, 0.25)]
    waiters[0].start()
    wait_until(lambda: watched() == 1, 10)
    waiters[1].start()
    wait_until(lambda: watched() == 3, 10)
    began = time.monotonic()
    holder.kill()
    for waiter in waiters:
        waiter.join(30)
    assert time.monotonic() - began < 3


def test_nothing_stays_open_whatever_becomes_of_the_waiting(stage: Stage, path: Path) -> None:
    """What is looked for is looked for after each test of this file, too."""
    holder = stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")
    lock = SoftReadWriteLock(path, is_singleton=False)
    seen = []
    for waiting in ({"timeout": 0.2}, {"on_wait": lambda info: seen.append(instances()) or 1 / (len(seen) < 3)}):
        with pytest.raises((Timeout, ZeroDivisionError)):
            lock.acquire_write(**waiting)
    assert seen[-1], "or this proves nothing"
    holder.do("lock.release()")


def test_a_forked_child_does_not_hear_what_its_parent_is_told(stage: Stage, path: Path) -> None:
    """It would take it away: both would read from one queue."""
    holder = stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")
    waiter = threading.Thread(target=by_thread, args=(path, RARELY, None))
    waiter.start()
    wait_until(lambda: watched() == 1, 10)
    assert in_forked_child(instances) == []
    holder.do("lock.release()")
    waiter.join(30)


class Delayed(ThreadPoolExecutor):
    """Makes one call at a time, and all but the first only when it may."""

    def __init__(self) -> None:
        super().__init__(1)
        self.may_go_on, self.calls = threading.Event(), 0

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.calls:
            super().submit(self.may_go_on.wait)
        self.calls += 1
        return super().submit(*args, **kwargs)


def test_a_task_cancelled_twice_before_its_first_look_leaves_nothing_open(stage: Stage, path: Path) -> None:
    """Its look then ends before anything has told it that it is given up."""
    stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")

    async def cancel() -> None:
        with Delayed() as executor:
            lock = AsyncSoftReadWriteLock(path, executor=executor, is_singleton=False)
            task = asyncio.create_task(lock.acquire_write())
            for calls in (2, 3):  # to look, and to give up
                while executor.calls < calls:  # noqa: ASYNC110 - nothing tells of a call
                    await asyncio.sleep(0)
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            executor.may_go_on.set()

    asyncio.run(cancel())
    assert len(announcements(path)) == 1


def test_a_look_that_hangs_while_it_is_given_up_ends_without_an_error(
    stage: Stage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To name a directory is a call to the file server; two are named here, and the first call hangs."""
    for _ in range(2):
        stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_read()")
    attempt = Attempt(SoftReadWriteLock(path, is_singleton=False)._settings, Mode.WRITE, Wait(-1))
    watch = Removals.watch

    def hang(told: Removals, directory: str) -> None:
        watch(told, directory)
        waiter = threading.Thread(target=attempt.abandon)
        waiter.start()
        waiter.join(10)

    monkeypatch.setattr(Removals, "watch", hang)
    assert attempt.step() is None
    assert attempt.removals is None


def seconds_of_waiting(told: Removals, at_most: float) -> float:
    began = time.monotonic()
    told.wait(at_most)
    return time.monotonic() - began


def test_a_removal_is_told_until_it_is_read(tmp_path: Path) -> None:
    """Also one that comes right before the next directory is named, and so after the look that named it."""
    told, one, other = Removals(), tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir()
    told.watch(str(one))
    one.rmdir()
    for directory in (other, tmp_path / "missing", other):
        told.watch(str(directory))
    assert seconds_of_waiting(told, 10) < 3
    told.read()
    assert seconds_of_waiting(told, 0.3) >= 0.3
    (tmp_path / "link").symlink_to(other)
    before = watched()
    for name in ("link", "file"):
        told.watch(str(tmp_path / name))
    assert watched() == before
    told.close()


def test_a_directory_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a mount that keeps no attributes each time would cost requests, and who waits names it at every look."""
    looked_up = []
    monkeypatch.setattr(removals, "_add", lambda *call: looked_up.append(call))
    with Removals() as told:
        for name in ("one", "other", "one"):
            told.watch(str(tmp_path / name))
    assert len(looked_up) == 2


def test_what_an_exception_keeps_from_being_closed_is_closed() -> None:
    """A signal's, which may come between any two steps."""
    with pytest.warns(ResourceWarning):
        Removals()
    assert not instances()


def test_a_call_that_nobody_waits_for_any_more_leaves_nothing_open(stage: Stage, path: Path) -> None:
    """One that hung, and comes back once its attempt was given up. What is left open is looked for afterwards."""
    stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")
    attempt = Attempt(SoftReadWriteLock(path, is_singleton=False)._settings, Mode.WRITE, Wait(-1))
    assert attempt.step() is None
    assert instances()
    waiter = threading.Thread(target=attempt.abandon)
    with attempt._mutex:  # a step is under way
        waiter.start()
        waiter.join(10)
        assert attempt.removals is None
        attempt._listen()
    assert attempt.step() is None
    assert attempt.removals is None
