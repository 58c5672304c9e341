"""
The process that holds the locks for ``run`` and ``hold``, and how the other one sees it.

Two processes share the work, so that neither a kill nor a stop of one of them leaves the command writing without a
lock:

- The *keeper* holds the locks and beats. It runs nothing else, in a session of its own, out of the terminal's reach.
- The *guard* is the process that the user started. It owns the command and knows from the keeper until when the lease
  is good; it stops the command when that moment passes, whatever has become of the keeper by then.

If the keeper dies, the guard ends the command. If the guard dies, the keeper ends the command and only then releases
the locks. The keeper is forked before there is a lock or a thread, because a fork would invalidate holds.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final, NoReturn

from nfsrwlock.cli.channel import Channel
from nfsrwlock.cli.options import Request
from nfsrwlock.cli.outcome import CliError, Exit, as_cli_error
from nfsrwlock.leash import OnExpiry, now, why_not_held
from nfsrwlock.processes import KEEPER_NAME, WAKE_ALONE, Process, family, kill, leave_the_caller, prctl, readable, send
from nfsrwlock.text import PROGRAM, flush, printable
from nfsrwlock_core import (
    HoldStatus,
    LockError,
    LockLostError,
    LockPathError,
    LockSet,
    WaitInfo,
    end_trace,
    hold_for,
    inspect,
)

#: Sent to a keeper of ``hold``, it asks for the end of the hold, although what is guarded goes on.
GIVE_BACK: Final = signal.SIGUSR1
_CANCEL_GRACE_SECONDS: Final = 1.0
_FAREWELL_SECONDS: Final = 0.5
#: How long the end of the command is held back by a release that does not finish: the file server does not answer.
_PATIENCE_SECONDS: Final = 20.0


# What the keeper tells the guard. First the program that the command's name stands for: then all that there is to look
# at was looked at. While the locks are not free yet, what the wait is for, as text; if they cannot be had, the CliError
# to end with; and each of the Signals that somebody sends it, for `status` shows its number. What the guard tells the
# keeper: the number of the process that it guards, and HoldStatus.FREE when that has ended.


@dataclass(frozen=True, slots=True)
class Hold:
    """
    The locks are held; the lease runs out at ``deadline`` (see :func:`now`) unless a beat renews it.

    The last one is ``FREE``: its ``reason`` says why what was done was not guarded to its end, or is empty.

    :param generations: the grants' numbers, of the exclusive locks in the order in which they were asked for
    """

    status: HoldStatus
    deadline: float
    reason: str = ""
    generations: tuple[int, ...] = ()

    def at(self, moment: float) -> HoldStatus:
        """The status, by the clock of the process that asks."""
        if self.status is HoldStatus.HELD and moment >= self.deadline:
            return HoldStatus.SUSPECT
        return self.status


class Keeper:
    """The keeper as the guard sees it. Making one starts the process, which begins to acquire the locks."""

    def __init__(self, request: Request) -> None:
        self.request = request
        #: What the command's name stands for; ``None`` as long as the keeper only looks, and has made nothing.
        self.program: str | None = None
        self.channel, theirs = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        flush()
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            _keep_and_exit(request, theirs)
        theirs.close()

    def cancel(self) -> None:
        """
        Give up waiting: have what was announced withdrawn, and end the keeper.

        One that hangs is not waited for. If it has made something, it stays to withdraw that.
        """
        self.channel.close()
        # The later ones are for one that sleeps longer than that, and one that the file server hangs.
        for signum in (signal.SIGCONT, signal.SIGTERM, *([signal.SIGKILL] if self.program is None else [])):
            os.kill(self.pid, signum)
            if self._has_ended_within(_CANCEL_GRACE_SECONDS):
                return

    def _has_ended_within(self, seconds: float) -> bool:
        limit = time.monotonic() + seconds
        with suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if time.monotonic() >= limit:
                    return False
                time.sleep(0.002)
        return True

    def finish(self) -> str | None:
        """
        Have the locks released; return why what was done under them was not guarded to its end, or nothing.

        None: no answer came in time; the keeper goes on trying by itself.
        """
        self.channel.send(HoldStatus.FREE)
        limit = time.monotonic() + _PATIENCE_SECONDS
        while (left := limit - time.monotonic()) > 0:
            readable(self.channel.fileno(), seconds=left)
            for message in self.channel.receive():
                if isinstance(message, Hold) and message.status is HoldStatus.FREE:
                    self._has_ended_within(_FAREWELL_SECONDS)  # usually: it must not be left to a lazy init as a zombie
                    return message.reason
            if self.channel.closed:
                return "the process that held the lock has died"
        return None


def _keep_and_exit(request: Request, channel: Channel) -> NoReturn:
    """Be the keeper. Nothing may unwind into the guard's stack, of which this process has a copy."""
    with suppress(BaseException):
        leave_the_caller(KEEPER_NAME, keep=[channel.fileno()])
        sys.argv[0] = PROGRAM  # what `status` shows people
        try:
            _keep(request, channel)
        except SystemExit:
            pass  # nobody waits any more
        except Exception as error:
            channel.send(as_cli_error(error, request.conflict_code))
        channel.close()
        outlast_the_server(request)
        end_trace()
    os._exit(0)


