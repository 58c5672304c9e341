"""
The reader/writer lock for programs: threads, re-entrancy, forks, one instance per path, ``with`` statements.

The names and their meaning are those of filelock's class of the same name, so that changing the import is enough. What
happens on disk is in :mod:`nfsrwlock_core.protocol.participant`, and the waiting in
:mod:`nfsrwlock_core.holding.waiting`; this is only the part that concerns one process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from .errors import LockError, LockLostError, LockNotHeldError
from .holding.hold import Hold, HoldStatus
from .holding.kept import Use
from .holding.waiting import Attempt, acquiring, run
from .inspection import WaitInfo
from .names import Mode
from .protocol.watch import Watch
from .settings import HasSettings, Heartbeat, Settings, checked, checked_timeout
from .singletons import OnePerPath, offer, register
from .system.directory import Share
from .system.paths import AnyPath
from .system.workers import submit
from .witness import HoldWitness

if TYPE_CHECKING:
    from filelock import LeaseCompromise

OnWait = Callable[[WaitInfo], None]


@dataclass(slots=True)
class _Held:
    """What exists only while the lock is held."""

    use: Use
    hold: Hold
    mode: Mode
    writer: int | None
    levels: dict[int, int] = field(default_factory=dict)

    def set_level(self, thread: int | None, level: int) -> None:
        """Set the level of one thread, or of all; to do it twice is to do it once."""
        if thread is None:
            self.levels.clear()
        elif level:
            self.levels[thread] = level
        else:
            self.levels.pop(thread, None)


@dataclass(frozen=True, slots=True)
class _GivenBack:
    """What a release has decided to do, noted before it is done."""

    held: _Held
    thread: int | None
    level: int

    def do(self) -> None:
        self.held.set_level(self.thread, self.level)


class AcquireReturnProxy:
    """What an acquire returns: leaving a ``with`` block on it releases one level of the lock."""

    def __init__(self, lock: SoftReadWriteLock) -> None:
        self.lock: Final = lock

    def __enter__(self) -> SoftReadWriteLock:
        return self.lock

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.lock._leave_block(exc_value)


class SoftReadWriteLock(HasSettings, metaclass=OnePerPath):
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
    ) -> None:
        self._set_up(
            checked(
                lock_file,
                timeout=timeout,
                blocking=blocking,
                is_singleton=is_singleton,
                heartbeat_interval=heartbeat_interval,
                stale_threshold=stale_threshold,
                poll_interval=poll_interval,
                on_compromise=on_compromise,
                heartbeat=heartbeat,
                share=share,
                lock_dir=lock_dir,
                linger=linger,
            )
        )

    def _set_up(self, settings: Settings) -> None:
        super()._set_up(settings)
        self._pid = os.getpid()
        # Re-entrant, for a signal's handler may use the lock. Who acquires it twice at a time in one thread is refused.
        self._internal = threading.RLock()
        self._turn = threading.RLock()
        self._held: _Held | None = None
        self._latest_compromise: LeaseCompromise | None = None
        self._closed = False
        self._watch = Watch()
        self._device: int | None = None
        register(self)

    @classmethod
    def get_lock(cls, lock_file: AnyPath, timeout: float = -1, *, blocking: bool = True) -> Self:
        """
        Return this process's instance for ``lock_file``, making it if there is none.

        :raises ValueError: if it exists with another ``timeout`` or ``blocking``
        """
        return cls(lock_file, timeout, blocking=blocking)

    # -- what it is ---------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.lock_file!r}, {self.status.value}>"

    # -- whether it is held -------------------------------------------------------------------------------------------

    @property
    def is_locked(self) -> bool:
        """Whether this instance holds the lock, by whatever thread, and has not lost it."""
        return self.status is HoldStatus.HELD

    @property
    def status(self) -> HoldStatus:
        """Whether the lock is held by this instance, suspect, lost or free."""
        held = self._held_here()
        return HoldStatus.FREE if held is None else held.hold.status

    @property
    def lease_remaining(self) -> float | None:
        """
        Seconds until the hold becomes suspect unless a heartbeat renews it.

        Negative while it is suspect, 0 once it is lost, ``None`` when not held.
        """
        held = self._held_here()
        return None if held is None else held.hold.remaining

    @property
    def generation(self) -> int | None:
        """
        The fencing number, ``None`` when not held.

        Of a write: the number of its grant, higher than that of every earlier one. A store that refuses numbers lower
        than the highest it has seen refuses a writer that went on after it was evicted. Of a read: the number of the
        latest write before it, which serves as the version of the data; reading it costs a few file-system calls the
        first time. Removing the lock directory starts the numbers anew.

        :raises OSError: if the lock directory cannot be read
        """
        held = self._held_here()
        return None if held is None else held.hold.participant.read_generation()

    @property
    def compromise(self) -> LeaseCompromise | None:
        """How the latest hold was lost, ``None`` while it stands. Readable until the next hold begins."""
        with self._internal:
            return self._latest_compromise if self._held is None else self._held.hold.compromise

    def check(self) -> None:
        """
        Make sure that the lock is still held. Costs no file-system call; call it right before a result is published.

        :raises LockLostError: if somebody has evicted this holder
        :raises LeaseExpiredError: if the lease has run out, so that somebody may have
        :raises LockNotHeldError: if it is not held at all
        """
        held = self._held_here()
        if held is None:
            raise LockNotHeldError(f"the lock on {self.lock_file!r} is not held by this instance")
        if (error := held.hold.error()) is not None:
            raise error

    def witness(self) -> HoldWitness:
        """
        Return what other processes can check this hold by, such as children that work under it; it can be pickled.

        :raises LockLostError: if the hold was lost
        :raises LockNotHeldError: if the lock is not held
        """
        self.check()
        held = self._held_here()
        if held is None:
            raise LockNotHeldError(f"the lock on {self.lock_file!r} is not held by this instance")
        participant = held.hold.participant
        return HoldWitness(self.lock_file, self.lock_path, participant.name, participant.beats)

    def _held_here(self) -> _Held | None:
        return self._held if self._pid == os.getpid() else None

    # -- acquire ------------------------------------------------------------------------------------------------------

    def acquire_read(
        self, timeout: float | None = None, *, blocking: bool | None = None, on_wait: OnWait | None = None
    ) -> AcquireReturnProxy:
        """
        Take the lock shared. Re-entrant: if this instance holds it shared already, its level is raised.

        :param timeout: seconds; ``None``: the instance's; -1: no limit
        :param blocking: ``False``: do not wait; ``None``: as the instance says
        :param on_wait: called before each pause while waiting
        :returns: a proxy that releases the lock at the end of a ``with`` block
        :raises Timeout: if it could not be had in time; says who holds it
        :raises LockPathError: if the lock cannot live at its path
        :raises LockLostError: if this instance's hold was lost; release it first
        :raises RuntimeError: if this instance holds it exclusively, was closed, or was inherited through ``fork``
        :raises TypeError: if ``timeout`` or ``blocking`` is of the wrong type
        :raises ValueError: if ``timeout`` is ``nan``, or negative and not -1
        """
        return self._acquire(Mode.READ, timeout, blocking, on_wait)

    def acquire_write(
        self, timeout: float | None = None, *, blocking: bool | None = None, on_wait: OnWait | None = None
    ) -> AcquireReturnProxy:
        """
        Take the lock exclusively. Re-entrant in the thread that holds it.

        Parameters, result and errors are those of :meth:`acquire_read`.

        :raises RuntimeError: if this instance holds it shared, or another thread holds it exclusively
        """
        return self._acquire(Mode.WRITE, timeout, blocking, on_wait)

    @contextmanager
    def read_lock(
        self, timeout: float | None = None, *, blocking: bool | None = None, on_wait: OnWait | None = None
    ) -> Iterator[None]:
        """
        Hold the lock shared for a ``with`` block. Parameters and errors are those of :meth:`acquire_read`.

        :raises LockLostError: at the end of the block, if the hold was lost in it and no other exception is on its way
        """
        yield from self._block(Mode.READ, timeout, blocking, on_wait)

    @contextmanager
    def write_lock(
        self, timeout: float | None = None, *, blocking: bool | None = None, on_wait: OnWait | None = None
    ) -> Iterator[None]:
        """
        Hold the lock exclusively for a ``with`` block. Parameters and errors are those of :meth:`acquire_write`.

        :raises LockLostError: at the end of the block, if the hold was lost in it and no other exception is on its way
        """
        yield from self._block(Mode.WRITE, timeout, blocking, on_wait)

    def _block(
        self, mode: Mode, timeout: float | None, blocking: bool | None, on_wait: OnWait | None
    ) -> Iterator[None]:
        taken: list[Mode] = []
        given_back: list[_GivenBack] = []
        try:
            self._acquire(mode, timeout, blocking, on_wait, taken)
            yield
            error = self._release(False, given_back)
        except BaseException:
            if taken and not given_back:
                with suppress(LockNotHeldError):
                    self._release(False)
            raise
        if error is not None:
            raise error

    def _acquire(
        self,
        mode: Mode,
        timeout: float | None,
        blocking: bool | None,
        on_wait: OnWait | None,
        taken: list[Mode] | None = None,
    ) -> AcquireReturnProxy:
        # `taken` holds the mode exactly while the caller has a level that it must give back. The exception of a
        # signal's handler may come at any moment, so it is changed together with what it tells about.
        self._refuse_after_fork()
        blocking = self.blocking if blocking is None else blocking
        limit = checked_timeout(self.timeout if timeout is None else timeout, blocking=blocking)
        taken = [] if taken is None else taken
        turn = self._turn
        try:
            self._acquire_in_turn(turn, mode, limit, blocking, on_wait, taken)
            return AcquireReturnProxy(self)
        except BaseException:
            while _is_mine(turn) and not self._is_acquiring(sys._getframe(1)):
                turn.release()
            if taken:
                taken.clear()
                self._release(False)
            raise

    def _acquire_in_turn(
        self, turn: threading.RLock, mode: Mode, limit: float, blocking: bool, on_wait: OnWait | None, taken: list[Mode]
    ) -> None:
        started = time.monotonic() if limit > 0 else 0.0
        if self._enter_again(mode, taken):
            return
        if _is_mine(turn) and self._is_acquiring(sys._getframe(2)):
            raise RuntimeError(f"the lock on {self.lock_file!r} is being acquired by this very thread")
        try:
            if not self._take_turn(limit):
                from .compat import Timeout  # noqa: PLC0415 - not needed while all goes well

                raise Timeout(self.lock_file, "another thread of this process is waiting for it already")
            if not self._enter_again(mode, taken):
                left = max(limit - (time.monotonic() - started), 0.0) if limit > 0 else limit
                self._acquire_anew(mode, left, blocking, on_wait, taken)
        finally:
            # As often as it is ours: not at all if an exception came before we had it, and more than once if a signal's
            # exception came right here the last time.
            while _is_mine(turn):
                turn.release()

    def _is_acquiring(self, frame: FrameType | None) -> bool:
        # Whether this call comes from within an acquire of this lock: from its on_wait, or from a signal's handler.
        while frame is not None:
            if frame.f_code is SoftReadWriteLock._acquire.__code__ and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _acquire_anew(
        self, mode: Mode, timeout: float, blocking: bool, on_wait: OnWait | None, taken: list[Mode]
    ) -> None:
        use = Use(self._settings, mode, self)
        attempt: Attempt | None = None
        hold: Hold | None = None
        done = False
        try:
            hold = use.join()
            if hold is None:
                attempt = Attempt(
                    self._settings,
                    mode,
                    watch=self._watch,
                    device=self._device,
                    on_wait=on_wait,
                    cancelled=lambda: self._closed,
                )
                hold = run(acquiring(attempt, timeout=timeout, blocking=blocking))
                self._device = hold.device
            with self._internal:
                self._refuse_if_closed()
                use.begin(hold)
                me = threading.get_ident()
                self._held = _Held(use, hold, mode, me if mode is Mode.WRITE else None, {me: 1})
                use.threads = self._held.levels
                self._latest_compromise = None
                taken.append(mode)
            done = True
        except TimeoutError:
            self._refuse_if_closed()
            raise
        finally:
            if not done:  # also when a signal's exception came right after the grant: nobody would ever release it
                taken.clear()
                self._held = None
                use.end(hold)
                if attempt is not None:
                    attempt.settle()

    def _take_turn(self, limit: float) -> bool:
        # One thread of the process at a time waits on disk; the others wait for it here.
        if limit == 0:
            return self._turn.acquire(blocking=False)
        return self._turn.acquire(timeout=min(limit, threading.TIMEOUT_MAX) if limit > 0 else -1)

    def _enter_again(self, mode: Mode, taken: list[Mode]) -> bool:
        # Raises the level of a hold that this instance has; returns whether it has one.
        with self._internal:
            self._refuse_if_closed()
            held = self._held
            if held is None:
                return False
            me = threading.get_ident()
            if held.mode is not mode:
                direction = "downgrade" if mode is Mode.READ else "upgrade"
                raise RuntimeError(
                    f"cannot take the {mode.value} lock on {self.lock_file!r}: this instance holds a "
                    f"{held.mode.value} lock; {direction} not allowed{_holders(held, me)}"
                )
            if mode is Mode.WRITE and held.writer != me:
                raise RuntimeError(
                    f"cannot take the write lock on {self.lock_file!r} in thread {me}{_holders(held, me)}"
                )
            if (error := held.hold.error()) is not None:
                raise error  # joining it would mean to work under a lock that others may hold
            held.levels[me] = held.levels.get(me, 0) + 1
            taken.append(mode)
            return True

    def _refuse_after_fork(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(f"the lock on {self.lock_file!r} was invalidated by fork(); make a new one in the child")

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError(f"the lock on {self.lock_file!r} has been closed")

    # -- release ------------------------------------------------------------------------------------------------------

    def release(self, *, force: bool = False) -> None:
        """
        Give back one level; the last one ends the hold. In a forked child this does nothing.

        :param force: give back all levels, of all threads
        :raises RuntimeError: if the lock is not held, or not by this thread, and ``force`` is false
        """
        self._release(force)

    def close(self) -> None:
        """Release the lock if it is held, and refuse to be acquired from now on. An acquire under way gives up."""
        if self._pid != os.getpid():
            return
        with self._internal:
            self._closed = True
        self._release(True)

    def _leave_block(self, exception: BaseException | None) -> None:
        error = self._release(False)
        if error is not None and exception is None:
            raise error

    def _release(self, force: bool, given_back: list[_GivenBack] | None = None) -> LockLostError | None:
        # Returns what to tell a caller who believes that the work under the lock was guarded to the end. `given_back`
        # is empty exactly as long as nothing was released.
        given_back = [] if given_back is None else given_back
        try:
            if self._pid != os.getpid():
                return None
            return self._give_back(force, given_back)
        except LockError:
            raise
        except BaseException:
            # A signal's exception came between. What a `with` block's end was to release must go all the same.
            if not given_back:
                with suppress(LockNotHeldError):
                    self._give_back(force, given_back)
            else:
                self._finish(given_back[0])
            raise

    def _give_back(self, force: bool, given_back: list[_GivenBack]) -> LockLostError | None:
        with self._internal:
            held = self._held
            if held is None:
                if force:
                    return None
                raise LockNotHeldError(f"cannot release the lock on {self.lock_file!r}: it is not held")
            decided = self._decide(held, force=force)
            given_back.append(decided)
            decided.do()
            if held.levels:
                return held.hold.error()
            self._latest_compromise = held.hold.compromise
            self._held = None
        if held.use.end():
            return None
        self._latest_compromise = held.hold.compromise or self._latest_compromise
        return held.hold.lost_error()

    def _finish(self, decided: _GivenBack) -> None:
        held = decided.held
        with self._internal:
            if self._held is held:
                decided.do()
                if held.levels:
                    return
                self._held = None
        submit(held.use.end)

    def _decide(self, held: _Held, *, force: bool) -> _GivenBack:
        me = threading.get_ident()
        if force:
            return _GivenBack(held, None, 0)
        if me not in held.levels:
            if me != held.hold.callback_thread:
                whose = f"while it is held by thread {held.writer}" if held.writer else "which does not hold it"
                raise LockNotHeldError(f"cannot release the lock on {self.lock_file!r} in thread {me}, {whose}")
            me = next(iter(held.levels))  # on_compromise may release what it was told is lost
        return _GivenBack(held, me, held.levels[me] - 1)

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
        self._turn = threading.RLock()
        self._held = None


def _holders(held: _Held, me: int) -> str:
    # What to do about a hold that is only other threads'.
    if me in held.levels:
        return ""
    names = ", ".join(map(str, sorted(held.levels)))
    return f"; it is held by thread {names}. To wait for it, use a lock object of this thread's own: is_singleton=False"


def _is_mine(turn: Any) -> bool:
    # What threading.Condition asks of an RLock, too; both implementations have it.
    return bool(turn._is_owned())
