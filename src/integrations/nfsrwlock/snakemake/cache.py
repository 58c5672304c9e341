"""
Locks for Snakemake's cache between workflows (``cache: True``).

Snakemake looks into the cache, computes what is missing and stores it without any lock, so two workflows compute the
same at once, and may spoil each other's entry. With a lock on the entry, one computes and the others wait and take it.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, Unpack

from snakemake.common import async_run

from nfsrwlock.snakemake.messages import LockingError, warn
from nfsrwlock.snakemake.settings import Options, checked

_options: Options | None = None


def lock_cache(**options: Unpack[Options]) -> None:
    """
    Guard the cache: a job with ``cache: True`` holds the exclusive lock on its entry.

    Called once in a Snakefile, for all rules. Without ``--cache`` it changes nothing. The options are those of
    :func:`nfsrwlock.snakemake.shared_read`: ``timeout``, ``stale_threshold``, ``share``, ``lock_dir``, ``heartbeat``.

    :raises WorkflowError: if an option makes no sense
    """
    global _options  # noqa: PLW0603 - Snakemake has one cache per process, too
    _options = checked("lock_cache", options)


def cache_entry(job: Any) -> tuple[str, Options] | None:
    """Return the path of the entry that ``job`` uses and the options of its lock; ``None`` if it uses none."""
    workflow = job.rule.workflow
    is_cached = workflow.workflow_settings.cache is not None and has_cache_directive(job.rule)
    if _options is None or workflow.subprocess_exec or not is_cached:
        return None  # of what it spawns locally, Snakemake looks into the cache itself, and holds the lock
    cache = workflow.output_file_cache
    path = getattr(cache, "path", None)
    if path is None:
        raise LockingError("lock_cache() can guard a cache in a directory only, not one in a storage", rule=job.rule)
    find = cache.provenance_hash_map.get_provenance_hash
    arguments = [job] if len(inspect.signature(find).parameters) == 1 else [job, workflow.get_cache_mode(job.rule)]
    entry = find(*arguments)
    if inspect.isawaitable(entry):
        entry = async_run(entry)
    return os.path.join(path, str(entry)), _options


def warn_if_ignored(workflow: Any) -> None:
    """Say so if jobs that are going to be submitted will not use the cache."""
    names = [rule.name for rule in workflow.rules if has_cache_directive(rule) and not workflow.is_local(rule)]
    # Snakemake drops options with empty values, such as --cache without names, from the command of a job.
    if _options is not None and names and workflow.workflow_settings.cache == []:
        warn(
            next(iter(workflow.dag.jobs)),
            "jobs on a cluster do not use the cache, as Snakemake does not tell them to: name the rules, as in "
            f"--cache {' '.join(names)}",
        )


def has_cache_directive(rule: Any) -> bool:
    """Whether the rule's outputs are to be kept in the cache, if there is one."""
    cache = getattr(rule, "cache", None)
    if cache is not None:
        return bool(cache.output)
    return bool(getattr(rule.workflow, "cache_rules", {}).get(rule.name))  # before 9.20