def _keep(request: Request, channel: Channel) -> None:
    signals = _Signals(channel, can_give_back=request.subject != 0)
    hold_for(request.subject or os.getppid())
    if not os.path.exists("/proc/self/stat"):
        raise CliError(
            "there is no /proc, without which nothing can be stopped if the lock is lost: mount it (proc(5))"
        )
    locks = LockSet(request.read, request.write, limited=request.limited, **request.settings)
    if not request.parents:
        for lock in locks.locks:
            home_of_lock(lock.lock_path)
    program = "" if request.subject else _find_program(request.command)
    channel.send(program)
    if signals.nobody_waits():  # all this may have taken long
        return

    wake_alone = cache(lambda: prctl(*WAKE_ALONE))  # the guard may be killed while the wait is suspended

    def on_wait(info: WaitInfo) -> None:
        wake_alone()  # once, and not for a free lock
        channel.send_news(f"to {info.mode} {info.lock_file}: {info.describe()}".removesuffix(": "))

    try:
        locks.acquire(on_wait=on_wait, until=signals.nobody_waits)
    finally:
        signals.may_end = False
    lost = ""
    try:
        with locks:
            _hold(request, locks, channel)
    except LockLostError as error:
        lost = str(error)
    channel.send(Hold(HoldStatus.FREE, 0.0, lost))
    limit = time.monotonic() + _FAREWELL_SECONDS
    while lost and request.subject and not channel.closed and time.monotonic() < limit:
        # A process that goes on is killed before whoever waits for the end of this one goes on.
        readable(channel.fileno(), seconds=request.tick)
        channel.receive()


def home_of_lock(lock_path: str, remedy: str = "correct the path, or have it made with --parents") -> str:
    """
    Return the directory in which ``lock_path`` lies: a missing one is more often a typing error than a wish.

    :param remedy: what to do if it is missing
    :raises CliError: it is missing, or no directory
    """
    home = os.path.dirname(lock_path)
    if not os.path.isdir(home):
        problem = "is not a directory; correct the path" if os.path.lexists(home) else f"does not exist; {remedy}"
        raise CliError(f"{printable(home)}, where the lock would be, {problem}")
    return home


def _find_program(name: str) -> str:
    """
    Find the command as a shell does, before anybody is made to wait for a lock that it cannot use.

    :raises CliError: with code 127 if it does not exist, 126 if it cannot be executed
    """
    if (found := shutil.which(name)) is not None:
        return found
    if os.sep in name and os.path.isdir(name):
        raise CliError(f"{name}: is a directory", Exit.NOT_EXECUTABLE)
    if name and (unusable := shutil.which(name, mode=os.F_OK)) is not None:
        raise CliError(f"{unusable}: permission denied (not executable)", Exit.NOT_EXECUTABLE)
    reason = "no such file or directory" if os.sep in name else "command not found"
    raise CliError(f"{name}: {reason}", Exit.NOT_FOUND)


