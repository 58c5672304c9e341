"""Where the calling code runs: in a task, on a worker, on Dask's event loop, or outside Dask."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Any

from distributed import Client, Nanny, Scheduler, Worker, get_worker
from distributed.utils import thread_state  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Owner:
    """
    Who takes a lock: a thread, and on a worker the one run of a task in it; or an asyncio task.

    Pools use threads again, so a thread alone would mix up a task with those that ran in it before.
    """

    who: threading.Thread | asyncio.Task[Any]
    run: tuple[Any, float] | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Who calls a lock's method.

    :param owner: of what it takes
    :param key: of the Dask task that it is, ``None`` if it is none, or a method of an actor
    :param is_coroutine: it awaits; a caller in a thread blocks
    """

    owner: Owner
    key: Any
    is_coroutine: bool


def thread_caller() -> Caller:
    """Return who calls here, in synchronous code."""
    key = getattr(thread_state, "key", None)
    run = None if key is None else (key, getattr(thread_state, "start_time", 0.0))
    # What stands there during an actor's method is no task's key: it can be neither cancelled nor rescheduled.
    is_task = not getattr(thread_state, "actor", False)
    return Caller(Owner(threading.current_thread(), run), key if is_task else None, is_coroutine=False)


def task_caller() -> Caller:
    """
    Return who calls here, in an asyncio task.

    :raises RuntimeError: outside of one
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("an awaitable lock must be used in an asyncio task")
    key, worker = None, current_worker()
    if worker is not None:
        # Nothing else tells: distributed sets no key for coroutines, but names the asyncio task by it.
        key = next((key for key in list(worker.active_keys) if f"execute({key!r})" == task.get_name()), None)
    return Caller(Owner(task), key, is_coroutine=True)


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


def is_on_worker() -> bool:
    """Whether this process runs a Dask worker."""
    return current_worker() is not None or bool(Worker._instances)


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
    with contextlib.suppress(ValueError):  # no client
        loops.append(Client.current().loop)  # type: ignore[no-untyped-call]
    return any(getattr(candidate, "asyncio_loop", None) is running for candidate in loops)
