"""
``distributed.Lock``'s contract on a file.

The object is a name and settings; holds hang on it only where they were taken. It pickles as name and settings, and so
two objects with one name exclude each other wherever they are.
"""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any, Final, Unpack

from nfsrwlock.driving import at_once
from nfsrwlock_core import DeadlockError, LockLostError, LockNotHeldError, PeerInfo, Timeout, inspect

from .activity import activity
from .calls import LockMethods
from .context import Caller, caller_here, is_on_dask_loop, thread_caller
from .holding import Hold
from .names import encoded, fresh_name, path_of
from .settings import Mode, Options, Settings, settings_of

logger: Final = logging.getLogger("nfsrwlock.dask")


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
        name = fresh_name() if name is None else name
        settings = settings_of(path_of(name), options)
        self._set_up(os.fsdecode(name) if isinstance(name, os.PathLike) else name, settings, loop)

    def _set_up(self, name: Any, settings: Settings, loop: Any = None) -> None:
        #: As it was given.
        self.name = name
        #: Of this object; a copy has another one.
        self.id = uuid.uuid4().hex
        self._settings = settings
        self._loop = loop

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

    def __eq__(self, other: object) -> bool:
        return self._settings == other._settings if isinstance(other, Lock) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._settings)

    def __dask_tokenize__(self) -> object:
        return "nfsrwlock.dask.Lock", astuple(self._settings)

    def __getstate__(self) -> tuple[Any, Settings]:
        return self.name, self._settings

    def __setstate__(self, state: tuple[Any, Settings]) -> None:
        self._set_up(*state)

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
        lock._set_up(path, self._settings.at(path))
        return lock

    # -- distributed.Lock's methods -----------------------------------------------------------------------------------

    def locked(self) -> Any:
        """
        Whether anybody anywhere holds the lock in a way that excludes this one. On Dask's loop, await the result.

        A snapshot, for people: by the time it is returned it may be wrong.
        """
        return self._run(lambda caller: caller.call(self._is_locked), "locked")

    def get_value(self) -> Any:
        """Return how many hold the lock, readers included, wherever they are. On Dask's loop, await the result."""
        return self._run(lambda caller: caller.call(lambda: len(self._holders())), "get_value")

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
        caller, holds = caller_here(), activity.through(self.id)
        if not holds:
            raise LockNotHeldError(f"the lock on {self.path!r} is not held through this object")
        for hold in [hold for hold in holds if hold.caller == caller] or holds:
            hold.check()

    def __del__(self) -> None:
        # Nobody can release it any more, as after an exception in a task: the heartbeat would keep it for ever.
        if sys.is_finalizing() or not activity.through(self.__dict__.get("id", "")):
            return  # at the interpreter's end all holds are released
        logger.warning("the lock on %r was held by an object that is no more; it is given back", self.path)
        threading.Thread(target=self._abandon, daemon=True).start()

    def _abandon(self) -> None:
        with suppress(LockLostError):
            at_once(self._close(thread_caller()))

    # -- how: one story, of which nothing suspends for a caller in a thread -------------------------------------------

    def _is_async(self) -> bool:
        return is_on_dask_loop(self._loop)

    async def _acquire(self, caller: Caller, blocking: bool, seconds: float | None) -> bool:
        may_fail = not blocking or seconds is not None
        wanted = (self._settings.timeout if seconds is None else seconds) if blocking else 0.0
        # A reader who waits behind a writer who waits for it would never end, and a thread cannot overlap with itself.
        if self.mode == "read" and activity.join(caller, self.lock_path, self.id):
            return True
        if wanted < 0 and (own := activity.of(caller, self.lock_path)) and own.settings.mode == "read":
            raise DeadlockError(
                f"cannot take the write lock on {self.path!r}: the caller holds it shared, and would wait for itself; "
                "release the read lock first"
            )
        hold = Hold(self._settings, caller, self.id)
        try:
            await hold.take(wanted)
        except Timeout:
            if may_fail:
                return False
            raise
        hold.collect_after_task()
        return True

    async def _release(self, caller: Caller, *, is_unwinding: bool = False) -> bool:
        if (found := activity.strike_out(caller, self.id)) is None:
            if self.id in activity.inherited:
                return True
            raise LockNotHeldError(f"Released too often: the lock on {self.path!r} is not held through this object")
        hold, is_over = found
        try:
            if is_over:
                await hold.end(caller)
            else:
                hold.check()
        except LockLostError:
            if not is_unwinding:
                raise
            return False
        return True

    async def _close(self, caller: Caller) -> None:
        first: LockLostError | None = None
        while activity.through(self.id):
            try:
                await self._release(caller)
            except LockLostError as error:
                first = first or error
        if first is not None:
            raise first

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
        name = fresh_name() if name is None else name
        modes: tuple[Mode, ...] = ("read", "write")
        for mode in modes:
            options["mode"] = mode
            object.__setattr__(self, mode, Lock(name, **options))

    @property
    def name(self) -> Any:
        """As it was given."""
        return self.write.name

    @property
    def path(self) -> str:
        """The path that is protected, canonical and absolute."""
        return self.write.path

    def __copy__(self) -> RWLock:
        return copy.deepcopy(self)  # a copy holds nothing

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"
