"""The program as a whole: its commands, most of which are in modules of their own, and its exit codes."""

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
from nfsrwlock.cli.hold import hold, release
from nfsrwlock.cli.options import CODES, LOCK_DIR, PATH, PATHS, positive_span
from nfsrwlock.cli.outcome import CliError, Exit, Interrupted, as_cli_error
from nfsrwlock.cli.removing import break_holders, prune_below
from nfsrwlock.cli.run import run
from nfsrwlock.cli.signals import take_default_action
from nfsrwlock.cli.status import status
from nfsrwlock.cli.terminal import Terminal
from nfsrwlock.text import PROGRAM, flush, say
from nfsrwlock_core import LockError

_DOCTOR_CODES = """
\b
Exit codes:
  0    fit, with or without warnings; for --join: this node has done its part
  1    unfit, or something failed
  2    bad input; the message names the remedy
  75   no second node came within --timeout
"""

_number = partial(click.option, show_default=True, metavar="N")


@click.group(
    commands=[run, hold, release, status, prune_below, break_holders],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=CODES,
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s", help="Show the version.")
def cli() -> None:
    """Shared and exclusive locks on files and directories, across all hosts of a network file system."""


@cli.command("timeline", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=PATH, metavar="PATH...")
def _timeline(arguments: tuple[str, ...]) -> int:
    """Show who held which lock when, and who waited for whom, as NFSRWLOCK_TRACE had it recorded."""
    from nfsrwlock_timeline.command import main  # noqa: PLC0415

    return main(arguments)


@cli.command("doctor", epilog=_DOCTOR_CODES)
@PATHS
@LOCK_DIR
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
    from nfsrwlock.doctor.examination import doctor  # noqa: PLC0415 - needs much: others must start quickly
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
