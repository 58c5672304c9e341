"""
How a lock is waited for: one driver for threads and for asyncio.

The story of an acquisition is a generator that yields what it needs done (a step that makes file-system calls, or a
pause) and never does it itself. :func:`run` does it in the calling thread, :mod:`nfsrwlock_core.aio` on an event loop.
So timeouts, back-off, giving up and cleaning up exist once.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import ref

from nfsrwlock_core import trace
from nfsrwlock_core.errors import LockError, path_error
from nfsrwlock_core.inspection import PeerInfo, WaitInfo, watched_peers
from nfsrwlock_core.names import Announcement, Mode
from nfsrwlock_core.protocol.heartbeat import Phase, World, fresh_token
from nfsrwlock_core.protocol.participant import Participant
from nfsrwlock_core.protocol.watch import Watch
from nfsrwlock_core.settings import Settings
from nfsrwlock_core.system import workers
from nfsrwlock_core.system.clock import now, wall_clock
from nfsrwlock_core.system.connection import standstill
from nfsrwlock_core.system.directory import LockDirectory
from nfsrwlock_core.system.mounts import mountpoint
from nfsrwlock_core.system.process import current_identity, is_dead, is_same_kernel, own_record
from nfsrwlock_core.system.removals import Removals
from nfsrwlock_core.trace import logger

from . import kept
from .held import SelfWait
from .hold import Hold

if TYPE_CHECKING:
    from nfsrwlock_core.compat import Timeout

#: How long after its deadline a call that the file server does not answer is given up, seconds.
GRACE_S: Final = 2.0
#: How many calls that were given up may hang on one file system before later attempts on it wait until one ends.
_HANGING_MOST: Final = 4
#: How often a waiter looks whether it waits for itself, seconds.
_SELF_WAIT_S: Final = 0.1
#: How often a withdrawal is tried while the server refuses it, and the pause in between, seconds.
_GIVE_UP_TRIES: Final = 10
_GIVE_UP_PAUSE_S: Final = 0.2
#: How often in a row a step begins anew at once because its directory was removed under it.
_REMOVALS_MOST: Final = 5
#: What may pass: the server restarts, its handle is stale, the directory was replaced. All else is raised at once.
_PASSING: Final = frozenset(
    number
    for name in (
        *("ESTALE", "EIO", "ETIMEDOUT", "EAGAIN", "EBUSY", "ENOENT", "EINTR", "EEXIST", "ENOTEMPTY", "EREMOTEIO"),
        *("ENOLINK", "ENXIO", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ECONNREFUSED", "ECONNRESET"),
        *("ECONNABORTED", "EPIPE", "ESHUTDOWN", "ENOTCONN"),
    )
    if (number := getattr(errno, name, None)) is not None
)

WORLD: Final = World(clock=now, is_dead=is_dead, token=fresh_token, standstill=standstill, evicted=trace.log_eviction)


@lru_cache(maxsize=256)
def _watch(lock_path: str) -> Watch:
    # What this process knows of the peers on a lock, by whatever lock object it asks.
    del lock_path
    return Watch()


@dataclass(frozen=True, slots=True)
class Io:
    """
    Ask the runner to make file-system calls.

    :param limit: when to stop waiting for them (``time.monotonic``); ``None``: never
    :param closing: they clean up after an attempt that failed
    """

    call: Callable[[], Any]
    limit: float | None
    closing: bool = False


class Unanswered(Exception):
    """The file server did not answer a step in time, which may still be under way, or the text says why else."""


#: Attempts that nobody waits for any more, and of which a call is still under way.
_unanswered: Final[set[Attempt]] = set()
os.register_at_fork(after_in_child=_unanswered.clear)  # threads do not survive a fork


@dataclass(frozen=True, slots=True)
class Pause:
    """Ask the runner to do nothing for so many seconds, or until ``removals`` tells of one."""

    seconds: float
    removals: Removals | None


#: What an acquisition asks its runner for.
Steps = Generator[Io | Pause, Any, Hold]
OnWait = Callable[[WaitInfo], object]
Until = Callable[[], bool]


class Wait:
    """
    How long a call may wait from now on, and what goes on meanwhile.

    :param limit: seconds; 0: it does not wait; -1: no limit
    :param on_wait: called before each pause
    :param until: asked before each pause; once true, the call ends like one whose time is up
    """

    def __init__(self, limit: float, on_wait: OnWait | None = None, until: Until | None = None) -> None:
        self.began: Final = time.monotonic()
        #: When its time is up (``time.monotonic``).
        self.deadline: Final = None if limit < 0 else self.began + limit
        self.on_wait: Final = on_wait
        self.until: Final = until

    def left(self) -> float | None:
        """Return how many seconds are left; ``None``: no limit."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)


