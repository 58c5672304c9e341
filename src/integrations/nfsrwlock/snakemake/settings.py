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
from functools import partial
from typing import Any, Final, Literal, TypedDict, cast

from snakemake.exceptions import WorkflowError

_SECTION: Final = "nfsrwlock"
#: Seconds that a job waits for its locks if nothing else is said: a day. Long enough for the jobs of a cluster, and an
#: end, so that a mistake (a pipe between two jobs that exclude each other) comes to light.
_TIMEOUT_S: Final = 86400.0


class Options(TypedDict, total=False):
    """The options of one flag, see :func:`shared_read`; one that is missing, or ``None``, is not said here."""

    timeout: float | None
    stale_threshold: float | None
    share: Literal["user", "group"] | None
    lock_dir: str | os.PathLike[str] | None
    heartbeat: Literal["thread", "process"] | None


def checked(where: str, options: Mapping[str, Any]) -> Options:
    """Return the options that are said, or raise what is wrong with them; ``where`` they were found."""
    clean = {}
    for name, value in options.items():
        if name not in _CHECKS:
            raise WorkflowError(f"{where}: {name!r} is no option; there are {', '.join(_CHECKS)}")
        if value is not None:
            clean[name] = _CHECKS[name](f"{where}: {name}", value)
    return cast("Options", clean)


def resolved(options: Options, config: Any) -> tuple[float, tuple[tuple[str, Any], ...]]:
    """Return the seconds to wait, and the lock's settings: ``options``, then the environment, then ``config``."""
    section = (config.get(_SECTION) if isinstance(config, Mapping) else None) or {}
    if not isinstance(section, Mapping):
        raise WorkflowError(f"the section {_SECTION!r} of the config must hold options, not {section!r}")
    found: Options = {"timeout": _TIMEOUT_S}
    found |= checked(f"config section {_SECTION!r}", {str(name): value for name, value in section.items()})
    for name in _CHECKS:
        variable = "NFSRWLOCK_DIR" if name == "lock_dir" else f"NFSRWLOCK_{name.upper()}"
        if text := os.environ.get(variable):
            found |= checked(f"environment variable {variable}", {name: text})
    settings: dict[str, Any] = {**found, **options}
    if (lease := settings.get("stale_threshold")) is not None:
        settings |= {"heartbeat_interval": lease / 3, "poll_interval": min(0.25, lease / 4)}
    return settings.pop("timeout"), tuple(sorted(settings.items()))


def _seconds(where: str, value: Any, least: float = 0, most: float = math.inf) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        bounds = f"{least} to {most}" if most < math.inf else f"{least} or more"
        raise WorkflowError(f"{where} must be a number of seconds, {bounds}, not {value!r}")
    return number


def _one_of(where: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise WorkflowError(f"{where} must be {' or '.join(map(repr, allowed))}, not {value!r}")
    return str(value)


def _directory(where: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not os.path.isabs(value):  # elsewhere it would be another one
        raise WorkflowError(f"{where} must be the absolute path of a directory, not {value!r}")
    return os.fsdecode(value)


_CHECKS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "timeout": _seconds,
    "stale_threshold": partial(_seconds, least=1, most=86400),
    "share": partial(_one_of, allowed=("user", "group")),
    "lock_dir": _directory,
    "heartbeat": partial(_one_of, allowed=("thread", "process")),
}
