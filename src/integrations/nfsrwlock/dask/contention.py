"""
What a task does while the lock is held by somebody else.

A worker has few threads. If all of them wait for a lock whose holder needs one of them (it submitted tasks of its own,
or its own next step is queued behind), nothing moves any more. ``"block"`` takes that risk; ``"reschedule"`` gives the
thread back and lets the task start over later; ``"secede"`` leaves the pool, which then starts another thread. Neither
does anything outside of a task that runs in a worker's thread. A coroutine that waits takes no thread in any case.
"""

from __future__ import annotations

import time

from distributed import Reschedule, secede
from distributed.metrics import context_meter
from distributed.threadpoolexecutor import thread_state
from distributed.worker_state_machine import SecedeEvent

from nfsrwlock_core import Timeout, WaitInfo

from .activity import Use, activity
from .context import Caller, current_worker
from .holding import Hold, Taker
from .settings import Settings


async def take(taker: Taker, settings: Settings, caller: Caller, seconds: float) -> Hold:
    """
    Take the lock as the settings say.

    :param seconds: 0: do not wait; -1: no limit
    :raises Timeout: if it could not be had in time
    :raises distributed.Reschedule: if the task is to start over, or was cancelled
    """
    with (
        activity.waiting(settings.mode, settings.path, settings.lock_dir) as use,
        context_meter.meter("nfsrwlock-wait"),
    ):
        pauses = Pauses(caller, use)
        hold = await _take_as_asked(taker, settings, caller, seconds, pauses)
        hold.use = use
    try:
        pauses.refuse_if_cancelled()
    except Reschedule:
        await hold.leave(is_coroutine=caller.is_coroutine)
        raise
    return hold


async def _take_as_asked(taker: Taker, settings: Settings, caller: Caller, seconds: float, pauses: Pauses) -> Hold:
    if seconds != 0 and settings.on_contention != "block" and _is_in_pool(caller):
        if settings.on_contention == "reschedule" and seconds < 0:
            try:
                return await taker.take(caller, settings.reschedule_after, pauses)
            except Timeout as busy:
                raise Reschedule(str(busy)) from None
        if settings.on_contention == "secede":
            try:
                return await taker.take(caller, 0, pauses)
            except Timeout:
                secede()  # type: ignore[no-untyped-call]
    return await taker.take(caller, seconds, pauses)


def _is_in_pool(caller: Caller) -> bool:
    # A thread that has seceded stays outside: going back would mean to wait for a thread while holding the lock.
    return (
        not caller.is_coroutine
        and caller.key is not None
        and current_worker() is not None
        and getattr(thread_state, "executor", None) is not None
        and bool(getattr(thread_state, "proceed", False))
    )


class Pauses:
    """
    Called before each pause of a caller that waits.

    Raises ``distributed.Reschedule`` once its task is cancelled. Dask lets tasks that it has cancelled run to their
    end, coroutines included. One that does not have to wait may go on; one that waited should not get the lock any
    more.
    """

    def __init__(self, caller: Caller, use: Use) -> None:
        self._worker = current_worker()
        self._key = caller.key
        self._use = use
        self._has_waited = False
        self._counts_as_running = caller.is_coroutine

    def __call__(self, info: WaitInfo) -> None:
        """Report a long wait, look whether the task is cancelled, and let others run."""
        self._has_waited = True
        self._use(info)
        self.refuse_if_cancelled()
        if self._counts_as_running and self._worker is not None and self._key is not None:
            # Dask runs no more coroutines and threads at a time than a worker has threads, so a coroutine that waits
            # would keep out the tasks that the holder waits for.
            self._counts_as_running = False
            now = time.time()
            seconds = now - (self._worker.state.tasks[self._key].start_time or now)
            event = SecedeEvent(key=self._key, compute_duration=seconds, stimulus_id=f"secede-{now}")
            self._worker.handle_stimulus(event)

    def refuse_if_cancelled(self) -> None:
        """Raise it if the task has waited and was cancelled since it last looked."""
        if not self._has_waited or self._worker is None or self._key is None:
            return
        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state == "cancelled":
            # Should the task be wanted again by the time that this arrives, it starts over and nobody sees an error.
            raise Reschedule(f"{self._key} was cancelled while it waited for a lock")
