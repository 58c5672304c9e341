"""Threads of one process: exclusion, levels, turns, callbacks, and exceptions that come at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors import Stage, announcements, wait_until
from interrupts import interrupted_at, needs_whole_with_blocks
from nfsrwlock import (
    AsyncSoftReadWriteLock,
    HoldStatus,
    LockNotHeldError,
    LockSet,
    SoftReadWriteLock,
    Timeout,
    break_lock,
)
from nfsrwlock_core import lock

FORMS = ["thread", "process"]


class Thread:
    """A thread that does, one after the other, what it is told."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)

    def tell(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(work, *args, **kwargs)

    def do(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.tell(work, *args, **kwargs).result(30)

    def end(self) -> None:
        self._executor.shutdown()


@pytest.fixture
def thread() -> Iterator[Thread]:
    thread = Thread()
    yield thread
    thread.end()


def single(path: Path, **settings: Any) -> SoftReadWriteLock:
    """A lock that has nothing to do with the others of this process."""
    return SoftReadWriteLock(path, is_singleton=False, poll_interval=0.02, **settings)


def test_threads_with_locks_of_their_own_lose_no_update(path: Path) -> None:
    path.write_text("0")

    def count() -> None:
        lock = single(path, timeout=60)
        for _ in range(10):
            with lock.write_lock():
                number = int(path.read_text())
                time.sleep(0.001)  # the moment in which another thread would get in between
                path.write_text(str(number + 1))

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(count) for _ in range(6)]:
            done.result()
    assert path.read_text() == "60"
    assert announcements(path) == []


def test_threads_that_read_through_one_instance_are_one_participant(path: Path, thread: Thread) -> None:
    lock = SoftReadWriteLock(path)
    with lock.read_lock():
        thread.do(lock.acquire_read)
        assert len(announcements(path)) == 1
    assert lock.status is HoldStatus.HELD
    thread.do(lock.release)
    assert lock.status is HoldStatus.FREE
    assert announcements(path) == []


def test_a_forced_release_ends_the_levels_of_all_threads(path: Path, thread: Thread) -> None:
    lock = SoftReadWriteLock(path)
    lock.acquire_read()
    thread.do(lock.acquire_read)
    lock.release(force=True)
    assert announcements(path) == []
    with pytest.raises(LockNotHeldError):
        thread.do(lock.release)


def test_a_refused_release_says_which_thread_holds_the_lock(path: Path, thread: Thread) -> None:
    lock = SoftReadWriteLock(path)
    with lock.write_lock(), pytest.raises(LockNotHeldError, match=str(threading.get_ident())):
        thread.do(lock.release)


@pytest.mark.parametrize("mode", ["read", "write"])
def test_what_an_acquire_returned_gives_back_its_own_level_in_any_thread(path: Path, thread: Thread, mode: str) -> None:
    lock = SoftReadWriteLock(path)
    acquire = lock.acquire_read if mode == "read" else lock.acquire_write
    levels = [thread.do(acquire), thread.do(acquire)]
    levels[0].__exit__(None, None, None)
    assert lock.is_locked
    thread.do(lock.release)
    assert announcements(path) == []
    with pytest.raises(LockNotHeldError):
        levels[1].__exit__(None, None, None)


def test_a_thread_that_gives_up_waiting_for_its_turn_lets_the_next_one_have_it(path: Path, thread: Thread) -> None:
    lock, other = SoftReadWriteLock(path, poll_interval=0.02), Thread()
    with single(path).write_lock():
        waits = threading.Event()
        first = thread.tell(lock.acquire_read, 0.5, on_wait=lambda _: waits.set())
        assert waits.wait(30)
        with pytest.raises(Timeout, match="another thread"):
            lock.acquire_read(0.01)
        last = other.tell(lock.acquire_read, 30)
        with pytest.raises(Timeout):
            first.result(30)
    assert last.result(30).lock is lock
    other.do(lock.release)
    other.end()


@pytest.mark.parametrize(("held", "asked"), [("read", "write"), ("write", "read"), ("write", "write")])
def test_a_second_thread_on_one_object_reads_who_holds_it_and_what_to_do(
    path: Path, thread: Thread, held: str, asked: str
) -> None:
    lock = SoftReadWriteLock(path)
    with lock.read_lock() if held == "read" else lock.write_lock():
        with pytest.raises(RuntimeError, match=rf"held by thread {threading.get_ident()}\b.*is_singleton=False"):
            thread.do(lock.acquire_read if asked == "read" else lock.acquire_write)
        if held != asked:  # the holder itself needs no second object
            with pytest.raises(RuntimeError, match=r"not allowed$"):
                (lock.acquire_read if asked == "read" else lock.acquire_write)()


def test_a_thread_waits_no_longer_than_its_timeout_for_its_turn_behind_another_one(path: Path, thread: Thread) -> None:
    lock = SoftReadWriteLock(path, poll_interval=0.02)
    with single(path).write_lock():
        waits = threading.Event()
        first = thread.tell(lock.acquire_read, on_wait=lambda _: waits.set())
        assert waits.wait(30)  # the other thread is waiting on disk
        started = time.monotonic()
        with pytest.raises(Timeout, match="another thread"):
            lock.acquire_read(0.2)
        with pytest.raises(Timeout):
            lock.acquire_read(blocking=False)
        assert time.monotonic() - started < 10
    assert first.result(30).lock is lock
    lock.acquire_read(0)  # the other thread's hold is joined
    lock.release(force=True)


@pytest.mark.parametrize("timeout", [-1, 60])
def test_until_ends_also_a_wait_for_its_turn_behind_another_thread(path: Path, thread: Thread, timeout: float) -> None:
    lock, other, stop = SoftReadWriteLock(path, poll_interval=0.02), Thread(), threading.Event()
    with single(path).write_lock():
        first = thread.tell(lock.acquire_read, 60)
        wait_until(lambda: len(lock._asking) == 1)
        second = other.tell(lock.acquire_read, timeout, until=stop.is_set)
        wait_until(lambda: len(lock._asking) == 2)
        stop.set()
        with pytest.raises(Timeout, match="another thread"):
            second.result(30)
        assert not first.done()
    assert first.result(30).lock is lock
    thread.do(lock.release)
    other.end()


def test_a_thread_that_waited_for_its_turn_joins_the_hold_that_another_one_got(path: Path, thread: Thread) -> None:
    lock = SoftReadWriteLock(path, poll_interval=0.02)
    other = Thread()
    with single(path).write_lock():
        waits = threading.Event()
        waiting = [who.tell(lock.acquire_read, 30, on_wait=lambda _: waits.set()) for who in (thread, other)]
        assert waits.wait(30)
        time.sleep(0.1)  # the other one waits for its turn behind that, most likely; it may come later as well
    for future in waiting:
        future.result(30)
    assert len(announcements(path)) == 1
    thread.do(lock.release)
    assert lock.is_locked
    other.do(lock.release)
    other.end()
    assert not lock.is_locked


@pytest.mark.parametrize("timeout", [-1, 60])
@pytest.mark.parametrize("form", ["lock", "block", "set", "async", "async block"])
def test_until_ends_a_wait_as_its_time_limit_does(path: Path, form: str, timeout: float) -> None:
    events: list[str] = []

    def until() -> bool:
        events.append("until")
        return len(events) > 4

    def acquire() -> None:
        rules: Any = {"timeout": timeout, "until": until, "on_wait": lambda _: events.append("on_wait")}
        if form == "lock":
            single(path).acquire_write(**rules)
        elif form == "set":
            LockSet(write=path).acquire(**rules)
        elif form == "block":
            with single(path).write_lock(**rules):
                pass
        else:
            asyncio.run(acquire_on_a_loop(rules))

    async def acquire_on_a_loop(rules: Any) -> None:
        lock = AsyncSoftReadWriteLock(path, poll_interval=0.02)
        if form == "async":
            await lock.acquire_write(**rules)
        async with lock.write_lock(**rules):
            pass

    with single(path).read_lock():
        with pytest.raises(Timeout, match="it is held by"):
            acquire()
        assert events == ["until", "on_wait", "until", "on_wait", "until"]
        assert len(announcements(path)) == 1
    with single(path).write_lock(until=lambda: True):  # which is not asked where nothing is in the way
        pass


def test_two_threads_that_want_to_write_get_an_error_not_a_deadlock(path: Path, thread: Thread) -> None:
    lock = SoftReadWriteLock(path, poll_interval=0.02)
    other = Thread()
    with single(path).write_lock():
        waiting = [who.tell(lock.acquire_write, 30) for who in (thread, other)]
        wait_until(lambda: len(announcements(path)) == 2)
        time.sleep(0.1)  # the other one waits for its turn behind that, most likely; it may come later as well
    outcomes = [future.exception(30) for future in waiting]
    other.end()
    lock.release(force=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "RuntimeError"]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_closing_a_lock_ends_another_threads_waiting_and_leaves_nothing_behind(
    path: Path, thread: Thread, mode: str
) -> None:
    lock, holder = single(path), single(path)
    with holder.read_lock() if mode == "write" else holder.write_lock():
        waits = threading.Event()
        acquire = lock.acquire_write if mode == "write" else lock.acquire_read
        waiting = thread.tell(acquire, on_wait=lambda _: waits.set())
        assert waits.wait(30)
        lock.close()
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result(20)
        assert len(announcements(path)) == 1
    assert announcements(path) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_callback_comes_from_a_thread_of_the_package_and_may_ask_and_release(path: Path, form: str) -> None:
    told: list[tuple[str, HoldStatus, str]] = []

    def on_compromise(compromise: Any) -> None:
        told.append((compromise.reason, lock.status, threading.current_thread().name))
        lock.release()

    lock = single(path, on_compromise=on_compromise, heartbeat_interval=0.2, stale_threshold=5, heartbeat=form)
    lock.acquire_write()
    break_lock(path, force=True)
    wait_until(lambda: told and lock.status is HoldStatus.FREE, timeout=20)
    ((reason, status, name),) = told
    assert (reason, status) == ("evicted", HoldStatus.LOST)
    assert name.startswith("nfsrwlock-")
    assert lock.compromise is not None
    assert lock.compromise.reason == "evicted"


@pytest.mark.parametrize("form", FORMS)
def test_a_callback_that_takes_its_time_delays_no_other_lock(tmp_path: Path, form: str) -> None:
    go_on, told = threading.Event(), threading.Event()

    def dawdle(_: object) -> None:
        told.set()
        go_on.wait(30)

    slow = single(tmp_path / "slow", on_compromise=dawdle, heartbeat_interval=0.3, heartbeat=form)
    other = single(tmp_path / "other", heartbeat_interval=0.5, stale_threshold=3, heartbeat=form)
    with other.write_lock():
        slow.acquire_write()
        break_lock(slow.lock_file, force=True)
        assert told.wait(20)
        time.sleep(3.2)
        other.check()
        go_on.set()
    slow.release(force=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_callback_that_fails_harms_nobody(path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    lock = single(path, on_compromise=fail, heartbeat_interval=0.2, stale_threshold=5, heartbeat=form)
    lock.acquire_write()
    break_lock(path, force=True)
    wait_until(lambda: "on_compromise" in caplog.text, timeout=20)
    lock.release()
    with lock.write_lock():
        lock.check()


@needs_whole_with_blocks
def test_an_exception_that_a_signal_brings_at_any_moment_leaves_nothing_behind(tmp_path: Path) -> None:
    # Ctrl-C comes when it likes: before the announcement, after it, between the grant and its entry in the books. The
    # lock must be free or held afterwards, never half.
    with Stage(tmp_path) as stage:
        actor = stage.actor(ALARMED)
        interrupted, finished, left = actor.do("storm(3, 50, 5)", timeout=100)
        assert left == []
        assert interrupted > 50
        assert finished > 5


@pytest.mark.parametrize("mode", ["read_lock", "write_lock"])
def test_an_interrupt_at_any_moment_of_a_block_leaves_nothing_held(path: Path, mode: str) -> None:
    """The window of each is one instruction wide, so a storm of signals finds them once in a blue moon."""
    held = SoftReadWriteLock(path, is_singleton=False)

    def hold_in_a_block() -> None:
        with getattr(held, mode)():
            pass

    def hold_twice() -> None:
        with getattr(held, mode)(), getattr(held, mode)():
            pass

    for call in (hold_in_a_block, hold_twice):
        number = 0
        while interrupted_at(number, lock, call):
            wait_until(lambda: not announcements(path))
            assert not held.is_locked, f"after call {number}"
            number += 1
        assert number > 20


ALARMED = """
class Alarm(BaseException):
    pass

def ring(*_):
    raise Alarm

def storm(seconds, interruptions, ends):
    signal.signal(signal.SIGALRM, ring)
    lock = SoftReadWriteLock("data", is_singleton=False, poll_interval=0.02)
    interrupted = finished = 0
    left = []
    began, latest = time.monotonic(), 0.002
    while not left and time.monotonic() < began + 90:
        if time.monotonic() > began + seconds:
            if interrupted > interruptions and finished > ends:
                break
            latest *= 1.02 if finished <= ends else 0.98  # the machine is slower, or faster, than most
        # With and without a limit, for the first goes through a thread.
        mode, timeout = random.choice([lock.acquire_read, lock.acquire_write]), random.choice([-1, 30])
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, latest))
            try:
                mode(timeout)
                lock.release()
                finished += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm:
            interrupted += 1
            lock.release(force=True)
        give_up_at = time.monotonic() + 10
        while True:
            entries = os.listdir("data.rwlock") if os.path.exists("data.rwlock") else []
            left = [entry for entry in entries if not entry.startswith("gen.")]
            if not left or time.monotonic() > give_up_at:
                break
            time.sleep(0.001)
    return interrupted, finished, left
"""


def test_an_interrupt_while_waiting_is_raised_soon_and_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    with Stage(tmp_path) as stage, single(path).read_lock():
        for timeout in (-1, 60):
            actor = stage.actor("lock = SoftReadWriteLock('data')")
            actor.tell(f"lock.acquire_write({timeout})")
            wait_until(lambda: len(announcements(path)) == 2)

            os.kill(actor.pid, signal.SIGINT)
            with pytest.raises(Exception, match="KeyboardInterrupt"):
                actor.answer()
            assert len(announcements(path)) == 1
