"""The command line itself: options, help and exit codes. What the commands do is in the module of their name."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from io import TextIOWrapper
from typing import Any

import click

from nfsrwlock import __version__
from nfsrwlock.cli.options import HOLDING, PATH, Request, positive_span, span
from nfsrwlock.cli.outcome import CliError, Exit, Interrupted, as_cli_error
from nfsrwlock.cli.signals import take_default_action
from nfsrwlock.cli.terminal import Terminal
from nfsrwlock.text import PROGRAM, flush, say
from nfsrwlock_core import LockError

_CODES = """
\b
Exit codes:
  0    done; for run: the command's own success
  1    something else failed
  2    bad input, or refused; the message names the remedy
  75   the locks could not be had within --timeout; or the code given by -E
  76   the hold was lost: the command was killed, or not guarded to its end
  126  the command cannot be executed
  127  the command does not exist
  128+ the command was ended by signal number CODE - 128
Every other code is the command's own.
"""

_DOCTOR_CODES = """
\b
Exit codes:
  0    fit, with or without warnings; for --join: this node has done its part
  1    unfit, or something failed
  2    bad input; the message names the remedy
  75   no second node came within --timeout
"""

_paths = click.argument("paths", nargs=-1, type=PATH, metavar="PATH...", required=True)
_lock_dir = click.option("--lock-dir", type=PATH, metavar="DIR", help="Where locks are kept, if not beside the data.")
_pid = click.option(
    "--pid",
    type=int,
    default=os.getppid,
    show_default="the parent process, the shell that asks",
    help="The process that hold keeps the locks for.",
)
_number = partial(click.option, show_default=True, metavar="N")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=_CODES)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s", help="Show the version.")
def cli() -> None:
    """Shared and exclusive locks on files and directories, across all hosts of a network file system."""


class _WithCommand(click.Command):
    """Takes as its command what follows ``--``, and nothing else: a glob may stand for more paths than one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.obj = tuple(args[at + 1 :])
        return super().parse_args(ctx, args[:at])


@cli.command("run", cls=_WithCommand, params=[*HOLDING], epilog=_CODES)
@click.option("-c", "script", metavar="SCRIPT", help="Run the shell with -c SCRIPT, instead of COMMAND.")
@click.argument("stray", nargs=-1, type=PATH, metavar="-- COMMAND...")
@click.pass_obj
def _run(command: tuple[str, ...], /, script: str | None, stray: tuple[str, ...], **options: Any) -> int:
    """
    Hold locks while COMMAND runs.

    Waits until all locks are held, runs COMMAND in a process group of its own, passes signals on to it and exits with
    its code. When the lease runs out before a heartbeat succeeds, COMMAND is stopped; it goes on after a heartbeat
    has shown that the hold never ended, and is killed if the hold is lost. Processes that COMMAND leaves behind when
    it ends are not guarded.
    """
    from nfsrwlock.cli.run import run  # noqa: PLC0415 - each command imports what it needs: starting must cost little

    if stray:
        raise CliError(
            f"{stray[0]!r} is neither an option nor the path of one: give each path a --read or --write of its own, "
            "and put the command after --, as in: nfsrwlock run --read PATH -- COMMAND"
        )
    if bool(command) == bool(script):
        raise CliError("give one command to run, after -- or by -c, as in: nfsrwlock run --read PATH -- COMMAND")
    return run(Request(**options), command or (os.environ.get("SHELL") or "/bin/sh", "-c", script or ""))


@cli.command("hold", params=[*HOLDING], epilog=_CODES)
@_pid
def _hold(pid: int, **options: Any) -> int:
    """
    Hold locks until a process ends.

    Returns as soon as the locks are held; two processes in the background keep them until process PID ends. As the
    first line of a shell script or block: nfsrwlock hold --read PATH --pid $$ || exit

    With an expired lease PID and its descendants are stopped, as COMMAND is by run. The message about it reaches you
    only if stderr is a file or a terminal.
    """
    from nfsrwlock.cli.hold import hold  # noqa: PLC0415

    return hold(Request(**options), pid)


@cli.command("release")
@_paths
@_pid
@_lock_dir
def _release(paths: tuple[str, ...], pid: int, lock_dir: str | None) -> int:
    """
    Give back the locks on PATH... that hold keeps for a process, before it ends.

    Returns when they are released. What one hold has taken is given back as a whole. If the hold turns out to have been
    lost, PID is killed, as at any other time.
    """
    from nfsrwlock.cli.hold import release  # noqa: PLC0415

    return release(paths, pid, lock_dir)


@cli.command("status")
@_paths
@_lock_dir
@click.option("-r", "--recursive", is_flag=True, help="Show the locks in use below PATH..., which are directories.")
@click.option("-a", "--all", "idle", is_flag=True, help="With -r, show also the locks that nobody uses.")
@click.option("--json", "form", flag_value="json", help="Print a JSON array with one object per lock.")
@click.option("--metrics", "form", flag_value="metrics", help="Print the counts in Prometheus's text format.")
@click.option("--watch", is_flag=True, help="Go on showing it until interrupted.")
def _status(paths: tuple[str, ...], lock_dir: str | None, form: Any, watch: bool, **options: Any) -> int:
    """
    Show who holds and who waits for the locks on PATH...

    Needs no lock and changes nothing. Ends with 0 if all locks could be looked at, held or not.
    """
    from nfsrwlock.cli.status import status  # noqa: PLC0415

    if watch and form == "metrics":
        raise CliError("--metrics prints once, so it cannot be used with --watch")
    if lock_dir and options["recursive"]:
        raise CliError("--recursive looks below PATH: give the directory of locks as PATH, not by --lock-dir")
    return status(paths, lock_dir, form=form or "text", watch=watch, **options)


