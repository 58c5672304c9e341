"""
What a task does while the lock is held by somebody else.

A worker has few threads. If all of them wait for a lock whose holder needs one of them (it submitted tasks of its own,
or its own next step is queued behind), nothing moves any more. ``"block"`` takes that risk; ``"reschedule"`` gives the
thread back and lets the task start over later; ``"secede"`` leaves the pool, which then starts another thread. Neither
does anything outside of a task that runs in a worker's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from distributed import Reschedule, secede
from distributed.metrics import context_meter
from distributed.threadpoolexecutor import thread_state
from distributed.worker_state_machine import SecedeEvent

from nfsrwlock_core import Timeout

from .grip import OnWait, ThreadGrip
from .ledger import ledger
from .place import current_worker, task_key
from .settings import Settings

#: Takes the lock within so many seconds (0: at once or not at all, -1: no limit).
Take = Callable[[float, OnWait], ThreadGrip]


def wait_for(take: Take, settings: Settings, timeout: float) -> ThreadGrip:
    """
    Take the lock as the settings say.

    :param timeout: seconds; 0: do not wait; -1: no limit
    :raises Timeout: if it could not be had in time
    :raises distributed.Reschedule: if the task is to start over, or was cancelled
    """
    refuse = Refusal(task_key())
    with ledger.waiting(settings.mode, settings.path), context_meter.meter("nfsrwlock-wait"):
        grip = _take_as_asked(take, settings, timeout, refuse)
    try:
        refuse.at_grant()
    except Reschedule:
        grip.end()
        raise
    return grip


def _take_as_asked(take: Take, settings: Settings, timeout: float, refuse: Refusal) -> ThreadGrip:
    if timeout == 0 or not _is_in_pool() or settings.on_contention == "block":
        return take(timeout, refuse)
    if settings.on_contention == "reschedule" and timeout < 0:
        try:
            return take(settings.reschedule_after, refuse)
        except Timeout as busy:
            raise Reschedule(str(busy)) from None
    if settings.on_contention == "secede":
        try:
            return take(0, refuse)
        except Timeout:
            secede()  # type: ignore[no-untyped-call]
    return take(timeout, refuse)


def _is_in_pool() -> bool:
    # A thread that has seceded stays outside: going back would mean to wait for a thread while holding the lock.
    return (
        current_worker() is not None
        and task_key() is not None
        and getattr(thread_state, "executor", None) is not None
        and bool(getattr(thread_state, "proceed", False))
    )


def pauses_of_coroutine(key: Any, refuse: Refusal) -> OnWait:
    """
    Return what a coroutine calls before each pause: the first time it gives back the place that it takes on its worker.

    Dask runs no more coroutines and threads at a time than a worker has threads, so one that waits would keep out the
    tasks that the holder waits for.

    :param key: of the task; ``None`` if the caller is none
    :param refuse: called as well
    """
    worker = current_worker()
    is_inside = worker is not None and key is not None

    def pause(_: object) -> None:
        nonlocal is_inside
        refuse()
        if is_inside and worker is not None:
            is_inside = False
            now = time.time()
            seconds = now - (worker.state.tasks[key].start_time or now)
            worker.handle_stimulus(SecedeEvent(key=key, compute_duration=seconds, stimulus_id=f"secede-{now}"))

    return pause


class Refusal:
    """
    Raises ``distributed.Reschedule`` once a task that waits is cancelled: to be called in each pause.

    Dask lets tasks that it has cancelled run to their end, coroutines included. One that does not have to wait may go
    on; one that waited should not get the lock any more.

    :param key: of the task; ``None`` if the caller is none
    """

    def __init__(self, key: Any) -> None:
        self._worker = current_worker()
        self._key = key
        self._has_waited = False

    def __call__(self, _: object = None) -> None:
        """Raise it if the task, which waits, was cancelled."""
        self._has_waited = True
        self.at_grant()

    def at_grant(self) -> None:
        """Raise it if the task has waited and was cancelled since it last looked."""
        if not self._has_waited or self._worker is None or self._key is None:
            return
        task = self._worker.state.tasks.get(self._key)
        if task is None or task.state == "cancelled":
            # Should the task be wanted again by the time that this arrives, it starts over and nobody sees an error.
            raise Reschedule(f"{self._key} was cancelled while it waited for a lock")
