"""What a job must lock: made from the flags of its files. Rules that cannot be guarded are refused here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from snakemake.exceptions import WorkflowError
from snakemake.io import apply_wildcards, get_wildcard_names, is_flagged

from nfsrwlock.snakemake.cache import cache_entry, has_cache_directive
from nfsrwlock.snakemake.flags import READ, WRITE, Wish, is_exclusive, wish_of
from nfsrwlock.snakemake.messages import LockingError
from nfsrwlock.snakemake.settings import DEFAULT_TIMEOUT_S, Options, for_lock, resolved
from nfsrwlock_core import LockSet

#: What Snakemake does with outputs of these kinds it does outside of the job, so not under its lock.
_REFUSED: Final = {
    "temp": "Snakemake deletes it when the workflow's own consumers are done, without a lock and whoever reads it",
    "protected": "nobody could replace it any more",
    "update": "it is changed in place, where readers would see it half done",
    "pipe": "it is no file that could be published",
    "service": "it is no file that could be published",
    "nodelocal": "it is not shared",
    "storage_object": "it is not on a shared file system",
}


Mode = Literal["read", "write"]


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What one job needs.

    :param locks: all its locks, not held
    :param files: what they guard: its flagged files, and its entry in the cache
    :param timeout: seconds to wait for them; ``inf``: without end
    :param exclusive: which of its outputs are exclusive, by index
    :param once: whether it may be skipped if others have made its outputs
    :param on_compromise: called when a lock that is held becomes suspect or lost
    """

    locks: LockSet
    files: tuple[str, ...]
    timeout: float
    exclusive: tuple[int, ...]
    once: bool
    on_compromise: Callable[[object], None] | None = None

    def conflicts_with(self, other: Plan) -> frozenset[str]:
        """Return the paths because of which the two cannot be held at the same time."""
        mine, theirs = set(self.locks.paths_write), set(other.locks.paths_write)
        return frozenset((mine & theirs) | (mine & set(other.locks.paths_read)) | (theirs & set(self.locks.paths_read)))


def plan_of(job: Any, on_compromise: Callable[[object], None] | None = None) -> Plan | None:
    """
    Return what ``job`` needs, ``None`` if nothing of it is flagged.

    :param on_compromise: called when a lock that is held becomes suspect or lost
    :raises LockingError: if its flags contradict each other
    """
    wanted: dict[tuple[str, Options], Mode] = {}
    files: list[str] = []
    timeouts: list[float] = []
    once = False
    for file, path, mode, wish in _wishes(job):
        files.append(file)
        options = _resolved(job.rule, wish.options)
        timeouts.append(DEFAULT_TIMEOUT_S if options.timeout is None else options.timeout)
        key = (
            path,
            Options(
                stale_threshold=options.stale_threshold,
                share=options.share,
                lock_dir=options.lock_dir,
                heartbeat=options.heartbeat,
            ),
        )
        wanted[key] = "write" if "write" in (mode, wanted.get(key)) else "read"
        once = once or wish.once
    cached = plan_of_cache(job, on_compromise)
    if cached is not None:
        files += cached.files
        timeouts.append(cached.timeout)
    if not files:
        return None
    sets = [
        LockSet(
            read=[path] if mode == "read" else [],
            write=[path] if mode == "write" else [],
            on_compromise=on_compromise,
            **for_lock(options),
        )
        for (path, options), mode in wanted.items()
    ]
    try:
        locks = [LockSet.joined(sets)] if sets else []
        if cached is not None:
            # Its entry first, as where one process holds that for a job that takes the others in a process of its own.
            locks.insert(0, cached.locks)
        in_turn = LockSet.joined(locks, one_after_another=True)
    except ValueError as error:
        raise LockingError(f"the files of a job cannot be locked: {error}", rule=job.rule) from None
    exclusive = tuple(index for index, file in enumerate(job.output) if is_exclusive(file))
    # Who is at one end of a pipe must not leave the other one waiting.
    once = once and job.pipe_group is None
    return Plan(in_turn, tuple(files), min(timeouts), exclusive, once, on_compromise)


def joint_plan(job: Any, plans: Sequence[Plan]) -> Plan:
    """
    Return what jobs need together, of which ``job`` is one.

    :raises LockingError: if they want a lock with different settings
    """
    try:
        locks = LockSet.joined(plan.locks for plan in plans)
    except ValueError as error:
        raise LockingError(f"the files of jobs that run together cannot be locked: {error}", rule=job.rule) from None
    return Plan(
        locks=locks,
        files=tuple(file for plan in plans for file in plan.files),
        timeout=min(plan.timeout for plan in plans),
        exclusive=(),
        once=False,
    )


