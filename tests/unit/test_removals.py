"""Who waits for its turn hears of what other processes of this host remove, and does without where it cannot hear."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from actors import Stage, announcements, in_forked_child, wait_until
from nfsrwlock import AsyncSoftReadWriteLock, SoftReadWriteLock, Timeout
from nfsrwlock_core.holding.waiting import Attempt, Wait
from nfsrwlock_core.names import Mode
from nfsrwlock_core.system import removals
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
    stage: Stage, path: Path, take: Callable[[Path, float, int | None], None], poll_interval: float, at_most: int | None
) -> float:
    """How long after the release by another process it is granted here."""
    holding = "write()" if at_most is None else f"read(at_most={at_most})"
    holders = [
        stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_{holding}")
        for _ in range(at_most or 1)
    ]
    waiter = threading.Thread(target=take, args=(path, poll_interval, at_most))
    waiter.start()
    wait_until(lambda: len(announcements(path)) > len(holders), 10)
    time.sleep(0.3)  # now it pauses
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
    assert seconds_until_granted(stage, path, take, RARELY, at_most) < 3


@pytest.mark.parametrize("take", [by_thread, by_task])
def test_who_cannot_be_told_looks_after_its_pause(
    stage: Stage, path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[Path, float, int | None], None]
) -> None:
    """As where all instances that a user may have are taken."""
    monkeypatch.setattr(removals, "_init", lambda flags: -1)
    assert seconds_until_granted(stage, path, take, 64.0, None) < 20


def test_a_dead_holder_s_removal_by_another_one_is_told(stage: Stage, path: Path) -> None:
    """Whoever removes it: here, who waits as well, and looks more often."""
    holder = stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")
    waiters = [threading.Thread(target=by_thread, args=(path, poll, None)) for poll in (RARELY, 0.25)]
    waiters[0].start()
    wait_until(lambda: len(announcements(path)) == 2, 10)
    waiters[1].start()
    wait_until(lambda: len(announcements(path)) == 3, 10)
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
    wait_until(instances, 10)
    assert in_forked_child(instances) == []
    holder.do("lock.release()")
    waiter.join(30)


def test_each_removal_is_told_once(tmp_path: Path) -> None:
    told, one, other = Removals(), tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir()
    told.watch([str(one), str(other), str(tmp_path / "missing")])
    one.rmdir()
    began = time.monotonic()
    told.wait(10)
    assert time.monotonic() - began < 3
    told.watch([str(other)])
    began = time.monotonic()
    told.wait(0.3)
    assert time.monotonic() - began >= 0.3
    (tmp_path / "link").symlink_to(other)
    told.watch([str(tmp_path / "link"), str(tmp_path / "file")])
    told.close()


def test_a_call_that_nobody_waits_for_any_more_opens_nothing(stage: Stage, path: Path) -> None:
    """One that hung, and comes back once its attempt was given up. What is left open is looked for afterwards."""
    stage.actor(f"lock = SoftReadWriteLock({os.fspath(path)!r}); lock.acquire_write()")
    attempt = Attempt(SoftReadWriteLock(path, is_singleton=False)._settings, Mode.WRITE, Wait(-1))
    assert attempt.step() is None
    assert instances()
    attempt.give_up()
    attempt.stop_listening()
    attempt._listen()
    assert attempt.removals is None
