"""
How a cached call goes, as a story that yields what it needs done: one text for threads and for coroutines.

A caller looks under the shared lock. What it does not find it computes under the exclusive lock, after another look,
because whoever had the lock before may have computed it. While it waits for the exclusive lock it keeps looking: what
has appeared need not be computed, and is loaded under the shared lock, together with all the others who waited.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from nfsrwlock_core import AsyncSoftReadWriteLock, DeadlockError, SoftReadWriteLock, Timeout, WaitInfo

from . import mapping
from .holding import Held, HoldToken, Mode, enter, held, leave, mark
from .store import CallId, LockingStoreBackend, Signature


class Taken(Enum):
    """What came of the wish to take the lock."""

    #: It is held.
    YES = "yes"
    #: The item appeared meanwhile; the lock is not held.
    APPEARED = "appeared"
    #: A memory map of this very process holds it shared, so that waiting might never end; the lock is not held.
    MAPPED_HERE = "mapped here"


@dataclass(frozen=True, slots=True)
class Take:
    """
    Take the item's lock; the answer is a :class:`Taken`.

    :param seen: the item as it was found unfit
    :param until_changed: something else in its place ends the waiting
    :param tag: what items stored under the hold are marked with
    """

    mode: Mode
    seen: Signature | None = None
    until_changed: bool = False
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Give:
    """Give the lock back."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave the shared lock to ``maps``, which were loaded under it; the answer is whether that was possible."""

    maps: list[Any]


@dataclass(frozen=True, slots=True)
class Compute:
    """Call the function; the answer is what it returned."""


Story = Generator[Take | Give | Keep | Compute, Any, Any]


class _Appeared(Exception):
    pass


class _MappedHere(Exception):
    pass


class _Teller:
    """What both ways of telling a story have in common: one item, its lock, and whether it is held."""

    def __init__(self, store: LockingStoreBackend, call_id: CallId) -> None:
        self._store = store
        self._call_id = call_id
        self._token: HoldToken | None = None
        self._lock_file = store.lock_file(call_id)
        self._joined = False

    def _join(self) -> None:
        """See whether the caller is inside a computation of the same item or function already."""
        outer = held(self._lock_file)
        if outer is None:
            return
        if self._store.granularity == "item" or outer.mode == "read":
            raise DeadlockError(
                f"the computation of {self._call_id[0]!r} asks for its own result (argument hash {self._call_id[1]}), "
                "and would wait for itself for ever"
            )
        self._joined = True  # a function under one lock may call itself with other arguments

    def _join_in(self, wish: Take | Give) -> Taken | None:
        self._leave()
        if isinstance(wish, Give):
            return None
        if wish.tag is not None:
            self._token = mark(self._lock_file, wish.tag)
        return Taken.YES

    def _look(self, wish: Take, info: WaitInfo) -> None:
        now = self._store.signature(self._call_id) if wish.until_changed else None
        if now is not None and now != wish.seen:
            raise _Appeared
        if mapping.is_mapped_here(self._lock_file):
            raise _MappedHere

    def _on_wait(self, wish: Take) -> Callable[[WaitInfo], None] | None:
        return partial(self._look, wish) if wish.mode == "write" else None

    def _enter(self, lock: Any, wish: Take) -> None:
        self._token = enter(self._lock_file, Held(wish.mode, lock, wish.tag))

    def _leave(self) -> None:
        if self._token is not None:
            leave(self._token)
            self._token = None


class ThreadTeller(_Teller):
    """Tells a story in the calling thread."""

    def tell(self, story: Story, compute: Callable[[], Any]) -> Any:
        """Run the story to its end and return its result; no hold outlives it but those of memory maps."""
        lock = self._store.lock_for(self._call_id)
        self._join()
        try:
            answer: Any = None
            error: BaseException | None = None
            while True:
                wish = story.throw(error) if error is not None else story.send(answer)
                answer = error = None
                try:
                    if isinstance(wish, Compute):
                        answer = compute()
                    elif isinstance(wish, Keep) and self._joined:
                        answer = False  # the hold is that of a computation around this one, and exclusive
                    elif isinstance(wish, Keep):
                        self._leave()
                        mapping.keep_for(wish.maps, lock)
                        lock = self._store.lock_for(self._call_id)  # that one is the maps' now
                        answer = True
                    elif self._joined:
                        answer = self._join_in(wish)
                    elif isinstance(wish, Give):
                        self._leave()
                        lock.release(force=True)
                    else:
                        answer = self._take(lock, wish)
                except BaseException as raised:
                    error = raised
        except StopIteration as end:
            return end.value
        finally:
            answer = error = None  # they may refer to this frame, which would keep memory maps alive
            self._leave()
            if not self._joined:
                lock.release(force=True)

    def _take(self, lock: SoftReadWriteLock, wish: Take) -> Taken:
        try:
            if wish.mode == "read":
                lock.acquire_read()
            else:
                lock.acquire_write(on_wait=self._on_wait(wish))
        except _Appeared:
            return Taken.APPEARED
        except _MappedHere:
            return Taken.MAPPED_HERE
        self._enter(lock, wish)
        return Taken.YES


class TaskTeller(_Teller):
    """Tells a story in an asyncio task: waits on the loop, without a thread."""

    async def tell(self, story: Story, compute: Callable[[], Any]) -> Any:
        """Run the story to its end and return its result; ``compute`` gives an awaitable."""
        lock = AsyncSoftReadWriteLock(self._lock_file, is_singleton=False, **self._store.lock_options)
        self._join()
        try:
            answer: Any = None
            error: BaseException | None = None
            while True:
                wish = story.throw(error) if error is not None else story.send(answer)
                answer = error = None
                try:
                    if isinstance(wish, Compute):
                        answer = await compute()
                    elif isinstance(wish, Keep):
                        answer = not self._joined and self._keep(wish)
                    elif self._joined:
                        answer = self._join_in(wish)
                    elif isinstance(wish, Give):
                        self._leave()
                        await lock.release(force=True)
                    else:
                        answer = await self._take(lock, wish)
                except BaseException as raised:
                    error = raised
        except StopIteration as end:
            return end.value
        finally:
            answer = error = None  # they may refer to this frame, which would keep memory maps alive
            self._leave()
            if not self._joined:
                await lock.release(force=True)

    def _keep(self, wish: Keep) -> bool:
        # A task's hold ends with the task, and maps may outlive it: they get their own, unless somebody waits to write.
        own = self._store.lock_for(self._call_id)
        try:
            own.acquire_read(blocking=False)
        except Timeout:
            return False
        mapping.keep_for(wish.maps, own)
        return True

    async def _take(self, lock: AsyncSoftReadWriteLock, wish: Take) -> Taken:
        try:
            if wish.mode == "read":
                await lock.acquire_read()
            else:
                await lock.acquire_write(on_wait=self._on_wait(wish))
        except _Appeared:
            return Taken.APPEARED
        except _MappedHere:
            return Taken.MAPPED_HERE
        self._enter(lock, wish)
        return Taken.YES
