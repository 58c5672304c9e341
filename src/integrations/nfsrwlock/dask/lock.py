"""
``distributed.Lock``'s contract on a file: its methods once, for callers in threads and for coroutines on Dask's loop.

The object is a name and settings; holds hang on it only where they were taken. It pickles as name and settings, and so
two objects with one name exclude each other wherever they are.

What a method does is a coroutine. For a caller in a thread nothing in it suspends, so it runs to its end at once.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Self, Unpack

from nfsrwlock.driving import at_once
from nfsrwlock_core import LockError, LockLostError, LockNotHeldError, PeerInfo, Timeout, inspect

from .context import Caller, is_on_dask_loop, task_caller, thread_caller
from .holding import Hold, activity
from .journal import logger
from .settings import Mode, Options, Settings, Time, encoded, limit, path_of, settings_of

Steps = Coroutine[Any, Any, Any]


class LockMethods:
    """
    The methods of ``distributed.Lock``, over levels: one for each time that the lock is taken.

    A level exists before it is taken (``take``), and to end it (``end``), which may be done twice, gives back whatever
    there is of it. So an exception that a signal's handler raises in the middle of either leaves nothing of it behind.
    """

    #: The Tornado loop that it was made with, if any.
    _loop: Any = None
    #: What is held through this object, once for each time, in the order in which it was granted.
    _levels: list[Any]

    def _key(self) -> object:
        # What two of them agree on that are equal.
        raise NotImplementedError

    def _level(self, caller: Caller) -> Any:
        raise NotImplementedError

    def _is_locked(self) -> bool:
        raise NotImplementedError

    async def _try(self, level: Any, seconds: float | None) -> bool:
        # ``seconds``: the limit; -1: none; ``None``: the lock's own.
        try:
            await level.take(seconds)
            self._levels.append(level)
            return True
        except BaseException as error:
            await self._drop(level, level.caller)
            # dask.array.store and others do not look at the result of an acquire that may wait.
            if isinstance(error, Timeout) and seconds is not None:
                return False
            raise

    async def _end(self, level: Any, by: Caller) -> bool:
        with suppress(ValueError):
            self._levels.remove(level)
        return await level.end(by) is not False

    async def _drop(self, level: Any, by: Caller) -> None:
        # For a caller that never learns of it.
        with suppress(LockLostError):
            await self._end(level, by)

    async def _release(self, caller: Caller | None = None, error: BaseException | None = None) -> bool:
        # By the calling thread, if ``caller`` is none: looking who it is takes a moment, in which a signal's exception
        # may come as well. An ``error`` that is on its way already says why the work is void.
        level: Any = None
        try:
            with activity.lock:  # two who release at a time give back two
                level = self._latest(caller or thread_caller())
                self._levels.remove(level)
            return await level.end(caller or thread_caller()) is not False
        except LockError as lost:
            if error is None or not isinstance(lost, LockLostError):
                raise
            return True
        except BaseException:  # what was to be given back must go all the same
            caller = caller or thread_caller()
            await self._drop(level or self._latest(caller), caller)
            raise

    def _latest(self, caller: Caller) -> Any:
        # The caller's own, or else the oldest.
        if not (levels := list(self._levels)):
            raise LockNotHeldError(f"Released too often: {self!r} is not held through this object")
        return next((level for level in reversed(levels) if level.caller == caller), levels[0])

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, LockMethods) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __dask_tokenize__(self) -> object:
        return "nfsrwlock.dask", self._key()

    def _is_async(self) -> bool:
        return is_on_dask_loop(self._loop)

    def _run(self, steps: Callable[[Caller], Steps], name: str) -> Any:
        if not self._is_async():
            return at_once(steps(thread_caller()))
        # Whoever calls here asks for the lock, not the task that asyncio.wait_for and others make of the call.
        return _Awaitable(steps(task_caller()), f"{name}() of {self!r}")

    def acquire(self, blocking: bool = True, timeout: Time | None = None) -> Any:
        """
        Take the lock. On Dask's event loop, await the result.

        :param blocking: ``False``: do not wait
        :param timeout: how long to wait: seconds, ``"200ms"`` or a timedelta; ``None``: as the lock says
        :returns: ``True``; ``False`` if it could not be had and ``blocking=False`` or ``timeout=`` allowed for that
        :raises ValueError: if a time-out is given for a call that is not to wait
        :raises Timeout: if the lock's own time-out is over
        :raises distributed.Reschedule: in a task, with ``on_contention="reschedule"``
        :raises LockPathError: if the lock cannot live at its path
        :raises DeadlockError: if the caller holds the path shared and asks for it exclusively without a limit
        :raises TypeError: in a coroutine, if a member of a combination is a thread's lock
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify a timeout for a non-blocking call")
        seconds = limit("timeout", timeout) if timeout is not None else None if blocking else 0.0
        if self._is_async():
            steps = self._try(self._level(task_caller()), seconds)
            return _Awaitable(steps, f"acquire() of {self!r}", not blocking)
        level = self._level(thread_caller())
        try:
            return at_once(self._try(level, seconds))
        except BaseException:
            at_once(self._drop(level, level.caller))
            raise

    def release(self) -> Any:
        """
        Give the lock back: the caller's own hold if it has one, else the oldest. On Dask's loop, await the result.

        In a forked child, what its parent holds stays as it is.

        :returns: ``True``; ``False`` if a member of a combination says so
        :raises LockNotHeldError: if the lock is not held through this object
        :raises LockLostError: if the hold was lost before, so that what was done under it may overlap with others
        """
        try:
            is_async = self._is_async()
        except BaseException as error:  # a signal's: what was to be given back must go all the same
            at_once(self._release(error=error))
            raise
        return self._run(self._release, "release") if is_async else at_once(self._release())

    def locked(self) -> Any:
        """
        Whether anybody anywhere holds the lock, or a member of the combination, in a way that excludes this one.

        A snapshot, for people: by the time it is returned it may be wrong. On Dask's loop, await the result.
        """
        return self._run(lambda caller: caller.call(self._is_locked), "locked")

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self

    def __enter__(self) -> Self:
        if self._is_async():
            raise RuntimeError(
                f"'with' on {self!r} would block Dask's event loop; in a coroutine use 'async with', and make a "
                "function of client.run, which Dask calls on its loop, a coroutine"
            )
        level = self._level(thread_caller())
        try:
            at_once(self._try(level, None))
            return self
        except BaseException:
            at_once(self._drop(level, level.caller))
            raise

    def __exit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        at_once(self._release(error=exc_value))

    async def __aenter__(self) -> Self:
        await self._try(self._level(task_caller()), None)
        return self

    async def __aexit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        await self._release(task_caller(), exc_value)


