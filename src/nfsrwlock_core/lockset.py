"""Several locks as one: taken in one order by everybody, so that two sets can never wait for each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self, Unpack

from .errors import LockLostError, LockNotHeldError
from .holding.hold import HoldStatus
from .holding.waiting import OnWait, Until, Wait
from .lock import AcquireReturnProxy, SoftReadWriteLock
from .names import Mode
from .settings import Options, checked_limit
from .system.paths import AnyPath, canonical

_WORST_FIRST: Final = (HoldStatus.LOST, HoldStatus.SUSPECT, HoldStatus.FREE, HoldStatus.HELD)

Paths = AnyPath | Iterable[AnyPath]


@dataclass(frozen=True, slots=True)
class _Member:
    lock: SoftReadWriteLock
    mode: Mode
    #: The limit of a shared one, 0: none.
    at_most: int
    #: Resolved once: a relative path must keep its meaning after the process changes its directory.
    path: str = field(compare=False)


class LockSet:
    """
    Locks on several paths that are acquired and released as one: all or nothing, within one timeout.

    They are taken in the order of their canonical paths, which is the same for everybody, so sets never deadlock each
    other. A path that is both read and written is written. The locks are the set's own; a set does not join locks that
    its process holds otherwise. A set is held once at a time: a second block on it, be it inside the first, in another
    thread or in a forked child, raises ``RuntimeError``.

    :param read: paths to lock shared; one path or several
    :param write: paths to lock exclusively; one path or several
    :param limited: paths to lock shared, with how many may hold each at a time (``at_most``)
    :param timeout: seconds for all of them together; -1: no limit
    :raises ValueError: if no path is given, or settings contradict each other

    The other parameters are those of :class:`SoftReadWriteLock`.
    """

    def __init__(
        self,
        read: Paths = (),
        write: Paths = (),
        timeout: float = -1,
        limited: Mapping[str, int] | Mapping[AnyPath, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        members: dict[str, _Member] = {}
        limits = [(path, Mode.READ, checked_limit("at_most", value)) for path, value in (limited or {}).items()]
        wanted = [(path, Mode.READ, 0) for path in _several(read)] + limits
        wanted += [(path, Mode.WRITE, 0) for path in _several(write)]  # last, so that a path in both is written
        for path, mode, at_most in wanted:
            lock = SoftReadWriteLock(path, timeout, is_singleton=False, **options)
            known = members.get(lock.lock_path)
            if known is not None and known.at_most and at_most not in (0, known.at_most):
                raise ValueError(f"{path!r} is limited to {known.at_most} and to {at_most} at a time; state one limit")
            members[lock.lock_path] = _Member(lock, mode, at_most, canonical(lock.lock_file))
        self._set_up(_sorted(members.values()))

    def _set_up(self, members: Iterable[_Member]) -> None:
        self._members = tuple(members)
        if not self._members:
            raise ValueError("a LockSet needs at least one path to read or to write")
        self._is_held = False
        #: The thread that has called :meth:`acquire` and may yet enter a ``with`` block on what it holds.
        self._enters: int | None = None
        #: Who holds the set or is about to: an object for each time.
        self._holder: object = None
        self._mutex = threading.RLock()

    @classmethod
    def joined(cls, sets: Iterable[LockSet], *, one_after_another: bool = False) -> Self:
        """
        Return one set of all the locks in ``sets``, for locks that need different settings. It is not held.

        Each lock keeps its settings; the timeout of the new set is the one of its first lock. A path that one set reads
        and another one writes is written.

        :param one_after_another: take all locks of a set before those of the next one. Keeps clear of deadlocks only if
            everybody who takes such locks takes those of the first kind first
        :raises ValueError: if there is no lock, or two sets name one lock with different settings
        """
        members: dict[str, _Member] = {}
        for member in (member for one in sets for member in one._members):
            known = members.setdefault(member.lock.lock_path, member)
            if known.lock != member.lock or (known.mode is member.mode and known.at_most != member.at_most):
                raise ValueError(f"the lock on {member.path!r} is asked for with two different settings")
            if member.mode is Mode.WRITE:
                members[member.lock.lock_path] = member
        # Locks of its own: those of the sets may be held.
        own = [replace(one, lock=SoftReadWriteLock._restore(one.lock._settings)) for one in members.values()]
        joined = cls.__new__(cls)
        joined._set_up(own if one_after_another else _sorted(own))
        return joined

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def locks(self) -> tuple[SoftReadWriteLock, ...]:
        """The locks, in the order in which they are taken."""
        return tuple(member.lock for member in self._members)

    @property
    def modes(self) -> dict[str, Literal["read", "write"]]:
        """How each canonical path is locked, in the order of :attr:`locks`."""
        return {member.path: member.mode.value for member in self._members}

    @property
    def paths_read(self) -> tuple[str, ...]:
        """The canonical paths that are locked shared, in order."""
        return tuple(path for path, mode in self.modes.items() if mode == "read")

    @property
    def paths_write(self) -> tuple[str, ...]:
        """The canonical paths that are locked exclusively, in order."""
        return tuple(path for path, mode in self.modes.items() if mode == "write")

    @property
    def limited(self) -> dict[str, int]:
        """How many may hold each of those that have a limit at a time, by canonical path."""
        return {member.path: member.at_most for member in self._members if member.at_most}

    @property
    def status(self) -> HoldStatus:
        """The worst state of all the locks."""
        states = {lock.status for lock in self.locks}
        return next(state for state in _WORST_FIRST if state in states)

    @property
    def lease_remaining(self) -> float | None:
        """Seconds until the first of the holds becomes suspect; ``None`` when not held."""
        left = [remaining for lock in self.locks if (remaining := lock.lease_remaining) is not None]
        return min(left, default=None)

    @property
    def generations(self) -> dict[str, int]:
        """
        The fencing number of each lock, by canonical path; empty when not held.

        :raises OSError: if a lock directory cannot be read
        """
        numbers = {member.path: member.lock.generation for member in self._members}
        return {path: number for path, number in numbers.items() if number is not None}

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} read={list(self.paths_read)}, write={list(self.paths_write)}, {self.status.value}>"
        )

    def __eq__(self, other: object) -> bool:
        return self._members == other._members if isinstance(other, LockSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._members)

    def __getstate__(self) -> dict[str, Any]:
        return {"_members": self._members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(state["_members"])

    def check(self) -> None:
        """
        Make sure that all locks are still held. Costs no file-system call.

        :raises LockLostError: if one was lost
        :raises LeaseExpiredError: if the lease of one has run out
        :raises LockNotHeldError: if the set is not held
        """
        for lock in self.locks:
            lock.check()

    # -- take and leave -----------------------------------------------------------------------------------------------

    def acquire(
        self,
        timeout: float | None = None,
        *,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> Self:
        """
        Take all locks, or none.

        :param timeout: seconds for all together; ``None``: as the set says; -1: no limit
        :returns: the set, which releases itself at the end of a ``with`` block
        :raises Timeout: if not all could be had in time
        :raises RuntimeError: if the set is held already

        The other parameters and errors are those of :meth:`SoftReadWriteLock.acquire_read`.
        """
        me = object()
        try:
            self._acquire(me, Wait(self.locks[0]._limit_of_call(timeout, blocking), on_wait, until))
            self._enters = threading.get_ident()
            return self
        except BaseException:
            self._give_back(me, [])  # all: a signal's exception may have come right after one was taken
            raise

    def _acquire(self, me: object, wait: Wait) -> None:
        self.locks[0]._refuse_if_unusable()  # what holds it there is the parent
        with self._mutex:
            if self._holder is not None:
                raise RuntimeError("this LockSet is held, or being acquired, already; sets are not re-entrant")
            self._holder = me
        for member in self._members:
            level = AcquireReturnProxy(member.lock, may_move=True)
            member.lock._acquire(member.mode, wait, level, member.at_most)
        self._is_held = True

    def release(self) -> None:
        """
        Release all locks.

        :raises LockNotHeldError: if the set is not held
        """
        self._release()

    def _release(self) -> LockLostError | None:
        if not self._is_held:
            raise LockNotHeldError("this LockSet is not held")
        errors: list[LockLostError | None] = []
        self._give_back(self._holder, errors)
        return next((error for error in errors if error is not None), None)

    def _give_back(self, holder: object, errors: list[LockLostError | None]) -> None:
        try:
            self._release_members(holder, errors)
        except BaseException:
            self._release_members(holder, errors)  # a signal's exception came between, and nothing may stay
            raise

    def _release_members(self, holder: object, errors: list[LockLostError | None]) -> None:
        # Whatever is left of them; nothing if ``holder`` does not have the set any more.
        if self._holder is not holder:
            return
        with ExitStack() as stack:  # each of them, whatever comes between
            for lock in self.locks:
                stack.callback(lambda lock: errors.append(lock._release(force=True)), lock)
        self._is_held = False
        self._enters = self._holder = None

    def __enter__(self) -> Self:
        # What another thread holds, or a parent before its fork(), or an outer block, is not this block's.
        if self._is_held and self._enters == threading.get_ident():
            self.locks[0]._refuse_if_unusable()
            self._enters = None
            return self
        me = object()
        try:
            self._acquire(me, Wait(self.locks[0]._limit_of_call(None, None)))
            return self
        except BaseException:
            self._give_back(me, [])
            raise

    def __exit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        error = self._release()
        if error is not None and exc_value is None:
            raise error


def _sorted(members: Iterable[_Member]) -> list[_Member]:
    return sorted(members, key=lambda member: os.fsencode(member.lock.lock_path))


def _several(paths: Paths) -> list[AnyPath]:
    # One path is what a caller means who gives one; its characters are not.
    return [paths] if isinstance(paths, str | bytes | os.PathLike) else list(paths)