class Attempt:
    """
    One attempt at one lock, with what it needs on disk.

    :param settings: of the lock
    :param mode: shared or exclusive
    :param device: the file system of the lock, if an earlier attempt has found and checked it
    :param wait: how it waits
    :param is_closed: like its ``until``, asked by the lock itself
    :param task: of asyncio, for which it is; ``None``: for the calling thread
    :param at_most: how many readers with a limit may hold at a time, this one among them; 0: no limit
    """

    def __init__(
        self,
        settings: Settings,
        mode: Mode,
        wait: Wait,
        *,
        device: int | None = None,
        is_closed: Callable[[], bool] = lambda: False,
        task: ref[Any] | None = None,
        at_most: int = 0,
    ) -> None:
        self.settings: Final = settings
        self.mode: Final = mode
        self.wait: Final = wait
        self.is_closed: Final = is_closed
        self.trouble: OSError | None = None
        #: How many steps in a row have met a directory that was removed.
        self._removals = 0
        # A directory that comes and goes may be another one each time, and somebody else's: it is checked each time.
        self._files: Final = LockDirectory(settings.lock_path, settings.share, device if settings.numbered else None)
        who = current_identity()
        wall = time.time_ns()
        self._participant: Final = Participant(
            self._files,
            WORLD,
            who,
            mode,
            at_most=at_most,
            numbered=settings.numbered,
            ttl=settings.stale_threshold,
            interval=settings.beat_interval,
            ticket=wall // 1000,
            since_ms=wall // 1_000_000,
            record=own_record(who.pid),
            watch=_watch(settings.lock_path),
        )
        self._pid: Final = who.pid
        #: What all records of its steps say.
        self.facts: Final[dict[str, Any]] = {"lock": settings.lock_path, "mode": mode, "attempt": wall // 1000}
        if at_most:
            self.facts["at_most"] = at_most
        self._self_wait: Final = SelfWait(settings.lock_file, mode, task, at_most)
        #: Of the announcements of those in the way.
        self.removals: Removals | None = None
        self._is_abandoned = False
        # A step that hangs in a thread and its withdrawal must not overlap. Re-entrant, for a signal's exception may
        # come right after it was taken.
        self._mutex = threading.RLock()

    def is_held_up(self) -> bool:
        """Whether so many earlier calls to this file system hang that this attempt must not add one to them."""
        if self._participant.phase is not Phase.OUTSIDE:
            return False
        place = mountpoint(self.settings.lock_path)
        hanging = sum(mountpoint(other.settings.lock_path) == place for other in tuple(_unanswered))
        if hanging < _HANGING_MOST:
            return False
        self.trouble = OSError(f"nothing: {hanging} earlier calls to it still hang")
        return True

    def step(self) -> Hold | None:
        """
        Make the next step: file-system calls that may take as long as the server does.

        :returns: the hold, once the lock is granted
        :raises LockError: if the lock cannot live here
        :raises OSError: for trouble that will not pass by itself
        """
        if self._pid != os.getpid():
            raise RuntimeError(f"acquiring {self.settings.lock_file!r} was under way in the parent of this fork()")
        participant = self._participant
        try:
            with self._mutex:
                if participant.is_over:
                    return None
                wall_clock.look()
                if self.mode is Mode.WRITE:
                    kept.make_way(self.settings.lock_path)
                try:
                    self._files.open()
                    evictions = -1
                    while evictions < participant.evictions:  # who was in the way is gone: no reason to wait
                        evictions = participant.evictions
                        if participant.advance():
                            if self.removals is not None:
                                self._stop_listening()
                            settings, device = self.settings, self._files.device or 0
                            hold = Hold(participant, settings.lock_file, device, settings.on_compromise)
                            if hold.remaining < 0:  # there was a pause, of which only the wall clock knows
                                hold.beat()
                            return hold
                    self._listen()
                finally:
                    self._files.close()
            self.trouble, self._removals = None, 0
        except LockError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE) and self._removals < _REMOVALS_MOST:
                # Who was last in the directory removed it after it was opened here. An NFS client finds the next one
                # as soon as it opens the path to list it; otherwise it might find the old one for a minute.
                self._removals += 1
                with suppress(OSError):
                    self._files.listdir()
                return self.step()
            self._judge(error)
        finally:
            if participant.is_over:  # given up meanwhile, and left to whoever is here
                self.give_up()
        return None

    def _listen(self) -> None:
        near = [peer for peer in self._participant.awaited() if peer.who is not None and is_same_kernel(peer.who)]
        if near:
            with suppress(ValueError):  # there are no more: it looks again after its pause
                removals = self.removals = self.removals or Removals()
                for peer in near:
                    removals.watch(f"{self.settings.lock_path}/{peer.name}")
        else:
            self._stop_listening()

    def _stop_listening(self) -> None:
        removals, self.removals = self.removals, None
        if removals is not None:
            workers.enqueue(removals.close)  # which takes the kernel 10 ms

    def _judge(self, error: OSError) -> None:
        permanent = path_error(error, self.settings.lock_path)
        if permanent is not None:
            raise permanent from error
        if error.errno not in _PASSING:
            raise error
        if self.trouble is None:
            logger.info("acquiring the lock on %r meets %s; trying again", self.settings.lock_file, error)
        self.trouble = error

    def give_up(self) -> None:
        """
        Withdraw from the disk, whatever the last step left there; tries again while the server refuses.

        Where the last step still hangs, its own thread does that when it ends.
        """
        if self._pid != os.getpid():
            return  # what a forked child unwinds is its parent's, and on disk it must stay
        self._participant.is_over = True
        _unanswered.add(self)
        if not self._mutex.acquire(timeout=GRACE_S):
            return
        try:
            self._withdraw()
        finally:
            self._stop_listening()
            self._mutex.release()
            _unanswered.discard(self)  # last: see abandon()

    def _withdraw(self) -> None:
        for _ in range(_GIVE_UP_TRIES if self._participant.phase is not Phase.ENDED else 0):
            try:
                self._participant.give_up()
            except FileNotFoundError:
                return  # the lock directory itself is gone, and with it all that we made
            except OSError as error:
                if error.errno not in _PASSING:
                    return  # nothing can be made or removed there
                time.sleep(_GIVE_UP_PAUSE_S)
            else:
                return

    def settle(self) -> None:
        """Give up if that has not been done: an exception may come between any two steps, and the first to give up."""
        if not self._is_abandoned:
            self.give_up()

    def abandon(self) -> None:
        """Give up in the background: what hangs does it when it ends, and if nothing hangs, another thread."""
        self._participant.is_over = self._is_abandoned = True
        _unanswered.add(self)
        self._stop_listening()  # now: what hangs may do so for hours
        if self._mutex.acquire(blocking=False):
            _unanswered.discard(self)
            self._mutex.release()
            workers.enqueue(self.give_up)

    def timed_out(self, waited: float) -> Timeout:
        """Return the error that says who was in the way."""
        from nfsrwlock_core.compat import Timeout  # noqa: PLC0415 - filelock is as long in coming as all of the engine

        lock_file = self.settings.lock_file
        peers = self._peers()
        if peers:
            holders = tuple(peer for peer in peers if peer.state == "holding")
            more = f" (and {len(holders) - 1} more)" if len(holders) > 1 else ""
            ahead = "" if len(peers) == len(holders) else f"; {peers[-1].describe()}"
            return Timeout(
                lock_file, f"after {waited:.1f} s it is held by {holders[0].describe()}{more}{ahead}", holders
            )
        if self.trouble is not None:
            return Timeout(lock_file, f"the file system answers {self.trouble}")
        return Timeout(lock_file, f"others came first for {waited:.1f} s")

    def _peers(self) -> tuple[PeerInfo, ...]:
        participant = self._participant
        return watched_peers(participant.others, participant.watch, now()) if participant.blockers else ()

    def log_end(self, error: BaseException, waited: float) -> None:
        """Log that it ends without the lock."""
        text = str(error) or type(error).__name__
        facts = {"event": "gave up", **self.facts, "waited": waited, "error": text}
        trace.log(logging.DEBUG, "gave up the lock on %r: %s", self.settings.lock_file, text, extra=facts)

    def wait_info(self, waited: float) -> WaitInfo:
        """Return how things stand."""
        blockers = self._peers()
        mode: Literal["read", "write"] = self.mode.value
        trouble = None if self.trouble is None else str(self.trouble)
        return WaitInfo(
            lock_file=self.settings.lock_file,
            mode=mode,
            waited=waited,
            blockers=blockers,
            trouble=trouble,
            warning=self._self_wait.warning,
        )

    def refuse_self_wait(self) -> None:
        """
        Look whether it waits for a hold that cannot end before the waiting does; asks nothing of the lock's files.

        :raises DeadlockError: if it does
        """
        is_endless = self.wait.deadline is None and self.wait.until is None and self.wait.on_wait is None
        self._self_wait.look(self._participant, is_endless=is_endless)

    def pause(self, waited: float) -> float:
        """Return how long to pause before the next step, in seconds."""
        chance = int.from_bytes(os.urandom(2)) / 0x10000
        return self._participant.pause(waited, self.settings.poll_interval, chance)