@dataclass(eq=False)
class _Awaitable(Steps):
    """A coroutine that refuses to be asked whether it is true: it would say yes, although nothing has happened yet."""

    _steps: Steps
    #: What it is the result of, for the error.
    _call: str
    #: It is an acquire that does not wait. It is false: whoever does not await it does not get the lock. xarray asks so
    #: at the end of a file, which Python may call on any thread, the loop's as well.
    _is_try: bool = False

    def __bool__(self) -> bool:
        if self._is_try:
            self.close()  # nobody will await it
            return False
        raise RuntimeError(f"on Dask's event loop {self._call} must be awaited: nothing has been done yet")

    def __await__(self) -> Generator[Any, None, Any]:
        return self._steps.__await__()

    def send(self, value: Any) -> Any:
        return self._steps.send(value)

    def throw(self, *error: Any) -> Any:
        return self._steps.throw(*error)

    def close(self) -> None:
        self._steps.close()


class Lock(LockMethods):
    """
    A lock in the place of ``distributed.Lock``: the same methods, but it lives beside the file that it protects.

    On Dask's event loop its methods return awaitables, and elsewhere they wait, by the rule of ``distributed`` itself.
    It is bound to no thread and not re-entrant: a second ``acquire`` waits for a ``release``. Reading is different in
    one point: a thread, or an asyncio task, that holds the path through any lock of this module joins its own hold.

    Where it differs from ``distributed.Lock``: no client is needed; ``with`` on Dask's loop raises, where the original
    would run the block without the lock; an acquire that may wait as long as it takes raises when it cannot succeed,
    and never returns ``False``; and a hold that was lost makes ``release()`` and the end of a ``with`` block raise
    :class:`~nfsrwlock.LockLostError`. What an object holds that nobody can reach any more is given back.

    :param name: a path (it has a slash in it, or is a path object), or any other name, whose lock then lives below
        ``nfsrwlock.root`` of Dask's configuration: a string, a number, bytes, a tuple or a list of these; ``None``: a
        name that nobody else has
    :param scheduler_rpc: ignored; there for ``distributed.Lock``'s sake
    :param loop: the Tornado loop that counts as Dask's; ``None``: the current worker's or client's
    :param mode: ``"write"`` for exclusive, ``"read"`` for shared
    :param timeout: how long ``with`` and an acquire without a limit of its own wait (seconds, ``"200ms"``, timedelta);
        they raise :class:`~nfsrwlock.Timeout` when it is over; ``None``: no limit
    :param on_contention: in a task that would wait: ``"block"``; ``"reschedule"``: let the task start over later;
        ``"secede"``: leave the worker's thread pool
    :param heartbeat: ``"thread"``, ``"process"`` or ``"auto"``: a process on Dask's workers, a thread elsewhere
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if one is out of range, or the name is no path and no root is configured

    The other parameters are those of :class:`nfsrwlock.SoftReadWriteLock`; times may be given in every form that Dask
    takes. What is ``None`` is taken from Dask's configuration, where and when the lock is made; it then travels with
    the lock.
    """

    def __init__(
        self, name: Any = None, scheduler_rpc: Any = None, loop: Any = None, **options: Unpack[Options]
    ) -> None:
        name = f"{type(self).__name__.lower()}-{uuid.uuid4().hex}" if name is None else name
        self._loop = loop
        settings = settings_of(path_of(name), options)
        self.__setstate__((os.fsdecode(name) if isinstance(name, os.PathLike) else name, settings))

    def __getstate__(self) -> tuple[Any, Settings]:
        return self.name, self._settings

    def __setstate__(self, state: tuple[Any, Settings]) -> None:
        #: ``name``: as it was given.
        self.name, self._settings = state
        #: Of this object; a copy has another one.
        self.id = uuid.uuid4().hex
        self._levels = []

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The path that is protected, canonical and absolute."""
        return self._settings.path

    @property
    def lock_path(self) -> str:
        """The directory where the lock lives."""
        return self._settings.lock_path

    @property
    def mode(self) -> Mode:
        """``"read"`` or ``"write"``."""
        return self._settings.mode

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.mode}>"

    def _key(self) -> object:
        return self._settings

    #: With ``__getitem__`` alone Python would take a lock for an endless sequence.
    __iter__ = None

    def __getitem__(self, key: str) -> Lock:
        """
        Return the lock on one key of a store at this lock's path: what zarr 2 asks of a ``synchronizer``.

        These locks live in the directory ``<path>.keys``, which the first of them that is taken makes. This lock and
        they know nothing of each other. They are always synchronous, for zarr 2 is, also where Dask unpickles one of
        its arrays on the event loop.

        :raises TypeError: if ``key`` is no string
        """
        if not isinstance(key, str):
            raise TypeError(f"a store's key must be a string, not {type(key).__name__}")
        path = os.path.join(f"{self.path}.keys", encoded(key))
        lock = _KeyLock.__new__(_KeyLock)
        lock.__setstate__((path, self._settings.at(path)))
        return lock

    # -- distributed.Lock's methods -----------------------------------------------------------------------------------

    def get_value(self) -> Any:
        """
        Return how many hold the lock, readers included, wherever they are. On Dask's loop, await the result.

        Of a semaphore: how many leases are held.
        """
        return self._run(lambda caller: caller.call(self._count), "get_value")

    def register(self, **_: object) -> Any:
        """Do nothing: a lock on files need not be registered. On Dask's loop, await the result."""
        return self._run(lambda caller: caller.call(lambda: None), "register")

    def close(self) -> Any:
        """
        Give back what is held through this object. On Dask's loop, await the result.

        ``distributed.Lock`` forgets the lock for everybody; here others keep what they hold.

        :raises LockLostError: if a hold was lost before
        """
        return self._run(self._close, "close")

    def check(self) -> None:
        """
        Make sure that the caller still holds the lock. Costs no file-system call; call it right before publishing.

        :raises LockLostError: if somebody has evicted this holder
        :raises LeaseExpiredError: if the lease has run out, so that somebody may have
        :raises LockNotHeldError: if the lock is not held through this object
        """
        callers = [thread_caller()]
        with suppress(RuntimeError):  # no event loop runs here
            callers.append(task_caller())
        if not (holds := list(self._levels)):
            raise LockNotHeldError(f"the lock on {self.path!r} is not held through this object")
        for hold in [hold for hold in holds if hold.caller in callers] or holds:
            hold.check()

    def __del__(self) -> None:
        # Nobody can release it any more, as after an exception in a task: the heartbeat would keep it for ever. At the
        # interpreter's end all holds are released, and a forked child has none of its parent's.
        for hold in list(self.__dict__.get("_levels", ())):
            if hold in activity.holds and not sys.is_finalizing():
                logger.warning("the lock on %r was held by an object that is no more; it is given back", self.path)
                threading.Thread(target=at_once, args=(self._drop(hold, thread_caller()),), daemon=True).start()

    def _level(self, caller: Caller) -> Hold:
        return Hold(self._settings, caller)

    async def _close(self, caller: Caller) -> None:
        if self._levels:
            try:
                await self._release(caller)
            finally:  # each of them, whichever is lost; others may release some meanwhile
                await self._close(caller)

    def _count(self) -> int:
        return len(self._holders())

    def _is_locked(self) -> bool:
        return any(peer.mode != "read" or self.mode == "write" for peer in self._holders())

    def _holders(self) -> tuple[PeerInfo, ...]:
        return inspect(self.path, lock_dir=self._settings.lock_dir).holders


class _KeyLock(Lock):
    def _is_async(self) -> bool:
        return False


@dataclass(frozen=True, init=False, repr=False)
class RWLock:
    """
    A reader/writer lock on one path, as two views: ``read`` and ``write``, each a :class:`Lock`.

    Parameters and errors are those of :class:`Lock`.
    """

    #: The view that shares the path with other readers.
    read: Lock
    #: The view that has the path alone.
    write: Lock

    def __init__(self, name: Any = None, **options: Unpack[Options]) -> None:
        if "mode" in options:
            raise TypeError("an RWLock has both modes: take its read or its write")
        object.__setattr__(self, "write", Lock(name, **options))
        object.__setattr__(self, "read", copy.copy(self.write))
        self.read._settings = replace(self.write._settings, mode="read")

    @property
    def name(self) -> Any:
        """As it was given."""
        return self.write.name

    @property
    def path(self) -> str:
        """The path that is protected, canonical and absolute."""
        return self.write.path

    __copy__ = copy.deepcopy  # a copy holds nothing

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