def plan_of_cache(job: Any, on_compromise: Callable[[object], None] | None = None) -> Plan | None:
    """
    Return what Snakemake needs to look into its cache for ``job``, and to fill it; ``None`` if it does not.

    :param on_compromise: called when the lock is held and becomes suspect or lost
    :raises LockingError: if the cache is not a directory
    """
    if (entry := cache_entry(job)) is None:
        return None
    path, options = entry
    options = _resolved(job.rule, options)
    timeout = DEFAULT_TIMEOUT_S if options.timeout is None else options.timeout
    locks = LockSet(write=[path], on_compromise=on_compromise, **for_lock(options))
    return Plan(locks=locks, files=(path,), timeout=timeout, exclusive=(), once=False)


def _wishes(job: Any) -> Iterator[tuple[str, str, Mode, Wish]]:
    for file in job.input:
        if (wish := wish_of(file, WRITE)) is not None and not _is_an_output_s(job.rule.workflow, wish):
            raise LockingError(
                f"the input {str(file)!r} is marked exclusive(), which is for outputs: mark it shared_read()",
                rule=job.rule,
            )
        if (wish := wish_of(file, READ)) is not None:
            if is_flagged(file, "storage_object"):
                raise LockingError(
                    f"the input {str(file)!r} is in a storage, not on a shared file system, and cannot be locked",
                    rule=job.rule,
                )
            yield str(file), _lock_path(job, file, wish), "read", wish
    for file in job.output:
        if (wish := wish_of(file, WRITE)) is not None:
            yield str(file), _lock_path(job, file, wish), "write", wish


def _is_an_output_s(workflow: Any, wish: Wish) -> bool:
    # A function that returns the output of a checkpoint hands on what that is marked with.
    return any(wish_of(file, WRITE) is wish for rule in workflow.rules for file in rule.output)


def _lock_path(job: Any, file: Any, wish: Wish) -> str:
    if wish.lock is None:
        return os.path.abspath(str(file))
    _check_wildcards(job.rule, file, wish.lock, job.wildcards.keys())
    return os.path.abspath(str(apply_wildcards(wish.lock, job.wildcards)))


def _resolved(rule: Any, options: Options) -> Options:
    try:
        return resolved(options, rule.workflow.config)
    except WorkflowError as error:
        raise LockingError(str(error), rule=rule) from None


def check_rules(workflow: Any) -> None:
    """
    Refuse rules whose files could not be guarded, when the workflow has been read.

    :raises LockingError: with the rule, the file and the reason
    """
    for rule in workflow.rules:
        for file in rule.input:
            if wish_of(file, WRITE) is not None:
                raise LockingError(f"{_name(file)}: exclusive() is for outputs; mark it shared_read()", rule=rule)
        for file in rule.output:
            _check_output(rule, file)
        for file in (*rule.input, *rule.output):
            _check_wish(rule, file)
        wishes = [wish for file in rule.output if (wish := wish_of(file, WRITE)) is not None]
        if wishes:
            _check_rule(rule, wishes)


def _check_wish(rule: Any, file: Any) -> None:
    wish = wish_of(file, READ) or wish_of(file, WRITE)
    if wish is None:
        return
    _resolved(rule, wish.options)
    if wish.lock is not None:
        _check_wildcards(rule, file, wish.lock, rule.wildcard_names)


def _check_wildcards(rule: Any, file: Any, lock: str, known: Iterable[str]) -> None:
    if unknown := sorted(get_wildcard_names(lock) - set(known)):
        raise LockingError(
            f"{_name(file)}: lock={lock!r} has a wildcard that the rule has not: {', '.join(unknown)}", rule=rule
        )


def _check_output(rule: Any, file: Any) -> None:
    if wish_of(file, READ) is not None:
        raise LockingError(f"{_name(file)}: shared_read() is for inputs; mark an output exclusive()", rule=rule)
    if not is_exclusive(file):
        return
    for kind, reason in _REFUSED.items():
        if is_flagged(file, kind):
            name = "in a storage" if kind == "storage_object" else f"{kind}()"
            if kind == "temp" and rule.workflow.storage_settings.all_temp:
                name = "temp(), by --all-temp,"
            raise LockingError(f"{_name(file)}: an exclusive() output cannot be {name}: {reason}", rule=rule)


def _check_rule(rule: Any, wishes: list[Wish]) -> None:
    if rule.shadow_depth is not None:
        raise LockingError(
            "exclusive() outputs do not go with shadow:, whose results Snakemake moves after the lock is released; "
            "the job writes to a private directory anyway",
            rule=rule,
        )
    if has_cache_directive(rule):
        raise LockingError(
            "exclusive() outputs do not go with cache:, which puts links in their place; use lock_cache() to make "
            "workflows share the cache safely",
            rule=rule,
        )
    if any(wish.once for wish in wishes):
        if len(wishes) < len(rule.output):
            raise LockingError(
                "once=True needs every output of the rule to be exclusive(): a job that is skipped makes none of them",
                rule=rule,
            )
        if rule.benchmark:
            raise LockingError("once=True does not go with benchmark:, which a skipped job cannot make", rule=rule)


def _name(file: Any) -> str:
    return "a function" if file.is_callable() else repr(str(file))
