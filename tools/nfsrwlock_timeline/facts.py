"""
What happened, read from the files that processes wrote below ``NFSRWLOCK_TRACE`` (docs/reference/trace.md).

Clocks of hosts are not trusted. Each host's clock is shifted against the others' as far as the locks' own facts ask for
it: a grant comes after the release that it waited for, and exclusive grants come in the order of their numbers. Where
these facts do not decide, the clocks are taken as they are.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Final, NamedTuple

#: Of the format that is understood.
_VERSION: Final = 1
#: A release is stamped when it is known to be done, which may be so much later than others see it.
_LATE_S: Final = 0.02


class Process(NamedTuple):
    """Who wrote a file, by its first line."""

    host: str
    pid: int
    boot: str
    command: str
    job: str

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid}{f' (job {self.job})' if self.job else ''}"


@dataclass(slots=True)
class Span:
    """
    A hold of a lock, or a wait for it.

    :param ending: of a hold ``released``, ``lost``, ``evicted``, ``never released`` or ``open``; of a wait ``granted``,
        ``gave up``, ``evicted`` or ``open``
    :param by: who was in the way of a wait, as the record says
    :param doubts: from when to when its lease had run out
    """

    process: Process
    lock: str
    mode: str
    begin: float
    token: str
    generation: int | None
    at_most: int | None
    task: str
    by: list[dict[str, Any]]
    end: float = math.inf
    ending: str = "open"
    doubts: list[list[float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end - self.begin

    def excludes(self, other: Span) -> bool:
        """Whether both cannot be held at a time, or the one may have to wait for the other."""
        return "write" in (self.mode, other.mode) or bool(self.at_most and other.at_most)


class Eviction(NamedTuple):
    """One participant removed by another."""

    at: float
    lock: str
    whom: str
    by: Process
    token: str


class Shift(NamedTuple):
    """By how many seconds a host's clock was set forward to agree with the others, and what else would fit."""

    host: str
    seconds: float
    at_least: float
    at_most: float


@dataclass(slots=True)
class Facts:
    """All that the files say. Times are seconds since the epoch, on clocks that agree."""

    begin: float
    end: float
    waits: list[Span]
    holds: list[Span]
    evictions: list[Eviction]
    shifts: list[Shift]
    #: How much could not be read, by what it is.
    skipped: dict[str, int]

    @property
    def processes(self) -> list[Process]:
        """Return all that held or waited, by host, job and number."""
        found = {span.process for span in (*self.waits, *self.holds)}
        return sorted(found, key=lambda process: (process.host, process.job, process.pid))

    def only(self, lock: str | None, begin: float | None, end: float | None) -> Facts:
        """Return what concerns one lock, and what happened between two moments."""
        begin, end = self.begin if begin is None else begin, self.end if end is None else end

        def is_wanted(path: str, first: float, last: float) -> bool:
            return first <= end and last >= begin and lock in (None, path, path.removesuffix(".rwlock"))

        waits, holds = ([s for s in spans if is_wanted(s.lock, s.begin, s.end)] for spans in (self.waits, self.holds))
        evictions = [one for one in self.evictions if is_wanted(one.lock, one.at, one.at)]
        return Facts(begin, end, waits, holds, evictions, self.shifts, self.skipped)

    def blockers(self) -> Iterator[tuple[Span, str, float]]:
        """Yield each wait with each one who kept it waiting, and for how many seconds."""
        by_lock: defaultdict[str, list[Span]] = defaultdict(list)
        for hold in sorted(self.holds, key=lambda hold: hold.begin):
            by_lock[hold.lock].append(hold)
        begun: defaultdict[str, list[Span]] = defaultdict(list)  # and not over when the latest wait began
        for wait in sorted(self.waits, key=lambda wait: wait.begin):
            holds, is_known = by_lock[wait.lock], False
            end = bisect_left(holds, wait.end, key=lambda hold: hold.begin)
            begun[wait.lock] = [hold for hold in begun[wait.lock] + holds[:end] if hold.end > wait.begin]
            del holds[:end]
            for hold in begun[wait.lock]:
                if hold.begin < wait.end and hold.token != wait.token and hold.excludes(wait):
                    is_known, task = True, f" [{hold.task}]" if hold.task else ""
                    yield wait, f"{hold.process}{task}", min(hold.end, wait.end) - max(hold.begin, wait.begin)
            for peer in wait.by if not is_known else ():  # who is not recorded, or who stood in line before
                yield wait, _name(peer), wait.seconds


