"""What a job must lock: made from the flags of its files. Rules that cannot be guarded are refused here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from snakemake.exceptions import WorkflowError
from snakemake.io import apply_wildcards, get_wildcard_names, is_flagged

from nfsrwlock.snakemake.cache import cache_entry, has_cache_directive
from nfsrwlock.snakemake.flags import PERMIT, READ, WRITE, Wish, is_exclusive, is_once, permits_of, wish_of
from nfsrwlock.snakemake.messages import LockingError, warn
from nfsrwlock.snakemake.settings import Options, resolved
from nfsrwlock.text import printable
from nfsrwlock_core import LockSet

_NOT_SHARED: Final = (
    "it is not on a shared file system. With --default-storage-provider, mark a file that is on one local(), as in {0}"
)
#: What Snakemake does with outputs of these kinds it does outside of the job, so not under its lock.
_REFUSED: Final = {
    "temp": "Snakemake deletes it when the workflow's own consumers are done, without a lock and whoever reads it",
    "protected": "nobody could replace it any more",
    "update": "it is changed in place, where readers would see it half done",
    "pipe": "it is no file that could be published",
    "service": "it is no file that could be published",
    "nodelocal": "it is not shared",
    "storage_object": _NOT_SHARED.format('exclusive(local("x"))'),
}

Mode = Literal["read", "write"]


class Want(NamedTuple):
    """One lock: the absolute path that names it, how it is held, the lock's settings, and the limit; 0: none."""

    path: str
    mode: Mode
    settings: tuple[tuple[str, Any], ...]
    at_most: int = 0
    #: Whether it is the one on the job's entry in the cache.
    is_entry: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What one job needs."""

    #: Its locks.
    wanted: tuple[Want, ...]
    #: What they guard: its flagged files, and its entry in the cache.
    files: tuple[str, ...]
    #: Seconds to wait for them; ``inf``: without end.
    timeout: float
    #: Its exclusive outputs, by index, each with the path that names its lock.
    exclusive: Mapping[int, str]
    #: Whether it may be skipped if others have made its outputs.
    once: bool


def lock_set(wanted: Iterable[Want], on_compromise: Callable[[object], None] | None = None) -> LockSet:
    """Return all these locks, not held; ``ValueError`` if one is wanted with different settings."""
    entries: list[LockSet] = []
    others: list[LockSet] = []
    for want in wanted:
        asked: dict[str, Any] = {"limited": {want.path: want.at_most}} if want.at_most else {want.mode: want.path}
        one = LockSet(**asked, on_compromise=on_compromise, **dict(want.settings))
        (entries if want.is_entry else others).append(one)
    # Entries first, as where one process holds that for a job that takes the others in a process of its own.
    return LockSet.joined((LockSet.joined(kind) for kind in (entries, others) if kind), one_after_another=True)


def plan_of(job: Any) -> Plan | None:
    """Return what ``job`` needs for its files and permits, ``None`` if nothing of it is flagged, or it runs nothing."""
    if job.is_norun:
        return None
    wanted: list[Want] = []
    files: list[str] = []
    timeouts: list[float] = []
    exclusive: dict[int, str] = {}

    def add(mode: Mode, wish: Wish, file: Any) -> str:
        name = file
        if wish.lock is not None:
            _check_wildcards(job.rule, file, wish, job.wildcards.keys())
            name = apply_wildcards(wish.lock, job.wildcards)
        path = os.path.abspath(str(name))
        timeout, settings = _resolved(job.rule, wish.options)
        wanted.append(Want(path, mode, settings, wish.at_most))
        timeouts.append(timeout)
        return path

    for file in job.input:
        _check_input(job, file)
        if (wish := wish_of(file, READ)) is not None:
            files.append(str(file))
            add("read", wish, file)
    for index, file in enumerate(job.output):
        if (wish := wish_of(file, WRITE)) is not None:
            files.append(str(file))
            exclusive[index] = add("write", wish, file)
    for wish in permits_of(job.rule):
        add("read", wish, wish.lock)
    if not timeouts:
        return None
    # Who is at one end of a pipe must not leave the other one waiting.
    once = any(map(is_once, job.output)) and job.pipe_group is None
    return Plan(tuple(wanted), tuple(files), min(timeouts), exclusive, once)


def with_cache(job: Any, plan: Plan | None) -> Plan | None:
    """Return ``plan`` and what Snakemake needs to look into its cache for ``job``, and to fill it, if it does."""
    if (entry := cache_entry(job)) is None:
        return plan
    path, options = entry
    timeout, settings = _resolved(job.rule, options)
    plan = plan or Plan((), (), timeout, {}, once=False)
    wanted = (*plan.wanted, Want(path, "write", settings, is_entry=True))
    return replace(plan, wanted=wanted, files=(*plan.files, path), timeout=min(plan.timeout, timeout))


def _check_input(job: Any, file: Any) -> None:
    # A function that returns the output of a checkpoint hands on what that is marked with.
    if (wish := wish_of(file, WRITE)) is not None and not any(
        wish_of(output, WRITE) is wish for rule in job.rule.workflow.rules for output in rule.output
    ):
        problem = "is marked exclusive(), which is for outputs: mark it shared_read()"
    elif wish_of(file, READ) is not None and is_flagged(file, "storage_object"):
        problem = "is in a storage, and cannot be locked: " + _NOT_SHARED.format('shared_read(local("x"))')
    else:
        return
    raise LockingError(f"the input {str(file)!r} {problem}", rule=job.rule)


def _resolved(rule: Any, options: Options) -> tuple[float, tuple[tuple[str, Any], ...]]:
    try:
        return resolved(options, rule.workflow.config)
    except WorkflowError as error:
        raise LockingError(str(error), rule=rule) from None


def check_rules(workflow: Any) -> None:
    """Refuse rules whose files could not be guarded, when the workflow has been read."""
    for rule in workflow.rules:
        wishes = [(wish.lock, wish) for wish in permits_of(rule)]
        for files, other, advice in (
            (rule.input, WRITE, "exclusive() is for outputs; mark it shared_read()"),
            (rule.output, READ, "shared_read() is for inputs; mark an output exclusive()"),
        ):
            for file in files:
                if wish_of(file, other) is not None:
                    raise LockingError(f"{_name(file)}: {advice}", rule=rule)
                if (wish := wish_of(file, READ) or wish_of(file, WRITE)) is not None:
                    wishes.append((file, wish))
        for file, wish in wishes:
            _resolved(rule, wish.options)
            _check_wildcards(rule, file, wish, rule.wildcard_names)
        for section in ("log", "benchmark", "params"):
            _refuse_flags(rule, section, getattr(rule, section))
        _refuse_flags(rule, "threads", rule.ruleinfo.threads)
        if exclusive := [file for file in rule.output if is_exclusive(file)]:
            _check_rule(rule, exclusive)


def _refuse_flags(rule: Any, section: str, value: Any) -> None:
    if wish_of(value, PERMIT) is not None:
        raise LockingError(f"limited() does nothing in {section}:, it is for resources:", rule=rule)
    if wish_of(value, READ) is not None or wish_of(value, WRITE) is not None:
        raise LockingError(
            f"{str(value)!r}: shared_read() and exclusive() do nothing in {section}:, they are for input: and output:",
            rule=rule,
        )
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        _refuse_flags(rule, section, item)


def warn_of_unguarded_reads(dag: Any) -> None:
    """Say, once for each rule and file, which jobs read an exclusive output without a lock."""
    said = set()
    for job in dag.needrun_jobs():
        flagged = {str(file) for file in job.input if wish_of(file, READ) is not None}
        for producer, files in dag.dependencies[job].items():
            exclusive = {str(file) for file in producer.output if is_exclusive(file)}
            unguarded = sorted(exclusive.intersection(map(str, files)) - flagged)
            reader, writer = rules = job.rule.name, producer.rule.name
            if unguarded and not job.is_norun and rules not in said:
                said.add(rules)
                warn(
                    job,
                    f"rule {reader} reads {printable(unguarded[0])}, an exclusive() output of rule {writer}, without "
                    "shared_read(): it may be replaced meanwhile",
                )


def _check_wildcards(rule: Any, file: Any, wish: Wish, known: Iterable[str]) -> None:
    if unknown := sorted(get_wildcard_names(wish.lock or "") - set(known)):
        raise LockingError(
            f"{_name(file)}: lock={wish.lock!r} has a wildcard that the rule has not: {', '.join(unknown)}", rule=rule
        )


def _check_rule(rule: Any, exclusive: list[Any]) -> None:
    for file in exclusive:
        for kind, reason in _REFUSED.items():
            if is_flagged(file, kind):
                name = "in a storage" if kind == "storage_object" else f"{kind}()"
                if kind == "temp" and rule.workflow.storage_settings.all_temp:
                    name = "temp(), by --all-temp,"
                raise LockingError(f"{_name(file)}: an exclusive() output cannot be {name}: {reason}", rule=rule)
    once = any(map(is_once, exclusive))
    if rule.shadow_depth is not None:
        problem = (
            "exclusive() outputs do not go with shadow:, whose results Snakemake moves after the lock is released; "
            "the job writes to a private directory anyway"
        )
    elif has_cache_directive(rule):
        problem = (
            "exclusive() outputs do not go with cache:, which puts links in their place; use lock_cache() to make "
            "workflows share the cache safely"
        )
    elif any(is_flagged(file, "service") for file in rule.output):
        problem = "exclusive() outputs do not go with service(), whose job Snakemake ends before it could publish them"
    elif once and len(exclusive) < len(rule.output):
        problem = "once=True needs every output of the rule to be exclusive(): a skipped job makes none of them"
    elif once and rule.benchmark:
        problem = "once=True does not go with benchmark:, which a skipped job cannot make"
    else:
        return
    raise LockingError(problem, rule=rule)


def _name(file: Any) -> str:
    return "a function" if getattr(file, "is_callable", bool)() else repr(str(file))
