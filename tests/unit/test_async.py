"""
The lock for tasks: the loop is never blocked, a cancellation leaves nothing behind, each task has a hold of its own.

What it shares with filelock's class is in test_filelock_contract.py.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest

import outages
from actors import Raised, Stage, announcements, wait_until
from nfsrwlock import (
    AsyncSoftReadWriteLock,
    HoldStatus,
    LeaseExpiredError,
    LockError,
    LockLostError,
    LockNotHeldError,
    SoftReadWriteLock,
    Timeout,
    WaitInfo,
    break_lock,
)
from nfsrwlock_core import aio


def story(func: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let a coroutine be a test: its body is one task."""

    @functools.wraps(func)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(func(*args, **kwargs))

    return test


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Decides what the file server does; at the end it answers."""
    outages.install(monkeypatch.setattr)
    yield functools.partial(outages.let, tmp_path)
    outages.let(tmp_path, outages.ANSWERS)
    wait_until(lambda: not outages.hanging_calls(tmp_path))


def quick(path: Path, **settings: Any) -> AsyncSoftReadWriteLock:
    return AsyncSoftReadWriteLock(path, poll_interval=0.02, **settings)


class Ticker:
    """Counts how often the loop ran."""

    async def __aenter__(self) -> Self:
        self.ticks = 0
        self._task = asyncio.create_task(self._tick())
        return self

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.ticks += 1

    async def go_on(self, ticks: int = 20) -> None:
        """Wait until the loop has run so many times more."""
        wanted = self.ticks + ticks
        await until(lambda: self.ticks >= wanted)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until ``condition`` is true, on the loop."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# -- the loop ----------------------------------------------------------------------------------------------------------


@story
async def test_the_loop_runs_while_the_file_server_hangs(
    path: Path, server: Callable[[str], None], tmp_path: Path
) -> None:
    # It is the loop that lets the server answer again, after it has run: one that waits for such a call never does.
    lock = quick(path)
    async with Ticker() as ticker:
        server(outages.HANGS)
        started = time.monotonic()
        with pytest.raises(Timeout, match="not answered"):
            await lock.acquire_write(0.3)
        assert time.monotonic() - started < 10
        assert ticker.ticks > 10
        waiting = asyncio.create_task(lock.acquire_write())  # without a limit
        await until(lambda: outages.hanging_calls(tmp_path) == 2)  # the other one was given up, and hangs still
        await ticker.go_on()
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        server(outages.ANSWERS)
        await until(lambda: not announcements(path))

        reading = asyncio.create_task(read_when_told(quick(path), go_on := asyncio.Event()))
        await until(lambda: announcements(path))
        for _ in range(2):  # once in reading the number, once in the release
            server(outages.HANGS)
            go_on.set()
            await until(lambda: outages.hanging_calls(tmp_path))
            await ticker.go_on()
            assert not reading.done()
            server(outages.ANSWERS)
            await until(lambda: not go_on.is_set() or reading.done())
        await reading


async def read_when_told(lock: AsyncSoftReadWriteLock, go_on: asyncio.Event) -> None:
    async with lock.read_lock():
        await go_on.wait()
        await lock.read_generation()
        go_on.clear()
        await go_on.wait()


WATCHED = """
import asyncio
from nfsrwlock import AsyncSoftReadWriteLock

