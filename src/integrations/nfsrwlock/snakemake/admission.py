"""
Which jobs may start: those whose locks look free. For the scheduler ``nfsrwlock``; decides nothing about safety.

It looks at locks without taking part in them, so what it sees may be over a moment later, either way. It looks at the
locks of the jobs that are about to start, and only if one of these is busy at those of all jobs that are ready; at each
lock at most once a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final

from snakemake.exceptions import WorkflowError

from nfsrwlock.processes import family
from nfsrwlock.snakemake.messages import job_name, note, say, warn
from nfsrwlock.snakemake.plan import Mode, Plan, Want, plan_of
from nfsrwlock.text import duration, printable
from nfsrwlock_core import LockError, PeerInfo, inspect

_LOOK_AGAIN_S: Final = 1.0
_ASK_AGAIN_S: Final = 2
_SAY_AGAIN_S: Final = 60.0

_Obstacle = tuple[str, PeerInfo]
#: By path: how jobs of this workflow hold it, or are about to, and how many of them with a permit.
_Claims = dict[str, tuple[Mode, int]]


class Admission:
    """Remembers what the jobs want, how the locks looked, and which jobs were held back, since when."""

    def __init__(self, dag: Any) -> None:
        self._dag = dag
        #: Of the jobs that are ready or run: there may be thousands, and all are asked for again and again.
        self._plans: dict[Any, list[Plan]] = {}
        self._looks: dict[tuple[str, Any], tuple[float, list[PeerInfo]]] = {}
        self._held_back: dict[Any, tuple[float, _Obstacle | None]] = {}
        self._said: dict[str, float] = {}

    def select(self, jobs: Iterable[Any], choose: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
        """Return those that ``choose`` selects among ``jobs`` whose locks look free; none keeps another one waiting."""
        now = time.monotonic()
        self._looks = {lock: look for lock, look in self._looks.items() if now - look[0] < _LOOK_AGAIN_S}
        workflow = self._dag.workflow
        # What runs may not have its locks yet, so that these still look free.
        running = tuple(workflow.scheduler.running)
        if workflow.remote_execution_settings.immediate_submit:
            running = ()  # Snakemake never hears of their end
        self._plans = {job: self._plans[job] if job in self._plans else _plans(job) for job in (*jobs, *running)}
        started: _Claims = {}
        for job in running:
            _claim(started, self._plans[job])
        claims = dict(started)
        #: By job that is not started: the path that it waits for, and who has the lock on it. ``None``: another job of
        #: this workflow, of which nobody need hear.
        obstacles: dict[Any, _Obstacle | None] = {}

        @cache
        def in_the_way(wanted: tuple[Want, ...], look: bool) -> list[_Obstacle | None]:
            for want in wanted:
                mode, permits = claims.get(want.path, ("read", 0))
                if want.path in claims and "write" in (want.mode, mode):
                    return [None]
                peers = self._peers(want, now, look)
                blockers = [peer for peer in peers if "write" in (want.mode, peer.mode)]
                others = [peer for peer in peers if peer.at_most]
                if not workflow.local_exec and want.path in started:
                    others = others[started[want.path][1] :]  # of its own jobs on other nodes, as far as one knows
                is_full = 0 < want.at_most <= len(others) + permits
                if blockers or is_full:
                    peer = next(iter(blockers or others), None)
                    return [None if peer is None else (want.path, peer)]
            return []

        def may_start(job: Any, look: bool) -> bool:
            since, _ = self._held_back.get(job, (now, None))
            # One that has waited for its time-out goes, and says for whom it has waited.
            plans = (plan for plan in self._plans[job] if now - since <= plan.timeout)
            if found := in_the_way(tuple(want for plan in plans for want in plan.wanted), look):
                obstacles[job] = found[0]
            return not found

        free = [job for job in jobs if may_start(job, look=False)]
        chosen = choose(free) if free else []
        if not all(may_start(job, look=True) for job in chosen):
            free = [job for job in free if may_start(job, look=True)]
            chosen = choose(free) if free else []
        compatible: list[Any] = []
        for job in chosen:
            if may_start(job, look=True):
                _claim(claims, self._plans[job])
                in_the_way.cache_clear()
                compatible.append(job)
        for job, (since, obstacle) in self._held_back.items():
            if job not in obstacles and obstacle is not None:
                who = f"{job_name(next(iter(_members(job))))} waited {duration(now - since)}"
                note(now - since, _text(who, obstacle))
        self._held_back = {job: (self._held_back.get(job, (now,))[0], found) for job, found in obstacles.items()}
        self._say_who_waits(now)
        if obstacles and workflow.scheduling_settings.max_jobs_per_timespan is None:
            workflow.scheduler._schedule_reevalutation(_ASK_AGAIN_S)  # else Snakemake asks by itself
        return compatible

    def _peers(self, want: Want, now: float, look: bool) -> list[PeerInfo]:
        lock = want.path, dict(want.settings).get("lock_dir")
        if lock not in self._looks:
            if not look:
                return []
            try:
                state = inspect(lock[0], lock_dir=lock[1])
            except LockError:
                peers = []  # the job will say it
            else:  # whoever asks for the lock removes who is gone
                here = (*state.holders, *state.waiters)
                peers = [peer for peer in here if peer.alive is not False and peer.evictable_in > 0]
                if self._dag.workflow.local_exec and any(peer.at_most for peer in peers):  # whoever looks: it is kept
                    own = {os.getpid(), *(entry.pid for entry in family([os.getpid()]))}
                    peers = [peer for peer in peers if not (peer.at_most and peer.same_kernel and peer.pid in own)]
            self._looks[lock] = now, peers
        return self._looks[lock][1]

    def _say_who_waits(self, now: float) -> None:
        waiting: dict[str, list[tuple[float, Any, _Obstacle]]] = {}
        for job, (since, obstacle) in self._held_back.items():
            if obstacle is not None:
                waiting.setdefault(obstacle[0], []).append((since, job, obstacle))
        for path, those in waiting.items():
            if now - self._said.get(path, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
                self._said[path] = now
                _, job, obstacle = those[0]
                one = next(iter(_members(job)))
                who = f"{len(those)} jobs wait" if len(those) > 1 else f"{job_name(one)} waits"
                since = min(since for since, _, _ in those)
                (say if now - since < _SAY_AGAIN_S else warn)(one, _text(who, obstacle))


def _text(who_waits: str, obstacle: _Obstacle) -> str:
    path, peer = obstacle
    return f"{who_waits} for the lock on {printable(path)} to start: {printable(peer.describe())}"


def _members(job: Any) -> Iterable[Any]:
    return job if job.is_group() else (job,)


def _plans(job: Any) -> list[Plan]:
    plans = []
    for one in _members(job):
        with suppress(WorkflowError):  # the job will say it
            plan = plan_of(one)
            plans += [] if plan is None else [plan]
    return plans


def _claim(claims: _Claims, plans: list[Plan]) -> None:
    for want in (want for plan in plans for want in plan.wanted):
        mode, permits = claims.get(want.path, (want.mode, 0))
        claims[want.path] = "write" if "write" in (mode, want.mode) else "read", permits + (want.at_most > 0)
