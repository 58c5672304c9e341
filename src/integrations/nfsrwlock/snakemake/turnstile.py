"""
Which jobs may start: those whose locks look free. For the scheduler ``nfsrwlock``; decides nothing about safety.

It looks at locks without taking part in them, so what it sees may be over a moment later, either way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from snakemake.exceptions import WorkflowError

from nfsrwlock.snakemake.flags import READ, WRITE, wish_of
from nfsrwlock.snakemake.messages import job_name, say
from nfsrwlock.snakemake.plan import Plan, plan_of
from nfsrwlock.text import printable
from nfsrwlock_core import LockError, PeerInfo, inspect

_ASK_AGAIN_S: Final = 2
_TELL_AGAIN_S: Final = 60.0


class Turnstile:
    """Remembers who was held back, and since when."""

    def __init__(self, dag: Any) -> None:
        self._dag = dag
        self._since: dict[Any, float] = {}
        self._told: dict[Any, float] = {}
        #: Of the jobs that were started: there may be thousands, and all are asked for again and again.
        self._plans: dict[Any, list[tuple[Any, Plan]]] = {}

    def let_through(self, jobs: Sequence[Any]) -> list[Any]:
        """Return those of ``jobs`` whose locks look free, or that were held back for as long as they would wait."""
        now, started = time.monotonic(), self._started()
        free = [job for job in jobs if not self._holds_back(job, now, started)]
        if len(free) < len(jobs):
            self._ask_again()
        return free

    def one_of_each_kind(self, jobs: Sequence[Any]) -> list[Any]:
        """Return ``jobs`` without those that an earlier one of them will keep waiting."""
        chosen: list[Any] = []
        claims = _Claims()
        for job in jobs:
            plans = _plans(job)
            if all(claims.against(plan) is None for _, plan in plans):
                chosen.append(job)
                claims.add(plans)
        if len(chosen) < len(jobs):
            self._ask_again()
        return chosen

    def _started(self) -> _Claims:
        # They may not have their locks yet, so that these still look free.
        workflow = self._dag.workflow
        claims = _Claims()
        if not workflow.remote_execution_settings.immediate_submit:  # else Snakemake never hears of their end
            running = tuple(workflow.scheduler.running)
            self._plans = {job: self._plans[job] if job in self._plans else _plans(job) for job in running}
            for plans in self._plans.values():
                claims.add(plans)
        return claims

    def _holds_back(self, job: Any, now: float, started: _Claims) -> bool:
        for one, plan in _plans(job):
            obstacle = _obstacle(plan, started)
            if obstacle is None:
                continue
            since = self._since.setdefault(job, now)
            if now - since > plan.timeout:
                continue  # it goes, and tells for whom it has waited
            if now - self._told.get(job, -_TELL_AGAIN_S) >= _TELL_AGAIN_S:
                self._told[job] = now
                say(one, f"{job_name(one)} is not started yet, its lock is busy: {obstacle}")
            return True
        self._since.pop(job, None)
        self._told.pop(job, None)
        return False

    def _ask_again(self) -> None:
        workflow = self._dag.workflow
        if workflow.scheduling_settings.max_jobs_per_timespan is None:  # else Snakemake asks by itself
            workflow.scheduler._schedule_reevalutation(_ASK_AGAIN_S)


def _members(job: Any) -> Iterable[Any]:
    return job if job.is_group() else (job,)


def _plan(job: Any) -> Plan | None:
    if job.is_norun or not any(
        wish_of(file, flag) is not None for files, flag in ((job.input, READ), (job.output, WRITE)) for file in files
    ):
        return None
    try:
        return plan_of(job)
    except WorkflowError:
        return None  # the job will say it


def _plans(job: Any) -> list[tuple[Any, Plan]]:
    return [(one, plan) for one in _members(job) if (plan := _plan(one)) is not None]


class _Claims:
    """Who reads and who writes what."""

    def __init__(self) -> None:
        self._readers: dict[str, Any] = {}
        self._writers: dict[str, Any] = {}

    def add(self, plans: Iterable[tuple[Any, Plan]]) -> None:
        for job, plan in plans:
            self._readers.update(dict.fromkeys(plan.locks.paths_read, job))
            self._writers.update(dict.fromkeys(plan.locks.paths_write, job))

    def against(self, plan: Plan) -> Any | None:
        """Return a job that cannot have its locks together with ``plan``, if there is one."""
        found = [self._writers.get(path) for path in (*plan.locks.paths_write, *plan.locks.paths_read)]
        found += [self._readers.get(path) for path in plan.locks.paths_write]
        return next((job for job in found if job is not None), None)


def _obstacle(plan: Plan, started: _Claims) -> str | None:
    peer = next(_in_the_way(plan), None)
    if peer is not None:
        return printable(peer.describe())
    job = started.against(plan)
    return None if job is None else f"{job_name(job)} has been started"


def _in_the_way(plan: Plan) -> Iterator[PeerInfo]:
    writing = set(plan.locks.paths_write)
    for lock in plan.locks.locks:
        try:
            state = inspect(lock.lock_file, lock_dir=lock.lock_dir)
        except LockError:
            continue  # the job will say it
        parent, name = os.path.split(lock.lock_file)
        is_written = os.path.join(os.path.realpath(parent), name) in writing
        for peer in (*state.holders, *state.waiters):
            is_gone = peer.alive is False or peer.evictable_in <= 0  # whoever asks for the lock removes it
            if not is_gone and (peer.mode != "read" or is_written):
                yield peer
