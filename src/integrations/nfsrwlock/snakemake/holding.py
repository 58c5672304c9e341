"""
Taking a job's locks: bounded, told in the log, given up when the workflow ends.

Jobs that run at the same time and wait for each other, as the ends of a pipe do, hold the locks of all of them as one.
Each with locks of its own, one might have its locks and the other queue behind a writer, who waits for the first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

from nfsrwlock.freshness import look_afresh
from nfsrwlock.leash import why_not_held
from nfsrwlock.snakemake.messages import LockingError, Waiting, job_name, note, say
from nfsrwlock.snakemake.plan import Plan, lock_set, plan_of, with_cache
from nfsrwlock.snakemake.unfinished import record_of
from nfsrwlock.text import printable
from nfsrwlock_core import HoldStatus, LockError, LockNotHeldError, LockSet, Timeout, traced_as

_LOOK_S: Final = 0.1
#: Set when the workflow of this process is being ended: who still waits for a lock gives up.
ending: Final = threading.Event()

Listener = Callable[[object], None]


@dataclass(slots=True)
class _Joint:
    """The locks of a job, or of several that run at the same time."""

    #: By job that holds them, or asks for them: whom to tell when they are lost.
    listeners: dict[Any, Listener] = field(default_factory=dict)
    #: Held, or why they could not be had. The first of the jobs takes them for all; the others wait for that.
    locks: Future[LockSet] = field(default_factory=Future)

    def tell(self, compromise: object) -> None:
        for listener in tuple(self.listeners.values()):
            listener(compromise)


_mutex: Final = threading.Lock()
#: By what connects the jobs.
_joints: Final[dict[object, _Joint]] = {}


@contextmanager
def held(job: Any, plan: Plan, on_compromise: Listener = lambda _: None, *, alone: bool = False) -> Iterator[LockSet]:
    """
    Hold the locks of ``job`` in this block, in which its files are seen as the last holder has left them.

    With them, those of all jobs that run at the same time and are connected with it. The first of these jobs takes
    them, and the last one releases them.

    :param alone: whether it runs elsewhere, and here nothing but ``plan`` is needed
    """
    is_alone = alone or job.pipe_group is None
    key: object = object() if is_alone else str(job.pipe_group.id)
    joint, is_first = _joined(job, key, on_compromise)
    try:
        if is_first:
            _take(joint, job, plan if is_alone else None)
        locks = joint.locks.result()
        look_afresh([*plan.files, *map(record_of, locks.locks)])
        yield locks
    finally:
        with _mutex:
            del joint.listeners[job]
            is_last = not joint.listeners
            if is_last:
                del _joints[key]
        if is_last and joint.locks.exception() is None:
            with suppress(LockNotHeldError):
                joint.locks.result().release()  # which may take as long as a file server does, so nobody waits for it


def _joined(job: Any, key: object, listener: Listener) -> tuple[_Joint, bool]:
    while True:
        with _mutex:
            joint = _joints.setdefault(key, _Joint())
            taken = joint.locks
            is_over = taken.done() and (taken.exception() or taken.result().status is HoldStatus.LOST)
            if not is_over and job not in joint.listeners:
                joint.listeners[job] = listener
                return joint, len(joint.listeners) == 1
        refuse_if_ending(job)
        time.sleep(_LOOK_S)  # those whose locks they were have yet to leave, or this job's own last attempt has


def _take(joint: _Joint, job: Any, plan: Plan | None) -> None:
    # With ``plan``, for this job alone.
    try:
        members = _group_of(job) if plan is None else [(job, plan)]
        for (one, mine), (other, theirs) in combinations(members, 2):
            _refuse_conflict(one, lock_set(mine.wanted), other, lock_set(theirs.wanted))
        locks = lock_set((want for _, plan in members for want in plan.wanted), joint.tell)
        _acquire(job, locks, min(plan.timeout for _, plan in members))
        joint.locks.set_result(locks)
    except ValueError as error:
        refusal = LockingError(f"the files of {job_name(job)} cannot be locked: {error}", rule=job.rule)
        joint.locks.set_exception(refusal)
    except BaseException as error:
        joint.locks.set_exception(error)


def _group_of(job: Any) -> list[tuple[Any, Plan]]:
    # Those with shadow: run in processes of their own, and take their locks there.
    members = (
        one
        for one in list(job.dag.jobs)  # which may grow meanwhile
        if one is job or (one.pipe_group == job.pipe_group and job.dag.needrun(one) and not one.is_shadow)
    )
    return [(one, plan) for one in members if (plan := with_cache(one, plan_of(one))) is not None]


def _acquire(job: Any, locks: LockSet, timeout: float) -> None:
    waiting = Waiting(job, timeout)
    try:
        with traced_as(rule=job.rule.name, job=job.jobid, wildcards=job.wildcards_dict or None):
            locks.acquire(timeout, on_wait=waiting.update, until=lambda: _is_ending(job))
    except Timeout as error:
        refuse_if_ending(job)
        raise LockingError(
            f"{job_name(job)} gave up waiting for its locks. {printable(str(error))}. "
            f"'nfsrwlock status {printable(error.lock_file)}' shows who holds it; how long a job waits is "
            "set by timeout= of its flags, NFSRWLOCK_TIMEOUT, or the config's section nfsrwlock"
        ) from None
    except LockError as error:
        raise LockingError(f"{job_name(job)} cannot lock its files: {printable(str(error))}") from None
    finally:
        note(waiting.seconds, waiting.text)
    if waiting.seconds >= 1:
        say(job, f"{job_name(job)} has its locks after {waiting.seconds:.0f} s")


def refuse_if_ending(job: Any) -> None:
    """Raise if the workflow is being ended."""
    # A command that is started after the signal that ends the workflow has not got that signal, and would run on.
    if _is_ending(job):
        raise LockingError(f"{job_name(job)} is not run: the workflow is being ended")


def _is_ending(job: Any) -> bool:
    scheduler = getattr(job.rule.workflow, "scheduler", None)
    return ending.is_set() or bool(getattr(scheduler, "_user_kill", None))


def _refuse_conflict(job: Any, mine: LockSet, other: Any, theirs: LockSet) -> None:
    # Both would be inside at once, which is what their locks are to prevent.
    if paths := {*mine.paths_write} & {*theirs.modes} | {*theirs.paths_write} & {*mine.modes}:
        raise LockingError(
            f"{job_name(job)} and {job_name(other)} run at the same time, connected by a pipe, but exclude each "
            f"other: one of them writes {printable(', '.join(sorted(paths)))}. Replace pipe() by a file, or let "
            "one rule do both"
        )


def settle(job: Any, locks: LockSet) -> None:
    """Return when the locks are certain, after the job's work and before its result counts; raise if they were lost."""
    while locks.status is HoldStatus.SUSPECT and not ending.is_set():
        time.sleep(_LOOK_S)
    if locks.status is not HoldStatus.HELD:
        raise lost(job, locks)


def lost(job: Any, locks: LockSet, consequence: str = "Nothing was published") -> LockingError:
    """Return the error for a job whose locks did not last; ``consequence``: what became of its outputs."""
    return LockingError(
        f"{job_name(job)} was stopped and its result is void: {printable(why_not_held(locks))}. {consequence}. "
        "Jobs lose a lock when no heartbeat gets through for a lease (stale_threshold=), or when an operator breaks it"
    )
