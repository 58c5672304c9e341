"""Where the calling code runs: in a task, on a worker, on Dask's event loop, or outside Dask."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from distributed import Client, Nanny, Scheduler, Worker, get_worker
from distributed.utils import thread_state  # type: ignore[attr-defined]

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Who calls a lock's method, and owns what it takes: a thread, on a worker for one run of a task; or an asyncio task.

    Pools use threads again, so a thread alone would mix up a task with those that ran in it before.

    :param key: of the Dask task that it is, ``None`` if it is none, or a method of an actor
    """

    who: threading.Thread | asyncio.Task[Any]
    run: tuple[Any, float] | None = None
    key: Any = field(default=None, compare=False)

    @property
    def is_coroutine(self) -> bool:
        """Whether it awaits; a caller in a thread blocks."""
        return not isinstance(self.who, threading.Thread)

    async def call(self, function: Callable[[], _R]) -> _R:
        """Call what touches files: for a coroutine in a thread, since the event loop must not wait for a server."""
        return await asyncio.to_thread(function) if self.is_coroutine else function()


def thread_caller() -> Caller:
    """Return who calls here, in synchronous code."""
    key = getattr(thread_state, "key", None)
    run = None if key is None else (key, getattr(thread_state, "start_time", 0.0))
    # What stands there during an actor's method is no task's key: it can be neither cancelled nor rescheduled.
    is_task = not getattr(thread_state, "actor", False)
    return Caller(threading.current_thread(), run, key if is_task else None)


def task_caller() -> Caller:
    """Return who calls here, in an asyncio task."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("an awaitable lock must be used in an asyncio task")
    key, worker = None, current_worker()
    if worker is not None:
        # Nothing else tells: distributed sets no key for coroutines, but names the asyncio task by it.
        key = next((key for key in list(worker.active_keys) if f"execute({key!r})" == task.get_name()), None)
    return Caller(task, key=key)


def caller_here() -> Caller:
    """Return who calls here: the asyncio task if it is one, else the thread."""
    try:
        return task_caller()
    except RuntimeError:
        return thread_caller()


def current_worker() -> Worker | None:
    """Return the worker whose task the calling code is part of, ``None`` outside of tasks."""
    try:
        return get_worker()
    except ValueError:
        return None


def is_on_dask_loop(loop: Any = None) -> bool:
    """
    Whether the caller runs on the event loop of Dask, which it must not block.

    That is so in coroutines, and in the plain functions of ``client.run``, which Dask calls on the loop. A notebook's
    running loop is not Dask's, so locks stay synchronous there.

    :param loop: the Tornado loop that a lock was made with, if any
    """
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return False
    loops = [loop, *(server.loop for kind in (Worker, Nanny, Scheduler) for server in list(kind._instances))]
    with suppress(ValueError):  # no client
        loops.append(Client.current().loop)  # type: ignore[no-untyped-call]
    return any(getattr(candidate, "asyncio_loop", None) is running for candidate in loops)
