"""
A hold, from the wish to its end, taken in a thread or in a coroutine; and what a task does while it waits.

``distributed.Lock`` is bound to no thread: whoever has the object may release it. The core's sets and its asynchronous
locks offer that; :class:`Hold` makes the two alike.

A worker has few threads. If all of them wait for a lock whose holder needs one of them (it submitted tasks of its own,
or its own next step is queued behind), nothing moves any more. ``"block"`` takes that risk; ``"reschedule"`` gives the
thread back and lets the task start over later; ``"secede"`` leaves the pool, which then starts another thread. Neither
does anything outside of a task that runs in a worker's thread. A coroutine that waits takes no thread in any case.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, Final

from distributed import Reschedule, Worker, secede
from distributed.metrics import context_meter
from distributed.threadpoolexecutor import thread_state
from distributed.worker_state_machine import SecedeEvent

from nfsrwlock.driving import done
from nfsrwlock_core import AsyncSoftReadWriteLock, LockLostError, LockSet, Timeout, WaitInfo

from .context import Caller, current_worker
from .journal import Entry, Journal, remove_journal
from .settings import Settings

#: Waits that are shorter are no news, seconds. One that lasts is reported then, and after ten times as long each.
_LONG_WAIT_S: Final = 1.0
#: How often it is looked whether a task that holds a lock has ended, seconds.
_LOOK_S: Final = 1.0

Event = dict[str, Any]


class Hold:
    """A lock that a caller waits for and then holds."""

    def __init__(self, settings: Settings, caller: Caller, taker: str) -> None:
        self.settings: Final = settings
        self.caller: Final = caller
        #: The ids of the objects by which it was taken, once for each time. It ends with the last one.
        self.takers: Final = [taker]
        #: What the lock's acquire has returned: a set in a thread, a proxy in a coroutine.
        self._granted: Any = None
        self._worker: Final = current_worker()
        self._started: Final = time.monotonic()
        self._next_report_s = _LONG_WAIT_S
        self._has_paused = False

    def waited_s(self) -> float:
        """Return how long it has waited so far."""
        return time.monotonic() - self._started

    def check(self) -> None:
        """Raise what is wrong with the hold, if anything is; costs no file-system call."""
        self._granted.check()

    async def take(self, seconds: float) -> None:
        """
        Take the lock as the settings say.

        :param seconds: 0: do not wait; -1: no limit
        :raises distributed.Reschedule: if the task is to start over, or was cancelled
        """
        with activity.waiting(self), context_meter.meter("nfsrwlock-wait"):
            try:
                self._granted = await self._take_as_asked(seconds)
            except Timeout:
                if not self._is_cancelled():
                    raise
            else:
                if not self._is_cancelled():
                    return
                with suppress(LockLostError):
                    await self._give_back(self.caller)
            # Should the task be wanted again by the time that this arrives, it starts over: nobody sees an error.
            raise Reschedule(f"{self.caller.key} was cancelled while it waited for a lock")

    async def end(self, caller: Caller) -> None:
        """Give the lock back; anybody may."""
        try:
            await self._give_back(caller)
        except LockLostError:
            activity.losses += 1
            activity.report("lost", self)
            raise
        finally:
            activity.leave(self)

    async def _give_back(self, caller: Caller) -> None:
        granted = self._granted
        if isinstance(granted, LockSet):
            await caller.call(lambda: granted.__exit__(None, None, None))
        elif caller.is_coroutine:
            await granted.end()
        else:
            # The loop on which it was taken may have ended, or may be waiting for this very call.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, granted.end()).result()

    def collect_after_task(self) -> None:
        """
        Look for garbage if the caller, a task, ends without having given the lock back.

        The error of a task refers to its variables, and Dask's report of the error to itself, so that only the garbage
        collector ends them, and with them the lock's object. In a worker that has nothing to do it does not run.
        """
        worker = self._worker
        if worker is None or self.caller.key is None:
            return

        def look() -> None:
            if self.takers and self.caller.key in worker.active_keys:
                worker.loop.call_later(_LOOK_S, look)
            elif self.takers:
                gc.collect()

        worker.loop.add_callback(worker.loop.call_later, _LOOK_S, look)

    # -- how it waits -------------------------------------------------------------------------------------------------

    async def _take_as_asked(self, seconds: float) -> Any:
        policy = self.settings.on_contention if seconds != 0 and self._is_in_pool() else "block"
        if policy == "reschedule" and seconds < 0:
            try:
                return await self._take(self.settings.reschedule_after)
            except Timeout as busy:
                raise Reschedule(str(busy)) from None
        if policy == "secede":
            try:
                return await self._take(0)
            except Timeout:
                secede()  # type: ignore[no-untyped-call]
        return await self._take(seconds)

    def _is_in_pool(self) -> bool:
        # A thread that has seceded stays outside: going back would mean to wait for a thread while holding the lock.
        return (
            not self.caller.is_coroutine
            and self.caller.key is not None
            and self._worker is not None
            and getattr(thread_state, "executor", None) is not None
            and bool(getattr(thread_state, "proceed", False))
        )

    async def _take(self, seconds: float) -> Any:
        settings = self.settings
        heartbeat: Any = settings.heartbeat
        if heartbeat == "auto":
            heartbeat = "process" if self._worker is not None or Worker._instances else "thread"
        acquire: Any
        if not self.caller.is_coroutine:
            acquire = LockSet.joined([_resolved(settings, heartbeat)]).acquire
        else:
            lock = await self.caller.call(  # it resolves the path
                lambda: AsyncSoftReadWriteLock(
                    settings.path, is_singleton=False, heartbeat=heartbeat, **settings.core_arguments()
                )
            )
            read = partial(lock.acquire_read, at_most=settings.at_most)
            acquire = lock.acquire_write if settings.mode == "write" else read
        return await done(acquire(seconds, blocking=seconds != 0, on_wait=self._before_pause, until=self._is_cancelled))

    def _before_pause(self, info: WaitInfo) -> None:
        is_first, self._has_paused = not self._has_paused, True
        if (seconds := self.waited_s()) >= self._next_report_s:
            self._next_report_s *= 10
            blockers = [peer.describe() for peer in info.blockers[:5]]
            activity.report("waiting", self, seconds=round(seconds, 3), blockers=blockers)
        key = self.caller.key
        if is_first and self.caller.is_coroutine and self._worker is not None and key is not None:
            # Dask runs no more coroutines and threads at a time than a worker has threads, so a coroutine that waits
            # would keep out the tasks that the holder waits for.
            now = time.time()
            seconds = now - (self._worker.state.tasks[key].start_time or now)
            self._worker.handle_stimulus(SecedeEvent(key=key, compute_duration=seconds, stimulus_id=f"secede-{now}"))

    def _is_cancelled(self) -> bool:
        # Dask lets tasks that it has cancelled run to their end, coroutines included. One that does not have to wait
        # may go on; one that waited should not get the lock any more.
        if not self._has_paused or self._worker is None or self.caller.key is None:
            return False
        task = self._worker.state.tasks.get(self.caller.key)
        return task is None or task.state == "cancelled"


@lru_cache(maxsize=1000)
def _resolved(settings: Settings, heartbeat: Any) -> LockSet:
    # Never held itself: it has resolved the path for those that are joined from it.
    return settings.lock_set(heartbeat=heartbeat)


class Activity:
    """
    What this process holds and waits for: for who asks again, for metrics, events and the journal.

    Nothing is decided by it that the lock directory does not decide; it forgets everything in a forked child.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.awaited: list[Hold] = []
        #: In the order in which they were granted.
        self.held: list[Hold] = []
        self._waited_s = 0.0
        #: The objects by which a forked child's parent held something. There it is not theirs to give back.
        self.inherited: set[str] = set()
        #: How many holds were lost.
        self.losses = 0
        #: Called with each event, from any thread.
        self.listeners: list[Callable[[Event], None]] = []
        self._journals: dict[str, Journal] = {}

    def waited_s(self) -> float:
        """Return how many seconds all callers together have waited, those that wait yet included."""
        with self._lock:
            return self._waited_s + sum(hold.waited_s() for hold in self.awaited)

    @contextmanager
    def waiting(self, hold: Hold) -> Iterator[None]:
        """Count ``hold`` as awaited for the time of the block, and as held from then on unless the block raises."""
        with self._changing():
            self.awaited.append(hold)
        is_granted = False
        try:
            yield
            is_granted = True
        finally:
            with self._changing():
                seconds = hold.waited_s()
                self._waited_s += seconds
                self.awaited.remove(hold)
                if is_granted:
                    self.held.append(hold)
            if seconds >= _LONG_WAIT_S:
                self.report("waited", hold, seconds=round(seconds, 3))

    def of(self, caller: Caller, lock_path: str) -> Hold | None:
        """Return what ``caller`` holds of a lock, through whatever object."""
        with self._lock:
            mine = (hold for hold in self.held if hold.caller == caller and hold.settings.lock_path == lock_path)
            return next((hold for hold in mine if hold.takers), None)

    def through(self, taker: str) -> list[Hold]:
        """Return what is held through one object."""
        return [hold for hold in list(self.held) if taker in hold.takers]

    def join(self, caller: Caller, lock_path: str, taker: str) -> bool:
        """Take what ``caller`` holds once more; return whether it holds the lock."""
        with self._lock:
            hold = self.of(caller, lock_path)
            if hold is not None:
                hold.check()
                hold.takers.append(taker)
            return hold is not None

    def strike_out(self, caller: Caller, taker: str) -> tuple[Hold, bool] | None:
        """Strike ``taker`` out, of the caller's own hold or the oldest; return that, if any, and whether it is over."""
        with self._lock:
            holds = self.through(taker)
            if not holds:
                return None
            hold = next((hold for hold in reversed(holds) if hold.caller == caller), holds[0])
            hold.takers.remove(taker)
            return hold, not hold.takers

    def leave(self, hold: Hold) -> None:
        """Note that a hold has ended."""
        with self._changing():
            self.held.remove(hold)

    def report(self, action: str, hold: Hold, **more: Any) -> None:
        """Pass on an event to whoever listens."""
        for listener in list(self.listeners):
            listener({"action": action, "mode": hold.settings.mode, "path": hold.settings.path, **more})

    def open_journal(self, path: str) -> None:
        """Keep a journal, from now on, of what is held and awaited."""
        with self._changing():
            if path not in self._journals:
                self._journals[path] = Journal(path)
            self._journals[path].is_ending = False

    def close_journal(self, path: str) -> None:
        """Remove the journal as soon as nothing is held and awaited: until then somebody may look after our death."""
        with self._changing():
            self._journals[path].is_ending = True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            yield
            for path, journal in list(self._journals.items()):
                entries = [
                    Entry(is_held, hold.settings.mode, hold.settings.path, hold.settings.lock_dir)
                    for is_held, holds in ((True, self.held), (False, self.awaited))
                    for hold in holds
                ]
                journal.write(entries)
                if journal.is_ending and not entries:
                    self._journals.pop(path).close()
                    remove_journal(path)

    def reset_after_fork(self) -> None:
        """Forget all in a forked child: it is the parent's, and another thread of that may have held the lock."""
        for journal in self._journals.values():
            journal.close()
        inherited = self.inherited.union(*(hold.takers for hold in self.held))
        self.__init__()  # type: ignore[misc]
        self.inherited = inherited


activity: Final = Activity()
os.register_at_fork(after_in_child=activity.reset_after_fork)
