"""``nfsrwlock run``: hold the locks while a command runs."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from typing import Any, Final, NoReturn

import click

from nfsrwlock.cli.guard import Guard, wait_until_held
from nfsrwlock.cli.keeper import Hold, Keeper
from nfsrwlock.cli.options import CODES, HOLDING, LOCK_DIR, PATH, Request
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.cli.signals import FORWARDED, TERMINATING, Signals, take_default_action
from nfsrwlock.cli.terminal import Terminal
from nfsrwlock.processes import ADOPT_ORPHANS, Entry, family, prctl, send
from nfsrwlock.text import flush, say

_SHELL: Final = "/bin/sh"
_TERMINAL_STOPS: Final = frozenset({signal.SIGTTIN, signal.SIGTTOU})


class _WithCommand(click.Command):
    """Takes as its command what follows ``--``, and nothing else: a glob may stand for more paths than one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.obj = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])


@click.command("run", cls=_WithCommand, params=[*HOLDING], epilog=CODES)
@LOCK_DIR
@click.option("-c", "script", metavar="SCRIPT", help="Run the shell with -c SCRIPT, instead of COMMAND.")
@click.argument("stray", nargs=-1, type=PATH, metavar="-- COMMAND...")
@click.pass_obj
def run(command: tuple[str, ...], /, script: str | None, stray: tuple[str, ...], **options: Any) -> int:
    """
    Hold locks while COMMAND runs.

    Waits until all locks are held, runs COMMAND in a process group of its own, passes signals on to it and exits with
    its code. When the lease runs out before a heartbeat succeeds, COMMAND is stopped; it goes on after a heartbeat
    has shown that the hold never ended, and is killed if the hold is lost. Processes that COMMAND leaves behind when
    it ends are not guarded.
    """
    if stray:
        raise CliError(
            f"{stray[0]!r} is neither an option nor the path of one: give each path a --read or --write of its own, "
            "and put the command after --, as in: nfsrwlock run --read PATH -- COMMAND"
        )
    if bool(command) == bool(script):
        raise CliError("give one command to run, after -- or by -c, as in: nfsrwlock run --read PATH -- COMMAND")
    command = command or (os.environ.get("SHELL") or _SHELL, "-c", script or "")
    request = Request(**options, command=command[0])
    terminal = Terminal()
    with Signals(FORWARDED) as signals:
        keeper = Keeper(request)
        hold = wait_until_held(keeper, signals)
        prctl(*ADOPT_ORPHANS)
        return _Run(keeper, hold, signals, terminal, command).conclude()


class _Run(Guard):
    """The guard of a command that this process starts."""

    def __init__(
        self, keeper: Keeper, hold: Hold, signals: Signals, terminal: Terminal, command: tuple[str, ...]
    ) -> None:
        super().__init__(keeper, hold, signals, "the command")
        self._terminal = terminal
        self._status: int | None = None
        self._had_terminal = False
        self._pid = self._start(keeper.program or "", command)

    def has_ended(self) -> bool:
        with suppress(ChildProcessError):
            while self._status is None:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
                if pid == 0:
                    break
                if pid == self._pid:
                    if os.WIFSTOPPED(status):
                        self._on_stop(os.WSTOPSIG(status))
                    else:
                        self._status = status
        return self._status is not None

    def everyone(self) -> list[Entry]:
        """All processes of the command: what is below this process, daemons too, as it adopts them."""
        return family([os.getpid()], self._pid, spare=[self.keeper.pid])

    def _start(self, program: str, command: tuple[str, ...]) -> int:
        """Fork the command into a process group of its own. It begins to run only when the keeper knows about it."""
        gate_reader, gate_writer = os.pipe()
        # It has the terminal from its start if it talks to it in both directions.
        has_terminal = self._terminal.in_foreground and os.isatty(0) and os.isatty(1)
        flush()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(gate_writer)
                os.setpgid(0, 0)
                if os.read(gate_reader, 1):
                    self.signals.for_the_command()
                    _execute(program, command, _environment(self.hold))
            finally:
                os._exit(Exit.NOT_EXECUTABLE)
        os.close(gate_reader)
        with suppress(OSError):  # by both, as nobody knows who comes first; it may even be dead already
            os.setpgid(pid, pid)
        self.keeper.channel.send(pid)
        if has_terminal:
            self._terminal.give(pid)
        os.write(gate_writer, b"!")
        os.close(gate_writer)
        return pid

    # While it runs

    def on_signal(self, signum: int) -> None:
        if signum == signal.SIGCONT:
            self._continue()
        elif signum in TERMINATING and self.leash.tight:
            say("the command, stopped because its lock was not certain, was asked to end: killed")
            self.leash.kill()
        else:
            send(-self._pid, signum)
            if signum == signal.SIGTSTP:
                self._suspend(signum, everyone=False)

    def _suspend(self, signum: int, everyone: bool) -> None:
        """The command is suspended; let the shell that started us see a suspended job. The keeper keeps the lock."""
        had_terminal = self._terminal.take_back()
        if not take_default_action(signum, everyone) and signum in _TERMINAL_STOPS:
            say("the command wants to use the terminal, but runs in its background: it stands still")
            return
        if had_terminal:
            self._terminal.give(self._pid)
        self._continue()

    def _continue(self) -> None:
        """Continue a suspended command, unless meanwhile its lease has run out: then that is for the leash to do."""
        self.look()
        if self.leash.tight:
            self.leash.take_over()
        elif not self.leash.killed:
            send(-self._pid, signal.SIGCONT)

    def say(self, line: str) -> None:
        # Before the message: whoever reads it may press Ctrl-C, which must reach somebody who can act on it.
        if self.leash.tight:
            self._had_terminal = self._terminal.take_back()
        elif self._had_terminal:
            self._terminal.give(self._pid)
        super().say(line)

    def _on_stop(self, signum: int) -> None:
        if self.leash.tight:
            return
        if signum in _TERMINAL_STOPS and self._terminal.in_foreground:
            self._terminal.give(self._pid)
            send(-self._pid, signal.SIGCONT)
        elif self._terminal.given:
            self._suspend(signal.SIGTSTP, everyone=True)
        elif signum in _TERMINAL_STOPS:
            self._suspend(signum, everyone=True)

    # When it has ended

    def conclude(self) -> int:
        """Guard the command to its end, then release the locks; return the exit code of ``run``."""
        self.until_it_ends()
        assert self._status is not None
        had_terminal = self._terminal.take_back(self._status)
        code = os.waitstatus_to_exitcode(self._status)
        is_interrupted = code == -signal.SIGINT
        code = 128 - code if code < 0 else code
        if not self.release(f"the command did (it ended with {code})"):
            return Exit.LOST
        if is_interrupted and had_terminal:
            take_default_action(signal.SIGINT, everyone=True)
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
            # A script without a first line that says for whom.
            os.execve(_SHELL, [_SHELL, program, *command[1:]], environment)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        if error.errno == errno.ENOENT:
            code = Exit.NOT_FOUND
            if os.path.exists(program):
                reason = f"bad interpreter: {_first_line(program)}: {reason}"
        say(f"{program}: {reason}")
    os._exit(code)
