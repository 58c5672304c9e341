"""Options that several commands have, above all ``run`` and ``hold``. What is wrong in itself is refused here."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Literal

import click
from click.shell_completion import CompletionItem

from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.leash import OnExpiry
from nfsrwlock.options import LockOptions

CODES = """
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

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def span(value: str, positive: bool = False) -> float:
    """Parse a time span that may be 0 or ``inf``, unless it must be ``positive`` and end; return seconds."""
    number = value.rstrip("abcdefghijklmnopqrstuvwxyz") or value  # inf has no unit
    try:
        seconds = float(number) * _UNITS[value[len(number) :]]
    except (KeyError, ValueError):
        seconds = math.inf if value == "inf" else math.nan
    if not (0 < seconds < math.inf if positive else seconds >= 0):
        bounds = "more than 0" if positive else "0 or more"
        raise click.BadParameter(f"{value!r} is not a time of {bounds}, such as 90, 90s, 5m, 2h or 1d")
    return seconds


def positive_span(value: str) -> float:
    """Parse a time span that is longer than nothing and ends; return seconds."""
    return span(value, positive=True)


class _Path(click.types.UnprocessedParamType):
    # As it was given. ``click.Path`` would look at the file: it refuses what this user may lock but not read, and it
    # hangs on a server that is away before any time-out counts.

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


PATH = _Path()
PATHS = click.argument("paths", nargs=-1, type=PATH, metavar="PATH...", required=True)
LOCK_DIR = click.option(
    "--lock-dir",
    type=PATH,
    metavar="DIR",
    help="Where locks are kept (the same for all hosts), such as for data in read-only directories; "
    "default: $NFSRWLOCK_DIR, else beside the data.",
)
PID = click.option(
    "--pid",
    type=int,
    default=os.getppid,
    show_default="the parent process, the shell that asks",
    help="The process that hold keeps the locks for.",
)

_LIMIT = click.IntRange(1, 999_999)
_lock_on = partial(click.Option, multiple=True, type=PATH, metavar="PATH")
_time = partial(click.Option, type=positive_span, metavar="TIME")

#: What ``run`` and ``hold`` are asked to hold, and how.
HOLDING = [
    _lock_on(["-r", "--read", "-s", "--shared", "read"], help="Hold a shared lock on PATH."),
    _lock_on(["-w", "--write", "-x", "--exclusive", "write"], help="Hold the exclusive lock on PATH."),
    click.Option(
        ["--permits"],
        multiple=True,
        type=(_LIMIT, PATH),
        metavar="N PATH",
        help="Hold a shared lock on PATH, of which at most N are held at a time.",
    ),
    click.Option(["--at-most"], type=_LIMIT, metavar="N", help="The same for each PATH of --read: --permits N PATH."),
    _time(
        ["-t", "--timeout"],
        type=span,
        help="Give up after waiting for that time, with exit code 75; 0 does not wait. Without it: wait forever. "
        "A time is a number of seconds, or has a unit: 90s, 5m, 2h, 1d.",
    ),
    click.Option(["-n", "--nonblock"], is_flag=True, help="Do not wait: the same as --timeout 0."),
    click.Option(
        ["-E", "--conflict-exit-code", "conflict_code"],
        type=click.IntRange(0, 255),
        default=int(Exit.TIMED_OUT),
        show_default=True,
        metavar="N",
        help="The exit code when the locks could not be had in time.",
    ),
    click.Option(["--verbose"], is_flag=True, help="Report how long it took to get the locks."),
    _time(["--heartbeat"], help="Time between two heartbeats (30 s, or a third of --stale)."),
    _time(
        ["--stale"],
        help="The lease: after so much silence, other hosts may evict this holder (three times --heartbeat).",
    ),
    _time(["--poll"], default="0.25", show_default=True, help="Time between two looks while waiting."),
    click.Option(
        ["--share"],
        type=click.Choice(["user", "group"]),
        default="user",
        show_default=True,
        help="Who else takes part in this lock: your own processes, or those of the directory's group.",
    ),
    click.Option(["--parents"], is_flag=True, help="Make missing directories above PATH (or DIR)."),
    click.Option(
        ["--on-expiry"],
        type=click.Choice([policy.value for policy in OnExpiry]),
        default=OnExpiry.STOP.value,
        callback=lambda context, option, value: OnExpiry(value),
        show_default=True,
        help="When the lease has run out before a heartbeat succeeded: stop the processes until the hold is confirmed, "
        "kill them, or only say so.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """
    What to hold, and how: the options by their names, and what ``run`` and ``hold`` add to them.

    :param command: the name of a program that must be found before the locks are asked for, unless there is a subject
    :param subject: the process that the locks are held for, with all that it starts; 0: the guard
    :raises CliError: they make no sense, with a remedy
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    permits: tuple[tuple[int, str], ...] = ()
    at_most: int | None = None
    timeout: float | None = None
    nonblock: bool = False
    conflict_code: int
    verbose: bool = False
    heartbeat: float | None = None
    stale: float | None = None
    poll: float
    share: Literal["user", "group"]
    lock_dir: str | None = None
    parents: bool = False
    on_expiry: OnExpiry
    command: str = ""
    subject: int = 0

    def __post_init__(self) -> None:
        if not self.paths:
            raise CliError("nothing to lock: name at least one path with --read PATH or --write PATH")
        if self.at_most is not None and not self.read:
            raise CliError("--at-most is about the paths of --read, and none is given; see also: --permits N PATH")
        if len(self.limited) < len({*self._limits}):
            raise CliError("--permits and --at-most say two limits for one path; state one")
        if self.nonblock and self.timeout:
            raise CliError("--nonblock does not wait, and --timeout does; use one of them")
        if not all(self.paths):
            raise CliError("an empty path cannot be locked: check the variable in --read, --write or --permits")

    @property
    def _limits(self) -> list[tuple[int, str]]:
        return [*self.permits, *((self.at_most, path) for path in self.read if self.at_most is not None)]

    @property
    def limited(self) -> dict[str, int]:
        """Paths to hold shared, with how many may hold each at a time."""
        return {path: limit for limit, path in self._limits}

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths that are locked, those first of whose grants the numbers count."""
        return *self.write, *self.read, *self.limited

    @property
    def lease(self) -> float:
        """Seconds."""
        return 3 * (self.heartbeat or 30.0) if self.stale is None else self.stale

    @property
    def tick(self) -> float:
        """Seconds between two looks at the hold: a look may be late by that, so it is little against the lease."""
        return min(0.2, max(0.02, self.lease / 50))

    @property
    def settings(self) -> LockOptions:
        """Of the locks."""
        return {
            "timeout": 0.0 if self.nonblock else math.inf if self.timeout is None else self.timeout,
            "heartbeat_interval": self.heartbeat or self.lease / 3,
            "stale_threshold": self.lease,
            "poll_interval": self.poll,
            "share": self.share,
            "lock_dir": self.lock_dir,
        }