class _Step(NamedTuple):
    at: float
    process: Process
    record: dict[str, Any]

    @property
    def clock(self) -> tuple[str, str]:
        # All processes of one boot of a host have it in common.
        return self.process.host, self.process.boot

    @property
    def peers(self) -> list[dict[str, Any]]:
        by = self.record.get("by")
        return [peer for peer in by if isinstance(peer, dict)] if isinstance(by, list) else []


def read(paths: Iterable[str]) -> Facts | None:
    """
    Read files, and all in directories; ``None`` if there is no record.

    :raises OSError: if one of the paths cannot be read
    """
    skipped: Counter[str] = Counter()
    files = [
        os.path.join(path, name)
        for path in paths
        for name in (sorted(os.listdir(path)) if os.path.isdir(path) else [""])
        if not name or name.endswith(".jsonl")
    ]
    steps = [step for file in files for step in _steps_of(file.removesuffix("/"), skipped)]
    if not steps:
        return None
    leads: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for step in steps:
        leads[step.clock].append(step.at - step.record["clock"])
    lead = {clock: median(values) for clock, values in leads.items()}
    steps = [step._replace(at=step.record["clock"] + lead[step.clock]) for step in steps]
    shifts = _shifts(_ties(steps), sorted(leads, key=lambda clock: -len(leads[clock])))
    steps = [step._replace(at=step.at + shifts[step.clock].seconds) for step in steps]
    return _tell(sorted(steps, key=lambda step: step.at), list(shifts.values()), dict(skipped))


def _steps_of(path: str, skipped: Counter[str]) -> Iterator[_Step]:
    process: Process | None = None
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                record["clock"] = float(record["clock"])
                step = float(record["time"]), process, record
                if record["event"] == "process":
                    if record["v"] > _VERSION:
                        skipped["files of a newer version"] += 1
                        return
                    words = (str(record.get(name) or "") for name in ("boot", "command", "job"))
                    process = Process(str(record["host"]), int(record["pid"]), *words)
                elif record["event"] == "dropped":
                    skipped["records that could not be written"] += int(record["count"])
                elif process is None or not math.isfinite(step[0] + record["clock"]):
                    raise ValueError(line)
                else:
                    yield _Step(step[0], process, record)
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                whole = line.endswith(b"\n")
                skipped["lines that are no records" if whole else "half a last line"] += bool(line.strip())


def _ties(steps: list[_Step]) -> dict[tuple[Any, Any], float]:
    # By how much the second clock must at least be set forward against the first.
    released = {
        str(step.record.get("token")): step
        for step in steps
        if step.record["event"] == "released" and step.record.get("stood")
    }
    grants = [step for step in steps if step.record["event"] == "granted"]
    numbered = [step for step in grants if isinstance(step.record.get("generation"), int)]
    numbered.sort(key=lambda step: (str(step.record.get("lock")), step.record["generation"]))
    # One of several permits is granted before all who have one have given it back.
    order = [
        (str(peer.get("token")), step)
        for step in grants
        for peer in step.peers
        if peer.get("mode") == "write" or step.record.get("at_most") in (None, 1)
    ]
    order += [
        (str(one.record.get("token")), other)
        for one, other in pairwise(numbered)
        if one.record.get("lock") == other.record.get("lock")
    ]
    ties: dict[tuple[Any, Any], float] = {}
    for token, grant in order:
        before = released.get(token)
        if before is not None and before.clock != grant.clock:
            key = before.clock, grant.clock
            ties[key] = max(ties.get(key, -math.inf), before.at - _LATE_S - grant.at)
    return ties


