"""
One cached call and the lock of its item: one text for threads and for tasks.

What a call does (:mod:`nfsrwlock.joblib.memory`) is written once, as a coroutine. In a task it waits on the loop. In a
thread nothing of it suspends but the computation, which :func:`run_here` makes.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from nfsrwlock_core import AsyncSoftReadWriteLock, DeadlockError, SoftReadWriteLock, Timeout, WaitInfo

from . import mapping
from .holding import CanCheck, Held, HoldToken, Mode, enter, held, leave, mark
from .lingering import Reader, make_way
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
    A call while it is under way, as an ``async with`` block at whose end its lock is given back.

    :param store: where its result is, or will be
    :param call_id: of its function and arguments
    :param function: what is to be computed, without parameters; in a task it gives an awaitable
    """

    def __init__(self, store: LockingStoreBackend, call_id: CallId, function: Callable[[], Any]) -> None:
        self._store: Final = store
        self._call_id: Final = call_id
        self._function: Final = function
        self._lock_file: Final = store.lock_file(call_id)
        self._token: HoldToken | None = None
        #: It runs inside a computation that holds the same lock exclusively.
        self._is_inside = False

    async def __aenter__(self) -> Self:
        outer = held(self._lock_file)
        if outer is not None and (self._store.granularity == "item" or outer.mode == "read"):
            raise DeadlockError(
                f"the computation of {self._call_id[0]!r} asks for its own result (argument hash {self._call_id[1]}), "
                "and would wait for itself for ever"
            )
        self._is_inside = outer is not None  # a function under one lock may call itself with other arguments
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.give()

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
            self._leave()
            if tag is not None:
                self._token = mark(self._lock_file, tag)
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
        self._token = enter(self._lock_file, Held(mode, lock, tag))
        return Taken.YES

    def _look(self, seen: Signature | None, until_changed: bool, info: WaitInfo) -> None:
        now = self._store.signature(self._call_id) if until_changed else None
        if now is not None and now != seen:
            raise _Appeared
        if mapping.is_mapped_here(self._lock_file):
            raise _MappedHere

    async def give(self) -> None:
        """Give the lock back, if it is held."""
        self._leave()
        if not self._is_inside:
            await self._release()

    def _leave(self) -> None:
        if self._token is not None:
            leave(self._token)
            self._token = None

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

    async def _release(self) -> None:
        raise NotImplementedError


class ThreadCall(Call):
    """A call by a thread, for :func:`run_here`."""

    _reader: Reader | None = None
    _lock: SoftReadWriteLock | None = None

    async def compute(self) -> Any:
        """Call the function in this thread, as near to its caller as can be: it may call itself many levels deep."""
        return await _below(self._function)

    async def _acquire_read(self) -> CanCheck:
        self._reader = self._store.reader(self._call_id)
        return self._reader.enter()

    async def _acquire_write(self, on_wait: OnWait) -> CanCheck:
        self._lock = lock = self._store.lock_for(self._call_id)
        make_way(lock.lock_path)
        lock.acquire_write(on_wait=on_wait)
        return lock

    def _keep(self, maps: list[Any]) -> bool:
        self._leave()
        if self._reader is not None:
            mapping.keep_for(maps, self._lock_file, self._reader.leave)
            self._reader = None  # it is the maps' now
        return True

    async def _release(self) -> None:
        if self._reader is not None:
            self._reader.leave()
        if self._lock is not None:
            self._lock.release(force=True)


class TaskCall(Call):
    """A call by an asyncio task: it waits on the loop, without a thread."""

    def __init__(self, store: LockingStoreBackend, call_id: CallId, function: Callable[[], Any]) -> None:
        super().__init__(store, call_id, function)
        self._lock: Final = AsyncSoftReadWriteLock(self._lock_file, is_singleton=False, **store.lock_options)

    async def compute(self) -> Any:
        """Call the function and wait for what it gives."""
        return await self._function()

    async def _acquire_read(self) -> CanCheck:
        await self._lock.acquire_read()
        return self._lock

    async def _acquire_write(self, on_wait: OnWait) -> CanCheck:
        make_way(self._lock.lock_path)
        await self._lock.acquire_write(on_wait=on_wait)
        return self._lock

    def _keep(self, maps: list[Any]) -> bool:
        # A task's hold ends with the task, and maps may outlive it: they get their own, unless somebody waits to write.
        own = self._store.lock_for(self._call_id)
        try:
            own.acquire_read(blocking=False)
        except Timeout:
            return False
        mapping.keep_for(maps, self._lock_file, partial(own.release, force=True))
        return True

    async def _release(self) -> None:
        await self._lock.release(force=True)


@types.coroutine
def _below(function: Callable[[], _R]) -> Generator[Callable[[], _R], _R, _R]:
    return (yield function)


def run_here(steps: Coroutine[Callable[[], Any], Any, _R]) -> _R:
    """Run the coroutine of a call by a thread, and return its result."""
    answer: Any = None
    error: BaseException | None = None
    try:
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
        steps.close()  # what a signal's exception has interrupted right here gives its lock back
        answer = error = None  # they may refer to this frame, which would keep memory maps alive
