"""
What is held around the calling code: by itself, and by the threads that wait for it.

What a caller holds already is not taken again. A thread that holds a lock and waits for its workers is their parent,
and a worker that waits for a lock of its parent's waits for ever. Holds are found by a context variable (this thread,
this task, and what they start), and by the thread that made a thread pool. The processes above this one are the
engine's to know.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from nfsrwlock_core import AsyncAcquireReturnProxy, HoldWitness, LockError, LockNotHeldError, SoftReadWriteLock

Mode = Literal["read", "write"]


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@dataclass(eq=False, slots=True)
class Held:
    """A hold of a guard, of a locked function or of a cached call."""

    #: Of the lock, the same for all who ask for it.
    name: str
    #: Shared or exclusive.
    mode: Mode
    #: By which it is held; ``None`` if another process holds it.
    lock: SoftReadWriteLock | AsyncAcquireReturnProxy | None
    #: By what other processes check it.
    witness: HoldWitness | None = None
    #: How many may hold it shared at a time, it included; 0: no limit.
    at_most: int = 0
    #: What items that are stored under it are marked with: which code they come from.
    tag: str | None = None
    pid: int = field(default_factory=os.getpid)
    thread: threading.Thread = field(default_factory=threading.current_thread)
    task: asyncio.Task[Any] | None = field(default_factory=_task)

    @property
    def is_callers(self) -> bool:
        """Whether it was taken by the very thread and task that asks, so that the asker runs inside of it."""
        return self.pid == os.getpid() and self.thread is threading.current_thread() and self.task is _task()

    def check(self) -> None:
        """Make sure that it still stands, as :meth:`HoldWitness.check` does; works in a forked child, too."""
        if self.witness is not None and (self.lock is None or self.pid != os.getpid()):
            self.witness.check()
        elif self.lock is not None:
            self.lock.check()


_around: ContextVar[tuple[Held, ...]] = ContextVar("nfsrwlock_joblib_around", default=())
#: All of this process that have not ended: contexts outlive them, and a pool's threads start with an empty context.
_all: set[Held] = set()


def note(*holds: Held) -> None:
    """Note that the caller has taken ``holds``."""
    _around.set((*_around.get(), *holds))
    _all.update(holds)


def end(*holds: Held) -> None:
    """Note that they have ended, from whatever context; also where a signal's exception came upon :func:`note`."""
    _all.difference_update(holds)
    _around.set(tuple(hold for hold in _around.get() if hold in _all))


def held(name: str) -> Held | None:
    """Return the innermost hold on a lock in the caller's context; ``None`` if there is none."""
    for hold in reversed(_around.get()):
        if hold.name == name and hold in _all and (hold.pid != os.getpid() or _stands(hold)):
            return hold
    return None


def held_around(name: str) -> Iterator[Held]:
    """Yield the holds on a lock that end only after the calling code has, those of parent threads included."""
    parents = _parent_threads()
    seen = [hold for hold in _around.get() if hold in _all]
    seen += [hold for hold in list(_all) if hold.thread in parents and hold not in seen and hold.pid == os.getpid()]
    for hold in seen:
        if hold.name == name and _stands(hold):
            yield hold


def _stands(hold: Held) -> bool:
    # A forked child has its parent's holds as they were at the fork; it may live on in a pool after they have ended.
    # Here, only what a signal's exception has kept from being noted can have ended; what was lost still stands around.
    try:
        hold.check()
    except LockNotHeldError:
        return False
    except LockError:
        return hold.pid == os.getpid()
    return True


def _parent_threads() -> list[threading.Thread]:
    # Workers of multiprocessing.pool.ThreadPool, which joblib's threading backend uses, know who made them.
    found: list[threading.Thread] = []
    thread: Any = threading.current_thread()
    while isinstance(thread := getattr(thread, "_parent", None), threading.Thread) and thread not in found:
        found.append(thread)
    return found
