"""
What a task does while the lock is held by somebody else.

A worker has few threads. If all of them wait for a lock whose holder needs one of them (it submitted tasks of its own,
or its own next step is queued behind), nothing moves any more. ``"block"`` takes that risk; ``"reschedule"`` gives the
thread back and lets the task start over later; ``"secede"`` leaves the pool, which then starts another thread. Neither
does anything outside of a task that runs in a worker's thread.
"""

from __future__ import annotations

from collections.abc import Callable

from distributed import Reschedule, secede
from distributed.metrics import context_meter
from distributed.threadpoolexecutor import thread_state

from nfsrwlock_core import Timeout, WaitInfo

from .grip import ThreadGrip
from .ledger import ledger
from .place import current_worker, task_key
from .settings import Settings

#: Takes the lock within so many seconds (0: at once or not at all, -1: no limit).
Take = Callable[[float, Callable[[WaitInfo], None]], ThreadGrip]


def wait_for(take: Take, settings: Settings, timeout: float) -> ThreadGrip:
    """
    Take the lock as the settings say.

    :param timeout: seconds; 0: do not wait; -1: no limit
    :raises Timeout: if it could not be had in time
    :raises distributed.Reschedule: if the task is to start over, or was cancelled while it waited
    """
    with ledger.waiting(settings.mode, settings.path), context_meter.meter("nfsrwlock-wait"):
        if timeout == 0 or not _is_in_pool() or settings.on_contention == "block":
            return take(timeout, _give_up_if_cancelled)
        if settings.on_contention == "reschedule" and timeout < 0:
            try:
                return take(settings.reschedule_after, _give_up_if_cancelled)
            except Timeout as busy:
                raise Reschedule(str(busy)) from None
        if settings.on_contention == "secede":
            try:
                return take(0, _give_up_if_cancelled)
            except Timeout:
                secede()  # type: ignore[no-untyped-call]
        return take(timeout, _give_up_if_cancelled)


def _is_in_pool() -> bool:
    # A thread that has seceded stays outside: going back would mean to wait for a thread while holding the lock.
    return (
        current_worker() is not None
        and getattr(thread_state, "executor", None) is not None
        and bool(getattr(thread_state, "proceed", False))
    )


def _give_up_if_cancelled(_: WaitInfo) -> None:
    worker, key = current_worker(), task_key()
    if worker is None or key is None:
        return
    task = worker.state.tasks.get(key)
    if task is None or task.state == "cancelled":
        # Should the task be wanted again by the time that this arrives, then it starts over and nobody sees an error.
        raise Reschedule(f"{key} was cancelled while it waited for a lock")
