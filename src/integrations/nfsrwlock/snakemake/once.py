"""
``once=True``: whether a job may be skipped, because somebody else has made its outputs while it waited for the lock.

Why Snakemake wants the job decides what is asked for. If an output was missing, or older than an input, it is enough
that it is there now, and newer. If the user forces the job, or its code has changed, the output must be another one
than the one that Snakemake decided to replace. A job in a process of its own does not know the reason, so its
environment names the outputs that are to be replaced, by a digest of all of them: there may be thousands.

What it does not do: compare the code and params of whoever made the outputs with the job's own. The log says so.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final

from snakemake.common import async_run
from snakemake.io import is_flagged

from nfsrwlock.freshness import look_afresh
from nfsrwlock.snakemake.flags import is_once
from nfsrwlock.snakemake.unfinished import identity

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


def to_replace(job: Any) -> frozenset[str]:
    """Return digests of outputs that must not count as made. To be asked before the lock."""
    if not job.rule.workflow.is_main_process:
        return frozenset(os.environ.get(_VARIABLE, "").split(","))
    reason = job.dag.reason(job)
    if not any(map(is_once, job.output)) or not any(getattr(reason, name, None) for name in _COMPELLING):
        return frozenset()
    look_afresh(job.output)
    return frozenset([_digest(job)])


def is_made(job: Any, replace: frozenset[str]) -> bool:
    """Whether all outputs are there, current, and not the ones to ``replace``. To be asked under the lock."""
    look_afresh(file for file in job.input if _counts(file))
    if any(not os.path.lexists(file) for file in job.output) or _digest(job) in replace:
        return False
    try:
        return bool(async_run(_is_current(job)))
    except OSError:
        return False  # an input is missing, which is for the job to say


async def _is_current(job: Any) -> bool:
    inputs = [(await file.mtime_uncached(skip_storage=True)).local() for file in job.input if _counts(file)]
    outputs = [(await file.mtime_uncached(skip_storage=True)).local() for file in job.output]
    return not inputs or min(outputs) >= max(inputs)


def _counts(file: Any) -> bool:
    """Whether an input that is newer than the outputs makes them old."""
    return not is_flagged(file, "ancient") and not is_flagged(file, "storage_object")


def _digest(job: Any) -> str:
    found = "\n".join(f"{file} {identity(str(file))}" for file in job.output)
    return hashlib.sha256(os.fsencode(found)).hexdigest()[:24]


def with_message(job: Any, command: str) -> str:
    """Return the command that runs ``job`` in a process of its own, with what that process has to know."""
    members = [one for one in (job if job.is_group() else [job]) if one.rule.workflow.is_main_process]
    replace = sorted(digest for one in members for digest in to_replace(one))
    return f"export {_VARIABLE}={','.join(replace)} && {command}" if replace else command
