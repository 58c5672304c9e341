"""``nfsrwlock run``: hold the locks while a command runs."""

from __future__ import annotations

import errno
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from typing import Final, NoReturn

from nfsrwlock.cli.keeper import Failed, Guarded, Hold, Keeper, Prepared, Request, Signalled, Waiting, now
from nfsrwlock.cli.leash import Leash
from nfsrwlock.cli.outcome import CliError, Exit, Interrupted
from nfsrwlock.cli.signals import FORWARDED, TERMINATING, Signals, end_as_if_by, stop_as_if_by
from nfsrwlock.cli.terminal import Terminal
from nfsrwlock.cli.waiting import FRAME_SECONDS, ODD_SECONDS, Progress
from nfsrwlock.processes import Entry, adopt_orphans, family, send_to_group
from nfsrwlock.text import flush, say
from nfsrwlock_core import HoldStatus, WaitInfo

_SHELL: Final = "/bin/sh"
#: The engine answers within a few seconds after its time-out, whatever the file server does.
_ANSWER_SECONDS: Final = 6.0
_TERMINAL_STOPS: Final = frozenset({signal.SIGTTIN, signal.SIGTTOU})


def run(request: Request, command: tuple[str, ...]) -> int:
    """
    Acquire the locks, run ``command`` under them and release them; return the exit code.

    :raises CliError: the command cannot be run, or the locks cannot be had
    :raises Interrupted: a signal ended the wait
    """
    terminal = Terminal()
    with Signals(FORWARDED) as signals:
        keeper = Keeper(replace(request, command=command[0]))
        hold = wait_until_held(keeper, signals)
        adopt_orphans()
        return _Run(keeper, hold, signals, terminal, command).until_it_ends()


def wait_until_held(keeper: Keeper, signals: Signals) -> Hold:
    """
    Return when the locks are held; meanwhile show whom they wait for.

    The engine keeps the time-out; if no word of it comes, some call hangs that it could not foresee, such as the look
    at a path's directory.

    :raises CliError: they could not be had
    :raises Interrupted: a signal came first
    """
    progress = Progress()
    patience = _Patience(keeper.request)
    try:
        while True:
            for signum in signals.wait(FRAME_SECONDS, keeper.channel):
                if signum == signal.SIGTSTP:
                    _suspend_the_wait(keeper)
                    patience.prolong()
                elif signum not in (signal.SIGCHLD, signal.SIGCONT):
                    keeper.cancel()
                    raise Interrupted(signum)
            for message in keeper.channel.receive():
                match message:
                    case Waiting(info):
                        progress.update(info)
                        patience.answered = True
                    case Prepared(program):
                        keeper.program = program
                    case Failed(text, code):
                        raise CliError(text, code)
                    case Signalled(signum):
                        keeper.cancel()
                        raise Interrupted(signum)
                    case Hold() if message.at(now()) is HoldStatus.HELD:
                        progress.acquired(always=keeper.request.verbose)
                        return message
                    case Hold(
                        HoldStatus.LOST, _, reason
                    ):  # suspended together with this process, for longer than the lease
                        keeper.cancel()
                        raise CliError(f"{reason}; the command was not started, run it again", Exit.LOST)
            if keeper.channel.closed:
                raise CliError("the process that waited for the lock was killed; run the command again", Exit.FAILED)
            if patience.is_odd:
                progress.update(patience.info)
            if patience.is_over:
                keeper.leave()
                raise CliError(patience.message, keeper.request.conflict_code)
            progress.frame()
    except BaseException:
        keeper.channel.close()
        raise
    finally:
        progress.close()


class _Patience:
    """How long the guard waits for a word from the keeper, whose calls to a file server may hang."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._began = time.monotonic()
        self._limit = self._began + (request.timeout if request.timeout >= 0 else math.inf) + _ANSWER_SECONDS
        #: Whether it has told for whom it waits.
        self.answered = False

    def prolong(self) -> None:
        """Both have stood still: let the keeper speak first."""
        self._limit = max(self._limit, time.monotonic() + _ANSWER_SECONDS)

    @property
    def is_over(self) -> bool:
        """Whether the keeper ought to have said by now how the wait has ended."""
        return time.monotonic() > self._limit

    @property
    def is_odd(self) -> bool:
        """Whether the user should be told that the file system is silent."""
        return not self.answered and time.monotonic() > self._began + ODD_SECONDS

    @property
    def info(self) -> WaitInfo:
        """What there is to tell."""
        return WaitInfo(
            lock_file=(*self._request.write, *self._request.read)[0],
            mode="write" if self._request.write else "read",
            waited=time.monotonic() - self._began,
            blockers=(),
            trouble="nothing so far",
        )

    @property
    def message(self) -> str:
        """Why the wait is given up."""
        path = self.info.lock_file
        return (
            f"the lock on {path!r} could not be acquired in time: the file system has not answered for "
            f"{self.info.waited:.0f} s; find out whether its server is up"
        )


def _suspend_the_wait(keeper: Keeper) -> None:
    """A job that its user has suspended must not be given the lock behind their back."""
    os.kill(keeper.pid, signal.SIGSTOP)
    stop_as_if_by(signal.SIGTSTP, everyone=False)
    os.kill(keeper.pid, signal.SIGCONT)


class _Run:
    """A command that runs under held locks."""

    def __init__(
        self, keeper: Keeper, hold: Hold, signals: Signals, terminal: Terminal, command: tuple[str, ...]
    ) -> None:
        self._keeper = keeper
        self._hold = hold
        self._signals = signals
        self._terminal = terminal
        self._status: int | None = None
        self._had_terminal = False
        self._pid = self._start(keeper.program or "", command)
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
                    _execute(program, command, _environment(self._hold))
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


def _environment(hold: Hold) -> dict[str, str]:
    """Return the caller's environment, and what the command may want to know of the locks."""
    variables = dict(os.environ)
    # Where there is no locale this interpreter has set one for itself (PEP 538): the command must not count by it.
    with suppress(OSError), open("/proc/self/environ", "rb") as file:
        given = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
        variables.pop("LC_CTYPE", None)
        if (locale := given.get(b"LC_CTYPE")) is not None:
            variables["LC_CTYPE"] = os.fsdecode(locale)
    if hold.generations:
        variables["NFSRWLOCK_GENERATION"] = " ".join(map(str, hold.generations))
    return variables


def _first_line(script: str) -> str:
    with suppress(OSError), open(script, "rb") as file:
        return os.fsdecode(file.readline(256)[2:].strip())
    return "?"


def _execute(program: str, command: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    """Become the command, or end with a shell's code for the reason why not."""
    code = Exit.NOT_EXECUTABLE
    try:
        try:
            os.execve(program, command, environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            os.execve(
                _SHELL, [_SHELL, program, *command[1:]], environment
            )  # a script without a first line that says for whom
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        if error.errno == errno.ENOENT:
            code = Exit.NOT_FOUND
            if os.path.exists(program):
                reason = f"bad interpreter: {_first_line(program)}: {reason}"
        say(f"{program}: {reason}")
    os._exit(code)