events = []
FILES = {"open", "os.listdir", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.chmod", "os.scandir"}

def watch(event, arguments):
    if event in FILES and threading.get_ident() == loop_thread and armed:
        events.append((event, str(arguments[0])))

armed, loop_thread = False, threading.get_ident()
sys.addaudithook(watch)

def on_wait(info):
    str(info)

async def main():
    global armed
    lock = AsyncSoftReadWriteLock("data", poll_interval=0.02, heartbeat_interval=0.1, stale_threshold=5)
    other = AsyncSoftReadWriteLock("data", is_singleton=False, poll_interval=0.02)
    for armed in (False, True):  # the first round imports what is needed
        async with lock.write_lock(timeout=5):
            await asyncio.sleep(0.3)
            lock.check(), lock.status, lock.generation
            try:
                await other.acquire_read(0.2, on_wait=on_wait)
            except Timeout as error:
                str(error)
        async with other.read_lock():
            await other.read_generation()
        await lock.close() if armed else None
    armed = False

asyncio.run(main())
"""


def test_the_loops_thread_makes_no_file_system_call(stage: Stage) -> None:
    actor = stage.actor(WATCHED)
    assert actor.do("events") == []


@story
async def test_calls_go_through_the_executor_that_was_given(path: Path) -> None:
    threads: set[str] = set()

    class Watched(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            def note() -> Any:
                threads.add(threading.current_thread().name)
                return fn(*args, **kwargs)

            return super().submit(note)

    with Watched(2, thread_name_prefix="mine") as executor:
        lock = quick(path, executor=executor)
        async with lock.write_lock(timeout=5):
            pass
        with pytest.raises(Timeout):
            async with SoftBlock(path):
                await lock.acquire_read(0.1)
    assert {name.partition("_")[0] for name in threads} == {"mine"}


class SoftBlock:
    """Somebody else holds the lock for writing."""

    def __init__(self, path: Path) -> None:
        self._lock = SoftReadWriteLock(path, is_singleton=False)

    async def __aenter__(self) -> None:
        await asyncio.to_thread(self._lock.acquire_write, 20)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._lock.release, force=True)


@story
async def test_it_works_on_the_loop_that_was_given(path: Path) -> None:
    lock = quick(path, loop=asyncio.get_running_loop())
    async with lock.write_lock():
        assert lock.is_locked


def test_outside_of_a_task_nothing_is_held(path: Path) -> None:
    lock = quick(path)
    assert lock.status is HoldStatus.FREE
    assert lock.generation is None
    with pytest.raises(LockNotHeldError):
        lock.check()


@story
async def test_progress_is_told_on_the_loop(path: Path) -> None:
    told: list[tuple[WaitInfo, int]] = []
    async with SoftBlock(path):
        waiting = asyncio.create_task(
            quick(path).acquire_read(on_wait=lambda info: told.append((info, threading.get_ident())))
        )
        await until(lambda: len(told) > 2)
        waiting.cancel()
        await asyncio.wait([waiting])
    assert {thread for _, thread in told} == {threading.get_ident()}
    waited = [info.waited for info, _ in told]
    assert waited == sorted(waited)
    assert {(info.mode, info.blockers[0].pid) for info, _ in told} == {("read", os.getpid())}


# -- cancellation ------------------------------------------------------------------------------------------------------


class Cancelling(ThreadPoolExecutor):
    """
    Cancels a task at one of the calls that it makes to the file system.

    :param number: at which call
    :param moment: ``"before"`` the call is made, ``"during"`` it, ``"after"`` it, or some turns of the loop later
    """

    def __init__(self, number: int, moment: str) -> None:
        super().__init__(4)
        self._left = number
        self._moment = moment
        self.target: asyncio.Task[Any] | None = None
        self.has_struck = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._left -= 1
        if self._left:
            return super().submit(fn, *args, **kwargs)
        assert self.target is not None
        loop, target = self.target.get_loop(), self.target
        self.has_struck = True

        def call() -> Any:
            if self._moment == "during":
                loop.call_soon_threadsafe(target.cancel)
                time.sleep(0.02)
            result = fn(*args, **kwargs)
            if self._moment == "after":
                loop.call_soon_threadsafe(target.cancel)
            return result

        def cancel_later(turns: int) -> None:
            if turns:
                loop.call_soon(cancel_later, turns - 1)
            else:
                target.cancel()

        if self._moment == "before":
            target.cancel()
        future = super().submit(call)
        if self._moment.endswith("later"):
            turns = int(self._moment.split()[0])
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(cancel_later, turns))
        return future


MOMENTS = pytest.mark.parametrize("moment", ["before", "during", "after", "1 later", "2 later", "3 later", "4 later"])


async def acquire_and_release(lock: AsyncSoftReadWriteLock, mode: str, arguments: dict[str, Any]) -> None:
    async with await (lock.acquire_read if mode == "read" else lock.acquire_write)(**arguments):
        pass


@MOMENTS
@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize("arguments", [{}, {"timeout": 30}], ids=["unlimited", "limited"])
@story
async def test_a_cancellation_at_any_call_leaves_nothing_behind(
    path: Path, mode: str, moment: str, arguments: dict[str, Any]
) -> None:
    for number in range(1, 20):
        with Cancelling(number, moment) as executor:
            lock = quick(path, executor=executor)
            executor.target = asyncio.create_task(acquire_and_release(lock, mode, arguments))
            (outcome,) = await asyncio.gather(executor.target, return_exceptions=True)
            await asyncio.to_thread(wait_until, lambda: not announcements(path))
            assert not lock._table.holds
            if not executor.has_struck:
                assert outcome is None
                break
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
            async with quick(path).write_lock(timeout=10):
                pass
    assert number > 3


@pytest.mark.parametrize("mode", ["read", "write"])
@MOMENTS
@story
async def test_a_cancellation_at_any_call_of_a_waiting_task_leaves_nothing_behind(
    path: Path, mode: str, moment: str
) -> None:
    async with SoftBlock(path):
        before = announcements(path)
        for number in range(1, 9):
            with Cancelling(number, moment) as executor:
                lock = quick(path, executor=executor)
                executor.target = asyncio.create_task(acquire_and_release(lock, mode, {}))
                with pytest.raises(asyncio.CancelledError):
                    await executor.target
                await asyncio.to_thread(wait_until, lambda: announcements(path) == before)


@story
async def test_a_second_cancellation_does_not_stop_the_first_one_from_cleaning_up(path: Path) -> None:
    async with SoftBlock(path):
        for pause_s in (0, 0.001, 0.01, 0.05):
            task = asyncio.create_task(quick(path).acquire_write())
            await until(lambda: len(announcements(path)) == 2)
            task.cancel()
            await asyncio.sleep(pause_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: len(announcements(path)) == 1)


@story
async def test_a_cancelled_release_still_releases(path: Path, server: Callable[[str], None], tmp_path: Path) -> None:
    lock = quick(path)

    async def hold() -> None:
        async with lock.write_lock():
            server(outages.HANGS)

    task = asyncio.create_task(hold())
    await until(lambda: outages.hanging_calls(tmp_path))
    task.cancel()
    await asyncio.sleep(0.1)
    server(outages.ANSWERS)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert announcements(path) == []


@story
async def test_timeouts_of_asyncio_work_as_its_own_do(path: Path) -> None:
    async with SoftBlock(path):
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.2):
                await quick(path).acquire_write()
        assert not isinstance(caught.value, Timeout)
        await until(lambda: len(announcements(path)) == 1)
        with pytest.raises(Timeout):
            async with asyncio.timeout(20):
                await quick(path).acquire_write(0.2)
        assert len(announcements(path)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_under_a_waiting_task_leaves_nothing_behind(path: Path) -> None:
    holder = SoftReadWriteLock(path, is_singleton=False)
    with holder.read_lock():
        loop = asyncio.new_event_loop()
        task = loop.create_task(quick(path).acquire_write())
        loop.run_until_complete(until(lambda: len(announcements(path)) == 2))
        task._log_destroy_pending = False  # that it complains is right, and not what this is about
        loop.close()
        del task, loop
        # A thread may refer to the task until its call is done.
        wait_until(lambda: gc.collect() >= 0 and len(announcements(path)) == 1)


# -- tasks -------------------------------------------------------------------------------------------------------------


@story
async def test_tasks_lose_no_update(path: Path) -> None:
    lock = quick(path)
    number = 0

    async def count() -> None:
        nonlocal number
        for _ in range(4):
            async with lock.write_lock(timeout=60):
                seen = number
                await asyncio.sleep(0.001)  # the moment in which another task would get in between
                number = seen + 1

    await asyncio.gather(*(count() for _ in range(10)))
    assert number == 40
    assert announcements(path) == []


@story
async def test_many_tasks_read_at_the_same_time(path: Path) -> None:
    lock = quick(path)
    inside = asyncio.Barrier(8)

    async def read() -> None:
        async with lock.read_lock(timeout=30):
            await inside.wait()  # which all of them pass only if all are inside

    async with asyncio.timeout(60):
        await asyncio.gather(*(read() for _ in range(8)))


@story
async def test_tasks_of_two_loops_exclude_each_other(path: Path) -> None:
    lock = quick(path)

    async def try_elsewhere() -> HoldStatus:
        with pytest.raises(Timeout):
            await quick(path).acquire_read(0.2)
        return lock.status

    async with lock.write_lock():
        assert await asyncio.to_thread(asyncio.run, try_elsewhere()) is HoldStatus.FREE
        assert lock.status is HoldStatus.HELD


@story
async def test_state_is_that_of_the_calling_task(path: Path) -> None:
    lock = quick(path)

    async def look() -> tuple[HoldStatus, bool, int | None]:
        with pytest.raises(LockNotHeldError):
            lock.check()
        return lock.status, lock.is_locked, lock.generation

    async with lock.write_lock():
        assert (lock.status, lock.is_locked, lock.generation) == (HoldStatus.HELD, True, 1)
        assert await asyncio.create_task(look()) == (HoldStatus.FREE, False, None)


@story
async def test_locks_that_are_no_singletons_know_nothing_of_each_other(path: Path) -> None:
    first, second = (quick(path, is_singleton=False) for _ in range(2))
    async with first.write_lock():
        assert second.status is HoldStatus.FREE
        with pytest.raises(Timeout):
            await second.acquire_write(0.1)


@story
async def test_closing_ends_what_waits_and_what_is_held_through_the_lock(path: Path) -> None:
    lock, other = quick(path), quick(path)
    held, done = asyncio.Event(), asyncio.Event()

    async def hold(which: AsyncSoftReadWriteLock) -> None:
        await which.acquire_read()
        held.set()
        await done.wait()
        await which.release(force=True)

    holders = [asyncio.create_task(hold(which)) for which in (lock, other)]
    await until(lambda: len(announcements(path)) == 2)
    waiting = asyncio.create_task(lock.acquire_write())
    await until(lambda: len(announcements(path)) == 3)
    await lock.close()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    await until(lambda: len(announcements(path)) == 1)  # what was taken through the other one stays
    done.set()
    await asyncio.gather(*holders)
    assert announcements(path) == []


@story
async def test_closing_and_releasing_at_the_same_time_is_no_error(path: Path) -> None:
    for _ in range(10):
        lock = quick(path, is_singleton=False)
        barrier = asyncio.Barrier(5)

        async def hold(lock: AsyncSoftReadWriteLock = lock, barrier: asyncio.Barrier = barrier) -> None:
            await lock.acquire_read()
            await barrier.wait()
            await lock.release(force=True)

        tasks = [asyncio.create_task(hold()) for _ in range(4)]
        await barrier.wait()
        await asyncio.gather(lock.close(), lock.close(), *tasks)
        assert announcements(path) == []


# -- heartbeats and losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["thread", "process"])
def test_heartbeats_go_on_while_the_loop_is_busy(stage: Stage, path: Path, form: str) -> None:
    actor, rival = stage.actor(host="there"), stage.actor(host="here")
    actor.tell(
        "import asyncio\n"
        "from nfsrwlock import AsyncSoftReadWriteLock\n"
        "async def main():\n"
        "    lock = AsyncSoftReadWriteLock('data', heartbeat_interval=0.2, stale_threshold=2.5, "
        f"heartbeat={form!r})\n"
        "    async with lock.write_lock():\n"
        "        while not os.path.exists('go on'):\n"
        "            time.sleep(0.01)\n"  # it should not, but many do
        "        lock.check()\n"
        "asyncio.run(main())\n"
    )
    wait_until(lambda: announcements(path))
    with pytest.raises(Raised, match="Timeout"):
        rival.do("SoftReadWriteLock('data').acquire_read(3.5)")
    path.with_name("go on").touch()
    actor.answer()


@pytest.mark.parametrize("form", ["thread", "process"])
@story
async def test_a_task_learns_that_its_hold_was_lost(path: Path, form: str) -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Queue[Any]()
    lock = quick(
        path,
        heartbeat_interval=0.1,
        stale_threshold=20,
        heartbeat=form,
        on_compromise=lambda compromise: loop.call_soon_threadsafe(told.put_nowait, compromise),
    )

    async def lose(error: Exception | None = None) -> None:
        async with lock.write_lock():
            await asyncio.to_thread(break_lock, path, force=True)
            assert (await told.get()).reason == "evicted"
            with pytest.raises(LockLostError):
                lock.check()
            with pytest.raises(LockLostError):
                await lock.acquire_write()
            assert lock.status is HoldStatus.LOST
            if error is not None:
                raise error

    with pytest.raises(LockLostError):
        await lose()
    assert lock.compromise is not None
    with pytest.raises(ZeroDivisionError):
        await lose(ZeroDivisionError())
    async with lock.write_lock():
        assert lock.compromise is None


@story
async def test_a_task_out_of_reach_is_suspect_and_comes_back(path: Path, server: Callable[[str], None]) -> None:
    lock = quick(path, heartbeat_interval=0.1, stale_threshold=2.5)
    async with lock.write_lock():
        server(outages.FAILS)
        await until(lambda: lock.status is HoldStatus.SUSPECT)
        with pytest.raises(LeaseExpiredError):
            lock.check()
        server(outages.ANSWERS)
        await until(lambda: lock.status is HoldStatus.HELD)
        lock.check()


@story
async def test_what_an_acquire_returns_tells_every_thread_how_the_hold_is(
    path: Path, server: Callable[[str], None]
) -> None:
    lock = quick(path, heartbeat_interval=0.1, stale_threshold=2.5)
    hold = await lock.acquire_write()
    await asyncio.to_thread(hold.check)
    server(outages.FAILS)
    await until(lambda: lock.status is HoldStatus.SUSPECT)
    with pytest.raises(LeaseExpiredError):
        await asyncio.to_thread(hold.check)
    server(outages.ANSWERS)
    await until(lambda: lock.status is HoldStatus.HELD)
    await asyncio.to_thread(hold.check)


def test_what_an_acquire_returns_ends_the_hold_in_any_loop(path: Path) -> None:
    lock = quick(path)
    hold = asyncio.run(lock.acquire_write())
    asyncio.run(hold.end())
    assert announcements(path) == []
    with pytest.raises(LockNotHeldError):
        hold.check()
    asyncio.run(hold.end())  # nothing is left to end
    hold = asyncio.run(lock.acquire_write())
    assert break_lock(path, force=True)
    with pytest.raises(LockLostError):
        asyncio.run(hold.end())


# -- a hold whose task is done -----------------------------------------------------------------------------------------


async def three(lock: AsyncSoftReadWriteLock) -> AsyncGenerator[int, None]:
    async with lock.write_lock():
        for number in range(3):
            yield number


async def in_a_generator_that_is_left(lock: AsyncSoftReadWriteLock) -> None:
    async for _ in three(lock):
        break
    await until(lambda: gc.collect() >= 0 and not announcements(Path(lock.lock_file)))


async def in_a_generator_that_ends_with_the_loop(lock: AsyncSoftReadWriteLock) -> object:
    generator = three(lock)
    await anext(generator)
    return generator


async def in_a_fixture(lock: AsyncSoftReadWriteLock) -> None:
    generator = three(lock)
    await asyncio.create_task(start(generator.__anext__))
    gc.collect()
    assert len(announcements(Path(lock.lock_file))) == 1
    await asyncio.create_task(start(generator.aclose))


async def in_handlers(lock: AsyncSoftReadWriteLock) -> None:
    stack = AsyncExitStack()
    await asyncio.create_task(start(lambda: stack.enter_async_context(lock.read_lock())))
    gc.collect()
    assert len(announcements(Path(lock.lock_file))) == 1
    await asyncio.create_task(start(stack.aclose))


async def by_hand(lock: AsyncSoftReadWriteLock) -> None:
    hold = await asyncio.create_task(start(lock.acquire_write))
    gc.collect()
    hold.check()
    with pytest.raises(LockNotHeldError):
        await lock.release()
    await quick(Path(lock.lock_file)).release(force=True)  # through which it was not taken
    hold.check()
    await lock.release(force=True)
    with pytest.raises(LockNotHeldError):
        hold.check()


async def by_closing(lock: AsyncSoftReadWriteLock) -> None:
    hold = await asyncio.create_task(start(lock.acquire_write))
    hold.check()
    await lock.close()


async def start(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


@pytest.mark.parametrize(
    "scene",
    [
        in_a_generator_that_is_left,
        in_a_generator_that_ends_with_the_loop,
        in_a_fixture,
        in_handlers,
        by_hand,
        by_closing,
    ],
)
def test_a_hold_may_be_ended_in_another_task_than_it_was_taken_in(
    path: Path, caplog: pytest.LogCaptureFixture, scene: Callable[[AsyncSoftReadWriteLock], Coroutine[Any, Any, object]]
) -> None:
    kept = asyncio.run(scene(quick(path)))
    assert announcements(path) == []
    # But for what other tests have left behind.
    assert [text for text in caplog.messages if "is given back" not in text or str(path) in text] == []
    del kept


def test_a_hold_that_its_task_has_left_behind_ends_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = quick(path)

    async def take() -> None:
        await lock.acquire_write()
        await lock.acquire_write()

    async def main() -> None:
        done = asyncio.create_task(take())
        await done
        await until(lambda: not announcements(path))
        assert done.done()  # that it is still referred to makes no difference

    asyncio.run(main())
    assert "without releasing it" in next(text for text in caplog.messages if str(path) in text)
    asyncio.run(take())  # also when the loop ends with it
    wait_until(lambda: not announcements(path))
    assert len([text for text in caplog.messages if str(path) in text]) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hold_whose_task_is_destroyed_ends(path: Path) -> None:
    lock, loop = quick(path), asyncio.new_event_loop()

    async def hold() -> None:
        async with lock.write_lock():
            await asyncio.get_running_loop().create_future()

    task = loop.create_task(hold())
    loop.run_until_complete(until(lambda: announcements(path)))
    task._log_destroy_pending = False
    loop.close()
    del task, loop
    wait_until(lambda: gc.collect() >= 0 and not announcements(path))


@story
async def test_a_forced_release_leaves_what_other_tasks_hold(path: Path) -> None:
    lock, go_on = quick(path), asyncio.Event()

    async def hold() -> None:
        async with lock.read_lock():
            await go_on.wait()
            lock.check()

    task = asyncio.create_task(hold())
    await until(lambda: announcements(path))
    async with lock.read_lock():
        await lock.acquire_read()
        await lock.release(force=True)
        assert len(announcements(path)) == 1
        with pytest.raises(LockNotHeldError):
            lock.check()
        go_on.set()
        await task
        await lock.acquire_read()
    assert announcements(path) == []


@story
async def test_a_release_hands_over_although_the_executor_makes_no_calls_any_more(path: Path) -> None:
    executor = ThreadPoolExecutor(1)
    lock = quick(path, executor=executor)
    await lock.acquire_write()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        await lock.release()
    async with quick(path).write_lock(30):
        assert lock.status is HoldStatus.HELD


@pytest.mark.parametrize("times", [1, 3])
@story
async def test_a_release_that_is_cancelled_hands_over(path: Path, times: int) -> None:
    executor = ThreadPoolExecutor(1)
    busy = threading.Event()
    lock = quick(path, executor=executor)

    async def hold() -> None:
        async with lock.write_lock():
            executor.submit(busy.wait)

    async def wait() -> None:
        async with quick(path).write_lock(60):
            pass

    holder = asyncio.create_task(hold())
    await until(lambda: announcements(path) and executor._work_queue.qsize())
    waiter = asyncio.create_task(wait())
    for _ in range(times):
        holder.cancel()
        await asyncio.sleep(0)
    busy.set()
    with pytest.raises(asyncio.CancelledError):
        await holder
    await waiter
    executor.shutdown()


@story
async def test_the_generation_of_a_shared_hold_waits_for_no_server_that_hangs(
    path: Path, server: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "GRACE_S", 0.1)
    lock = quick(path)
    async with lock.write_lock():
        pass
    async with lock.read_lock():
        server(outages.HANGS)
        with pytest.raises(LockError, match="read_generation"):
            _ = lock.generation
        server(outages.ANSWERS)
        assert await lock.read_generation() == lock.generation == 1


@story
async def test_tasks_that_are_cancelled_leave_few_calls_on_a_server_that_hangs(
    path: Path, server: Callable[[str], None], tmp_path: Path
) -> None:
    lock = quick(path)
    server(outages.HANGS)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await lock.acquire_write()
    assert outages.hanging_calls(tmp_path) <= 4
    server(outages.ANSWERS)
    async with lock.write_lock(60):
        await until(lambda: len(announcements(path)) == 1)
