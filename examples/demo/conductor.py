"""The play: starts the processes, kills two of them, orders new versions, and watches the lock from outside.

The jobs and the updater are separate programs that share nothing but files. The conductor holds no lock and steers
only the occasions: it kills a job at a moment when that job holds the lock, and then has the updater ask for it.

All of them run on one kernel, but `NFSRWLOCK_HOST` gives them the names of three nodes, and the lock asks the kernel
about a process only if it is on the host of the one who asks. So both ways out of a dead holder are seen: the job
that is on the updater's node is found dead at once; the job on another node has to be waited for until its lease has
run out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from events import Event, EventLog, EventReader, Kind
from nfsrwlock import LockState, inspect
from stage import Settings, Stage
from updater import UPDATER

JOBS = ("job-1", "job-2", "job-3")
NEAR_VICTIM = "job-2"
FAR_VICTIM = "job-3"

TICK_S = 0.03
REQUEUE_AFTER_S = 0.5
FIRST_KILL_AT = 0.25
SECOND_KILL_AT = 0.55
"""Shares of all batches that are done by then."""
KILL_INTO_HOLD = (0.3, 0.7)
"""Of the pauses of one hold: the part of it in which the kill may fall."""

HOSTS = {"job-1": "node1", NEAR_VICTIM: "node2", UPDATER: "node2", FAR_VICTIM: "node3"}

Steps = Generator[None, None, None]


class StuckError(Exception):
    """The demonstration took far longer than it should."""


@dataclass(frozen=True)
class Scene:
    """What can be seen at one moment."""

    elapsed: float
    news: tuple[Event, ...]
    lock: LockState
    names: Mapping[int | None, str]
    """The process that a pid in the lock state belongs to."""
    dead: frozenset[str]
    """Tokens of processes that were killed."""
    asking: Mapping[str, str]
    """Who waits for which mode, by their own logs: a reader that waits is not announced in the lock."""
    batches_done: Mapping[str, int]


@dataclass
class Actor:
    """One process, and how often it was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: EventLog
    attempt: int
    killed: bool = False
    ended: bool = False


