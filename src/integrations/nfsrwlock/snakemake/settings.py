"""
How a flagged file is locked: what its flag says, else the environment, else the workflow's config, else a default.

The section of the config is called ``nfsrwlock``::

    nfsrwlock:
      timeout: 7200
      share: group
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, get_args

from snakemake.exceptions import WorkflowError

SECTION: Final = "nfsrwlock"
#: Seconds that a job waits for its locks if nothing else is said: a day. Long enough for the jobs of a cluster, and an
#: end, so that a mistake (a pipe between two jobs that exclude each other) is told.
DEFAULT_TIMEOUT_S: Final = 86400.0

Share = Literal["user", "group"]
Heartbeat = Literal["thread", "process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    The options of one flag; ``None``: not said here.

    :param timeout: seconds that a job waits for its locks; ``inf``: without end
    :param stale_threshold: the lease, seconds
    :param share: ``"user"`` or ``"group"``
    :param lock_dir: a directory to keep locks in
    :param heartbeat: ``"thread"`` or ``"process"``
    """

    timeout: float | None = None
    stale_threshold: float | None = None
    share: Share | None = None
    lock_dir: str | None = None
    heartbeat: Heartbeat | None = None


#: Where each option is looked up in the environment. ``NFSRWLOCK_DIR`` is the engine's own.
VARIABLES: Final[Mapping[str, str]] = {
    "timeout": "NFSRWLOCK_TIMEOUT",
    "stale_threshold": "NFSRWLOCK_STALE_THRESHOLD",
    "share": "NFSRWLOCK_SHARE",
    "lock_dir": "NFSRWLOCK_DIR",
    "heartbeat": "NFSRWLOCK_HEARTBEAT",
}


def checked(where: str, **values: Any) -> Options:
    """
    Return the options, or say what is wrong with them.

    :param where: who says so, for the error
    :raises WorkflowError: if one is not an option, or has a value that makes no sense
    """
    known = [field.name for field in fields(Options)]
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise WorkflowError(f"{where}: {name!r} is no option; there are {', '.join(known)}")
        if value is not None:
            clean[name] = _CHECKS[name](f"{where}: {name}", value)
    return Options(**clean)


def resolved(options: Options, config: Any) -> Options:
    """
    Fill in what ``options`` leave open.

    :param config: the workflow's config
    :raises WorkflowError: if the environment or the config say something that makes no sense
    """
    section = (config.get(SECTION) if isinstance(config, Mapping) else None) or {}
    if not isinstance(section, Mapping):
        raise WorkflowError(f"the section {SECTION!r} of the config must hold options, not {section!r}")
    from_config = checked(f"config section {SECTION!r}", **{str(name): section[name] for name in section})
    from_environment = Options()
    for name, variable in VARIABLES.items():
        if text := os.environ.get(variable):
            from_environment = _over(checked(f"environment variable {variable}", **{name: text}), from_environment)
    return _over(_over(options, from_environment), _over(from_config, Options(timeout=DEFAULT_TIMEOUT_S)))


def _over(first: Options, second: Options) -> Options:
    return Options(
        **{
            field.name: getattr(second if getattr(first, field.name) is None else first, field.name)
            for field in fields(Options)
        }
    )


def for_lock(options: Options) -> dict[str, Any]:
    """Return the options as the settings of a lock. Its timeout is not among them: a job has one for all its locks."""
    settings: dict[str, Any] = {"lock_dir": options.lock_dir}
    if options.stale_threshold is not None:
        settings["stale_threshold"] = options.stale_threshold
        settings["heartbeat_interval"] = options.stale_threshold / 3
        settings["poll_interval"] = min(0.25, options.stale_threshold / 4)
    if options.share is not None:
        settings["share"] = options.share
    if options.heartbeat is not None:
        settings["heartbeat"] = options.heartbeat
    return settings


def _seconds(where: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0:
        raise WorkflowError(f"{where} must be a number of seconds, 0 or more, not {value!r}")
    return number


def _lease(where: str, value: Any) -> float:
    number = _seconds(where, value)
    if not 1 <= number <= 86400:
        raise WorkflowError(f"{where} must be between 1 and 86400 seconds, not {value!r}")
    return number


def _one_of(*allowed: str) -> Callable[[str, Any], str]:
    def check(where: str, value: Any) -> str:
        if value not in allowed:
            raise WorkflowError(f"{where} must be {' or '.join(map(repr, allowed))}, not {value!r}")
        return str(value)

    return check


def _directory(where: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not os.path.isabs(value):  # elsewhere it would be another one
        raise WorkflowError(f"{where} must be the absolute path of a directory, not {value!r}")
    return os.fsdecode(value)


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "timeout": _seconds,
    "stale_threshold": _lease,
    "share": _one_of(*get_args(Share)),
    "lock_dir": _directory,
    "heartbeat": _one_of(*get_args(Heartbeat)),
}
