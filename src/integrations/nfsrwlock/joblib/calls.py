"""
One cached call and the lock of its item: one text for threads and for tasks.

What a call does (:mod:`nfsrwlock.joblib.memory`) is written once, as a coroutine. In a task it waits on the loop. In a
thread nothing of it suspends but the computation, which :meth:`ThreadCall.run` makes.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar

from nfsrwlock_core import AsyncSoftReadWriteLock, DeadlockError, SoftReadWriteLock, Timeout, WaitInfo

from . import mapping
from .holding import CanCheck, Held, Mode, enter, held, holds, mark, restore
from .lingering import Reader, make_way
from .parents import Standing, end, parent_processes, stand, standing_around
from .store import CallId, LockingStoreBackend, Signature

_R = TypeVar("_R")
OnWait = Callable[[WaitInfo], None]


class Taken(Enum):
    """What came of the wish to take the lock."""

    #: It is held.
    YES = "yes"
    #: The item appeared meanwhile; the lock is not held.
    APPEARED = "appeared"
    #: A memory map of this very process holds it shared, so that waiting might never end; the lock is not held.
    MAPPED_HERE = "mapped here"


class _Appeared(Exception):
    pass


class _MappedHere(Exception):
    pass


class Call:
    """
    A call while it is under way. It runs its steps, a coroutine, and gives its lock back at their end.

    :param store: where its result is, or will be
    :param call_id: of its function and arguments
    :param function: what is to be computed, without parameters; in a task it gives an awaitable
    """

    def __init__(self, store: LockingStoreBackend, call_id: CallId, function: Callable[[], Any]) -> None:
        self._store: Final = store
        self.call_id: Final = call_id
        self._function: Final = function
        self._lock_file: Final = store.lock_file(call_id)
        self._before: Final = holds()
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
        self, mode: Mode, *, seen: Signature | None = None, until_changed: bool = False, tag: str | None = None
    ) -> Taken:
        """
        Take the item's lock.

        :param seen: the item as it was found unfit
        :param until_changed: something else in its place ends the waiting
        :param tag: what items stored under the hold are marked with
        """
        if self._is_inside:
            restore(self._before)
            if tag is not None:
                mark(self._lock_file, tag)
            return Taken.YES
        try:
            if mode == "read":
                lock = await self._acquire_read()
            else:
                lock = await self._acquire_write(partial(self._look, seen, until_changed))
        except _Appeared:
            return Taken.APPEARED
        except _MappedHere:
            return Taken.MAPPED_HERE
        enter(self._lock_file, Held(mode, lock, tag))
        return Taken.YES

    def _look(self, seen: Signature | None, until_changed: bool, info: WaitInfo) -> None:
        now = self._store.signature(self.call_id) if until_changed else None
        if now is not None and now != seen:
            raise _Appeared
        if mapping.is_mapped_here(self._lock_file):
            raise _MappedHere
        self._refuse_parents(info)

    def _refuse_parents(self, info: WaitInfo) -> None:
        # A function computes under one lock, so children that it waits for can neither load nor compute its items.
        if self._store.granularity == "item":
            return
        pids = parent_processes()
        above = [peer.pid for peer in info.blockers if peer.mode == "write" and peer.alive and peer.pid in pids]
        if above or any(standing_around(self._lock_file)):
            raise DeadlockError(
                f"{self.call_id[0]!r} is called by a child of its own computation in process "
                f"{above[0] if above else os.getpid()}, which holds the function's one lock and would wait for itself "
                "for ever; use granularity='item'"
            )

    async def give(self) -> None:
        """Give the lock back, if it is held."""
        raise NotImplementedError

    async def keep(self, maps: list[Any]) -> bool:
        """
        Leave the shared lock to ``maps``, which were loaded under it.

        :returns: whether that was possible
        """
        # The hold of a computation around this call is exclusive.
        return not self._is_inside and self._keep(maps)

    async def compute(self) -> Any:
        """Call the function and return what it returns."""
        raise NotImplementedError

    def _keep(self, maps: list[Any]) -> bool:
        raise NotImplementedError

    async def _acquire_read(self) -> CanCheck:
        raise NotImplementedError

    async def _acquire_write(self, on_wait: OnWait) -> CanCheck:
        raise NotImplementedError


class ThreadCall(Call):
    """A call by a thread."""

    _reader: Reader | None = None
    _lock: SoftReadWriteLock | None = None
    #: The hold on a function's one lock, for threads that its computation starts.
    _standing: Sequence[Standing] = ()

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
                self._give_now()
            except BaseException:
                self._give_now()  # a signal's exception came in between, and nobody would ever give it back
                raise

    async def compute(self) -> Any:
        """Call the function in this thread, as near to its caller as can be: it may call itself many levels deep."""
        return await _in_run(self._function)

    async def _acquire_read(self) -> CanCheck:
        self._reader = self._store.reader(self.call_id)
        return self._reader.enter(self._refuse_parents)

    async def _acquire_write(self, on_wait: OnWait) -> CanCheck:
        self._lock = lock = self._store.lock_for(self.call_id)
        make_way(lock.lock_path)
        lock.acquire_write(on_wait=on_wait)
        if self._store.granularity == "function":
            self._standing = [Standing(self._lock_file, "write", lock.check)]
            stand(self._standing)
        return lock

    def _keep(self, maps: list[Any]) -> bool:
        restore(self._before)
        if self._reader is not None:
            mapping.keep_for(maps, self._lock_file, self._reader.lock, self._reader.leave)
            self._reader = None  # it is the maps' now
        return True

    async def give(self) -> None:  # noqa: D102 - see Call
        self._give_now()

    def _give_now(self) -> None:
        restore(self._before)
        if self._standing:
            end(list(self._standing))
        if self._reader is not None:
            self._reader.leave()
        if self._lock is not None:
            self._lock.release(force=True)


@types.coroutine
def _in_run(function: Callable[[], _R]) -> Generator[Callable[[], _R], _R, _R]:
    return (yield function)


class TaskCall(Call):
    """A call by an asyncio task: it waits on the loop, without a thread."""

    def __init__(self, store: LockingStoreBackend, call_id: CallId, function: Callable[[], Any]) -> None:
        super().__init__(store, call_id, function)
        self._lock: Final = AsyncSoftReadWriteLock(self._lock_file, is_singleton=False, **store.lock_options)
        self._loan = mapping.Loan(self._lock_file)

    async def run(self, steps: Coroutine[Any, Any, _R]) -> _R:
        """Run the steps and return their result."""
        try:
            self._begin()
            return await steps
        finally:
            steps.close()
            await self.give()

    async def compute(self) -> Any:
        """Call the function and wait for what it gives."""
        return await self._function()

    async def _acquire_read(self) -> CanCheck:
        try:
            await self._lock.acquire_read(on_wait=self._look_while_reading)
        except mapping.Borrowed:
            assert self._loan.lock is not None
            return self._loan.lock
        return self._lock

    def _look_while_reading(self, info: WaitInfo) -> None:
        self._loan.instead_of_waiting(info)
        self._refuse_parents(info)

    async def _acquire_write(self, on_wait: OnWait) -> CanCheck:
        make_way(self._lock.lock_path)
        await self._lock.acquire_write(on_wait=on_wait)
        return self._lock

    def _keep(self, maps: list[Any]) -> bool:
        if (borrowed := self._loan.lock) is not None:
            loan, self._loan = self._loan, mapping.Loan(self._lock_file)
            mapping.keep_for(maps, self._lock_file, borrowed, loan.give_back)
            return True
        # A task's hold ends with the task, and maps may outlive it: they get their own, unless somebody waits to write.
        own = self._store.lock_for(self.call_id)
        try:
            own.acquire_read(blocking=False)
        except Timeout:
            return False
        mapping.keep_for(maps, self._lock_file, own, partial(own.release, force=True))
        return True

    async def give(self) -> None:  # noqa: D102 - see Call
        restore(self._before)
        self._loan.give_back()
        await self._lock.release(force=True)