@dataclass
class Conductor:
    stage: Stage
    settings: Settings
    deadline: float
    """Seconds after which the run is given up."""
    show: Callable[[Scene], None]

    def __post_init__(self) -> None:
        self._reader = EventReader(self.stage.logs)
        self._events: list[Event] = []
        self._actors: dict[str, Actor] = {}
        self._orphans: dict[str, str] = {}
        self._batches_done: dict[str, int] = {}
        self._lock = inspect(self.stage.guarded_path)

    def run(self) -> list[Event]:
        """Play it to the end. No process is left behind, however it ends.

        Raises:
            StuckError: the run took longer than its deadline.
        """
        began = time.monotonic()
        steps = self._play()
        try:
            for _ in steps:
                elapsed = time.monotonic() - began
                if elapsed > self.deadline:
                    raise StuckError(f"not finished after {elapsed:.0f} s; last of all: {self._events[-1]}")
                time.sleep(TICK_S)
                self._look(elapsed)
        finally:
            self._end_all()
        self._look(time.monotonic() - began)
        return self._events

    def _play(self) -> Steps:
        for job in JOBS:
            self._start(job, 1)
        self._start(UPDATER, 1)
        yield from self._until(lambda: self._progress() >= FIRST_KILL_AT)
        yield from self._kill_during_hold(NEAR_VICTIM)
        self._order_version()
        yield from self._requeue(NEAR_VICTIM)
        yield from self._until(lambda: self._built(2) and self._progress() >= SECOND_KILL_AT)
        yield from self._kill_during_hold(FAR_VICTIM)
        self._order_version()
        yield from self._requeue(FAR_VICTIM)
        yield from self._until(lambda: all(self._actors[job].ended for job in JOBS))
        self._updater_input().close()
        yield from self._until(lambda: self._actors[UPDATER].ended)
        yield from self._until(lambda: not self._orphans)

    def _until(self, condition: Callable[[], bool]) -> Steps:
        while not condition():
            yield

    def _kill_during_hold(self, job: str) -> Steps:
        """Send SIGKILL while the job holds the lock.

        Its log shows whether the signal came in time; a job that had just released is started again, for another try.
        """
        while True:
            yield from self._until(lambda: self._actors[job].ended or self._is_amid_batch(job))
            actor = self._actors[job]
            if actor.ended:
                return
            names = self._names()
            holders = inspect(self.stage.guarded_path).holders
            tokens = {peer.token for peer in holders if names.get(peer.pid) == job}
            killed = actor.log.write(Kind.KILLED)
            actor.killed = actor.ended = True
            os.killpg(actor.process.pid, signal.SIGKILL)
            actor.process.wait()
            yield
            own = [event for event in self._events if event.who == job and event.time < killed.time]
            if next(event.kind for event in reversed(own) if event.kind in (Kind.HOLDS, Kind.RELEASES)) is Kind.HOLDS:
                self._orphans |= dict.fromkeys(tokens, job)
                return
            self._start(job, actor.attempt + 1)

    def _is_amid_batch(self, job: str) -> bool:
        """Whether the job holds the shared lock, has done so for a while, and will for a while yet."""
        last = next(event for event in reversed(self._events) if event.who == job)
        if last.kind is not Kind.HOLDS or last.details["purpose"] != "align":
            return False
        earliest, latest = KILL_INTO_HOLD
        return earliest <= (time.monotonic() - last.time) / self.settings.hold_pause <= latest

    def _requeue(self, job: str) -> Steps:
        """Start a killed job again, as a cluster's scheduler does."""
        again = time.monotonic() + REQUEUE_AFTER_S
        yield from self._until(lambda: time.monotonic() >= again)
        actor = self._actors[job]
        if actor.killed:
            actor.log.write(Kind.REQUEUED)
            self._start(job, actor.attempt + 1)

    def _order_version(self) -> None:
        # An updater that has failed is seen by the checks.
        if not self._actors[UPDATER].ended:
            self._updater_input().write(b"one more version\n")
            self._updater_input().flush()

    def _updater_input(self) -> IO[bytes]:
        pipe = self._actors[UPDATER].process.stdin
        assert pipe is not None
        return pipe

    def _start(self, name: str, attempt: int) -> None:
        here = Path(__file__).parent
        if name == UPDATER:
            command = [sys.executable, str(here / "updater.py"), str(self.stage.directory)]
        else:
            command = [sys.executable, str(here / "worker.py"), str(self.stage.directory), name, str(attempt)]
        with self.stage.output_path(name, attempt).open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "NFSRWLOCK_HOST": HOSTS[name]},
                start_new_session=True,
            )
        log = EventLog(self.stage.logs / f"conductor.{name}.jsonl", name)
        self._actors[name] = Actor(name, process, log, attempt)

    def _look(self, elapsed: float) -> None:
        """Gather what happened since the last look, and show it."""
        for actor in self._actors.values():
            if not actor.ended and actor.process.poll() is not None:
                actor.ended = True
                actor.log.write(Kind.ENDED, code=actor.process.returncode)
        self._lock = inspect(self.stage.guarded_path, previous=self._lock)
        listed = {peer.token for peer in (*self._lock.holders, *self._lock.waiters)}
        for token in [token for token in self._orphans if token not in listed]:
            self._actors[self._orphans.pop(token)].log.write(Kind.RECOVERED)
        results = [path.name.split(".")[0] for path in self.stage.results.glob("*.json")]
        self._batches_done = {job: results.count(job) for job in JOBS}
        news = self._reader.new_events()
        self._events += news
        dead = frozenset(self._orphans)
        self.show(Scene(elapsed, tuple(news), self._lock, self._names(), dead, self._asking(), self._batches_done))

    def _names(self) -> dict[int | None, str]:
        return {event.details["pid"]: event.who for event in self._events if event.kind is Kind.STARTED}

    def _asking(self) -> dict[str, str]:
        latest = {event.who: event for event in self._events if event.kind not in (Kind.RECOVERED, Kind.REQUEUED)}
        return {who: event.details["mode"] for who, event in latest.items() if event.kind is Kind.ASKS}

    def _progress(self) -> float:
        return sum(self._batches_done.values()) / (len(JOBS) * self.settings.batches_per_job)

    def _built(self, version: int) -> bool:
        ended = self._actors[UPDATER].ended
        return ended or any(e.kind is Kind.BUILT and e.details["version"] == version for e in self._events)

    def _end_all(self) -> None:
        for actor in self._actors.values():
            if actor.process.poll() is None:
                os.killpg(actor.process.pid, signal.SIGKILL)
            actor.process.wait()
            if actor.process.stdin:
                actor.process.stdin.close()
