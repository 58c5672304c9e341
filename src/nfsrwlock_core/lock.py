"""
The reader/writer lock for programs: threads, re-entrancy, forks, one instance per path, ``with`` statements.

The names and their meaning are those of filelock's class of the same name, so that changing the import is enough. What
happens on disk is in :mod:`nfsrwlock_core.protocol.participant`, and the waiting in
:mod:`nfsrwlock_core.holding.waiting`; this is only the part that concerns one process.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Self

from .errors import DeadlockError, LockError, LockLostError, LockNotHeldError
from .holding.held import own_hold, self_wait
from .holding.hold import Hold, HoldStatus
from .holding.kept import Use
from .holding.waiting import Attempt, OnWait, Until, Wait, acquiring, run
from .names import Mode
from .settings import HasSettings, Heartbeat, Settings, checked, checked_limit
from .singletons import OnePerPath, offer, register
from .system.directory import Share
from .system.paths import AnyPath
from .system.workers import submit
from .witness import HoldWitness

if TYPE_CHECKING:
    from filelock import LeaseCompromise


class AcquireReturnProxy:
    """
    What an acquire returns: one level of the lock, which the end of a ``with`` block on it gives back, in any thread.

    It exists before it is taken, and giving it back twice does no harm. So an exception that a signal's handler raises
    in the middle of either leaves nothing of it behind.
    """

    def __init__(self, lock: SoftReadWriteLock, *, may_move: bool = False) -> None:
        self.lock: Final = lock
        self._thread: Final = threading.get_ident()
        self._may_move: Final = may_move
        #: What may have left something on disk.
        self._attempt: Attempt | None = None
        #: What it is a level of, until it has been given back.
        self._use: Use | None = None
        #: Gets an entry when it is this one's turn to wait on disk.
        self._called: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __enter__(self) -> SoftReadWriteLock:
        return self.lock

    def __exit__(self, exc_type: object, exc_value: BaseException | None, traceback: object) -> None:
        error = self.lock._release(self)
        if error is not None and exc_value is None:
            raise error


@contextmanager
def joined(
    lock: SoftReadWriteLock,
    mode: Literal["read", "write"],
    timeout: float | None = None,
    *,
    blocking: bool | None = None,
    until: Until | None = None,
) -> Iterator[SoftReadWriteLock]:
    """
    Hold the path of ``lock`` for a block: by the hold that the calling thread has on it already, else by ``lock``.

    Who holds a path shared and asks for it again would queue behind a writer that waits for the first hold, and neither
    would ever go on. Only the same thread's hold is joined: if all threads of a process joined each other's, a writer
    might never have its turn.

    :param mode: ``"read"`` joins a shared or an exclusive hold, ``"write"`` an exclusive one
    :returns: the lock by which it is held
    :raises DeadlockError: if the thread holds it shared, and ``mode`` is ``"write"``

    The other parameters and errors are those of :meth:`SoftReadWriteLock.read_lock`.
    """
    wanted = Mode(mode)
    own = own_hold(lock.lock_path)
    if own is not None and own.mode is Mode.READ and wanted is Mode.WRITE:
        raise DeadlockError(self_wait(lock.lock_file, wanted, "this very thread", own.mode))
    if own is not None and isinstance(own.owner, SoftReadWriteLock):
        lock, wanted = own.owner, own.mode
    block = lock.read_lock if wanted is Mode.READ else lock.write_lock
    with block(timeout, blocking=blocking, until=until):
        yield lock


class HasHold(HasSettings):
    """What the locks for threads and for asyncio say of their hold: of the instance's, or of the calling task's."""

    _holder: ClassVar = "this instance"
    _latest_compromise: LeaseCompromise | None

    def _hold(self) -> Hold | None:
        raise NotImplementedError

    @property
    def status(self) -> HoldStatus:
        """Whether the lock is held, suspect, lost or free."""
        held = self._hold()
        return HoldStatus.FREE if held is None else held.status

    @property
    def is_locked(self) -> bool:
        """Whether the lock is held and was not lost."""
        return self.status is HoldStatus.HELD

    @property
    def lease_remaining(self) -> float | None:
        """
        Seconds until the hold becomes suspect unless a heartbeat renews it.

        Negative while it is suspect, 0 once it is lost, ``None`` when not held.
        """
        held = self._hold()
        return None if held is None else held.remaining

    @property
    def compromise(self) -> LeaseCompromise | None:
        """How the latest hold was lost, ``None`` while it stands. Readable until the next hold begins."""
        held = self._hold()
        return self._latest_compromise if held is None else held.compromise

    def check(self) -> None:
        """
        Make sure that the lock is still held. Costs no file-system call; call it right before a result is published.

        :raises LockLostError: if somebody has evicted this holder
        :raises LeaseExpiredError: if the lease has run out, so that somebody may have
        :raises LockNotHeldError: if it is not held at all
        """
        self._checked()

    def _checked(self) -> Hold:
        held = self._hold()
        if held is None:
            raise LockNotHeldError(f"the lock on {self.lock_file!r} is not held by {self._holder}")
        if (error := held.error()) is not None:
            raise error
        return held


class SoftReadWriteLock(HasHold, metaclass=OnePerPath):
    """
    A reader/writer lock, named by a path, for processes on any number of hosts that share a file system.

    Many readers or one writer. Writers are preferred: readers that come after a waiting writer wait behind it. Nothing
    rests on kernel locks, on clocks of hosts agreeing, or on time stamps; the protocol and its proof are in the
    project's documentation. Within a process it behaves as filelock's class of the same name: re-entrant, no upgrade or
    downgrade, a write belongs to its thread, one instance per path, and a forked child's copy is void.

    What it does not do: it cannot stop a process that goes on after its lease has run out (a machine that slept, a
    server out of reach). Such a process can know: :meth:`check`, ``on_compromise``, and the error at the end of the
    ``with`` block. Call :meth:`check` right before what was done is made final.

    :param lock_file: what the lock protects; it need not exist. The lock lives beside it, in ``<lock_file>.rwlock``
    :param timeout: seconds to wait at most; -1 waits without limit
    :param blocking: ``False`` raises :class:`Timeout` at once if the lock is not free
    :param is_singleton: give the instance that this process has for the path already
    :param heartbeat_interval: seconds between heartbeats of a holder
    :param stale_threshold: the lease, seconds: how long a holder may be silent before any host may evict it. By default
        three heartbeat intervals. The holder itself stops trusting its hold after nine tenths of that
    :param poll_interval: seconds between looks while waiting. The first pauses are shorter; after long waits they grow
        to four times that
    :param on_compromise: called with a :class:`filelock.LeaseCompromise` when the hold becomes suspect
        (``"refresh-failed"``) or lost (``"evicted"``), from a thread of this package
    :param heartbeat: ``"thread"``, or ``"process"`` for programs that hold the GIL for longer than a lease
    :param share: ``"user"``: only processes of one user take part; ``"group"``: members of the parent directory's group
    :param lock_dir: a directory to keep the lock in, for data in directories that cannot be written: its absolute path,
        the same for every process that shares the lock. Default: the environment's ``NFSRWLOCK_DIR``
    :param linger: for how many seconds from its grant, 10 at most, a shared hold may be kept after its release, for
        this process's next read with equal settings, which then makes no file-system call. It is kept if the lock was
        released less than that ago before. A writer elsewhere waits that much longer at most, one of this process not
        at all
    :param numbered: ``False`` for locks that come and go by the thousand: a write has no number of its own, which saves
        half of its requests, and who leaves last removes the lock directory. State the same wherever the lock is used
    :raises TypeError: if a setting is of the wrong type
    :raises ValueError: if settings are out of range or contradict each other or the path's existing instance
    """

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
    ) -> None:
        given = {**locals()}  # a copy: a debugger changes what locals() returns
        del given["self"]
        self._set_up(checked(**given))

    def _set_up(self, settings: Settings) -> None:
        super()._set_up(settings)
        self._internal = threading.RLock()  # re-entrant, for a signal's handler may use the lock
        self._held: Use | None = None
        #: Who acquires it anew, one for each thread. The first waits on disk; the others wait here.
        self._asking: list[AcquireReturnProxy] = []
        self._latest_compromise = None
        self._device: int | None = None
        register(self)

    @classmethod
    def get_lock(cls, lock_file: AnyPath, timeout: float = -1, *, blocking: bool = True) -> Self:
        """
        Return this process's instance for ``lock_file``, making it if there is none.

        :raises ValueError: if it exists with another ``timeout`` or ``blocking``
        """
        return cls(lock_file, timeout, blocking=blocking)

    # -- whether it is held --------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.lock_file!r}, {self.status.value}>"

    @property
    def generation(self) -> int | None:
        """
        The fencing number, ``None`` when not held.

        Of a write: the number of its grant, higher than that of every earlier one. A store that refuses numbers lower
        than the highest it has seen refuses a writer that went on after it was evicted. Of a read: the number of the
        latest write before it, which serves as the version of the data; reading it costs a few file-system calls the
        first time. Removing the lock directory starts the numbers anew, and a lock with ``numbered=False`` adds none.

        :raises OSError: if the lock directory cannot be read
        """
        held = self._hold()
        return None if held is None else held.participant.read_generation()

    def witness(self) -> HoldWitness:
        """
        Return what other processes can check this hold by, such as children that work under it; it can be pickled.

        :raises LockLostError: if the hold was lost
        :raises LockNotHeldError: if the lock is not held
        """
        participant = self._checked().participant
        return HoldWitness(self.lock_file, self.lock_path, participant.name, participant.beats)

    def _hold(self) -> Hold | None:
        return self._held.hold if self._held is not None and self._pid == os.getpid() else None

    # -- acquire ------------------------------------------------------------------------------------------------------

    def acquire_read(
        self,
        timeout: float | None = None,
        *,
        at_most: int | None = None,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> AcquireReturnProxy:
        """
        Take the lock shared. Re-entrant: if this instance holds it shared already, its level is raised.

        :param timeout: seconds; ``None``: the instance's; -1: no limit
        :param at_most: wait until fewer than that hold the lock with a limit, on all hosts; all must state the same.
            ``None``: no limit
        :param blocking: ``False``: do not wait; ``None``: as the instance says
        :param on_wait: called before each pause while waiting, unless another thread waits by this instance already
        :param until: asked before each pause; once it returns true, the waiting ends with :class:`Timeout`
        :returns: a proxy that releases the lock at the end of a ``with`` block
        :raises Timeout: if it could not be had in time; says who holds it
        :raises LockPathError: if the lock cannot live at its path
        :raises LimitMismatchError: if somebody who came first states another limit
        :raises LockLostError: if this instance's hold was lost; release it first
        :raises RuntimeError: if this instance holds it exclusively or with another limit, was closed, or was inherited
            through ``fork``
        :raises TypeError: if ``timeout``, ``at_most`` or ``blocking`` is of the wrong type
        :raises ValueError: if ``timeout`` is ``nan``, or negative and not -1, or ``at_most`` is below 1
        """
        limit = 0 if at_most is None else checked_limit("at_most", at_most)
        return self._acquire(Mode.READ, Wait(self._limit_of_call(timeout, blocking), on_wait, until), at_most=limit)

    def acquire_write(
        self,
        timeout: float | None = None,
        *,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> AcquireReturnProxy:
        """
        Take the lock exclusively. Re-entrant in the thread that holds it.

        Parameters, result and errors are those of :meth:`acquire_read`.

        :raises RuntimeError: if this instance holds it shared, or another thread holds it exclusively
        """
        return self._acquire(Mode.WRITE, Wait(self._limit_of_call(timeout, blocking), on_wait, until))

    @contextmanager
    def read_lock(
        self,
        timeout: float | None = None,
        *,
        at_most: int | None = None,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> Iterator[None]:
        """
        Hold the lock shared for a ``with`` block. Parameters and errors are those of :meth:`acquire_read`.

        :raises LockLostError: at the end of the block, if the hold was lost in it and no other exception is on its way
        """
        limit = 0 if at_most is None else checked_limit("at_most", at_most)
        yield from self._block(Mode.READ, Wait(self._limit_of_call(timeout, blocking), on_wait, until), limit)

    @contextmanager
    def write_lock(
        self,
        timeout: float | None = None,
        *,
        blocking: bool | None = None,
        on_wait: OnWait | None = None,
        until: Until | None = None,
    ) -> Iterator[None]:
        """
        Hold the lock exclusively for a ``with`` block. Parameters and errors are those of :meth:`acquire_write`.

        :raises LockLostError: at the end of the block, if the hold was lost in it and no other exception is on its way
        """
        yield from self._block(Mode.WRITE, Wait(self._limit_of_call(timeout, blocking), on_wait, until))

    def _block(self, mode: Mode, wait: Wait, at_most: int = 0) -> Iterator[None]:
        level = AcquireReturnProxy(self)
        try:
            self._acquire(mode, wait, level, at_most)
            try:
                yield
            except BaseException:
                with suppress(LockNotHeldError):
                    self._release(level)
                raise
            error = self._release(level)
        except BaseException:
            self._abandon(level)
            raise
        if error is not None:
            raise error

    def _acquire(
        self, mode: Mode, wait: Wait, level: AcquireReturnProxy | None = None, at_most: int = 0
    ) -> AcquireReturnProxy:
        level = AcquireReturnProxy(self) if level is None else level
        try:
            if self._join(mode, level, at_most):
                return level
            if self._asking[0] is not level:
                self._wait_for_turn(level, wait)
            if self._held is None or not self._join(mode, level, at_most):
                level._use = use = Use(self._settings, mode, self, at_most)
                hold = use.join()
                if hold is None:
                    level._attempt = Attempt(
                        self._settings, mode, wait, device=self._device, is_closed=lambda: self._closed, at_most=at_most
                    )
                    hold = run(acquiring(level._attempt))
                self._device, use.may_move = hold.device, level._may_move
                with self._internal:
                    self._refuse_if_unusable()
                    use.begin(hold)
                    use.levels[level] = level._thread
                    self._held, self._latest_compromise = use, None
                level._attempt = None
            self._end_turn(level)
            return level
        except BaseException as error:
            self._abandon(level)
            if isinstance(error, TimeoutError):
                self._refuse_if_unusable()
            raise

    def _join(self, mode: Mode, level: AcquireReturnProxy, at_most: int) -> bool:
        # Adds a level to the hold that this instance has. If it has none, puts the level in line, and returns False.
        with self._internal:
            self._refuse_if_unusable()
            use, me = self._held, level._thread
            if use is None:
                if level not in self._asking:
                    if me in [other._thread for other in self._asking]:  # from its on_wait, or a signal's handler
                        raise RuntimeError(f"the lock on {self.lock_file!r} is being acquired by this very thread")
                    self._asking.append(level)
                return False
            use.refuse_another(mode, at_most, "this instance", _holders(use, me))
            if mode is Mode.WRITE and me not in use.levels.values():
                raise RuntimeError(
                    f"cannot take the write lock on {self.lock_file!r} in thread {me}{_holders(use, me)}"
                )
            if use.hold is not None and (error := use.hold.error()) is not None:
                raise error  # joining it would mean to work under a lock that others may hold
            level._use = use
            use.levels[level] = me
            return True

    def _wait_for_turn(self, level: AcquireReturnProxy, wait: Wait) -> None:
        while self._asking[0] is not level:
            left, is_over = wait.left(), wait.until is not None and wait.until()
            pause = 0.0 if is_over else self.poll_interval
            with suppress(queue.Empty):
                level._called.get(timeout=pause if left is None else min(pause, left))
                continue
            if is_over or left == 0:
                from .compat import Timeout  # noqa: PLC0415 - not needed while all goes well

                raise Timeout(self.lock_file, "another thread of this process is waiting for it already")

    def _end_turn(self, level: AcquireReturnProxy) -> None:
        with self._internal:
            if level in self._asking:
                self._asking.remove(level)
            for following in self._asking[:1]:
                following._called.put(None)

    def _abandon(self, level: AcquireReturnProxy) -> None:
        # Whatever there is of it, for a caller that never learns of it.
        try:
            if (use := level._use) is not None and self._give_back(use, [level]):
                use.end()
            if level._attempt is not None:
                level._attempt.settle()
        finally:
            self._end_turn(level)

    # -- release ------------------------------------------------------------------------------------------------------

    def release(self, *, force: bool = False) -> None:
        """
        Give back one level; the last one ends the hold. In a forked child this does nothing.

        :param force: give back all levels, of all threads
        :raises RuntimeError: if the lock is not held, or not by this thread, and ``force`` is false
        """
        self._release(force=force)

    def close(self) -> None:
        """Release the lock if it is held, and refuse to be acquired from now on. An acquire under way gives up."""
        if self._pid != os.getpid():
            return
        with self._internal:
            self._closed = True
        self._release(force=True)

    def _release(self, level: AcquireReturnProxy | None = None, *, force: bool = False) -> LockLostError | None:
        # Gives back this level, or if it has been given back, the latest of this thread. Returns what to tell a caller
        # who believes that the work under the lock was guarded to the end.
        if self._pid != os.getpid():
            return None
        use: Use | None = None
        levels: list[AcquireReturnProxy] = []
        try:
            use, levels = self._to_give_back(level, force=force)
            if use is None or use.hold is None:
                return None
            if not self._give_back(use, levels):
                return use.hold.error()
            if use.end():
                return None
            self._latest_compromise = use.hold.compromise or self._latest_compromise
            return use.hold.lost_error()
        except LockError:
            raise
        except BaseException:
            # A signal's exception came between. What a `with` block's end was to release must go all the same.
            with suppress(LockNotHeldError):
                if use is None:
                    use, levels = self._to_give_back(level, force=force)
                if use is not None and self._give_back(use, levels):
                    submit(use.end)
            raise

    def _to_give_back(
        self, level: AcquireReturnProxy | None, *, force: bool
    ) -> tuple[Use | None, list[AcquireReturnProxy]]:
        me = threading.get_ident()
        with self._internal:
            use = self._held
            if use is None:
                if force:
                    return None, []
                raise LockNotHeldError(f"cannot release the lock on {self.lock_file!r}: it is not held")
            levels = list(use.levels)
            if force:
                return use, levels
            if level is not None and level in levels:
                return use, [level]
            if me in use.levels.values():
                return use, [one for one in levels if one._thread == me][-1:]
            if use.hold is not None and me == use.hold.callback_thread:
                return use, levels[-1:]  # on_compromise may release what it was told is lost
            is_write = use.mode is Mode.WRITE
            whose = f"while it is held by thread {levels[0]._thread}" if is_write else "which does not hold it"
            raise LockNotHeldError(f"cannot release the lock on {self.lock_file!r} in thread {me}, {whose}")

    def _give_back(self, use: Use, levels: list[AcquireReturnProxy]) -> bool:
        # Returns whether they were the last, so that the use must end. To do it twice is to do it once.
        with self._internal:
            for level in levels:
                use.levels.pop(level, None)
                level._use = None
            if use.levels:
                return False
            if use.hold is not None:
                self._latest_compromise = use.hold.compromise
            if self._held is use:
                self._held = None
        return True

    @classmethod
    def _restore(cls, settings: Settings) -> Self:
        # A lock arrives not held, so it never becomes the instance that this process may be holding.
        lock = super()._restore(settings)
        if settings.is_singleton:
            offer(lock)
        return lock

    def _void(self) -> None:
        # In a forked child: the hold is the parent's.
        self._internal = threading.RLock()
        self._asking = []
        self._held = None


def _holders(use: Use, me: int) -> str:
    # What to do about a hold that is only other threads'.
    threads = set(use.levels.values())
    if me in threads:
        return ""
    names = ", ".join(map(str, sorted(threads)))
    return f"; it is held by thread {names}. To wait for it, use a lock object of this thread's own: is_singleton=False"
