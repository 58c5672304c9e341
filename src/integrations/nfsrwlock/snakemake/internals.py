"""
What the adapter relies on inside of Snakemake, which promises nothing about it: checked when the adapter is imported.

Signatures are compared, and that the functions which the hook stands in for are called where it expects it. A release
that passes behaves as those that were tested; one that does not makes the import fail.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

#: The oldest and the newest release that the tests ran with.
TESTED: Final = ("9.1.2", "9.27.1")


def check_snakemake() -> None:
    """
    Make sure that this Snakemake is one that the hook was written for.

    :raises ImportError: if it is missing, too old, or built differently
    """
    try:
        from snakemake.common import __version__ as version  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"nfsrwlock.snakemake needs Snakemake: install 'nfsrwlock[snakemake]' ({error})") from error
    try:
        problem = _first_difference()
    except (ImportError, AttributeError, TypeError) as error:
        problem = str(error)
    if problem is None and _numbers(version) < _numbers(TESTED[0]):
        problem = "it is too old"
    if problem is not None:
        raise ImportError(
            f"nfsrwlock.snakemake does not know how Snakemake {version} runs its jobs, so it could not lock their "
            f"files ({problem}). It works with Snakemake {TESTED[0]} to {TESTED[1]}: install one of these, or a newer "
            "nfsrwlock"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _first_difference() -> str | None:
    import snakemake.api  # noqa: F401, PLC0415, I001 - first, for the others import each other in a circle
    from snakemake.workflow import Workflow  # noqa: PLC0415
    from snakemake.dag import DAG  # noqa: PLC0415
    from snakemake.executors import local  # noqa: PLC0415
    from snakemake import io  # noqa: PLC0415
    from snakemake.io import _IOFile  # noqa: PLC0415
    from snakemake.rules import Rule  # noqa: PLC0415
    from snakemake.jobs import Job  # noqa: PLC0415
    from snakemake_interface_executor_plugins.executors.real import RealExecutor  # noqa: PLC0415

    persistence = persistence_class()
    scheduler = scheduler_class()
    shell = shell_module()
    if shell.sp is not subprocess:
        return "snakemake.shell does not start processes by subprocess"
    if io.os is not os:
        return "snakemake.io does not use the module os"
    for function, parameters in (
        (local.Executor.cached_or_run, ["self", "job", "run_func", "args"]),
        (Job.remove_existing_output, ["self"]),
        (Workflow.check, ["self"]),
        (persistence.finished, ["self", "job"]),
        (scheduler.schedule, ["self"]),
        (local.Executor.cancel, ["self"]),
        (RealExecutor.format_job_exec, ["self", "job"]),
        (_IOFile.touch, ["self", "times"]),
        (persistence.incomplete, ["self", "job"]),
        (Rule.expand_params, ["self", "wildcards", "input", "output", "job", "omit_callable"]),
        (DAG.handle_ensure, ["self", "job", "expanded_output"]),
        (DAG.check_output_mtime, ["self", "job", "expanded_output"]),
    ):
        if (found := list(inspect.signature(function).parameters)) != parameters:
            return f"{function.__qualname__} takes {found}"
    if list(inspect.signature(local.run_wrapper).parameters)[:4] != ["job_rule", "input", "output", "params"]:
        return "run_wrapper takes other arguments"
    for caller, called in (
        (local.Executor.run_single_job, "cached_or_run"),
        (local.Executor.run_single_job, "spawn_job"),
        (Job.prepare, "remove_existing_output"),
        (Job.remove_existing_output, "remove"),
        (Job.cleanup, "remove"),
        (Job.cleanup, "exists"),
        (Job.postprocess, "cleanup"),
        (Job.postprocess, "finished"),
        (Job.postprocess, "check_and_touch_output"),
        (DAG.check_and_touch_output, "touch"),
        (DAG.incomplete_files, "incomplete"),
        (io.glob_wildcards, "walk"),
        (shell.shell.__new__, "Popen"),
    ):
        if not _mentions(caller, called):
            return f"{caller.__qualname__} does not call {called}"
    for function, parameter in ((Job.postprocess, "error"), (_IOFile.remove, "only_local")):
        if parameter not in inspect.signature(function).parameters:
            return f"{function.__qualname__} has no parameter {parameter}"
    return None


def _mentions(function: Callable[..., Any], name: str) -> bool:
    # In its own code, or in that of functions defined in it.
    codes = [function.__code__]
    for code in codes:  # grows while it is walked
        if name in code.co_names:
            return True
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return False


def shell_module() -> Any:
    """Return the module that runs shell commands; ``snakemake.shell`` may also be a class of that name in it."""
    return import_module("snakemake.shell")


def persistence_class() -> Any:
    """Return the class that keeps what Snakemake knows of earlier runs; 9.2x made it the base of two."""
    from snakemake import persistence  # noqa: PLC0415

    for name in ("PersistenceBase", "Persistence"):
        candidate = getattr(persistence, name, None)
        if candidate is not None and hasattr(candidate, "finished"):
            return candidate
    raise AttributeError("snakemake.persistence has no class with a method 'finished'")


def scheduler_class() -> Any:
    """Return the class whose ``schedule`` runs the workflow; it moved in 9.11."""
    try:
        from snakemake.scheduling.job_scheduler import JobScheduler  # noqa: PLC0415
    except ImportError:
        from snakemake.scheduler import JobScheduler  # type: ignore[import-not-found,no-redef,unused-ignore]  # noqa: PLC0415
    return JobScheduler
