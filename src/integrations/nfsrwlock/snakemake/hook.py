"""
Where Snakemake is told to lock: the only module that changes it.

``Executor.cached_or_run`` is passed by every process that really runs a job, in a thread of its own, and still knows
the job with its flags. Around it the locks are held. What Snakemake itself does with outputs before and after that,
outside of the lock, is left out for exclusive ones: removing the old output, removing it after a failure, touching it,
and noting a failed job's code as that of the old output.

Nothing changes for files without flags. :mod:`nfsrwlock.snakemake.internals` has made sure that all this is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from snakemake import io

from nfsrwlock.snakemake import cache, holding, once, unfinished
from nfsrwlock.snakemake.flags import is_exclusive
from nfsrwlock.snakemake.internals import place_of
from nfsrwlock.snakemake.messages import job_name, note_waits, say, say_longest_waits
from nfsrwlock.snakemake.plan import check_rules, plan_of, warn_of_unguarded_reads, with_cache
from nfsrwlock.snakemake.processes import JobProcesses, start_process
from nfsrwlock.snakemake.publish import Workspace
from nfsrwlock_core import LockError

Original = Callable[..., Any]


def install() -> None:
    """Put the hook in place. To be called once per process."""
    shell: Any = import_module("snakemake.shell")  # not the class of that name
    # These modules, as Snakemake knows them, with another function in each.
    shell.sp = SimpleNamespace(**vars(shell.sp) | {"Popen": start_process})
    io.os = SimpleNamespace(**vars(os) | {"walk": _walk})
    for name, hook in (
        ("Executor.cached_or_run", _run_under_locks),
        ("Executor.cancel", _give_up_waiting),
        ("JobScheduler.schedule", _give_up_waiting_after),
        ("RealExecutor.format_job_exec", _tell_the_job),
        ("Workflow.check", _check_rules_too),
        ("Job.remove_existing_output", _spare_exclusive),
        ("Job.cleanup", _spare_exclusive),
        ("Job.postprocess", _keep_old_records),
        ("_IOFile.touch", _touch),
        ("Persistence.incomplete", _only_cut_off),
    ):
        owner, function = place_of(name)
        setattr(owner, function, _hooked(getattr(owner, function), hook))


def _hooked(original: Original, hook: Callable[..., Any]) -> Original:
    @wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return hook(original, *args, **kwargs)

    return hooked


# -- the run ----------------------------------------------------------------------------------------------------------


def _run_under_locks(original: Original, self: Any, job: Any, run_func: Any, *args: Any) -> Any:
    is_spawned = run_func == self.spawn_job
    plan = with_cache(job, None if is_spawned else plan_of(job))
    if plan is None:
        return original(self, job, run_func, *args)
    if is_spawned:
        # It takes its locks in its own process; but it is here that Snakemake looks into the cache, and fills it.
        with holding.held(job, plan, alone=True) as locks:

            def spawn_and_settle(*args: Any) -> None:
                run_func(*args)
                holding.settle(job, locks)  # before the result goes into the cache

            return original(self, job, spawn_and_settle, *args)
    processes = JobProcesses(job)
    replace = once.to_replace(job)
    with holding.held(job, plan, processes.on_compromise) as locks:
        unfinished.undo_earlier(job, plan, locks)
        if plan.once and once.is_made(job, replace):
            say(
                job,
                f"{job_name(job)} has nothing to do: its outputs were made meanwhile, under the same lock, with "
                "the code and params of whoever made them, which are not compared with its own",
            )
            return None
        with Workspace(job, plan, locks) as workspace:
            args = workspace.redirected(args)
            try:
                with processes.under(locks):
                    result = original(self, job, run_func, *args)
            finally:
                holding.settle(job, locks)  # a job that was stopped for its lock's sake fails for that reason
            try:
                workspace.publish()
            except LockError:
                raise holding.lost(job, locks, workspace.consequence()) from None
            return result


def _tell_the_job(original: Original, self: Any, job: Any) -> Any:
    return once.with_message(job, original(self, job))


def _walk(top: Any, topdown: bool = True, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    # For glob_wildcards(), which goes into every directory: what is locked, or half made, is no data.
    for found in os.walk(top, topdown, **options):
        if topdown:
            found[1][:] = [name for name in found[1] if not name.endswith((unfinished.SUFFIX, ".rwlock"))]
        yield found


# -- the end of the workflow ------------------------------------------------------------------------------------------


def _give_up_waiting(original: Original, self: Any) -> Any:
    holding.ending.set()
    return original(self)


def _give_up_waiting_after(original: Original, self: Any) -> Any:
    holding.ending.clear()  # one process may run several workflows, one after the other
    if self.workflow.is_main_process:
        warn_of_unguarded_reads(self.workflow.dag)
        cache.warn_if_ignored(self.workflow)
        note_waits(self.workflow)
    try:
        return original(self)
    finally:
        holding.ending.set()
        if self.workflow.is_main_process:
            say_longest_waits(self.workflow)


def _check_rules_too(original: Original, self: Any) -> Any:
    check_rules(self)
    return original(self)


# -- what Snakemake does with outputs outside of the lock -------------------------------------------------------------


def _spare_exclusive(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    return original(_Seen(self, exclusive=False), *args, **kwargs)


def _touch(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    # It was touched before it was published. What is there now may be another workflow's. Not so with --touch.
    if is_exclusive(self) and self.rule is not None and not self.rule.workflow.touch:
        return None
    return original(self, *args, **kwargs)


async def _keep_old_records(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    # Snakemake notes a failed job's code and inputs and removes its outputs. An exclusive one stays as it was, so what
    # is known of it must stay too, or it would count as made by the new code.
    exclusive = _Seen(self, exclusive=True)
    if not exclusive.output or not kwargs.get("error"):
        return await original(self, *args, **kwargs)
    result = await original(_Seen(self, exclusive=False), *args, **kwargs)
    records = self.dag.workflow.persistence
    if hasattr(records, "_unmark_incomplete"):
        for file in exclusive.output:
            records._unmark_incomplete(records._get_key(file))
    else:
        records._remove_incomplete_marker(exclusive)
    return result


async def _only_cut_off(original: Original, self: Any, job: Any) -> Any:
    # A job that was cut off has not changed its exclusive outputs, and another workflow may have made them since.
    found = [file for file in await original(self, job) if file is not None]  # older releases: a missing one
    return [file for file in found if not is_exclusive(file) or unfinished.is_cut_off(job, file)]


class _Seen:
    """A job, of whose outputs only the exclusive ones are seen, or only the others."""

    def __init__(self, job: Any, *, exclusive: bool) -> None:
        self._job = job
        self.output = [file for file in job.output if is_exclusive(file) is exclusive]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __str__(self) -> str:
        return str(self._job)

    def __eq__(self, other: object) -> bool:
        return bool(self._job == other)

    def __hash__(self) -> int:
        return hash(self._job)
