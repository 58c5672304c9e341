"""``nfsrwlock run``: hold the locks while a command runs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import suppress
from typing import Final, NoReturn

from nfsrwlock.cli.keeper import Failed, Guarded, Hold, Keeper, Request, Signalled, Waiting, now
from nfsrwlock.cli.leash import Leash
from nfsrwlock.cli.outcome import CliError, Exit, Interrupted
from nfsrwlock.cli.signals import FORWARDED, TERMINATING, Signals, end_as_if_by, stop_as_if_by
from nfsrwlock.cli.terminal import Terminal
from nfsrwlock.cli.waiting import FRAME_SECONDS, Progress
from nfsrwlock.processes import Entry, adopt_orphans, family, send_to_group
from nfsrwlock.text import flush, say
from nfsrwlock_core import HoldStatus

_SHELL: Final = "/bin/sh"
_TERMINAL_STOPS: Final = frozenset({signal.SIGTTIN, signal.SIGTTOU})


def run(request: Request, command: tuple[str, ...]) -> int:
    """
    Acquire the locks, run ``command`` under them and release them; return the exit code.

    :raises CliError: the command cannot be run, or the locks cannot be had
    :raises Interrupted: a signal ended the wait
    """
    program = find_program(command[0])
    terminal = Terminal()
    with Signals(FORWARDED) as signals:
        keeper = Keeper(request)
        hold = wait_until_held(keeper, signals)
        adopt_orphans()
        return _Run(keeper, hold, signals, terminal, program, command).until_it_ends()


def find_program(name: str) -> str:
    """
    Find the command as a shell does, before anybody is made to wait for a lock that it cannot use.

    :raises CliError: with code 127 if it does not exist, 126 if it cannot be executed
    """
    if os.sep in name:
        if not os.path.exists(name):
            raise CliError(f"{name}: no such file or directory", Exit.NOT_FOUND)
        if os.path.isdir(name):
            raise CliError(f"{name}: is a directory", Exit.NOT_EXECUTABLE)
        if not os.access(name, os.X_OK):
            raise CliError(f"{name}: permission denied (not executable)", Exit.NOT_EXECUTABLE)
        return name
    found = shutil.which(name)
    if found is not None:
        return found
    if name and (unusable := shutil.which(name, mode=os.F_OK)) is not None:
        raise CliError(f"{unusable}: permission denied (not executable)", Exit.NOT_EXECUTABLE)
    raise CliError(f"{name}: command not found", Exit.NOT_FOUND)


def wait_until_held(keeper: Keeper, signals: Signals) -> Hold:
    """
    Return when the locks are held; meanwhile show whom they wait for.

    :raises CliError: they could not be had
    :raises Interrupted: a signal came first
    """
    progress = Progress()
    try:
        while True:
            for signum in signals.wait(FRAME_SECONDS, keeper.channel):
                if signum == signal.SIGTSTP:
                    _suspend_the_wait(keeper)
                elif signum not in (signal.SIGCHLD, signal.SIGCONT):
                    keeper.cancel()
                    raise Interrupted(signum)
            for message in keeper.channel.receive():
                match message:
                    case Waiting(info):
                        progress.update(info)
                    case Failed(text, code):
                        raise CliError(text, code)
                    case Signalled(signum):
                        keeper.cancel()
                        raise Interrupted(signum)
                    case Hold() if message.at(now()) is HoldStatus.HELD:
                        return message
                    case Hold(
                        HoldStatus.LOST, _, reason
                    ):  # suspended together with this process, for longer than the lease
                        keeper.cancel()
                        raise CliError(f"{reason}; the command was not started, run it again", Exit.LOST)
            if keeper.channel.closed:
                raise CliError("the process that waited for the lock was killed; run the command again", Exit.FAILED)
            progress.frame()
    except BaseException:
        keeper.channel.close()
        raise
    finally:
        progress.close()


def _suspend_the_wait(keeper: Keeper) -> None:
    """A job that its user has suspended must not be given the lock behind their back."""
    os.kill(keeper.pid, signal.SIGSTOP)
    stop_as_if_by(signal.SIGTSTP, everyone=False)
    os.kill(keeper.pid, signal.SIGCONT)


class _Run:
    """A command that runs under held locks."""

    def __init__(
        self, keeper: Keeper, hold: Hold, signals: Signals, terminal: Terminal, program: str, command: tuple[str, ...]
    ) -> None:
        self._keeper = keeper
        self._hold = hold
        self._signals = signals
        self._terminal = terminal
        self._status: int | None = None
        self._had_terminal = False
        self._pid = self._start(program, command)
        self._leash = Leash(self._everyone, keeper.request.on_expiry, "the command", say, self._when_stopped)

    def until_it_ends(self) -> int:
        """Guard the command, then release the locks; return the exit code of ``run``."""
        tick = self._keeper.request.tick
        while self._status is None:
            for signum in self._signals.wait(tick, self._keeper.channel):
                self._on_signal(signum)
            self._look_at_the_hold()
            self._look_at_children()
        return self._conclude(self._status)

    # Starting it

    def _start(self, program: str, command: tuple[str, ...]) -> int:
        """Fork the command into a process group of its own. It begins to run only when the keeper knows about it."""
        gate_reader, gate_writer = os.pipe()
        has_terminal = self._terminal.for_the_command_alone
        flush()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(gate_writer)
                os.setpgid(0, 0)
                if os.read(gate_reader, 1):
                    self._signals.for_the_command()
                    _execute(program, command)
            finally:
                os._exit(Exit.NOT_EXECUTABLE)
        os.close(gate_reader)
        with suppress(OSError):  # by both, as nobody knows who comes first; it may even be dead already
            os.setpgid(pid, pid)
        self._keeper.channel.send(Guarded(pid, group=pid))
        if has_terminal:
            self._terminal.give(pid)
        os.write(gate_writer, b"!")
        os.close(gate_writer)
        return pid

    def _everyone(self) -> list[Entry]:
        """All processes of the command: what is below this process, daemons too, as it adopts them."""
        return family([os.getpid()], self._pid, spare=[self._keeper.pid])

    # While it runs

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGCHLD:
            return  # children are looked at after every signal anyway
        if signum == signal.SIGCONT:
            self._continue()
        elif signum in TERMINATING and self._leash.tight:
            say("the command, stopped because its lock was not certain, was asked to end: killed")
            self._leash.kill()
        else:
            send_to_group(self._pid, signum)
            if signum == signal.SIGTSTP:
                self._suspend(signum, everyone=False)

    def _suspend(self, signum: int, everyone: bool) -> None:
        """The command is suspended; let the shell that started us see a suspended job. The keeper keeps the lock."""
        had_terminal = self._terminal.given
        self._terminal.take_back()
        if not stop_as_if_by(signum, everyone) and signum in _TERMINAL_STOPS:
            say("the command wants to use the terminal, but runs in its background: it stands still")
            return
        if had_terminal:
            self._terminal.give(self._pid)
        self._continue()

    def _continue(self) -> None:
        """Continue a suspended command, unless meanwhile its lease has run out: then that is for the leash to do."""
        self._look_at_the_hold()
        if self._leash.tight:
            self._leash.take_over()
        elif not self._leash.killed:
            send_to_group(self._pid, signal.SIGCONT)

    def _look_at_the_hold(self) -> None:
        for message in self._keeper.channel.receive():
            match message:
                case Hold():
                    self._hold = message
                case Signalled(signum):
                    self._on_signal(signum)
                case Failed(text, _):
                    self._hold = Hold(HoldStatus.LOST, now(), text)
        if self._keeper.channel.closed and self._hold.status is not HoldStatus.LOST:
            self._hold = Hold(HoldStatus.LOST, now(), "the lock was lost: the process that held it has died")
        was_tight = self._leash.tight
        self._leash.apply(self._hold)
        if was_tight and not self._leash.tight and self._had_terminal:
            self._terminal.give(self._pid)

    def _when_stopped(self) -> None:
        self._had_terminal = self._terminal.given
        self._terminal.take_back()  # so that Ctrl-C reaches somebody who can act on it

    def _look_at_children(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                if os.WIFSTOPPED(status):
                    self._on_stop(os.WSTOPSIG(status))
                else:
                    self._status = status
                    return

    def _on_stop(self, signum: int) -> None:
        if self._leash.tight:
            return
        if signum in _TERMINAL_STOPS and self._terminal.in_foreground:
            self._terminal.give(self._pid)
            send_to_group(self._pid, signal.SIGCONT)
        elif self._terminal.given:
            self._suspend(signal.SIGTSTP, everyone=True)
        elif signum in _TERMINAL_STOPS:
            self._suspend(signum, everyone=True)

    # When it has ended

    def _conclude(self, status: int) -> int:
        had_terminal = self._terminal.given
        self._terminal.take_back(ended=True, repair=os.WIFSIGNALED(status))
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        released = self._keeper.finish()
        self._keeper.channel.close()
        if released is None:
            say("the file server does not answer; the lock will be released when it does")
        elif released.lost and not self._leash.killed:
            say(f"{released.lost}; what the command did (it ended with {code}) was not guarded to its end")
        if self._leash.killed or (released is not None and released.lost):
            return Exit.LOST
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT and had_terminal:
            end_as_if_by(signal.SIGINT, everyone=True)
        return code


def _execute(program: str, command: tuple[str, ...]) -> NoReturn:
    """Become the command, or end with a shell's code for the reason why not."""
    code = Exit.NOT_EXECUTABLE
    try:
        try:
            os.execv(program, command)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execv(_SHELL, [_SHELL, program, *command[1:]])  # a script without a first line that says for whom
    except OSError as error:
        if error.errno == errno.ENOENT:
            code = Exit.NOT_FOUND
        say(f"{program}: {os.strerror(error.errno or 0).lower()}")
    os._exit(code)