@cli.command("prune")
@click.argument("directories", nargs=-1, type=PATH, metavar="DIR...", required=True)
@click.option(
    *("-u", "--unused-for"),
    "unused_s",
    type=span,
    default="30d",
    show_default=True,
    metavar="TIME",
    help="Keep the locks that were used in the latest TIME.",
)
def _prune(directories: tuple[str, ...], unused_s: float) -> int:
    """
    Remove the directories of the locks below DIR... that nobody uses.

    Says of each that is kept why. Nobody who uses a lock meanwhile loses it, but the numbers of its grants begin
    anew, at 1. Symbolic links are not followed.
    """
    from nfsrwlock.cli.removing import prune_below  # noqa: PLC0415

    return prune_below(directories, unused_s)


@cli.command("break")
@click.argument("path", type=PATH)
@click.option("--token", metavar="T", help="Only the holder or waiter whose token is, or begins with, T (see status).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also those whose process is alive on this host.")
@_lock_dir
def _break(path: str, token: str | None, yes: bool, force: bool, lock_dir: str | None) -> int:
    """
    Take the lock on PATH away from its holders.

    For an operator who knows that a holder is dead and does not want to wait for its lease to end. A holder that is
    alive after all finds out at its next heartbeat; until then it works on, side by side with its successor.
    """
    from nfsrwlock.cli.removing import break_holders  # noqa: PLC0415

    return break_holders(path, token, lock_dir, yes=yes, force=force)


@cli.command("timeline", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=PATH, metavar="PATH...")
def _timeline(arguments: tuple[str, ...]) -> int:
    """Show who held which lock when, and who waited for whom, as NFSRWLOCK_TRACE had it recorded."""
    from nfsrwlock_timeline.command import main  # noqa: PLC0415

    return main(arguments)


@cli.command("doctor", epilog=_DOCTOR_CODES)
@_paths
@_lock_dir
@click.option(
    "--peer", is_flag=True, help="Test together with a second node: prints the command to run there, and waits."
)
@click.option("--join", "token", metavar="TOKEN", help="Be that second node.")
@_number("--rounds", type=click.IntRange(10, 10_000), default=400, help="Rounds of each race.")
@_number("--processes", type=click.IntRange(2, 64), default=2, help="Processes that race, on each host.")
@click.option(
    *("-t", "--timeout"),
    type=positive_span,
    metavar="TIME",
    help="Give up after that time: of waiting for the other node (--peer 300, --join 10), or for the file system to "
    "answer (60).",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with one object per PATH.")
@click.option(
    *("--report", "to_share"),
    type=click.File("a", lazy=True),  # what is there is replaced when there is something new
    metavar="FILE",
    help="Write to FILE, as JSON, what others may know: no names of hosts, users or paths, no addresses.",
)
def _doctor(
    paths: tuple[str, ...], lock_dir: str | None, token: str | None, timeout: float | None, **options: Any
) -> int:
    """
    Find out whether the file system at PATH... is fit for locks.

    PATH is a directory, or a file to be locked. Tells what is mounted there and what its options mean, what a lock
    costs, and whether the file system keeps the demands of the protocol, by racing processes. Works in a directory
    of its own beside the data, and removes it.
    """
    from nfsrwlock.doctor.examination import doctor  # noqa: PLC0415
    from nfsrwlock.doctor.rendezvous import join  # noqa: PLC0415

    if (options["peer"] or token is not None) and len(paths) > 1:
        raise CliError("two nodes can test one path at a time; give one PATH with --peer or --join")
    if token is not None:
        if options["peer"] or options["to_share"]:
            raise CliError("--peer and --report are for the first node and --join for the second; leave one out")
        return join(token, paths[0], lock_dir, timeout)
    return doctor(paths, lock_dir, timeout=timeout, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    :param arguments: the arguments after the program's name; default: those of this process
    :returns: the exit code, see :mod:`nfsrwlock.cli.outcome`
    """
    _fill_standard_streams()
    if isinstance(sys.stdout, TextIOWrapper):  # what its encoding lacks must not end the command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = cli.main(args=None if arguments is None else list(arguments), prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return int(result or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Exit.BAD_INPUT
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see: {context.command_path} --help" if context else ""
        say(error.format_message().rstrip("." if hint else "") + hint)
        return Exit.BAD_INPUT
    except Interrupted as interruption:
        return _interrupted(interruption.signum)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(signal.SIGINT)
    except (BrokenPipeError, SystemExit) as end:
        # Click and rich end with 1 where nobody reads what they print, completion with 0.
        if isinstance(end, SystemExit) and end.code != 1:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit does not fail as well
        return 128 + signal.SIGPIPE
    except (CliError, LockError, OSError, ValueError) as error:
        failure = as_cli_error(error)
        say(str(failure))
        return failure.code


def _fill_standard_streams() -> None:
    """Started with one of them closed, we must not give its number to a socket of ours. The command finds it closed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _interrupted(signum: int) -> int:
    """End by the same signal where a person pressed Ctrl-C, so that a shell leaves its loop; ``$?`` is the same."""
    if signum == signal.SIGINT and Terminal().in_foreground:
        flush()
        take_default_action(signum, everyone=False)
    return 128 + signum