def outlast_the_server(request: Request) -> None:
    """
    Stay while something of this process is on disk.

    The engine withdraws it in the background when a file server that hangs or refuses comes back, for which the guard
    does not wait. For one lease: after that, peers may remove it.
    """
    paths = [os.path.abspath(path) for path in request.paths]
    os.chdir("/")
    limit = now() + request.lease
    while now() < limit and any(_is_announced(path, request.lock_dir) for path in paths):
        time.sleep(request.tick)


def _is_announced(path: str, lock_dir: str | None) -> bool:
    try:
        state = inspect(path, lock_dir=lock_dir)
    except (LockPathError, ValueError):
        return False
    except (LockError, OSError):
        return True
    return any(peer.same_kernel and peer.pid == os.getpid() for peer in (*state.holders, *state.waiters))


class _Signals:
    """
    Signals to the keeper. They are meant for the command, so the guard gets them.

    Before the locks are held, the keeper also has to notice that the guard has given up or died: the engine asks at
    each of its looks. It may also sleep, or a call may hang: then the guard sends a signal after it has closed its end.
    """

    def __init__(self, channel: Channel, *, can_give_back: bool) -> None:
        self._channel = channel
        #: Whether one ends a keeper whose guard has gone: not once the locks are held, or given up.
        self.may_end = True
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, self._on_signal)
        signal.signal(GIVE_BACK, self._on_signal if can_give_back else signal.SIG_IGN)
        for signum in (signal.SIGQUIT, signal.SIGUSR2, signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP):
            signal.signal(signum, signal.SIG_DFL)

    def nobody_waits(self) -> bool:
        """Return whether the guard is gone."""
        self._channel.receive()
        return self._channel.closed

    def _on_signal(self, signum: int, _frame: object) -> None:
        self._channel.send(signal.Signals(signum))
        if self.may_end and self.nobody_waits():
            raise SystemExit


def _hold(request: Request, locks: LockSet, channel: Channel) -> None:
    """Report the hold to the guard until it says that the work is done; do its work where it has died."""
    subject: Process | None = None
    reported = Hold(HoldStatus.FREE, 0.0)
    by_path = {lock.lock_file: lock for lock in locks.locks}
    numbers = tuple(by_path[path].generation or 0 for path in request.write if path in by_path)
    while not channel.closed:
        moment = now()  # before the lease is read, so that the deadline errs on the early side
        status, remaining = locks.status, locks.lease_remaining or 0.0
        hold = Hold(status, moment + remaining, "", numbers)
        if status is not HoldStatus.HELD:
            hold = Hold(status, 0.0, why_not_held(locks), numbers)
        has_changed = hold.status is not reported.status or hold.deadline > reported.deadline + request.tick / 2
        if has_changed and channel.send_news(hold):
            reported = hold
        readable(channel.fileno(), seconds=request.tick)
        for message in channel.receive():
            if isinstance(message, int):
                with suppress(ProcessLookupError):
                    subject = Process(message)
            elif message is HoldStatus.FREE:
                return
    if subject is not None:
        _be_the_guard(request, subject)


def _be_the_guard(request: Request, subject: Process) -> None:
    """The guard has been killed, so nobody stops the command in time any more: end it, then let go of the locks."""
    group = None if request.subject else subject.pid  # a command leads a group of its own
    while not subject.ended:
        if request.on_expiry is not OnExpiry.IGNORE:
            kill(lambda: family([subject.pid], group))
        time.sleep(request.tick)
    if group is not None and request.on_expiry is not OnExpiry.IGNORE:
        send(-group, signal.SIGKILL)