def _shifts(ties: dict[tuple[Any, Any], float], clocks: list[tuple[str, str]]) -> dict[tuple[str, str], Shift]:
    found = {clocks[0]: Shift(clocks[0][0], 0.0, 0.0, 0.0)}
    while rest := [clock for clock in clocks if clock not in found]:
        best = max(rest, key=lambda one: sum((one, known) in ties or (known, one) in ties for known in found))
        low = max((at.seconds + ties[one, best] for one, at in found.items() if (one, best) in ties), default=-math.inf)
        high = min((at.seconds - ties[best, one] for one, at in found.items() if (best, one) in ties), default=math.inf)
        found[best] = Shift(best[0], (low + high) / 2 if low > high else min(max(0.0, low), high), low, high)
    return found


def _tell(steps: list[_Step], shifts: list[Shift], skipped: dict[str, int]) -> Facts:
    # Makes waits, holds and evictions of the steps, which are in order.
    facts = Facts(steps[0].at, steps[-1].at, [], [], [], shifts, skipped)
    waits: dict[tuple[Process, str], Span] = {}
    holds: dict[str, Span] = {}
    for step in steps:
        at, process, record = step
        event, lock, token = record["event"], str(record.get("lock", "")), str(record.get("token", ""))
        attempt = process, str(record.get("attempt"))
        if event in ("asked", "granted"):
            limit, task = record.get("at_most"), _words(record.get("task"))
            its = process, lock, str(record.get("mode", "")), at, token, record.get("generation"), limit, task
            spans = facts.waits if event == "asked" else facts.holds
            spans.append(Span(*its, step.peers))
        if event == "asked":
            waits[attempt] = facts.waits[-1]
        elif event == "granted":
            holds[token] = facts.holds[-1]
        elif event == "evicted" and isinstance(whom := record.get("whom"), dict):
            token = str(whom.get("token"))
            facts.evictions.append(Eviction(at, lock, _name(whom), process, token))
            if (hold := holds.get(token)) is not None and hold.ending in ("open", "lost"):
                hold.end, hold.ending = min(hold.end, at), "evicted"
        elif (hold := holds.get(token)) is not None:
            if event == "suspect":
                hold.doubts.append([at, math.inf])
            elif event == "restored" and hold.doubts:
                hold.doubts[-1][1] = at
            elif event in ("lost", "released") and hold.ending == "open":
                hold.end, hold.ending = at, event if record.get("stood", True) else "lost"
        if event in ("granted", "gave up") and (wait := waits.pop(attempt, None)) is not None:
            wait.end, wait.ending, wait.token, wait.by = at, event, token, step.peers or wait.by
    _close(facts)
    return facts


def _close(facts: Facts) -> None:
    # What has no end: another's grant that it excludes proves that it was over; else it lasts as long as the record.
    later: dict[tuple[str, str], float] = {}
    for hold in sorted(facts.holds, key=lambda hold: -hold.begin):
        if hold.ending == "open":
            modes = ("read", "write") if hold.mode == "write" else ("write",)
            proof = min(later.get((hold.lock, mode), math.inf) for mode in modes)
            hold.end, hold.ending = (proof, "never released") if proof < math.inf else (facts.end, "open")
        later[hold.lock, hold.mode] = hold.begin
        hold.doubts = [[begin, min(end, hold.end)] for begin, end in hold.doubts]
    evicted = {(one.whom, one.lock): one.at for one in facts.evictions}
    for wait in facts.waits:
        if wait.ending == "open":
            at = evicted.get((f"{wait.process.host} pid {wait.process.pid}", wait.lock), 0.0)
            wait.end, wait.ending = (at, "evicted") if at > wait.begin else (facts.end, "open")


def _name(peer: dict[str, Any]) -> str:
    return f"{peer.get('host')} pid {peer.get('pid')}"


def _words(task: object) -> str:
    if not isinstance(task, dict):
        return ""
    return ", ".join(f"{name} {_words(value) or value}" for name, value in task.items())[:200]
