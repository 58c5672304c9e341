"""
What the adapter relies on inside of Snakemake, which promises nothing about it: checked when the adapter is imported.

Signatures are compared, and that the functions which the hook stands in for are called where it expects it; where not,
the import fails. What these functions do inside is compared with the releases that were tested, by hashes of their
source; where one is new to us, a warning says so.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import os
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pkgutil import resolve_name
from typing import Any, Final, NamedTuple

#: The oldest and the newest release that the tests ran with.
TESTED: Final = ("9.1.2", "9.27.1")


class _Function(NamedTuple):
    #: Its module, and its name there; of alternatives the first that is there.
    name: str
    #: All of them; ``…`` stands for any others.
    parameters: str
    #: Functions that it must call.
    calls: str = ""


_FUNCTIONS: Final = (
    _Function("snakemake.executors.local:Executor.cached_or_run", "self job run_func args"),
    _Function("snakemake.executors.local:Executor.run_single_job", "self job", "cached_or_run spawn_job"),
    _Function("snakemake.executors.local:Executor.cancel", "self"),
    _Function("snakemake.executors.local:run_wrapper", "job_rule input output params …"),
    _Function("snakemake_interface_executor_plugins.executors.real:RealExecutor.format_job_exec", "self job"),
    _Function(
        "snakemake.scheduling.job_scheduler:JobScheduler.schedule | snakemake.scheduler:JobScheduler.schedule", "self"
    ),
    _Function("snakemake.workflow:Workflow.check", "self"),
    _Function("snakemake.rules:Rule.expand_params", "self wildcards input output job omit_callable"),
    _Function("snakemake.jobs:Job.prepare", "self", "remove_existing_output"),
    _Function("snakemake.jobs:Job.remove_existing_output", "self", "output remove"),
    _Function("snakemake.jobs:Job.cleanup", "self…", "output remove"),
    _Function("snakemake.jobs:Job.postprocess", "self … error …", "cleanup finished check_and_touch_output"),
    _Function("snakemake.dag:DAG.check_and_touch_output", "self job …", "touch"),
    _Function("snakemake.dag:DAG.handle_ensure", "self job expanded_output"),
    _Function("snakemake.dag:DAG.check_output_mtime", "self job expanded_output"),
    _Function("snakemake.dag:DAG.incomplete_files", "self", "incomplete"),
    _Function("snakemake.io:_IOFile.touch", "self times"),
    _Function("snakemake.io:glob_wildcards", "pattern files followlinks", "walk"),
    _Function(
        "snakemake.persistence:PersistenceBase.incomplete | snakemake.persistence:Persistence.incomplete", "self job"
    ),
    _Function("snakemake.shell:shell.__new__", "cls cmd …", "Popen"),
)
#: Hashes of what these were in the releases that the tests ran with.
_SOURCES: Final = """
    01d03d22 02988a4c 06c15c5e 1457f515 14763e8d 15f165c3 1f44fed7 1fb05dbe 24a0d0bf 28f6f4f5 3183d2cc 31a31818
    35804ea6 36c26329 3daf6a98 42639e9a 435a442f 44dc3ce5 4bc5e098 501a4683 5a55965c 5d1e0b8b 67f51b4a 69625d48
    702dd87c 7035e5c3 7d1b192a b01a83a9 b8e4578f b9123d4a bb47d9d7 bc4754e0 ce5a0e72 d54b4b89 d6a15db4 d7524ba9
    d836730f dc901335 e0413d13 f7caba2e
"""


def check_snakemake() -> None:
    """
    Make sure that this Snakemake is one that the hook was written for.

    :raises ImportError: if it is missing, too old, or built differently
    """
    try:
        from packaging.version import Version  # noqa: PLC0415
        from snakemake.common import __version__ as version  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"nfsrwlock.snakemake needs Snakemake: install 'nfsrwlock[snakemake]' ({error})") from error
    try:
        _refuse_what_differs()
        if Version(version) < Version(TESTED[0]):
            raise ImportError("it is too old")
    except (ImportError, AttributeError, TypeError) as error:
        raise ImportError(
            f"nfsrwlock.snakemake does not know how Snakemake {version} runs its jobs, so it could not lock their "
            f"files ({error}). It works with Snakemake {TESTED[0]} to {TESTED[1]}: install one of these, or a newer "
            "nfsrwlock"
        ) from None
    if unknown := [known.name.rpartition(":")[2] for known, source in sources() if source not in _SOURCES]:
        from snakemake.logging import logger  # noqa: PLC0415

        logger.warning(
            f"nfsrwlock: Snakemake {version} is not as the releases that were tested ({TESTED[0]} to {TESTED[1]}) in "
            f"{', '.join(unknown)}. Files are locked all the same"
        )


def sources() -> Iterator[tuple[_Function, str]]:
    """Yield each function with a hash of its source; not where there is no source."""
    for known in _FUNCTIONS:
        code = inspect.unwrap(_find(known.name)).__code__
        lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
        if lines:
            yield known, hashlib.sha256("".join(_first_block(lines)).encode()).hexdigest()[:8]


def _first_block(lines: list[str]) -> Iterator[str]:
    # Up to the next line that is indented as the first one. (inspect.getsource takes 30 ms for all functions.)
    indent = len(lines[0]) - len(lines[0].lstrip())
    has_begun = False
    for line in lines:
        if has_begun and line[: indent + 1].strip() not in ("", ")"):
            return
        has_begun = has_begun or line.lstrip().startswith(("def ", "async def "))
        yield line


def _refuse_what_differs() -> None:
    import_module("snakemake.api")  # first, for the others import each other in a circle
    if import_module("snakemake.shell").sp is not subprocess:  # not the class of that name
        raise ImportError("snakemake.shell does not start processes by subprocess")
    if import_module("snakemake.io").os is not os:
        raise ImportError("snakemake.io does not use the module os")
    for known in _FUNCTIONS:
        function = _find(known.name)
        found = list(inspect.signature(function).parameters)
        pattern = re.escape(known.parameters).replace("…", ".*")
        if not re.fullmatch(pattern, " ".join(found)):
            raise ImportError(f"{function.__qualname__} takes {found}")
        for called in known.calls.split():
            if called not in function.__code__.co_names:
                raise ImportError(f"{function.__qualname__} does not call {called}")


def _find(name: str) -> Any:
    first, _, others = name.partition(" | ")
    try:
        return resolve_name(first)
    except (ImportError, AttributeError):
        if not others:
            raise
    return _find(others)


def place_of(name: str) -> tuple[Any, str]:
    """Return the class that has a function of the table, such as ``Job.cleanup``, and the function's name there."""
    function = name.rpartition(".")[2]
    known = next(known.name for known in _FUNCTIONS if known.name.endswith(f":{name}"))
    return _find(re.sub(rf"\.{function}\b", "", known)), function