def acquiring(attempt: Attempt) -> Steps:
    """
    Tell the story of one acquisition.

    :returns: a granted hold, which nobody beats for yet
    :raises Timeout: if the time is up or ``until`` says so
    :raises DeadlockError: if the lock is held until an ancestor of this process ends, or by the caller itself
    :raises LockError: if the lock cannot live at its path
    """
    started, wait = time.monotonic(), attempt.wait
    deadline, looks = wait.deadline, started
    in_the_way: tuple[Announcement, ...] | None = None
    limit = None if deadline is None else deadline + GRACE_S
    try:
        while True:
            hold: Hold | None = None if _unanswered and attempt.is_held_up() else (yield Io(attempt.step, limit))
            if hold is not None:
                granted = hold.participant
                facts = {"event": "granted", **attempt.facts, "announcement": granted.name}
                facts["waited"] = time.monotonic() - started
                if granted.generation is not None:
                    facts["generation"] = granted.generation
                if in_the_way:
                    facts["by"] = trace.in_brief(in_the_way)
                trace.log(logging.DEBUG, "acquired the lock on %r to %s", hold.lock_file, attempt.mode, extra=facts)
                return hold
            moment = time.monotonic()
            waited = moment - started
            is_over = (deadline is not None and moment >= deadline) or attempt.is_closed()
            if is_over or (wait.until is not None and wait.until()):
                raise (yield Io(partial(attempt.timed_out, moment - wait.began), None))
            is_first, in_the_way = in_the_way is None, attempt._participant.blockers
            if is_first:
                facts = {"event": "asked", **attempt.facts, "by": trace.in_brief(in_the_way)}
                file = attempt.settings.lock_file
                trace.log(logging.DEBUG, "waiting for the lock on %r to %s", file, attempt.mode, extra=facts)
            if moment >= looks:
                looks = moment + _SELF_WAIT_S
                yield Io(attempt.refuse_self_wait, None)  # reads /proc
            if wait.on_wait is not None:
                wait.on_wait((yield Io(partial(attempt.wait_info, waited), None)))
            pause = attempt.pause(waited)
            yield Pause(pause if deadline is None else min(pause, max(deadline - moment, 0.0)), attempt.removals)
            if attempt.removals is not None:
                with suppress(ValueError):  # a forked child's is closed
                    attempt.removals.read()  # now: if the next look fails, the pause after it would end at once
    except Unanswered as error:
        attempt.abandon()
        seconds = time.monotonic() - started
        from nfsrwlock_core.compat import Timeout  # noqa: PLC0415

        reason = f"the file server has not answered for {seconds:.0f} s; what the call still makes will be withdrawn"
        late = Timeout(attempt.settings.lock_file, str(error) or reason)
        attempt.log_end(late, seconds)
        raise late from None
    except GeneratorExit:
        attempt.abandon()
        raise  # the runner was interrupted: no wish of ours would be granted any more
    except BaseException as error:
        attempt.log_end(error, time.monotonic() - started)
        try:
            yield Io(attempt.give_up, None if limit is None else time.monotonic() + GRACE_S, closing=True)
        except Unanswered:
            attempt.abandon()
        raise


def run(steps: Steps) -> Hold:
    """Run the story in the calling thread."""
    try:
        wish = next(steps)
        while True:
            try:
                if isinstance(wish, Pause):
                    (time.sleep if wish.removals is None else wish.removals.wait)(wish.seconds)
                    result = None
                elif wish.limit is None:
                    result = wish.call()
                else:
                    result = _answer(wish, wish.limit)
            except BaseException as error:
                wish = steps.throw(error)
            else:
                wish = steps.send(result)
    except StopIteration as end:
        hold: Hold = end.value
        return hold


def _answer(wish: Io, limit: float) -> Any:
    # In another thread, because a call to a hard-mounted server that is down cannot be interrupted.
    try:
        return workers.call(wish.call, max(limit - time.monotonic(), 0.1))
    except TimeoutError as error:  # no call raises one of its own: a step takes the server's for trouble that may pass
        raise Unanswered(str(error)) from None
