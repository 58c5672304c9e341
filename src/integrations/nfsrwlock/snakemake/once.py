"""
``once=True``: whether a job may be skipped, because somebody else has made its outputs while it waited for the lock.

Why Snakemake wants the job decides what is asked for. If an output was missing, or older than an input, it is enough
that it is there now, and newer. If the user forces the job, or its code has changed, the output must be another one
than the one that Snakemake decided to replace. A job in a process of its own does not know the reason, so it is told
which outputs those are in its environment.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any, Final

from snakemake.io import is_flagged

from nfsrwlock.freshness import look_afresh
from nfsrwlock.snakemake.cache import run_async
from nfsrwlock.snakemake.flags import WRITE, wish_of

_VARIABLE: Final = "NFSRWLOCK_SNAKEMAKE_REPLACE"
#: Reasons for which an output that looks current is made anew.
_COMPELLING: Final = (
    "forced",
    "code_changed",
    "params_changed",
    "input_changed",
    "software_stack_changed",
    "_incomplete_output",
)


def to_replace(job: Any) -> dict[str, str]:
    """Return which outputs of ``job`` must not count as made, each with its identity. To be asked before the lock."""
    if not any((wish := wish_of(file, WRITE)) is not None and wish.once for file in job.output):
        return {}
    if not job.rule.workflow.is_main_process:
        return {str(file): known[str(file)] for known in [_told()] for file in job.output if str(file) in known}
    reason = job.dag.reason(job)
    if not any(getattr(reason, name, None) for name in _COMPELLING):
        return {}
    look_afresh(job.output)
    return {str(file): _identity(str(file)) for file in job.output}


def is_made(job: Any, replace: Mapping[str, str]) -> bool:
    """Whether all outputs are there, current, and not the ones to ``replace``. To be asked under the lock."""
    look_afresh(file for file in job.input if _counts(file))
    if not job.output or any(not os.path.lexists(file) for file in job.output):
        return False
    if any(_identity(path) == old for path, old in replace.items()):
        return False
    try:
        return bool(run_async(job.rule.workflow, _is_current(job)))
    except OSError:
        return False  # an input is missing, which is for the job to say


async def _is_current(job: Any) -> bool:
    inputs = [(await file.mtime_uncached(skip_storage=True)).local() for file in job.input if _counts(file)]
    outputs = [(await file.mtime_uncached(skip_storage=True)).local() for file in job.output]
    return not inputs or min(outputs) >= max(inputs)


def _counts(file: Any) -> bool:
    """Whether an input that is newer than the outputs makes them old."""
    return not is_flagged(file, "ancient") and not is_flagged(file, "storage_object")


def _identity(path: str) -> str:
    try:
        status = os.lstat(path)
    except OSError:
        return ""
    return f"{status.st_ino}:{status.st_mtime_ns}"


def with_message(job: Any, command: str) -> str:
    """Return the command that runs ``job`` in a process of its own, with what that process has to be told."""
    replace: dict[str, str] = {}
    for one in job if job.is_group() else [job]:
        if one.rule.workflow.is_main_process:
            replace |= to_replace(one)
    if not replace:
        return command
    # Executors put the command between quotes of their own, so there must be none in it.
    told = base64.urlsafe_b64encode(json.dumps(replace).encode()).decode()
    return f"export {_VARIABLE}={told} && {command}"


def _told() -> dict[str, str]:
    try:
        told = json.loads(base64.urlsafe_b64decode(os.environ.get(_VARIABLE, "")) or "{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
