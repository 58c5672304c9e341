"""
A hold, from the wish to its end, taken in a thread or in a coroutine; and what a task does while it waits.

``distributed.Lock`` is bound to no thread: whoever has the object may release it. The core's sets and its asynchronous
locks offer that; :class:`Hold` makes the two alike.

A worker has few threads. If all of them wait for a lock whose holder needs one of them, nothing moves any more: hence
``on_contention``, which means nothing outside of a task that runs in a worker's thread.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, Final

from distributed import Reschedule, Worker, secede
from distributed.metrics import context_meter
from distributed.threadpoolexecutor import thread_state
from distributed.worker_state_machine import SecedeEvent

from nfsrwlock.driving import done
from nfsrwlock.text import printable
from nfsrwlock_core import AsyncSoftReadWriteLock, LockLostError, LockSet, Timeout, WaitInfo, traced_as

from .context import Caller, current_worker
from .journal import Entry, open_journal, remove_journal, write_journal
from .settings import OnContention, Settings

#: Waits that are shorter are no news, seconds. One that lasts is reported then, and after ten times as long each.
_LONG_WAIT_S: Final = 1.0
#: How often it is looked whether a task that holds a lock has ended, seconds.
_LOOK_S: Final = 1.0
#: The topic of ``client.get_events``.
TOPIC: Final = "nfsrwlock"


class Hold:
    """A lock that a caller waits for and then holds."""

    def __init__(self, settings: Settings, caller: Caller) -> None:
        self.settings: Final = settings
        self.caller: Final = caller
        #: How many times it was taken and not given back. It ends with the last one.
        self.times = 1
        #: What the lock's acquire has returned: a set in a thread, a proxy in a coroutine.
        self._granted: Any = None
        #: The worker that runs the caller, if that is a task.
        self._worker: Final = None if caller.key is None else current_worker()
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
        starts_over = seconds < 0 and self._does("reschedule")
        with activity.waiting(self), context_meter.meter("nfsrwlock-wait"):
            try:
                self._granted = await self._take(self.settings.reschedule_after if starts_over else seconds)
            except Timeout as busy:
                # A task that was cancelled may be wanted again by the time that this arrives: it starts over, too.
                if starts_over or self._is_cancelled():
                    raise Reschedule(str(busy)) from None
                raise
            if self._is_cancelled():
                with suppress(LockLostError):
                    await self._give_back(self.caller)
                raise Reschedule(f"{self.caller.key} was cancelled while it waited for a lock")

    async def release(self, caller: Caller) -> None:
        """Give it back once, and with the last time the lock; anybody may. In a forked child nothing is done."""
        with activity.lock:
            self.times -= 1
            is_over = self.times == 0
            if self not in activity.held:
                return
        if not is_over:
            self.check()
            return
        try:
            await self._give_back(caller)
        except LockLostError:
            activity.losses += 1
            activity.report("lost", self)
            raise
        finally:
            with activity.changing():
                activity.held.remove(self)

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
        if (worker := self._worker) is None:
            return

        def look() -> None:
            if self.times and self.caller.key in worker.active_keys:
                worker.loop.call_later(_LOOK_S, look)
            elif self.times:
                gc.collect()

        worker.loop.add_callback(worker.loop.call_later, _LOOK_S, look)

    # -- how it waits -------------------------------------------------------------------------------------------------

    def _does(self, policy: OnContention) -> bool:
        # A thread that has seceded stays outside: going back would mean to wait for a thread while holding the lock.
        is_in_pool = self._worker is not None and getattr(thread_state, "proceed", False)
        return is_in_pool and self.settings.on_contention == policy

    async def _take(self, seconds: float) -> Any:
        settings = self.settings
        heartbeat: Any = settings.heartbeat
        if heartbeat == "auto":
            heartbeat = "process" if Worker._instances else "thread"
        acquire: Any
        if not self.caller.is_coroutine:
            acquire = LockSet.joined([_resolved(settings, heartbeat)]).acquire
        else:
            lock = await self.caller.call(  # it resolves the path
                lambda: AsyncSoftReadWriteLock(
                    settings.path, is_singleton=False, heartbeat=heartbeat, **settings.core_arguments()
                )
            )
            read = partial(lock.acquire_read, at_most=settings.at_most or None)
            acquire = lock.acquire_write if settings.mode == "write" else read
        with traced_as(key=self.caller.key):
            return await done(
                acquire(seconds, blocking=seconds != 0, on_wait=self._before_pause, until=self._is_cancelled)
            )

    def _before_pause(self, info: WaitInfo) -> None:
        if not self._has_paused:
            self._has_paused = True
            if self._does("secede"):
                secede()  # type: ignore[no-untyped-call]
            elif self.caller.is_coroutine and self._worker is not None:
                # Dask runs no more coroutines and threads at a time than a worker has threads, so a coroutine that
                # waits would keep out the tasks that the holder waits for.
                key, now = self.caller.key, time.time()
                spent = now - (self._worker.state.tasks[key].start_time or now)
                self._worker.handle_stimulus(SecedeEvent(key=key, compute_duration=spent, stimulus_id=f"secede-{now}"))
        if (seconds := self.waited_s()) >= self._next_report_s:
            self._next_report_s *= 10
            blockers = [peer.describe() for peer in info.blockers[:5]]
            activity.report("waiting", self, seconds=round(seconds, 3), blockers=blockers)

    def _is_cancelled(self) -> bool:
        # Dask lets tasks that it has cancelled run to their end, coroutines included. One that does not have to wait
        # may go on; one that waited should not get the lock any more.
        if not self._has_paused or self._worker is None:
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
        self.lock: Final = threading.RLock()
        self.awaited: list[Hold] = []
        #: In the order in which they were granted.
        self.held: list[Hold] = []
        self._waited_s = 0.0
        #: How many holds were lost.
        self.losses = 0
        #: Those of this process that have the plugin.
        self.workers: list[Worker] = []
        #: Their descriptors by their paths.
        self._journals: dict[str, int] = {}
        #: Those that nobody needs once nothing is held and awaited.
        self._ending: set[str] = set()

    def waited_s(self) -> float:
        """Return how many seconds all callers together have waited, those that wait yet included."""
        with self.lock:
            return self._waited_s + sum(hold.waited_s() for hold in self.awaited)

    @contextmanager
    def waiting(self, hold: Hold) -> Iterator[None]:
        """Count ``hold`` as awaited in the block, and then as held, unless the block raises."""
        with self.changing():
            self.awaited.append(hold)
        is_granted = False
        try:
            yield
            is_granted = True
        finally:
            with self.changing():
                seconds = hold.waited_s()
                self._waited_s += seconds
                self.awaited.remove(hold)
                if is_granted:
                    self.held.append(hold)
            if seconds >= _LONG_WAIT_S:
                self.report("waited", hold, seconds=round(seconds, 3))

    def hold_of(self, caller: Caller, lock_path: str) -> Hold | None:
        """Return what ``caller`` holds of a lock, through whatever object."""
        mine = (hold for hold in self.held if hold.caller == caller and hold.settings.lock_path == lock_path)
        return next((hold for hold in mine if hold.times), None)

    def report(self, action: str, hold: Hold, **more: Any) -> None:
        """Log an event: at the worker whose task the calling code is part of, outside of tasks at all workers here."""
        event = {"action": action, "mode": hold.settings.mode, "path": printable(hold.settings.path), **more}
        here = current_worker()
        for worker in list(self.workers):
            if here in (None, worker):
                worker.log_event(TOPIC, event)

    def open_journal(self, path: str) -> None:
        """Keep a journal, from now on, of what is held and awaited."""
        with self.changing():
            self._ending.discard(path)
            if path not in self._journals and (journal := open_journal(path)) is not None:
                self._journals[path] = journal

    def close_journal(self, path: str) -> None:
        """Remove the journal as soon as nothing is held and awaited: until then somebody may look after our death."""
        with self.changing():
            self._ending.add(path)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Write down what is held and awaited at the end of the block, in which no other thread changes it."""
        with self.lock:
            yield
            for path, journal in list(self._journals.items()):
                entries = [
                    Entry(is_held, hold.settings.mode, hold.settings.path, hold.settings.lock_dir)
                    for is_held, holds in ((True, self.held), (False, self.awaited))
                    for hold in holds
                ]
                write_journal(journal, entries)
                if path in self._ending and not entries:
                    os.close(self._journals.pop(path))
                    remove_journal(path)

    def reset_after_fork(self) -> None:
        """Forget all in a forked child: it is the parent's, and another thread of that may have held the lock."""
        for journal in self._journals.values():
            os.close(journal)
        self.__init__()  # type: ignore[misc]


activity: Final = Activity()
os.register_at_fork(after_in_child=activity.reset_after_fork)
