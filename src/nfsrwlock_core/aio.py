# ruff: noqa: ASYNC109 - `timeout` is filelock's name, and a time-out here must leave nothing on disk
"""
The same lock for asyncio. The event loop makes no file-system call: each step runs in a thread, each pause on the loop.

Each task has a hold of its own, announced on disk like that of a process of its own, so tasks share and exclude each
other by the very same protocol; there is no second set of rules in memory. Only a hold that is kept (``linger=``) may
serve several tasks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import AsyncContextDecorator, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, finalize, ref

from .errors import LockError, LockLostError, LockNotHeldError
from .holding import keeper
from .holding.hold import Hold
from .holding.kept import Use
from .holding.waiting import GRACE_S, Attempt, Io, OnWait, Pause, Steps, Unanswered, Until, Wait, acquiring
from .lock import HasHold
from .names import Mode
from .settings import Heartbeat, Settings, checked, checked_limit
from .system import workers
from .system.directory import Share
from .system.paths import AnyPath
from .trace import logger

if TYPE_CHECKING:
    from filelock import LeaseCompromise

_R = TypeVar("_R")


@dataclass(slots=True, weakref_slot=True, eq=False)
class _TaskHold:
    use: Use
    hold: Hold
    #: Levels by the lock object through which they were taken.
    levels: dict[int, int] = field(default_factory=dict)
    #: Ends the hold when nobody can do that any more. Alive as long as nobody has.
    forgotten: finalize[..., _TaskHold] = field(init=False)

    def __post_init__(self) -> None:
        self.forgotten = finalize(self, _end_forgotten, self.use, self.hold)
        self.forgotten.atexit = False  # the keeper releases what is held then


def _end_forgotten(use: Use, hold: Hold) -> None:
    if hold.pid == os.getpid():
        logger.warning(
            "the lock on %r is given back: the task that took it has ended without releasing it, and no block or "
            "variable refers to the hold",
            hold.lock_file,
        )
        workers.submit(use.end, hold)


class _Table:
    """The holds of this process's tasks on one lock."""

    def __init__(self) -> None:
        self.pid: Final = os.getpid()
        #: A task that is destroyed, for its loop was closed, is as good as done.
        self.holds: Final = WeakKeyDictionary[asyncio.Task[Any], _TaskHold]()
        #: What tasks that are done have left to those who have what their acquire returned, such as a block's end.
        self.left: Final = WeakSet[_TaskHold]()
        self.device: int | None = None

    def enter(self, task: asyncio.Task[Any], held: _TaskHold) -> None:
        """Note that ``task`` holds."""
        self.holds[task] = held
        task.add_done_callback(self._leave)

    def _leave(self, task: asyncio.Task[Any]) -> None:
        if (held := self.holds.pop(task, None)) is not None:
            self.left.add(held)

    def remove(self, held: _TaskHold) -> bool:
        """Note that ``held`` is being ended; return whether nobody else does that."""
        if held.forgotten.detach() is None:
            return False
        self.left.discard(held)
        if held.use.task is not None and (task := held.use.task()) is not None:
            self.holds.pop(task, None)
            task.remove_done_callback(self._leave)
        return True

    def taken_through(self, lock: AsyncSoftReadWriteLock, *, by_tasks: bool) -> list[_TaskHold]:
        """Return what tasks that are done hold through ``lock``, and, ``by_tasks``, what the others do."""
        for task in [task for key in self.holds.keyrefs() if (task := key()) is not None and task.done()]:
            self._leave(task)  # which the loop has not come to yet
        held_by = [self.holds.get(task) for key in self.holds.keyrefs() if (task := key()) is not None]
        found = [*self.left, *(held for held in held_by if held is not None and by_tasks)]
        return [held for held in found if id(lock) in held.levels]


_tables: WeakValueDictionary[str, _Table] = WeakValueDictionary()


