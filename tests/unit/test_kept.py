"""Shared holds that are kept after their release (``linger=``): who joins them, and that nobody waits for them long."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from actors import Raised, Stage, announcements, in_forked_child, wait_until
from interrupts import interrupted_at, needs_whole_with_blocks
from nfsrwlock import AsyncSoftReadWriteLock, HoldStatus, LockLostError, LockSet, SoftReadWriteLock, Timeout, break_lock
from nfsrwlock_core.holding import keeper, kept
from nfsrwlock_core.protocol import removal
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now

#: Longer than any pause of a busy machine, so that what these tests see does not hang on its speed.
LONG_S = 10


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    for settings in list(kept._kept):
        kept.make_way(settings.lock_path)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass for the rules about ages."""
    passed = [0.0]
    monkeypatch.setattr(kept, "now", lambda: now() + passed[0])

    def later(seconds: float) -> None:
        passed[0] += seconds

    return later


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass: what is kept stays, however long the machine has something else to do."""
    moment = now() + 1e6  # ends are compared with the real clock, too
    monkeypatch.setattr(kept, "now", lambda: moment)


def reader(path: Path, linger: float = LONG_S, **settings: Any) -> SoftReadWriteLock:
    return SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02, linger=linger, **settings)


def read(lock: SoftReadWriteLock) -> None:
    with lock.read_lock():
        pass


def keep(lock: SoftReadWriteLock) -> list[str]:
    """Let a hold of ``lock`` be kept; return its announcement."""
    read(lock)
    read(lock)
    names = announcements(lock.lock_file)
    assert len(names) == 1
    return names


# -- who keeps, and who joins ------------------------------------------------------------------------------------------


def test_by_default_nothing_is_kept(path: Path) -> None:
    lock = SoftReadWriteLock(path)
    assert lock.linger == 0
    for _ in range(3):
        read(lock)
        assert announcements(path) == []


@pytest.mark.usefixtures("still")
def test_what_is_read_again_soon_is_kept_and_joined(path: Path) -> None:
    lock = reader(path)
    read(lock)
    assert announcements(path) == [], "read for the first time"
    names = keep(lock)
    assert lock.status is HoldStatus.FREE
    for _ in range(3):
        for other in (lock, reader(path)):
            with other.read_lock():
                assert other.is_locked
                other.check()
                assert announcements(path) == names
        assert announcements(path) == names


def test_what_was_released_longer_than_a_linger_ago_is_not_kept(path: Path, later: Callable[[float], None]) -> None:
    lock = reader(path)
    for _ in range(3):
        read(lock)
        assert announcements(path) == []
        later(LONG_S)


def test_joining_makes_no_hold_older_than_a_linger(path: Path, later: Callable[[float], None]) -> None:
    lock = reader(path)
    names = keep(lock)
    for _ in range(3):
        later(LONG_S / 4)
        read(lock)
        assert announcements(path) == names
    later(LONG_S / 4)
    with lock.read_lock():
        assert lock.witness().name not in names
        names.append(lock.witness().name)
        later(LONG_S)
    with lock.read_lock():
        assert lock.witness().name not in names
        assert names[1] not in announcements(path), "too old to be kept when its last use ended"


def test_it_ends_by_itself(path: Path) -> None:
    lock = reader(path, linger=0.5)
    wait_until(lambda: read(lock) or announcements(path))
    wait_until(lambda: not announcements(path))


@pytest.mark.parametrize("form", ["thread", "process"])
def test_it_outlives_its_linger_for_who_uses_it_and_nobody_else_joins_it(path: Path, form: Any) -> None:
    lock, other = (reader(path, linger=1, heartbeat=form, heartbeat_interval=0.2) for _ in range(2))
    wait_until(lambda: read(lock) or announcements(path))
    with lock.read_lock():
        mine = lock.witness().name
        wait_until(lambda: lock._settings not in kept._kept)  # its linger is over
        for _ in range(3):
            with other.read_lock():
                assert other.witness().name != mine
        assert mine in announcements(path)
        lock.check()
    assert mine not in announcements(path)
    wait_until(lambda: not announcements(path))


@pytest.mark.parametrize(
    "other",
    [
        {"linger": LONG_S / 2},
        {"linger": 0},
        {"stale_threshold": 60},
        {"on_compromise": print},
        {"heartbeat": "process"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_only_locks_with_equal_settings_join(path: Path, other: dict[str, Any]) -> None:
    keep(reader(path))
    with reader(path, **other).read_lock():
        assert len(announcements(path)) == 2


@pytest.mark.usefixtures("still")
def test_the_uses_of_one_hold_end_one_by_one(path: Path) -> None:
    first, second, third = reader(path), reader(path), reader(path)
    keep(first)
    first.acquire_read()
    second.acquire_read()
    third.acquire_read()
    assert first.witness().name == second.witness().name
    first.release()
    first.release(force=True)
    assert not first.is_locked
    with pytest.raises(Timeout):
        SoftReadWriteLock(path).acquire_write(blocking=False)
    third.release()
    second.check()
    assert len(announcements(path)) == 1
    first.acquire_read()
    assert len(announcements(path)) == 2, "what is in a writer's way is not joined any more"
    first.release()
    second.release()
    assert len(announcements(path)) == 1, "only the new one is kept"
    SoftReadWriteLock(path).acquire_write(blocking=False).lock.release()


def test_threads_that_read_in_a_loop_share_a_few_holds(path: Path) -> None:
    keep(reader(path))
    seen: set[str] = set()

    def loop() -> None:
        lock = reader(path)
        for _ in range(200):
            with lock.read_lock():
                seen.add(lock.witness().name)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) <= 1 + 4 * (1 + (time.monotonic() - started) // LONG_S)
    assert len(announcements(path)) == 1


@pytest.mark.usefixtures("still")
def test_of_several_that_are_granted_at_a_time_one_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = keep(reader(path))
    # The others have looked before there was one to join.
    monkeypatch.setattr(kept.Use, "join", lambda self: None)
    for _ in range(3):
        read(reader(path))
        assert announcements(path) == names


@pytest.mark.usefixtures("still")
def test_a_lock_that_was_abandoned_under_a_joined_hold_is_found_again(path: Path) -> None:
    def take() -> None:
        lock = SoftReadWriteLock(path, linger=LONG_S)
        keep(lock)
        lock.acquire_read()

    take()
    gc.collect()
    again = SoftReadWriteLock(path, linger=LONG_S)
    again.check()
    again.release()


def test_no_more_than_a_few_dozen_are_kept_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):
        for number in range(100):
            read(reader(tmp_path / str(number)))
    assert 50 < len(list(tmp_path.rglob("read.*"))) <= 64, "some may be those of other tests"


@pytest.mark.parametrize("linger", [-1, float("nan"), float("inf"), 60, True, "1", None])
@pytest.mark.parametrize("form", [SoftReadWriteLock, AsyncSoftReadWriteLock, LockSet])
def test_a_wrong_linger_is_refused(path: Path, form: Any, linger: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="linger must be"):
        form(path, linger=linger)


def test_it_is_a_setting_like_the_others(path: Path) -> None:
    lock = reader(path, linger=2)
    assert pickle.loads(pickle.dumps(lock)).linger == 2
    assert lock != reader(path, linger=3)
    with LockSet(read=path, linger=LONG_S) as locks:
        assert locks.locks[0].linger == LONG_S
    with LockSet(read=path, linger=LONG_S):
        pass
    assert len(announcements(path)) == 1


# -- writers -----------------------------------------------------------------------------------------------------------


async def write_on_a_loop(path: Path) -> None:
    async with AsyncSoftReadWriteLock(path).write_lock(blocking=False):
        pass


WRITERS: dict[str, Callable[[SoftReadWriteLock, Path], Any]] = {
    "the same lock": lambda lock, _: lock.acquire_write(blocking=False).__exit__(None, None, None),
    "another lock": lambda _, path: SoftReadWriteLock(path).acquire_write(blocking=False).__exit__(None, None, None),
    "a task": lambda _, path: asyncio.run(write_on_a_loop(path)),
    "a set": lambda _, path: LockSet(write=path).acquire(blocking=False).release(),
}


@pytest.mark.parametrize("who", WRITERS)
def test_a_writer_of_the_same_process_does_not_wait(path: Path, who: str) -> None:
    lock = reader(path)
    keep(lock)
    WRITERS[who](lock, path)
    assert announcements(path) == []


def test_a_writer_of_the_same_process_does_not_wait_for_what_is_kept_while_it_waits(path: Path, stage: Stage) -> None:
    elsewhere = stage.actor("lock = SoftReadWriteLock('data'); lock.acquire_read()")
    lock = reader(path)
    waits = threading.Event()

    def wait(_: object) -> None:
        # It comes before the writer's next look, however it came by being kept.
        if not waits.is_set():
            hold = lock_of_its_own._held.hold  # type: ignore[union-attr]
            kept._kept[lock._settings] = hold, now() + LONG_S
            lock_of_its_own.release()
            assert len(announcements(path)) == 3
            waits.set()
            elsewhere.do("lock.release()")

    lock_of_its_own = reader(path)
    lock_of_its_own.acquire_read()
    SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02).acquire_write(LONG_S / 2, on_wait=wait)
    assert waits.is_set()


def test_a_writer_elsewhere_gets_its_turn_although_reads_go_on_and_on(stage: Stage, path: Path) -> None:
    ended = threading.Event()
    reads = [0] * 3

    def loop(number: int) -> None:
        lock = reader(path, linger=1)
        while not ended.is_set():
            read(lock)
            reads[number] += 1

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(3)]
    writer = stage.actor("lock = SoftReadWriteLock('data', poll_interval=0.05)")
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            before = sum(reads)
            wait_until(lambda before=before: sum(reads) > before + 100)  # type: ignore[misc]
            writer.do("lock.acquire_write(timeout=30); lock.release()")
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_another_process_finds_what_is_kept_in_use(stage: Stage, path: Path) -> None:
    writer = stage.actor("lock = SoftReadWriteLock('data')")
    keep(reader(path))
    with pytest.raises(Raised, match="held by"):
        writer.do("lock.acquire_write(blocking=False)")


# -- asyncio -----------------------------------------------------------------------------------------------------------


def on_loop(path: Path, **settings: Any) -> AsyncSoftReadWriteLock:
    return AsyncSoftReadWriteLock(path, poll_interval=0.02, linger=LONG_S, is_singleton=False, **settings)


def test_tasks_and_threads_join_each_others_holds_and_a_task_needs_no_thread_for_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = keep(reader(path))

    async def main() -> None:
        lock = on_loop(path)
        monkeypatch.setattr(workers, "submit", None)

        async def one() -> None:
            async with lock.read_lock():
                assert lock.is_locked
                await asyncio.sleep(0)
                assert announcements(path) == names

        await asyncio.gather(*(one() for _ in range(20)))
        assert not lock.is_locked

    asyncio.run(main())
    assert announcements(path) == names


def test_what_tasks_keep_outlives_their_loop(path: Path) -> None:
    async def main() -> list[str]:
        lock = on_loop(path)
        for _ in range(2):
            async with lock.read_lock():
                pass
        return announcements(path)

    names = asyncio.run(main())
    assert len(names) == 1
    with reader(path).read_lock():
        assert announcements(path) == names


def test_a_task_that_forgets_a_joined_hold_leaves_it_to_the_others(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = reader(path)
    keep(lock)

    async def forget() -> None:
        await on_loop(path).acquire_read()

    with lock.read_lock():
        asyncio.run(forget())
        gc.collect()
        wait_until(lambda: "without releasing it" in caplog.text)
        lock.check()
        assert len(announcements(path)) == 1
    SoftReadWriteLock(path, is_singleton=False).acquire_write(timeout=LONG_S / 2)


# -- forks, ends, losses, interrupts -----------------------------------------------------------------------------------


def test_a_forked_child_has_no_part_in_it(path: Path) -> None:
    lock = reader(path)
    names = keep(lock)

    def child() -> list[int]:
        mine = reader(path)
        seen = []
        for _ in range(2):
            read(mine)
            seen.append(len(announcements(path)))
        mine.acquire_write(blocking=False)
        return seen

    with pytest.raises(Raised, match="held by"):
        in_forked_child(child)
    assert names == announcements(path)[:1]

    def child_that_ends() -> list[int]:
        mine = reader(path)
        return [len(announcements(path)) for _ in range(2) if read(mine) is None]

    assert in_forked_child(child_that_ends) == [1, 2], "none of its own at first, then one beside its parent's"
    read(lock)
    assert set(names) <= set(announcements(path))


def test_a_child_that_ends_gives_back_its_own_and_nothing_else(stage: Stage, path: Path) -> None:
    actor = stage.actor(
        f"lock = SoftReadWriteLock('data', linger={LONG_S})\n"
        "for _ in range(2):\n    with lock.read_lock(): pass\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        f"    mine = SoftReadWriteLock('data', linger={LONG_S}, is_singleton=False)\n"
        "    for _ in range(2):\n        with mine.read_lock(): pass\n"
        "    sys.exit(0)\n"
    )
    assert actor.do("os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])") == 0
    names = announcements(path)
    assert len(names) == 1
    assert actor.do("lock.acquire_read() and lock.witness().name") == names[0]


AT_THE_END = """
import atexit, os, time
{before}
from nfsrwlock import SoftReadWriteLock
lock = SoftReadWriteLock("data", linger={linger})
for _ in range(3):
    with lock.read_lock():
        pass
