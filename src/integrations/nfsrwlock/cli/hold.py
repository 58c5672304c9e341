"""``nfsrwlock hold`` and ``release``: hold the locks until a process, usually the shell that asks, ends or is done."""

from __future__ import annotations

import os
import stat
import time
from typing import Any, Final

import click

from nfsrwlock.cli.guard import Guard, wait_until_held
from nfsrwlock.cli.keeper import GIVE_BACK, Hold, Keeper
from nfsrwlock.cli.options import CODES, HOLDING, LOCK_DIR, PATHS, PID, Request
from nfsrwlock.cli.outcome import CliError, Exit, as_cli_error
from nfsrwlock.cli.signals import FORWARDED, Signals
from nfsrwlock.leash import OnExpiry
from nfsrwlock.processes import GUARD_NAME, Entry, Process, family, leave_the_caller, readable, send
from nfsrwlock.text import flush, say
from nfsrwlock_core import holds_for, inspect

#: Longer than the guard waits for a file server.
_RELEASE_SECONDS: Final = 25.0


@click.command("hold", params=[*HOLDING], epilog=CODES)
@LOCK_DIR
@PID
def hold(pid: int, **options: Any) -> int:
    """
    Hold locks until a process ends.

    Returns as soon as the locks are held; two processes in the background keep them until process PID ends. As the
    first line of a shell script or block: nfsrwlock hold --read PATH --pid $$ || exit

    With an expired lease PID and its descendants are stopped, as COMMAND is by run. The message about it reaches you
    only if stderr is a file or a terminal.
    """
    request = Request(**options, subject=pid)
    process = _find(pid, request.on_expiry)
    with Signals(FORWARDED) as signals:
        keeper = Keeper(request)
        last = wait_until_held(keeper, signals)
        flush()
        if os.fork() == 0:
            try:
                _guard(process, keeper, last)
            except BaseException as error:  # nothing may unwind into the caller's stack, of which this is a copy
                say(str(as_cli_error(error)))
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
        if process.ended:
            raise ProcessLookupError
        if on_expiry is not OnExpiry.IGNORE:
            os.kill(pid, 0)
    except ProcessLookupError:
        raise CliError(f"--pid {pid}: no such process runs; name one that does, such as $$ in a shell") from None
    except PermissionError:
        raise CliError(
            f"--pid {pid}: that process is not yours, so it could not be stopped when the hold ends; "
            "name one of yours, or accept that with --on-expiry=ignore"
        ) from None
    return process


def _guard(process: Process, keeper: Keeper, last: Hold) -> None:
    keeper.channel.send(process.pid)
    os.chdir("/")
    # Let go of everything that somebody could wait for. stderr is kept for the one message that matters, where that can
    # make nobody wait for its end.
    silent = [0, 1] if os.isatty(2) or stat.S_ISREG(os.fstat(2).st_mode) else [0, 1, 2]
    leave_the_caller(GUARD_NAME, [keeper.channel.fileno(), process.fileno()], silent)
    with Signals(FORWARDED) as signals:
        guard = _Guard(process, keeper, last, signals)
        guard.until_it_ends()
        guard.gives_back = False
    guard.release(f"process {process.pid} did")


class _Guard(Guard):
    """The guard of a process that was there before it."""

    def __init__(self, process: Process, keeper: Keeper, hold: Hold, signals: Signals) -> None:
        super().__init__(keeper, hold, signals, f"process {process.pid}")
        self._process = process

    def has_ended(self) -> bool:
        # What is stopped stays so until the hold is confirmed; then it may be given back.
        return self._process.ended or (self.gives_back and not self.leash.tight)

    def everyone(self) -> list[Entry]:
        return [] if self._process.ended else family([self._process.pid], spare=[self.keeper.pid])

    def on_signal(self, signum: int) -> None:
        if not self._process.ended:
            send(self._process.pid, signum)


@click.command("release")
@PATHS
@PID
@LOCK_DIR
def release(paths: tuple[str, ...], pid: int, lock_dir: str | None) -> int:
    """
    Give back the locks on PATH... that hold keeps for a process, before it ends.

    Returns when they are released. What one hold has taken is given back as a whole. If the hold turns out to have been
    lost, PID is killed, as at any other time.
    """
    keepers: set[int] = set()
    for path in paths:
        peers = inspect(path, lock_dir=lock_dir).holders
        found = {peer.pid for peer in peers if peer.pid and peer.same_kernel and holds_for(peer.pid, pid)}
        if not found:
            raise CliError(f"{path}: no 'nfsrwlock hold' keeps it for process {pid}; see: nfsrwlock status PATH")
        keepers |= found
    processes = [Process(keeper) for keeper in keepers]
    for process in processes:
        os.kill(process.pid, GIVE_BACK)
    limit = time.monotonic() + _RELEASE_SECONDS
    while left := [process.fileno() for process in processes if not process.ended]:
        if time.monotonic() > limit:
            say("the file server does not answer; the lock will be released when it does")
            break
        readable(*left, seconds=0.1)
    return Exit.OK
