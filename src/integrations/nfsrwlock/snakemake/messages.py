"""
What the user reads, in Snakemake's own log: one line per message, with the job's rule and number.

The longest waits for locks are said once more when the workflow ends. A job may take its locks in a process of its own,
on another host. So each long wait becomes a small file in a directory below ``.snakemake``, which the main process
names to all jobs, reads, and removes. What cannot be written there is left out; no job fails by it.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import Quietness

from nfsrwlock.text import duration, one_line, printable
from nfsrwlock.text import say as print_line

if TYPE_CHECKING:
    from nfsrwlock_core import WaitInfo

#: Who waits for less than this is not worth a line.
_SILENT_S: Final = 1.0
_AGAIN_S: Final = 60.0  # from then on --quiet does not hide it, and it may be said once more at the end
#: How many waits are said at the end.
_LONGEST: Final = 5
_VARIABLE: Final = "NFSRWLOCK_SNAKEMAKE_WAITS"


def job_name(job: Any) -> str:
    """Name a job as Snakemake does: its rule and its number."""
    return f"job {job.jobid} (rule {job.rule.name})"


def say(job: Any, text: str, level: int = logging.INFO) -> None:
    """Write one line to Snakemake's log."""
    workflow = job.rule.workflow
    hides_all = Quietness.ALL in (workflow.output_settings.quiet or ())
    if workflow.is_main_process and not (hides_all and level >= logging.WARNING):
        logger.log(level, one_line(f"nfsrwlock: {text}"))
    else:
        # A process that runs one job logs errors only, later than it may live, and its stderr is where they go.
        print_line(text)


#: For what is more than news: with ``--quiet all``, too.
warn: Final = partial(say, level=logging.WARNING)


class LockingError(WorkflowError):  # type: ignore[misc]
    """
    A job has no locks, or has lost them.

    Snakemake shows where in the code an exception was raised if that is not its own; here that is of no use to anybody.
    """

    __traceback__ = property(lambda self: None, lambda self, traceback: None)


class Waiting:
    """Tells who is waited for: after a second, when that is somebody else, and once a minute."""

    def __init__(self, job: Any, timeout: float) -> None:
        self._job = job
        self._limit = "without limit" if math.isinf(timeout) else f"at most {duration(timeout)}"
        self._began = time.monotonic()
        self._due = _SILENT_S
        self._shown: tuple[str, ...] = ()
        #: For whom it waits, and for how long so far.
        self.text = ""

    @property
    def seconds(self) -> float:
        """For how long."""
        return time.monotonic() - self._began

    def update(self, info: WaitInfo) -> None:
        """There is still reason to wait."""
        waited = self.seconds
        if waited < _SILENT_S:
            return
        self.text = (
            f"{job_name(self._job)} waits to {info.mode} {printable(info.lock_file)}, "
            f"{duration(waited)} so far, {self._limit}: "
            f"{info.describe() or 'nobody is known to be in the way'}"
        )
        tokens = tuple(peer.token for peer in info.blockers)
        if waited < self._due and (not tokens or tokens[0] in self._shown):
            return
        self._due = waited + _AGAIN_S
        self._shown = tokens
        (say if waited < _AGAIN_S else warn)(self._job, self.text)


def note_waits(workflow: Any) -> None:
    """Let the jobs of ``workflow`` note their waits, until :func:`say_longest_waits`."""
    os.environ[_VARIABLE] = os.path.join(workflow.persistence.path, f"nfsrwlock-waits.{secrets.token_hex(8)}")
    workflow.register_envvars(_VARIABLE)  # for jobs that a cluster runs


def note(seconds: float, text: str) -> None:
    """Have ``text`` said at the end if it is about one of the longest waits."""
    directory = os.environ.get(_VARIABLE)
    if directory and seconds > _AGAIN_S:
        with suppress(OSError):
            Path(directory).mkdir(exist_ok=True)
            Path(directory, f"{seconds:015.3f}.{secrets.token_hex(8)}").write_text(text, errors="replace")


def say_longest_waits(workflow: Any) -> None:
    """Say which waits were the longest."""
    directory = os.environ.pop(_VARIABLE, None)
    if directory is None:
        return  # another thread's workflow has ended before
    waits = sorted(Path(directory).glob("*"), reverse=True)
    for number, wait in enumerate(waits[:_LONGEST], 1):
        with suppress(OSError):
            text = f"the longest waits for locks, {number} of {len(waits)}, as last seen: {wait.read_text()}"
            warn(next(iter(workflow.dag.jobs)), text)
    shutil.rmtree(directory, ignore_errors=True)