class AsyncAcquireReturnProxy:
    """
    What an acquire returns: leaving an ``async with`` block on it releases one level of the lock.

    The end of the block, :meth:`check` and :meth:`end` are about the hold that was acquired, whatever task, thread or
    loop they are called in. So a block may be left in another task, as those of fixtures and generators are.
    """

    def __init__(self, lock: AsyncSoftReadWriteLock, held: _TaskHold) -> None:
        self.lock: Final = lock
        self._held: Final = held

    def check(self) -> None:
        """Make sure that the hold still stands, in any thread; see :meth:`AsyncSoftReadWriteLock.check`."""
        if self.lock._pid != os.getpid() or not self._held.forgotten.alive:
            raise LockNotHeldError(f"the lock on {self.lock.lock_file!r} is not held any more")
        if (error := self._held.hold.error()) is not None:
            raise error

    async def end(self) -> None:
        """
        End the hold, all levels of it. Does nothing if it has ended already, and in a forked child.

        :raises LockLostError: if somebody has evicted this holder
        """
        if self.lock._pid == os.getpid() and (error := await self.lock._end(self._held)) is not None:
            raise error

    async def __aenter__(self) -> AsyncSoftReadWriteLock:
        return self.lock

    async def __aexit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        # A block in which the lock was released and taken again ends what its task has then.
        held = self._held if self._held.forgotten.alive else self.lock._mine() or self._held
        error = await self.lock._give_back(held, force=False)
        if error is not None and exc_value is None:
            raise error


class _Block(AsyncContextDecorator):
    # No generator: a loop that shuts down closes all generators at one time, also those that others wait for.
    def __init__(self, acquire: Callable[[], Coroutine[Any, Any, AsyncAcquireReturnProxy]]) -> None:
        self._acquire = acquire
        self._taken: list[AsyncAcquireReturnProxy] = []

    def _recreate_cm(self) -> _Block:
        return _Block(self._acquire)

    async def __aenter__(self) -> None:
        self._taken.append(await self._acquire())

    async def __aexit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        await self._taken.pop().__aexit__(exc_type, exc_value, traceback)


