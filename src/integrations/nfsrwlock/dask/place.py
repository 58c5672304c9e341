"""Where the calling code runs: in a task, on a worker, on Dask's event loop, or outside Dask."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import Any

from distributed import Client, Worker, get_worker
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
    """Who awaits a lock: its owner, and the key of the Dask task that it is, if it is one."""

    owner: Owner
    key: Any


def current_worker() -> Worker | None:
    """Return the worker whose task the calling code is part of, ``None`` outside of tasks."""
    try:
        return get_worker()
    except ValueError:
        return None


def is_on_worker() -> bool:
    """Whether this process runs a Dask worker."""
    return current_worker() is not None or bool(getattr(Worker, "_instances", ()))


def task_key() -> Any:
    """Return the key of the task that the calling thread runs, ``None`` if it runs none, or a method of an actor."""
    # What stands there during an actor's method is no task's key: it can be neither cancelled nor rescheduled.
    return None if getattr(thread_state, "actor", False) else getattr(thread_state, "key", None)


def coroutine_key() -> Any:
    """Return the key of the Dask task that the calling coroutine is, ``None`` if it is none."""
    worker = current_worker()
    if worker is None:
        return None
    # Nothing else tells: distributed sets no key for coroutines, but names the asyncio task by it.
    name = _name_of_task()
    return next((key for key in list(worker.active_keys) if f"execute({key!r})" == name), None)


def _name_of_task() -> str:
    task = asyncio.current_task()
    return "" if task is None else task.get_name()


def thread_owner() -> Owner:
    """Return who takes a lock here, in synchronous code."""
    key = getattr(thread_state, "key", None)
    run = None if key is None else (key, getattr(thread_state, "start_time", 0.0))
    return Owner(threading.current_thread(), run)


def task_owner() -> Owner:
    """Return who takes a lock here, in a coroutine."""
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    return Owner(task)


def coroutine_caller() -> Caller | None:
    """Return who calls here, in a coroutine; ``None`` outside of asyncio's tasks."""
    return None if asyncio.current_task() is None else Caller(task_owner(), coroutine_key())


def is_on_dask_loop(loop: Any = None) -> bool:
    """
    Whether the caller is a coroutine on Dask's own event loop; the rule by which ``distributed`` tells sync from async.

    A notebook's running loop is not Dask's, so locks stay synchronous there.

    :param loop: the Tornado loop that a lock was made with, if any
    """
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return False
    loops = [loop]
    if (worker := current_worker()) is not None:
        loops.append(worker.loop)
    with contextlib.suppress(ValueError):  # no client
        loops.append(Client.current().loop)  # type: ignore[no-untyped-call]
    return any(getattr(candidate, "asyncio_loop", None) is running for candidate in loops)
