"""
How a command of this program can end: the exit codes are in the help (:mod:`nfsrwlock.cli.app`).

A command that itself ends with 75 or 76 looks the same as ``run``: the message on stderr tells.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from nfsrwlock_core import DeadlockError, LockBusyError, LockError, LockPathError


class Exit(IntEnum):
    """The exit codes of this program's own. 75 is ``EX_TEMPFAIL``: try again later."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    TIMED_OUT = 75
    LOST = 76
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


class CliError(Exception):
    """The command ends here, with one line on stderr and this exit code."""

    def __init__(self, message: str, code: int = Exit.BAD_INPUT) -> None:
        super().__init__(message)
        self.code = int(code)


class Interrupted(Exception):
    """A signal asked to end before the locks were held."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


#: The parameters that the engine's messages name, as options of the command line.
_OPTIONS: Final = {
    "stale_threshold": "--stale",
    "heartbeat_interval": "--heartbeat",
    "poll_interval": "--poll",
    "share='": "--share '",
    "lock_dir=": "--lock-dir",
    "lock_dir must": "--lock-dir must",
    "use force": "use --force",
}


def as_cli_error(error: BaseException, conflict_code: int = Exit.TIMED_OUT) -> CliError:
    """Return how the command ends for ``error``; ``conflict_code``: when the locks could not be had in time."""
    message = str(error)
    for parameter, option in _OPTIONS.items():
        message = message.replace(parameter, option)
    match error:
        case CliError():
            return error
        case LockError() if isinstance(error, TimeoutError | DeadlockError):  # Timeout itself comes with filelock: slow
            return CliError(str(error), conflict_code)
        case LockPathError() | LockBusyError() | ValueError() | TypeError():
            return CliError(message, Exit.BAD_INPUT)
        case LockError() | OSError():
            return CliError(message, Exit.FAILED)
    return CliError(f"internal error, please report it: {type(error).__name__}: {error}", Exit.FAILED)
