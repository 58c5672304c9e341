"""What ``run`` and ``hold`` share on the command line. What is wrong in itself is refused here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from nfsrwlock.cli.keeper import OnExpiry, Request
from nfsrwlock.cli.outcome import CliError
from nfsrwlock.cli.preparing import LOCK_DIRECTORY_VARIABLE

_Function = TypeVar("_Function", bound=Callable[..., Any])


def positive_seconds(value: str) -> float:
    """Parse a time span that is longer than nothing and ends."""
    seconds = _number(value)
    if not (0 < seconds < math.inf):
        raise click.BadParameter(f"{value!r} is not a number of seconds that is more than 0")
    return seconds


def seconds_or_forever(value: str) -> float:
    """Parse a time span that may be 0 or ``inf``."""
    seconds = _number(value)
    if not seconds >= 0:
        raise click.BadParameter(f"{value!r} is not a number of seconds that is 0 or more")
    return seconds


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


#: As it was given. ``click.Path`` would look at the file: it refuses what this user may lock but not read, and it hangs
#: on a server that is away before any time-out counts.
PATH = click.UNPROCESSED

_OPTIONS = [
    click.option("-r", "--read", "read", multiple=True, type=PATH, metavar="PATH", help="Hold a shared lock on PATH."),
    click.option(
        "-w", "--write", "write", multiple=True, type=PATH, metavar="PATH", help="Hold the exclusive lock on PATH."
    ),
    click.option(
        "-t",
        "--timeout",
        type=seconds_or_forever,
        metavar="S",
        help="Give up after S seconds of waiting, with exit code 75; 0 does not wait. Without it: wait forever.",
    ),
    click.option(
        "--heartbeat",
        type=positive_seconds,
        metavar="S",
        help="Seconds between two heartbeats (30, or a third of --stale).",
    ),
    click.option(
        "--stale",
        type=positive_seconds,
        metavar="S",
        help="The lease: silent for S seconds, other hosts may evict this holder (three times --heartbeat).",
    ),
    click.option(
        "--poll",
        type=positive_seconds,
        default=0.25,
        show_default=True,
        metavar="S",
        help="Seconds between two looks while waiting.",
    ),
    click.option(
        "--share",
        type=click.Choice(["user", "group"]),
        default="user",
        show_default=True,
        help="Who else takes part in this lock: your own processes, or those of the directory's group.",
    ),
    click.option(
        "--lock-dir",
        type=PATH,
        metavar="DIR",
        help="Keep locks below DIR (the same for all hosts), for data in read-only directories; "
        f"default: ${LOCK_DIRECTORY_VARIABLE}, else beside the data.",
    ),
    click.option("--parents", is_flag=True, help="Make missing directories above PATH (or DIR)."),
    click.option(
        "--on-expiry",
        type=click.Choice([policy.value for policy in OnExpiry]),
        default=OnExpiry.STOP.value,
        show_default=True,
        help="When the lease has run out before a heartbeat succeeded: stop the processes until the hold is confirmed, "
        "kill them, or only say so.",
    ),
]


def holding(function: _Function) -> _Function:
    """Add the options that say what to hold, and how."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def request(
    *,
    read: tuple[str, ...],
    write: tuple[str, ...],
    timeout: float | None,
    heartbeat: float | None,
    stale: float | None,
    poll: float,
    share: str,
    lock_dir: str | None,
    parents: bool,
    on_expiry: str,
) -> Request:
    """
    Check the options and put them together.

    :raises CliError: they make no sense, with a remedy
    """
    if not read and not write:
        raise CliError("nothing to lock: name at least one path with --read PATH or --write PATH")
    beat, lease = _intervals(heartbeat, stale)
    for path in (*write, *read):
        _check_text(path)
    return Request(
        read=read,
        write=write,
        timeout=-1.0 if timeout is None or math.isinf(timeout) else timeout,
        on_expiry=OnExpiry(on_expiry),
        parents=parents,
        settings={
            "heartbeat_interval": beat,
            "stale_threshold": lease,
            "poll_interval": poll,
            "share": share,
            "lock_dir": lock_dir,
        },
    )


def _intervals(heartbeat: float | None, stale: float | None) -> tuple[float, float]:
    beat = heartbeat if heartbeat is not None else 30.0 if stale is None else stale / 3
    lease = stale if stale is not None else 3 * beat
    return beat, lease


def _check_text(path: str) -> None:
    if not path:
        raise CliError("an empty path cannot be locked: check the variable in --read or --write")
    if "\0" in path:
        raise CliError("a path cannot contain a null byte")