print(sum(name.startswith("read.") for name in os.listdir("data.rwlock")), time.monotonic())
"""
#: Handlers run in reverse order, so this one comes after those of the package.
READ_LATER = "def late():\n    with lock.read_lock(): pass\n    with lock.read_lock(): pass\natexit.register(late)"


@pytest.mark.parametrize("before", ["", READ_LATER])
def test_a_process_that_ends_gives_back_what_it_has_kept(tmp_path: Path, before: str) -> None:
    code = AT_THE_END.format(linger=LONG_S, before=before)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    ended = time.monotonic()
    assert done.stderr == ""
    held, at_its_last_line = done.stdout.split()
    assert held == "1"
    assert ended - float(at_its_last_line) < LONG_S / 2, "its end does not wait for the linger"
    assert list(tmp_path.rglob("read.*")) == []


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("form", ["thread", "process"])
def test_one_that_was_lost_serves_nobody_and_nobody_is_called(
    path: Path, form: Any, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Any] = []
    lock = reader(path, heartbeat=form, heartbeat_interval=0.1, stale_threshold=60, on_compromise=called.append)
    keep(lock)
    caplog.set_level(logging.WARNING)
    break_lock(path, force=True)
    wait_until(lambda: "somebody evicted this holder" in caplog.text)
    lock.acquire_read()
    lock.check()
    assert len(announcements(path)) == 1
    assert called == [], "nobody held it"
    break_lock(path, force=True)
    wait_until(lambda: called)
    with pytest.raises(LockLostError):
        lock.check()
    lock.release()
    with lock.read_lock():
        lock.check()


def test_one_that_was_lost_makes_room(path: Path) -> None:
    lock = reader(path, linger=1, heartbeat_interval=0.05, stale_threshold=60)
    wait_until(lambda: read(lock) or announcements(path))
    (hold, _) = kept._kept[lock._settings]
    break_lock(path, force=True)
    wait_until(lambda: hold.ended)
    assert lock._settings not in kept._kept


@needs_whole_with_blocks
def test_an_interrupt_at_any_moment_leaves_nothing_behind(path: Path) -> None:
    lock = reader(path, linger=0.2)

    def twice() -> None:
        for _ in range(3):
            with lock.read_lock():
                pass

    number = 0
    while interrupted_at(number, kept, twice):
        assert not lock.is_locked, f"after call {number}"
        with suppress(Timeout):
            lock.acquire_write(timeout=LONG_S)
        assert lock.is_locked, f"after call {number}"
        lock.release()
        number += 1
    assert number > 30
    wait_until(lambda: not announcements(path))


@needs_whole_with_blocks
@pytest.mark.parametrize("module", [keeper, removal])
def test_an_interrupt_while_a_kept_hold_makes_way_for_a_writer_leaves_nothing_behind(
    path: Path, module: ModuleType
) -> None:
    lock, number = reader(path, linger=1.0), 0  # before it is known whose the hold is, that is all that ends it

    def write() -> None:
        with lock.write_lock():
            pass

    while True:
        read(lock)
        read(lock)
        assert announcements(path), "it is kept"
        if not interrupted_at(number, module, write):
            break
        wait_until(lambda: not lock.is_locked)
        lock.acquire_write(timeout=LONG_S)
        lock.release()
        number += 1
    assert number > 5
    assert not announcements(path)


def test_an_interrupt_in_a_forked_child_takes_nothing_from_its_parent(path: Path) -> None:
    lock = reader(path)
    lock.acquire_read()
    (hold,) = (hold for hold in keeper.holds() if hold.lock_file == str(path))

    def release_what_is_the_parents() -> int:
        assert interrupted_at(0, keeper, lambda: keeper.release(hold))
        time.sleep(0.3)  # for a worker
        return len(announcements(path))

    assert in_forked_child(release_what_is_the_parents) == 1
    lock.check()
    lock.release()
