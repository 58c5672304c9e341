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

    :param who: a thread, an asyncio task, or, for code that the event loop calls outside of tasks, nobody else
    :param started: when the run of a task began in the thread, by the worker's clock
    :param key: of the Dask task that it is, ``None`` if it is none, or a method of an actor
    """

    who: object
    started: float | None = None
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
    state = vars(thread_state)
    # What stands there during an actor's method is no task's key: it can be neither cancelled nor rescheduled.
    key = None if state.get("actor") else state.get("key")
    return Caller(threading.current_thread(), state.get("start_time"), key)


def task_caller() -> Caller:
    """Return who calls here, on an event loop; raise RuntimeError if none runs here."""
    task, worker = asyncio.current_task(), current_worker()
    if task is None:
        return Caller(object())
    # Nothing else tells: distributed sets no key for coroutines, but names the asyncio task by it.
    keys = () if worker is None else list(worker.active_keys)
    return Caller(task, key=next((key for key in keys if f"execute({key!r})" == task.get_name()), None))


def current_worker() -> Worker | None:
    """Return the worker whose task the calling code is part of, ``None`` outside of tasks."""
    with suppress(ValueError):
        return get_worker()
    return None


def is_on_dask_loop(loop: Any = None) -> bool:
    """
    Whether the caller runs on the event loop of Dask, which it must not block.

    That is so in coroutines, and in the plain functions of ``client.run``, which Dask calls on the loop. A notebook's
    running loop is not Dask's, so locks stay synchronous there.

    :param loop: the Tornado loop that a lock was made with, if any
    """
    if (running := asyncio._get_running_loop()) is None:  # the usual case
        return False
    loops = [loop, *(server.loop for kind in (Worker, Nanny, Scheduler) for server in list(kind._instances))]
    with suppress(ValueError):  # no client
        loops.append(Client.current().loop)  # type: ignore[no-untyped-call]
    return any(candidate.asyncio_loop is running for candidate in loops if candidate is not None)
