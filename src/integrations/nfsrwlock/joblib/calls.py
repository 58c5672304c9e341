"""
Whoever uses an item of a store, and the item's lock meanwhile: one text for threads and for tasks.

What is done (:mod:`nfsrwlock.joblib.memory`) is written once, as a coroutine. In a task it waits on the loop. In a
thread nothing of it suspends but the computation, which :meth:`ThreadCall.run` makes.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from nfsrwlock.driving import at_once, done
from nfsrwlock_core import AsyncSoftReadWriteLock, DeadlockError, SoftReadWriteLock, Timeout, WaitInfo, traced_as

from . import mapping
from .around import Held, Mode, end, held, held_around, note

if TYPE_CHECKING:
    from .store import CallId, LockingStoreBackend

_R = TypeVar("_R")


class Taken(Enum):
    """What came of the wish to take the lock."""

    #: It is held.
    YES = "yes"
    #: It was not to wait, and somebody else has the lock.
    BUSY = "it is in use"
    #: The item appeared meanwhile; the lock is not held.
    APPEARED = "appeared"
    #: A memory map of this very process holds it shared, so that waiting might never end; the lock is not held.
    MAPPED_HERE = "it is in use by a memory map of this process"


class Call:
    """
    A call while it is under way. It runs its steps, a coroutine, and gives its lock back at their end.

    :param store: where its result is, or will be
    :param call_id: of its function and arguments
    :param function: what is to be computed, without parameters; in a task it gives an awaitable
    """

    _kind: type[SoftReadWriteLock | AsyncSoftReadWriteLock] = SoftReadWriteLock

    def __init__(self, store: LockingStoreBackend, call_id: CallId, function: Callable[[], Any] | None = None) -> None:
        self._store = store
        self.call_id = call_id
        self._function: Any = function
        self._lock_file = store.lock_file(call_id)
        self._lock: Any = None  # until it is asked for
        #: What is held for it, as long as it is.
        self._held: Held | None = None
        #: A memory map's hold, which it reads under instead of its own.
        self._borrowed: mapping.MapHold | None = None
        #: It runs inside a computation that holds the same lock exclusively.
        self._is_inside = False

    def _begin(self) -> None:
        outer = held(self._lock_file)
        if outer is not None and (self._store.granularity == "item" or outer.mode == "read"):
            raise DeadlockError(
                f"the computation of {self.call_id[0]!r} asks for its own result (argument hash {self.call_id[1]}), "
                "and would wait for itself for ever"
            )
        self._is_inside = outer is not None  # a function under one lock may call itself with other arguments

    async def take(
        self,
        mode: Mode,
        *,
        blocking: bool = True,
        seen: object = None,
        until_changed: bool = False,
        tag: str | None = None,
    ) -> Taken:
        """
        Take the item's lock.

        :param blocking: whether to wait for it, for as long as the lock's settings say
        :param seen: the item as it was found unfit
        :param until_changed: something else in its place ends the waiting
        :param tag: what items stored under the hold are marked with
        :raises Timeout: if it could not be had in time, and was waited for
        """
        if self._is_inside:
            outer = held(self._lock_file)
            assert outer is not None
            self._note(replace(outer, tag=tag or outer.tag))
            return Taken.YES
        self._lock = self._lock or self._store.lock_for(self.call_id, self._kind)
        ended = None if blocking else Taken.BUSY

        def is_over() -> bool:
            nonlocal ended
            ended = self._look(mode, seen, until_changed)
            return ended is not None

        acquire = self._lock.acquire_read if mode == "read" else self._lock.acquire_write
        on_wait = self._refuse_parents if self._store.granularity == "function" else None
        # For a time-out of 0 another thread would look, lest a file server hangs this one. Here, what is done with the
        # item next would hang all the same.
        waiting = {"on_wait": on_wait, "until": is_over} if blocking else {"timeout": -1, "until": lambda: True}
        try:
            with traced_as(function=self.call_id[0]):
                grant = await done(acquire(**waiting))
        except Timeout:
            if ended is None:
                raise
            if self._borrowed is None:
                return ended
            by = self._borrowed.lock
        else:
            by = grant if isinstance(self, TaskCall) else self._lock
        self._note(Held(self._lock_file, mode, by, tag=tag))
        return Taken.YES

    def _look(self, mode: Mode, seen: object, until_changed: bool) -> Taken | None:
        # What ends the waiting, if anything does.
        if mode == "read":
            self._borrowed = mapping.borrow(self._lock_file)
            return None if self._borrowed is None else Taken.YES
        now = self._store.signature(self.call_id) if until_changed else None
        if now is not None and now != seen:
            return Taken.APPEARED
        return Taken.MAPPED_HERE if mapping.is_mapped_here(self._lock_file) else None

    def _refuse_parents(self, info: WaitInfo) -> None:
        # A function computes under one lock, so children that it waits for can neither load nor compute its items.
        above = [peer.pid for peer in info.blockers if peer.mode == "write" and peer.is_ancestor]
        if above or any(held_around(self._lock_file)):
            raise DeadlockError(
                f"{self.call_id[0]!r} is called by a child of its own computation in process "
                f"{above[0] if above else os.getpid()}, which holds the function's one lock and would wait for itself "
                "for ever; use granularity='item'"
            )

    def _note(self, hold: Held) -> None:
        self._forget()
        self._held = hold
        note(hold)

    def _forget(self) -> None:
        if self._held is not None:
            end(self._held)
            self._held = None

    async def give(self) -> None:
        """Give the lock back, if it is held."""
        self._forget()
        if self._borrowed is not None:
            borrowed, self._borrowed = self._borrowed, None
            borrowed.leave()
        if self._lock is not None:
            await done(self._lock.release(force=True))

    async def keep(self, maps: list[Any]) -> bool:
        """Leave the shared lock to ``maps``, which were loaded under it, and return whether that was possible."""
        hold = self._borrowed
        if hold is None:
            lock = self._lock_for_maps()
            if lock is None:
                return False
            hold = mapping.MapHold(lock)
        self._borrowed = None
        hold.leave_to(maps)
        if hold.lock is self._lock:
            self._lock = None
        self._forget()
        return True

    async def compute(self) -> Any:
        """Call the function and return what it gives, once it has."""
        return await self._function()

    def _lock_for_maps(self) -> SoftReadWriteLock | None:
        # A lock that is held shared, and may be released in any thread.
        lock: SoftReadWriteLock = self._lock
        return lock


class ThreadCall(Call):
    """A call by a thread."""

    def run(self, steps: Coroutine[Callable[[], Any], Any, _R]) -> _R:
        """Run the steps, which suspend for nothing but the computation, and return their result."""
        answer: Any = None
        error: BaseException | None = None
        try:
            self._begin()
            while True:
                function = steps.send(answer) if error is None else steps.throw(error)
                answer = error = None
                try:
                    answer = function()
                except BaseException as raised:
                    error = raised
        except StopIteration as end:
            result: _R = end.value
            return result
        finally:
            answer = error = None  # they may refer to this frame, which would keep memory maps alive
            try:
                steps.close()
                at_once(self.give())
            except BaseException:
                at_once(self.give())  # a signal's exception came in between, and nobody would ever give it back
                raise

    async def compute(self) -> Any:
        """Call the function in this thread, as near to its caller as can be: it may call itself many levels deep."""
        return await _in_run(self._function)


@types.coroutine
def _in_run(function: Callable[[], _R]) -> Generator[Callable[[], _R], _R, _R]:
    return (yield function)


class TaskCall(Call):
    """A call by an asyncio task: it waits on the loop, without a thread."""

    _kind = AsyncSoftReadWriteLock

    async def run(self, steps: Coroutine[Any, Any, _R]) -> _R:
        """Run the steps and return their result."""
        try:
            self._begin()
            return await steps
        finally:
            steps.close()
            await self.give()

    def _lock_for_maps(self) -> SoftReadWriteLock | None:
        # A task's hold ends with the task, and maps may outlive it: they get their own, unless somebody waits to write.
        own: SoftReadWriteLock = self._store.lock_for(self.call_id)
        with suppress(Timeout):
            own.acquire_read(blocking=False)
            return own
        return None
