"""``nfsrwlock hold``: hold the locks until a process, usually the shell that asks, ends."""

from __future__ import annotations

import os
import signal
import stat
from dataclasses import replace

from nfsrwlock.cli.keeper import Guarded, Hold, Keeper, OnExpiry, Request, Signalled, now
from nfsrwlock.cli.leash import Leash
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.cli.run import wait_until_held
from nfsrwlock.cli.signals import FORWARDED, Signals
from nfsrwlock.processes import (
    GUARD_NAME,
    Entry,
    Process,
    call_yourself,
    close_descriptors,
    family,
    null_for,
    send,
)
from nfsrwlock.text import flush, say
from nfsrwlock_core import HoldStatus


def hold(request: Request, pid: int) -> int:
    """
    Acquire the locks, leave them with two processes in the background until process ``pid`` ends, and return 0.

    :raises CliError: there is no such process, it may not be stopped, or the locks cannot be had
    :raises Interrupted: a signal ended the wait
    """
    process = _find(pid, request.on_expiry)
    with Signals(FORWARDED) as signals:
        keeper = Keeper(replace(request, subject=pid))
        last = wait_until_held(keeper, signals)
        flush()
        if os.fork() == 0:
            try:
                _guard(process, keeper, last)
            except BaseException as error:  # nothing may unwind into the caller's stack, of which this is a copy
                say(f"internal error, please report it: {type(error).__name__}: {error}")
            finally:
                os._exit(0)
        keeper.channel.close()
    return Exit.OK


def _find(pid: int, on_expiry: OnExpiry) -> Process:
    if pid == 1:
        raise CliError(
            "--pid 1: that is the ancestor of all processes, and all would be stopped with it when the hold ends; "
            "guard the command itself with: nfsrwlock run"
        )
    try:
        process = Process(pid)
        if on_expiry is not OnExpiry.IGNORE:
            os.kill(pid, 0)
    except ProcessLookupError:
        raise CliError(f"--pid {pid}: there is no such process; name one that runs, such as $$ in a shell") from None
    except PermissionError:
        raise CliError(
            f"--pid {pid}: that process is not yours, so it could not be stopped when the hold ends; "
            "name one of yours, or accept that with --on-expiry=ignore"
        ) from None
    if process.ended:
        raise CliError(f"--pid {pid}: that process has ended; name one that runs, such as $$ in a shell")
    return process


def _guard(process: Process, keeper: Keeper, last: Hold) -> None:
    pid = process.pid
    keeper.channel.send(Guarded(pid, group=None))
    _leave_the_caller(process, keeper)
    with Signals(FORWARDED) as signals:
        guard = _Guard(process, keeper, last)
        while not process.ended:
            for signum in signals.wait(keeper.request.tick, keeper.channel):
                guard.on_signal(signum)
            guard.look()
    released = keeper.finish()
    if released is not None and released.lost and not guard.killed:
        say(f"{released.lost}; what process {pid} did was not guarded to its end")


def _leave_the_caller(process: Process, keeper: Keeper) -> None:
    """
    Let go of everything that somebody could wait for.

    stderr is kept for the one message that matters, where that can make nobody wait for its end: if it is a file or a
    terminal.
    """
    os.setsid()
    os.chdir("/")
    call_yourself(GUARD_NAME)
    silent = [0, 1] if _is_file_or_terminal(2) else [0, 1, 2]
    null_for(silent)
    kept = [keeper.channel.fileno()]
    if (descriptor := process.fileno()) is not None:
        kept.append(descriptor)
    signal.set_wakeup_fd(-1)
    close_descriptors(kept)


def _is_file_or_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor) or stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


class _Guard:
    """Keeps the process from working without its lock, as ``run`` does with its command."""

    def __init__(self, process: Process, keeper: Keeper, last: Hold) -> None:
        self._process = process
        self._keeper = keeper
        self._hold = last
        self._leash = Leash(self._everyone, keeper.request.on_expiry, f"process {process.pid}", say)

    @property
    def killed(self) -> bool:
        return self._leash.killed

    def _everyone(self) -> list[Entry]:
        return [] if self._process.ended else family([self._process.pid], spare=[self._keeper.pid])

    def look(self) -> None:
        for message in self._keeper.channel.receive():
            match message:
                case Hold():
                    self._hold = message
                case Signalled(signum):
                    self.on_signal(signum)
        if self._keeper.channel.closed and self._hold.status is not HoldStatus.LOST:
            self._hold = Hold(HoldStatus.LOST, now(), "the lock was lost: the process that held it has died")
        self._leash.apply(self._hold)

    def on_signal(self, signum: int) -> None:
        """``status`` shows the keeper's number: who signals that means the process it stands for."""
        if signum != signal.SIGCHLD and not self._process.ended:
            send(self._process.pid, signum)
