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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final
from weakref import WeakSet

from distributed import Reschedule, Worker, secede
from distributed.metrics import context_meter
from distributed.threadpoolexecutor import thread_state
from distributed.worker_state_machine import SecedeEvent

from nfsrwlock.driving import done
from nfsrwlock.text import printable
from nfsrwlock_core import (
    AsyncSoftReadWriteLock,
    DeadlockError,
    LockLostError,
    LockNotHeldError,
    LockSet,
    Timeout,
    WaitInfo,
    traced_as,
)

from .context import Caller, current_worker
from .journal import Entry, open_journal, remove_journal, write_journal
from .settings import OnContention, Settings

#: Waits that are shorter are no news, seconds. One that lasts is reported then, and after ten times as long each.
_LONG_WAIT_S: Final = 1.0
#: How often it is looked whether a task that holds a lock has ended, seconds.
_LOOK_S: Final = 1.0
#: The topic of ``client.get_events``.
TOPIC: Final = "nfsrwlock"
#: Never held itself: it has resolved the path for those that are joined from it.
_resolved: Final = lru_cache(maxsize=1000)(Settings.lock_set)


class Hold:
    """A lock that a caller waits for and then holds, once."""

    def __init__(self, settings: Settings, caller: Caller) -> None:
        self.caller: Final = caller
        self.settings: Final = settings
        #: Whether it was granted; until then it is awaited.
        self.is_held = False
        #: What gives the lock back: a set in a thread, a proxy in a coroutine. Those that joined a hold share it.
        self._granted: Any = None
        #: The worker that runs the caller, if that is a task.
        self._worker = None if caller.key is None else current_worker()
        #: When it began to wait, and when that ended.
        self._started = 0.0
        self._ended: float | None = None
        self._next_report_s = _LONG_WAIT_S
        self._has_paused = False

    def waited_s(self) -> float:
        """Return how long it has waited, so far or in all."""
        return (self._ended or time.monotonic()) - self._started

    def check(self) -> None:
        """Raise what is wrong with the hold, if anything is; costs no file-system call."""
        self._granted.check()

    async def take(self, seconds: float | None) -> None:
        """
        Take the lock as the settings say. If it fails, it must be ended.

        :param seconds: 0: do not wait; -1: no limit; ``None``: as the settings say
        :raises distributed.Reschedule: if the task is to start over, or was cancelled
        """
        settings, self._started = self.settings, time.monotonic()
        wanted = settings.timeout if seconds is None else seconds
        with activity.lock:
            mine = (hold for hold in activity.holds if hold.is_held and hold.caller == self.caller)
            own = next((hold for hold in mine if hold.settings.lock_path == settings.lock_path), None)
            # A reader who waits behind a writer who waits for it would never end, and nobody overlaps with himself.
            if own is not None and settings.mode == "read" and not settings.at_most:
                own.check()
                self._granted, self.is_held = own._granted, True
            activity.holds.append(self)
            activity.look_after(self._worker)
        activity.write()
        try:
            if not self.is_held:
                await self._wait(wanted, own)
        finally:
            self._ended = time.monotonic()
            if (waited_s := self.waited_s()) >= _LONG_WAIT_S:
                activity.report("waited", self, seconds=round(waited_s, 3))
        self.is_held = True
        activity.write()

    async def _wait(self, seconds: float, own: Hold | None) -> None:
        settings = self.settings
        if own is not None and own.settings.mode == "read" and settings.mode == "write" and seconds < 0:
            raise DeadlockError(
                f"cannot take the write lock on {settings.path!r}: the caller holds it shared, and would wait for "
                "itself; release the read lock first"
            )
        starts_over = seconds < 0 and self._does("reschedule")
        try:
            with context_meter.meter("nfsrwlock-wait"):
                await self._acquire(settings.reschedule_after if starts_over else seconds)
        except Timeout as busy:
            # A task that was cancelled may be wanted again by the time that this arrives: it starts over, too.
            if starts_over or self._is_cancelled():
                raise Reschedule(str(busy)) from None
            raise
        if self._is_cancelled():
            raise Reschedule(f"{self.caller.key} was cancelled while it waited for a lock")

    async def end(self, by: Caller) -> None:
        """
        Give it back, and with the last that shares it the lock; anybody may. A forked child gives nothing back.

        :param by: who calls here
        :raises LockLostError: if it was lost before
        """
        with activity.lock:
            if self in activity.holds:
                activity.holds.remove(self)
                activity.past_s += self.waited_s()
            is_shared = any(other._granted is self._granted for other in activity.holds)
        try:
            if self.is_held and is_shared:
                self.check()
            else:
                await self._give_back(by)
        finally:
            activity.write()

    async def _give_back(self, by: Caller) -> None:
        granted = self._granted
        try:
            if isinstance(granted, LockSet):
                with suppress(LockNotHeldError):  # it was not granted yet, or this is the second time
                    await by.call(lambda: granted.__exit__(None, None, None))
            elif granted is not None and by.is_coroutine:
                await granted.end()
            elif granted is not None:
                # The loop on which it was taken may have ended, or may be waiting for this very call.
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(asyncio.run, granted.end()).result()
        except LockLostError:
            activity.losses += 1
            activity.report("lost", self)
            raise

    # -- how it waits -------------------------------------------------------------------------------------------------

    def _does(self, policy: OnContention) -> bool:
        # A thread that has seceded stays outside: going back would mean to wait for a thread while holding the lock.
        is_in_pool = self._worker is not None and getattr(thread_state, "proceed", False)
        return is_in_pool and self.settings.on_contention == policy

    async def _acquire(self, seconds: float) -> None:
        settings = self.settings
        heartbeat: Any = settings.heartbeat
        if heartbeat == "auto":
            heartbeat = "process" if Worker._instances else "thread"
        acquire: Any
        if not self.caller.is_coroutine:
            self._granted = LockSet.joined([_resolved(settings, heartbeat)])
            acquire = self._granted.acquire
        else:
            arguments = {"is_singleton": False, "heartbeat": heartbeat, **settings.core_arguments()}
            lock = await asyncio.to_thread(AsyncSoftReadWriteLock, settings.path, **arguments)  # it resolves the path
            read = partial(lock.acquire_read, at_most=settings.at_most or None)
            acquire = lock.acquire_write if settings.mode == "write" else read
        with traced_as(key=self.caller.key):
            self._granted = await done(
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


class Activity:
    """
    What this process holds and waits for: for who asks again, for metrics, events and the journal.

    Nothing is decided by it that the lock directory does not decide; it forgets everything in a forked child.
    """

    def __init__(self) -> None:
        self.lock: Final = threading.RLock()
        #: What is awaited or held, in the order in which it was asked for.
        self.holds: list[Hold] = []
        #: How long those have waited that are over, seconds.
        self.past_s = 0.0
        #: How many holds were lost.
        self.losses = 0
        #: Those of this process that have the plugin.
        self.workers: list[Worker] = []
        #: Their descriptors by their paths.
        self._journals: dict[str, int] = {}
        #: Those that nobody needs once nothing is held and awaited.
        self._ending: set[str] = set()
        #: Those whose tasks' holds are being looked after.
        self._watched: WeakSet[Worker] = WeakSet()

    def waited_s(self) -> float:
        """Return how many seconds all callers together have waited, those that wait yet included."""
        with self.lock:
            return self.past_s + sum(hold.waited_s() for hold in self.holds)

    @property
    def awaited(self) -> list[Hold]:
        """What is awaited."""
        return [hold for hold in list(self.holds) if not hold.is_held]

    @property
    def held(self) -> list[Hold]:
        """What is held; of those that share a hold one."""
        return list({id(hold._granted): hold for hold in list(self.holds) if hold.is_held}.values())

    def look_after(self, worker: Worker | None) -> None:
        """
        Look for garbage when a task of ``worker`` has ended without having given a lock back.

        Dask's report of a task's error refers to itself, so that only the garbage collector ends the task's variables,
        the lock's object among them; and in a worker that has nothing to do it does not run.
        """
        if worker is not None and worker not in self._watched:
            self._watched.add(worker)
            worker.loop.add_callback(worker.loop.call_later, _LOOK_S, self._look, worker)

    def _look(self, worker: Worker) -> None:
        with self.lock:
            theirs = [hold for hold in self.holds if hold._worker is worker]
            ended = [hold for hold in theirs if hold.is_held and hold.caller.key not in worker.active_keys]
            for hold in ended:
                hold._worker = None  # once is enough
            self._watched.discard(worker)
            if theirs:
                self.look_after(worker)
        if ended:
            gc.collect()

    def report(self, action: str, hold: Hold, **more: Any) -> None:
        """Log an event: at the worker whose task the calling code is part of, outside of tasks at all workers here."""
        event = {"action": action, "mode": hold.settings.mode, "path": printable(hold.settings.path), **more}
        here = current_worker()
        for worker in list(self.workers):
            if here in (None, worker):
                worker.log_event(TOPIC, event)

    def open_journal(self, path: str) -> None:
        """Keep a journal, from now on, of what is held and awaited."""
        with self.lock:
            self._ending.discard(path)
            if path not in self._journals and (journal := open_journal(path)) is not None:
                self._journals[path] = journal
            self.write()

    def close_journal(self, path: str) -> None:
        """Remove the journal as soon as nothing is held and awaited: until then somebody may look after our death."""
        with self.lock:
            self._ending.add(path)
            self.write()

    def write(self) -> None:
        """Write down what is held and awaited, after each change of it."""
        with self.lock:
            entries = [
                Entry(hold.is_held, hold.settings.mode, hold.settings.path, hold.settings.lock_dir)
                for hold in (self.holds if self._journals else ())
            ]
            for path, journal in list(self._journals.items()):
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
