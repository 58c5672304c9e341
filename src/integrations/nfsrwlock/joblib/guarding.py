"""
A context around parallel work: the parent holds the locks, its children can check that it still does.

It imports the core and no joblib, so it serves any way to run children, and costs them nothing more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Self, Unpack

from nfsrwlock.driving import at_once, done
from nfsrwlock.options import LockOptions, refuse_unknown
from nfsrwlock_core import (
    AsyncSoftReadWriteLock,
    DeadlockError,
    HoldWitness,
    LockNotHeldError,
    LockSet,
    SoftReadWriteLock,
    Timeout,
    WaitInfo,
    inspect,
)

from .around import Held, Mode, end, held_around, note

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Limits = Mapping[str, int] | Mapping[str | os.PathLike[str], int]


def several(paths: Paths, name: str) -> Iterable[str | os.PathLike[str]]:
    """Return ``paths``, which were given for the parameter ``name``, one by one, be it one or several."""
    if isinstance(paths, str | bytes | os.PathLike):
        return (paths,)
    if not isinstance(paths, Iterable):
        raise TypeError(f"{name}= must be a path or several paths, got {paths!r}; for none say ()")
    return paths


def hold_around(lock: SoftReadWriteLock, mode: Mode, at_most: int) -> Held | None:
    """
    Return the hold around the calling code that does for taking ``lock``, ``None`` if there is none around it.

    A permit of the caller's own does for another one. What a child takes counts beside what its parent holds.

    :raises DeadlockError: if there is one that conflicts with that
    """
    around = list(held_around(lock.lock_path))
    for hold in around:
        if hold.is_callers and (hold.mode == "write" or 0 < at_most == hold.at_most):
            return hold
        if hold.mode == "read" == mode and not at_most:
            return hold
    if not around:
        return None
    hold = around[-1]
    if hold.is_callers:
        otherwise = "exclusively" if mode == "write" else f"with the limit {at_most}"
        raise DeadlockError(
            f"cannot take the {mode} lock on {lock.lock_file!r}: the code around holds it otherwise, and waiting for "
            f"itself would never end; take it {otherwise} at the outset"
        )
    if at_most > len(around) and hold.mode == "read":
        return None
    raise DeadlockError(_message(lock, mode, hold.mode, hold.pid))


def parents_hold(lock: SoftReadWriteLock, mode: Mode, at_most: int, info: WaitInfo) -> Held | None:
    """
    Look, while waiting, whether a process above this one is in the way; it cannot let go before this one is done.

    :returns: its hold if it holds shared what is to be read, and only a waiting writer stands between
    :raises DeadlockError: if it holds a path that is asked for in conflict with it
    """
    behind_writer = any(peer.mode == "write" for peer in info.blockers)
    if at_most and behind_writer and (around := list(held_around(lock.lock_path))):
        raise DeadlockError(_message(lock, mode, around[0].mode, around[0].pid))
    if info.warning is None:  # the engine has looked for processes above this one
        return None
    above = [peer for peer in info.blockers if peer.state == "holding" and peer.is_ancestor]
    for peer in above:
        if "write" in (mode, peer.mode) or 0 < at_most <= len(above):
            raise DeadlockError(_message(lock, mode, peer.mode, peer.pid))
    for peer in inspect(lock.lock_file, lock_dir=lock.lock_dir).holders if mode == "read" and behind_writer else ():
        if peer.mode == "read" and peer.is_ancestor:
            if at_most:
                raise DeadlockError(_message(lock, mode, peer.mode, peer.pid))
            return Held(lock.lock_path, "read", None, HoldWitness(lock.lock_file, lock.lock_path, peer.name))
    return None


def _message(lock: SoftReadWriteLock, mode: Mode, held: str, pid: int | None) -> str:
    doing = {"read": "shared", "write": "exclusively"}.get(held, "")
    return (
        f"cannot take the {mode} lock on {lock.lock_file!r}: its parent, process {pid}, holds it {doing}. "
        "Waiting would never end; let children take other paths than their parent, or let the parent take none"
    )


class Guard:
    """
    Locks that are held for a ``with`` block, to be passed to the children that work in it; made by :func:`guard`.

    In the process that entered it, it holds locks. A copy that was pickled, or inherited through ``fork``, while
    it was held is not a hold: it can only be asked, by :meth:`check`, whether that hold still stands.
    """

    _kind: type[SoftReadWriteLock | AsyncSoftReadWriteLock] = SoftReadWriteLock

    def __init__(self, read: Paths, write: Paths, limited: Limits, options: LockOptions) -> None:
        # Absolute, because the process may change its directory.
        read, write = map(os.path.abspath, several(read, "read")), map(os.path.abspath, several(write, "write"))
        limited = {os.path.abspath(path): limit for path, limit in limited.items()}
        self._set_up(LockSet(read, write, limited=limited, **options), options)

    def _set_up(self, asked: LockSet, options: LockOptions, witnesses: tuple[HoldWitness, ...] = ()) -> None:
        #: What is asked for: each lock once, in the order in which everybody takes them. It is never held itself.
        self._asked = asked
        self._options = options
        #: What is held, and holds of others that cover what is asked for. In a copy all are others'.
        self._own: list[Held] = []
        self._around = [Held(witness.lock_path, "read", None, witness) for witness in witnesses]
        #: The process that has entered it, the locks that it has, or is about to have, and what ends its block.
        self._pid = 0
        self._locks: list[Any] = []
        self._stack = AsyncExitStack()

    def __getstate__(self) -> tuple[Any, ...]:
        return self._asked, self._options, self.witnesses()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._set_up(*state)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} read={list(self.paths_read)}, write={list(self.paths_write)}>"

    @property
    def paths_read(self) -> tuple[str, ...]:
        """The paths that are locked shared, those with a limit among them, absolute."""
        return self._asked.paths_read

    @property
    def paths_write(self) -> tuple[str, ...]:
        """The paths that are locked exclusively, absolute."""
        return self._asked.paths_write

    def witnesses(self) -> tuple[HoldWitness, ...]:
        """Return by what other processes check each of the holds; empty if it is not held."""
        return tuple(hold.witness for hold in (*self._own, *self._around) if hold.witness is not None)

    def check(self) -> None:
        """
        Make sure that the locks are still held; call it right before a result is made final.

        In the process that holds them it costs no file-system call, in a child a few for each path. There it fails at
        once after the parent has died, has left the block or has lost a lock, and at the latest after the lease if the
        parent sends no heartbeat.

        :raises LockLostError: if a lock is no longer held, or its lease has run out
        :raises LockNotHeldError: if the guard was not entered
        """
        if not (self._own or self._around):
            raise LockNotHeldError(f"{self!r} is not entered: use it in a with statement, and pass it on inside")
        for hold in (*self._own, *self._around):
            hold.check()

    def __enter__(self) -> Self:
        at_once(self._enter())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pid == os.getpid():
            at_once(self._leave(*exception))

    async def _enter(self) -> None:
        if self._own or self._around:
            if self._pid != os.getpid():
                raise DeadlockError(f"{self!r} is held by the process that passed it on; a copy can only be checked")
            raise RuntimeError(f"{self!r} is entered already; make another guard for another block")
        self._pid = os.getpid()
        limit = self._options.get("timeout", -1)
        deadline = time.monotonic() + limit
        try:
            for lock, (path, mode) in zip(self._asked.locks, self._asked.modes.items(), strict=True):
                at_most = self._asked.limited.get(path, 0)
                if (outer := hold_around(lock, mode, at_most)) is not None:
                    self._around.append(outer)
                else:
                    await self._take(lock, mode, at_most, limit if limit < 0 else max(deadline - time.monotonic(), 0.0))
            note(*self._own)
        except BaseException:
            await self._abandon()
            raise

    async def _take(self, asked: SoftReadWriteLock, mode: Mode, at_most: int, limit: float) -> None:
        lock: Any = self._kind(asked.lock_file, is_singleton=False, **self._options)
        # Noted before it is held, so that a signal's exception right after the grant leaves nothing behind.
        self._locks.append(lock)
        acquire = lock.acquire_write if mode == "write" else partial(lock.acquire_read, at_most=at_most or None)
        borrowed: Held | None = None

        def look(info: WaitInfo) -> None:
            nonlocal borrowed
            borrowed = parents_hold(asked, mode, at_most, info)

        try:
            grant = await done(acquire(limit, on_wait=look, until=lambda: borrowed is not None))
        except Timeout:
            if borrowed is None:
                raise
            self._around.append(borrowed)
        else:
            of_thread = isinstance(lock, SoftReadWriteLock)
            (self._stack.push if of_thread else self._stack.push_async_exit)(grant)
            witness = lock.witness() if of_thread else None
            self._own.append(Held(asked.lock_path, mode, lock if of_thread else grant, witness, at_most))

    async def _leave(self, *exception: Any) -> None:
        try:
            end(*self._own)
            try:
                for hold in self._around if exception[1] is None else ():
                    hold.check()
            finally:
                await self._stack.__aexit__(*exception)
        finally:
            await self._abandon()

    async def _abandon(self) -> None:
        # Whatever of it there is: not entered, or left half-way.
        end(*self._own)
        for lock in self._locks:
            await done(lock.release(force=True))
        self._set_up(self._asked, self._options)


class TaskGuard(Guard):
    """A guard for the block of a task, which waits on its loop."""

    _kind = AsyncSoftReadWriteLock

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._leave(*exception)


def guard(read: Paths = (), write: Paths = (), limited: Limits | None = None, **options: Unpack[LockOptions]) -> Guard:
    """
    Hold paths for a ``with`` block around parallel work, with any backend of joblib, or none.

    .. code-block:: python

       with guard(read="/nfs/in", write="/nfs/out") as g:
           Parallel(n_jobs=8)(delayed(work)(i, g) for i in items)

    Pass it on to the children, and let each call ``g.check()`` before it makes its result final. Guards may be nested:
    what the same thread holds already is not taken again. A child that asks for a path which its parent holds, by a
    guard or a locked function, gets :class:`DeadlockError` at once if the two exclude each other.

    :param read: paths to lock shared; one or several
    :param write: paths to lock exclusively; one or several. A path in both is written
    :param limited: paths to lock shared, each with how many may hold it at a time: a permit. Children count beside it
    :param options: settings of the locks, see :class:`SoftReadWriteLock`; ``timeout`` counts for all of them together
    :returns: the guard; it takes the locks when its block is entered, all or none, in one order
    :raises ValueError: if there is no path, or settings are wrong
    :raises TypeError: if an option is unknown or of the wrong type

    Entering raises :class:`Timeout`, :class:`LockPathError`, :class:`LimitMismatchError` and :class:`DeadlockError`;
    leaving raises :class:`LockLostError` if a lock was lost and no other exception is on its way.
    """
    refuse_unknown(options, "guard()")
    return Guard(read, write, limited or {}, options)
