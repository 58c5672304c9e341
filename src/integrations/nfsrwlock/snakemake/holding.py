"""Taking a job's locks: bounded, told in the log, given up when the workflow ends, and never for two ends of a pipe."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from nfsrwlock.freshness import look_afresh
from nfsrwlock.snakemake.leash import reason
from nfsrwlock.snakemake.messages import LockingError, Waiting, job_name, say
from nfsrwlock.snakemake.plan import Plan
from nfsrwlock.text import printable
from nfsrwlock_core import HoldStatus, LockError, LockNotHeldError, LockSet, Timeout, WaitInfo

_LOOK_S: Final = 0.1
#: Set when the workflow of this process is being ended: who still waits for a lock gives up.
ending: Final = threading.Event()

_mutex: Final = threading.Lock()
_holders: Final[dict[int, tuple[Any, Plan]]] = {}


@contextmanager
def held(job: Any, plan: Plan) -> Iterator[LockSet]:
    """
    Hold the locks of ``job`` in this block, in which its files are seen as the last holder has left them.

    :raises LockingError: if they cannot be had; says who holds them
    """
    _acquire(job, plan)
    try:
        with _mutex:
            _holders[id(plan)] = job, plan
        look_afresh(plan.files)
        yield plan.locks
    finally:
        with _mutex:
            _holders.pop(id(plan), None)
        with suppress(LockNotHeldError):
            plan.locks.release()


def _acquire(job: Any, plan: Plan) -> None:
    timeout = -1.0 if math.isinf(plan.timeout) else plan.timeout
    waiting = Waiting(job, timeout)
    began = time.monotonic()

    def on_wait(info: WaitInfo) -> None:
        refuse_if_ending(job)
        _refuse_in_a_pipe(job, plan)
        waiting.update(info, time.monotonic() - began)

    _refuse_in_a_pipe(job, plan)
    try:
        plan.locks.acquire(timeout, on_wait=on_wait)
    except Timeout as error:
        raise LockingError(
            f"{job_name(job)} gave up waiting for its locks. {printable(str(error))}. "
            f"'nfsrwlock status {printable(error.lock_file)}' shows who holds it; how long a job waits is "
            "set by timeout= of its flags, NFSRWLOCK_TIMEOUT, or the config's section nfsrwlock",
        ) from None
    except LockError as error:
        raise LockingError(f"{job_name(job)} cannot lock its files: {printable(str(error))}") from None
    waited = time.monotonic() - began
    if waited >= 1:
        say(job, f"{job_name(job)} has its locks after {waited:.0f} s")


def refuse_if_ending(job: Any) -> None:
    """
    Do nothing while the workflow goes on.

    A command that is started after the signal that ends the workflow has not got that signal, and would run on.

    :raises LockingError: if the workflow is being ended
    """
    scheduler = getattr(job.rule.workflow, "scheduler", None)
    if ending.is_set() or getattr(scheduler, "_user_kill", None):
        raise LockingError(f"{job_name(job)} is not run: the workflow is being ended")


def _refuse_in_a_pipe(job: Any, plan: Plan) -> None:
    # The two ends of a pipe run at the same time and wait for each other: a lock of one must not shut out the other.
    if job.pipe_group is None:
        return
    with _mutex:
        others = list(_holders.values())
    for other, its_plan in others:
        if other is not job and other.pipe_group == job.pipe_group and (paths := plan.conflicts_with(its_plan)):
            raise LockingError(
                f"{job_name(job)} and {job_name(other)} run at the same time, connected by a pipe, but exclude each "
                f"other: one of them writes {printable(', '.join(sorted(paths)))}. Replace pipe() by a file, or let "
                "one rule do both",
            )


def settle(job: Any, locks: LockSet) -> None:
    """
    Return when the locks are certain, after the job's work and before its result counts.

    :raises LockingError: if they were lost
    """
    while locks.status is HoldStatus.SUSPECT:
        if ending.is_set():
            raise lost(job, locks)
        time.sleep(_LOOK_S)
    if locks.status is not HoldStatus.HELD:
        raise lost(job, locks)


def lost(job: Any, locks: LockSet, consequence: str = "Nothing was published") -> LockingError:
    """Return the error for a job whose locks did not last; ``consequence``: what became of its outputs."""
    return LockingError(
        f"{job_name(job)} was stopped and its result is void: {printable(reason(locks))}. {consequence}. "
        "Jobs lose a lock when no heartbeat gets through for a lease (stale_threshold=), or when an operator breaks it",
    )
