"""
Which holds stand around the calling code: its own, and those of the threads and processes that wait for it.

A thread that holds a lock and waits for its workers is their parent; so is a process for its children. A worker that
waits for a lock of its parent's waits for ever. Parents are found by a context variable (this thread, this task, and
what they start), by the thread that made a thread pool, and by the process ids above this one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from nfsrwlock_core import LockError

Mode = Literal["read", "write"]


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@dataclass(eq=False, slots=True)
class Standing:
    """
    A hold that a guard, or a locked function, has taken.

    :param lock_path: where the lock lives
    :param mode: shared or exclusive
    :param check: raises if the hold no longer stands; works in a forked child, too
    """

    lock_path: str
    mode: Mode
    check: Callable[[], None]
    pid: int = field(default_factory=os.getpid)
    thread: threading.Thread = field(default_factory=threading.current_thread)
    task: asyncio.Task[Any] | None = field(default_factory=_task)
    ended: bool = False

    @property
    def is_callers(self) -> bool:
        """Whether it was taken by the very thread and task that asks, so that the asker runs inside of it."""
        return self.pid == os.getpid() and self.thread is threading.current_thread() and self.task is _task()


_around: ContextVar[tuple[Standing, ...]] = ContextVar("nfsrwlock_standing", default=())
#: All of this process, for threads that a pool has started and that have an empty context.
_all: list[Standing] = []


def stand(holds: list[Standing]) -> None:
    """Note that the caller has taken ``holds``."""
    _around.set((*_around.get(), *holds))
    _all.extend(holds)


def end(holds: list[Standing]) -> None:
    """Note that they have ended; from whatever context."""
    for hold in holds:
        hold.ended = True
        with suppress(ValueError):
            _all.remove(hold)
    _around.set(tuple(hold for hold in _around.get() if not hold.ended))


def standing_around(lock_path: str) -> Iterator[Standing]:
    """Yield the holds on a lock that end only after the calling code has."""
    parents = _parent_threads()
    seen = [hold for hold in _around.get() if not hold.ended]
    seen += [hold for hold in list(_all) if hold.thread in parents and hold not in seen and hold.pid == os.getpid()]
    for hold in seen:
        if hold.lock_path == lock_path and (hold.pid == os.getpid() or _still_stands(hold)):
            yield hold


def _still_stands(hold: Standing) -> bool:
    # A forked child has its parent's holds as they were at the fork; it may live on in a pool after they have ended.
    try:
        hold.check()
    except LockError:
        return False
    return True


def _parent_threads() -> list[threading.Thread]:
    # Workers of multiprocessing.pool.ThreadPool, which joblib's threading backend uses, know who made them.
    found: list[threading.Thread] = []
    thread: Any = threading.current_thread()
    while isinstance(thread := getattr(thread, "_parent", None), threading.Thread) and thread not in found:
        found.append(thread)
    return found


def parent_processes() -> list[int]:
    """Return the ids of the processes above this one, nearest first; as far as this machine tells (Linux)."""
    found: list[int] = []
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.append(pid)
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found