class AsyncSoftReadWriteLock(HasHold):
    """
    :class:`SoftReadWriteLock` for asyncio: the same settings, the same files, the same promises.

    A hold belongs to the task that took it. Tasks share a read lock; a task that asks for the write lock waits until
    the others have released. When the task is done, only the end of a block that it entered, or what its acquire
    returned, can end the hold; once nothing refers to those any more, the hold ends, with a warning in the log. Locks
    on one path share their tasks' holds unless ``is_singleton`` is false. Every task that holds or waits costs an entry
    in the lock directory, which all listings then show: for thousands of tasks that only read, take the lock once
    around them.

    The constructor resolves the path, which takes file-system calls: make the lock before the loop runs if that
    matters.

    :param loop: the event loop; ``None``: the running one
    :param executor: where file-system calls run; ``None``: daemon threads of this package, which a hung file server
        cannot use up

    The other parameters and errors are those of :class:`SoftReadWriteLock`.
    """

    _holder = "this task"

    def __init__(
        self,
        lock_file: AnyPath,
        timeout: float = -1,
        *,
        blocking: bool = True,
        is_singleton: bool = True,
        heartbeat_interval: float = 30.0,
        stale_threshold: float | None = None,
        poll_interval: float = 0.25,
        on_compromise: Callable[[LeaseCompromise], None] | None = None,
        heartbeat: Heartbeat = "thread",
        share: Share = "user",
        lock_dir: AnyPath | None = None,
        linger: float = 0.0,
        numbered: bool = True,
        loop: asyncio.AbstractEventLoop | None = None,
        executor: Executor | None = None,
    ) -> None:
        given = {**locals()}  # a copy: a debugger changes what locals() returns
        for name in ("self", "loop", "executor"):
            del given[name]
        self._set_up(checked(**given), loop, executor)

    def _set_up(
        self, settings: Settings, loop: asyncio.AbstractEventLoop | None = None, executor: Executor | None = None
    ) -> None:
        super()._set_up(settings)
        self._loop = loop
        self._executor = executor
        self._latest_compromise = None
        table = _tables.get(settings.lock_path) if settings.is_singleton else None
        if table is None or table.pid != self._pid:
            table = _Table()
            if settings.is_singleton:
                _tables[settings.lock_path] = table
        self._table = table

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.lock_file!r}>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop, ``None`` for the running one."""
        return self._loop

    @property
    def executor(self) -> Executor | None:
        """Where file-system calls run, ``None`` for this package's own threads."""
        return self._executor

    @property
    def generation(self) -> int | None:
        """
        The fencing number of the calling task's hold, ``None`` when it holds nothing; see the class for threads.

        The first time, that of a shared hold takes file-system calls, for which the loop waits:
        :meth:`read_generation` does not hold it up.

        :raises LockError: if the file server does not answer within two seconds
        :raises OSError: if the lock directory cannot be read
        """
        if (held := self._hold()) is None:
            return None
        participant = held.participant
        if participant.generation is None:
            try:
                return workers.call(participant.read_generation, GRACE_S)
            except TimeoutError as error:
                raise LockError("the file server does not answer: await read_generation()") from error
        return participant.generation

    async def read_generation(self) -> int | None:
        """
        Return the fencing number of the calling task's hold, exact also for a shared one; ``None`` when not held.

        :raises OSError: if the lock directory cannot be read
        """
        held = self._hold()
        return None if held is None else await self._settled(held.participant.read_generation)

    def _hold(self) -> Hold | None:
        held = self._mine()
        return None if held is None else held.hold

    def _mine(self) -> _TaskHold | None:
        if self._pid != os.getpid():
            return None
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return None
        return None if task is None else self._table.holds.get(task)

    async def acquire_read(
        self,
        timeout: float | None = None,
        *,
        at_most: int | None = None,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> AsyncAcquireReturnProxy:
        """Take the lock shared for the calling task; see :meth:`SoftReadWriteLock.acquire_read`."""
        limit = 0 if at_most is None else checked_limit("at_most", at_most)
        return await self._acquire(Mode.READ, Wait(self._limit_of_call(timeout, blocking), on_wait, until), limit)

    async def acquire_write(
        self,
        timeout: float | None = None,
        *,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> AsyncAcquireReturnProxy:
        """Take the lock exclusively for the calling task; see :meth:`SoftReadWriteLock.acquire_write`."""
        return await self._acquire(Mode.WRITE, Wait(self._limit_of_call(timeout, blocking), on_wait, until))

    def read_lock(
        self,
        timeout: float | None = None,
        *,
        at_most: int | None = None,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> _Block:
        """Hold the lock shared for an ``async with`` block; see :meth:`SoftReadWriteLock.read_lock`."""
        acquire = partial(self.acquire_read, at_most=at_most, blocking=blocking, on_wait=on_wait, until=until)
        return _Block(partial(acquire, timeout))

    def write_lock(
        self,
        timeout: float | None = None,
        *,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> _Block:
        """Hold the lock exclusively for an ``async with`` block; see :meth:`SoftReadWriteLock.write_lock`."""
        return _Block(partial(self.acquire_write, timeout, blocking=blocking, on_wait=on_wait, until=until))

    async def _acquire(self, mode: Mode, wait: Wait, at_most: int = 0) -> AsyncAcquireReturnProxy:
        self._refuse_if_unusable()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an asynchronous lock must be acquired in a task")
        if (held := self._table.holds.get(task)) is not None:
            held.use.refuse_another(mode, at_most, "this task")
            if (error := held.hold.error()) is not None:
                raise error
            held.levels[id(self)] = held.levels.get(id(self), 0) + 1
            return AsyncAcquireReturnProxy(self, held)
        use = Use(self._settings, mode, self, at_most)
        hold = use.join()
        if hold is None:
            attempt: Attempt = await self._settled(
                Attempt,
                self._settings,
                mode,
                wait,
                device=self._table.device,
                is_closed=lambda: self._closed,
                task=ref(task),
                at_most=at_most,
            )
            try:
                hold = await self._drive(acquiring(attempt))
            except TimeoutError:
                self._refuse_if_unusable()
                raise
        # No await may come between the grant and this entry, or a cancellation would lose the hold.
        use.task = ref(task)
        held = _TaskHold(use, hold, {id(self): 1})
        self._table.enter(task, held)
        self._table.device = hold.device
        self._latest_compromise = None
        try:
            if use.hold is None:
                await self._settled(use.begin, hold)
            self._refuse_if_unusable()
        except BaseException:
            await self._end(held)
            raise
        return AsyncAcquireReturnProxy(self, held)

    async def release(self, *, force: bool = False) -> None:
        """
        Give back one level of the calling task; its last one ends its hold. In a forked child this does nothing.

        :param force: give back all levels that the task took through this object, and what tasks that are done have
            left
        :raises RuntimeError: if the task holds no level through this object, and ``force`` is false
        """
        if self._pid != os.getpid():
            return
        task = asyncio.current_task()
        mine = None if task is None else self._table.holds.get(task)
        if mine is not None and (id(self) in mine.levels or not force):
            await self._give_back(mine, force=force)
        elif not force:
            raise LockNotHeldError(f"cannot release the lock on {self.lock_file!r}: it is not held by this task")
        for held in self._table.taken_through(self, by_tasks=False) if force else ():
            await self._give_back(held, force=True)

    async def _give_back(self, held: _TaskHold, *, force: bool) -> LockLostError | None:
        if self._pid != os.getpid():
            return None
        if id(self) not in held.levels:
            raise LockNotHeldError(
                f"cannot release the lock on {self.lock_file!r}: it is not held by this task through this wrapper"
            )
        left = 0 if force else held.levels[id(self)] - 1
        if left:
            held.levels[id(self)] = left
        else:
            del held.levels[id(self)]
        return held.hold.error() if held.levels else await self._end(held)

    async def _end(self, held: _TaskHold) -> LockLostError | None:
        if not self._table.remove(held):
            return None  # close() and a release at the same time
        held.levels.clear()
        self._latest_compromise = held.hold.compromise
        if held.use.leave():
            return None if held.hold.is_idle else held.hold.error()
        try:
            if await self._settled(keeper.release, held.hold):
                return None
        finally:
            if not held.hold.ended:  # the executor that was given makes no calls any more
                workers.submit(keeper.release, held.hold)
        self._latest_compromise = held.hold.compromise or self._latest_compromise
        return held.hold.lost_error()

    async def close(self) -> None:
        """End the holds that tasks took through this object, and refuse to be acquired from now on."""
        if self._pid != os.getpid():
            return
        self._closed = True
        for held in self._table.taken_through(self, by_tasks=True):
            await self._give_back(held, force=True)

    # -- how the story is run on the loop -----------------------------------------------------------------------------

    async def _drive(self, steps: Steps) -> Hold:
        try:
            wish = next(steps)
            while True:
                try:
                    result = await self._grant_wish(wish)
                except BaseException as error:
                    wish = steps.throw(error)
                else:
                    wish = steps.send(result)
        except StopIteration as end:
            hold: Hold = end.value
            return hold

    async def _grant_wish(self, wish: Io | Pause) -> Any:
        if isinstance(wish, Pause):
            return await _pause(wish)
        limit = wish.limit
        if limit is None and wish.closing:
            limit = time.monotonic() + GRACE_S  # a cancelled task ends, even if the server that it waits for hangs
        future = self._submit(wish.call)
        await asyncio.wait([future], timeout=None if limit is None else max(limit - time.monotonic(), 0.1))
        if not future.done():
            raise Unanswered
        return future.result()

    def _submit(self, call: Callable[..., _R], *args: Any, **kwargs: Any) -> asyncio.Future[_R]:
        loop = self._loop or asyncio.get_running_loop()
        if self._executor is None:
            future = asyncio.wrap_future(workers.submit(call, *args, **kwargs), loop=loop)
        else:
            future = loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))
        # A call that nobody waits for any more has told the protocol what it met; asyncio need not complain about it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    async def _settled(self, call: Callable[..., _R], *args: Any, **kwargs: Any) -> _R:
        # Waits for the call also when cancelled, and passes the cancellation on afterwards: nothing is left half done.
        future = self._submit(call, *args, **kwargs)
        cancellation: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancellation = error
        if cancellation is not None:
            raise cancellation
        return future.result()


async def _pause(wish: Pause) -> None:
    if wish.removals is None:
        return await asyncio.sleep(wish.seconds)
    loop = asyncio.get_running_loop()
    told = loop.create_future()
    with suppress(Exception):  # some loops have no readers
        loop.add_reader(wish.removals, told.cancel)  # done, whatever happens to it afterwards
    try:
        await asyncio.wait([told], timeout=wish.seconds)
    finally:
        with suppress(Exception):
            loop.remove_reader(wish.removals)
