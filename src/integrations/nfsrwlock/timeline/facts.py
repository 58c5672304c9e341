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
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from statistics import median
from typing import Any, Final

#: Of the format that is understood.
VERSION: Final = 1
#: A release is stamped when it is known to be done, which may be so much later than others see it.
_LATE_S: Final = 0.02

#: Of one boot of one host, which all its processes have in common.
Clock = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Process:
    """Who wrote a file, by its first line."""

    host: str
    pid: int
    boot: str = ""
    user: str = ""
    command: str = ""
    job: str = ""

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"{self.host} pid {self.pid}{job}"


@dataclass(slots=True, eq=False)
class Span:
    """
    A hold of a lock, or a wait for it.

    :param ending: of a hold ``released``, ``lost``, ``evicted``, ``never released`` or ``open``; of a wait ``granted``,
        ``gave up``, ``evicted`` or ``open``
    :param by: who was in the way of a wait, as the record says
    :param doubts: when the hold was suspect
    """

    process: Process
    lock: str
    mode: str
    begin: float
    end: float = math.inf
    ending: str = "open"
    token: str = ""
    generation: int | None = None
    at_most: int | None = None
    task: str = ""
    by: Sequence[dict[str, Any]] = ()
    doubts: list[list[float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Eviction:
    """One participant removed by another."""

    at: float
    lock: str
    whom: str
    by: Process
    token: str


@dataclass(frozen=True, slots=True)
class Shift:
    """By how many seconds a host's clock was set forward, to agree with the others; and what the locks' facts allow."""

    host: str
    seconds: float
    at_least: float
    at_most: float


@dataclass(slots=True)
class Facts:
    """All that the files say. Times are seconds since the epoch, on clocks that agree."""

    processes: list[Process] = field(default_factory=list)
    waits: list[Span] = field(default_factory=list)
    holds: list[Span] = field(default_factory=list)
    evictions: list[Eviction] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    #: What could not be read: files and lines, by the reason.
    skipped: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    begin: float = 0.0
    end: float = 0.0

    def only(self, lock: str | None, begin: float | None, end: float | None) -> Facts:
        """Return what concerns one lock, and what happened between two moments."""
        begin, end = self.begin if begin is None else begin, self.end if end is None else end

        def is_wanted(lock_path: str, first: float, last: float) -> bool:
            return first <= end and last >= begin and lock in (None, lock_path, lock_path.removesuffix(".rwlock"))

        waits, holds = (
            [span for span in spans if is_wanted(span.lock, span.begin, span.end)] for spans in (self.waits, self.holds)
        )
        evictions = [one for one in self.evictions if is_wanted(one.lock, one.at, one.at)]
        there = {span.process for span in (*waits, *holds)}
        processes = [process for process in self.processes if process in there]
        return Facts(processes, waits, holds, evictions, self.shifts, dict(self.skipped), begin, end)

    def blockers(self) -> Iterator[tuple[Span, str, float]]:
        """Yield each wait with each one who kept it waiting, and for how many seconds."""
        by_lock: defaultdict[str, list[Span]] = defaultdict(list)
        for hold in sorted(self.holds, key=lambda hold: hold.begin):
            by_lock[hold.lock].append(hold)
        last = {lock: list(accumulate((hold.end for hold in holds), max)) for lock, holds in by_lock.items()}
        for wait in self.waits:
            holds, number, found = by_lock[wait.lock], 0, False
            number = bisect_left(holds, wait.end, key=lambda hold: hold.begin) - 1
            while number >= 0 and last[wait.lock][number] > wait.begin:
                hold = holds[number]
                number -= 1
                excludes = "write" in (hold.mode, wait.mode) or (hold.at_most and wait.at_most)
                if excludes and hold.end > wait.begin and hold.token != wait.token:
                    found = True
                    yield wait, _who(hold), min(hold.end, wait.end) - max(hold.begin, wait.begin)
            if not found:  # who is not recorded, or who stood in line before
                for peer in wait.by:
                    yield wait, f"{peer.get('host')} pid {peer.get('pid')}", wait.seconds


def _who(span: Span) -> str:
    return f"{span.process}{f' [{span.task}]' if span.task else ''}"


def read(paths: Iterable[str]) -> Facts:
    """
    Read files, and all in directories.

    :raises OSError: if one of the paths cannot be read
    """
    facts = Facts()
    steps: list[tuple[Process, dict[str, Any]]] = []
    for path in paths:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
        for name in names:
            if not name or name.endswith(".jsonl"):
                steps += _steps_of(os.path.join(path, name) if name else path, facts.skipped)
    facts.processes = list(dict.fromkeys(process for process, _ in steps))
    _put_on_one_clock(steps, facts)
    steps.sort(key=lambda step: step[1]["at"])
    if steps:
        facts.begin, facts.end = steps[0][1]["at"], steps[-1][1]["at"]
    _tell(steps, facts)
    return facts


def _steps_of(path: str, skipped: dict[str, int]) -> Iterator[tuple[Process, dict[str, Any]]]:
    process: Process | None = None
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                moment = float(record["time"]), float(record["clock"])
                if record["event"] == "process":
                    if record["v"] > VERSION:
                        skipped["files of a newer version"] += 1
                        return
                    words = (str(record.get(name) or "") for name in ("boot", "user", "command", "job"))
                    process = Process(str(record["host"]), int(record["pid"]), *words)
                elif record["event"] == "dropped":
                    skipped["records that could not be written"] += int(record["count"])
                elif process is not None and all(map(math.isfinite, moment)):
                    yield process, record
                else:
                    raise ValueError(line)
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
                is_half = not line.endswith(b"\n")
                skipped["half a last line" if is_half else "lines that are no records"] += bool(line.strip())


def _put_on_one_clock(steps: list[tuple[Process, dict[str, Any]]], facts: Facts) -> None:
    # Gives each step its time "at".
    leads: defaultdict[Clock, list[float]] = defaultdict(list)
    for process, step in steps:
        leads[process.host, process.boot].append(step["time"] - step["clock"])
    lead = {clock: median(values) for clock, values in leads.items()}
    for process, step in steps:
        step["at"] = step["clock"] + lead[process.host, process.boot]
    shifts = _shifts(_ties(steps), sorted(leads, key=lambda clock: -len(leads[clock])))
    for process, step in steps:
        step["at"] += shifts[process.host, process.boot].seconds
    facts.shifts = list(shifts.values())


def _ties(steps: list[tuple[Process, dict[str, Any]]]) -> dict[tuple[Clock, Clock], float]:
    # By how much the second clock must at least be set forward against the first: no grant comes before the release
    # that it waited for.
    released: dict[str, tuple[Clock, float]] = {}
    grants: list[tuple[Clock, float, dict[str, Any]]] = []
    for process, step in steps:
        clock = process.host, process.boot
        if step["event"] == "released" and step.get("stood"):
            released[str(step.get("token"))] = clock, step["at"] - _LATE_S
        elif step["event"] == "granted":
            grants.append((clock, step["at"], step))
    found: list[tuple[str, Clock, float]] = [
        (str(peer.get("token")), clock, at) for clock, at, step in grants for peer in _peers(step)
    ]
    numbered = sorted((grant for grant in grants if "generation" in grant[2]), key=lambda one: _order(one[2]))
    for (_, _, before), (clock, at, after) in pairwise(numbered):
        if before.get("lock") == after.get("lock"):
            found.append((str(before.get("token")), clock, at))
    ties: dict[tuple[Clock, Clock], float] = {}
    for token, clock, at in found:
        other, end = released.get(token, (clock, at))
        if other != clock:
            ties[other, clock] = max(ties.get((other, clock), -math.inf), end - at)
    return ties


def _peers(step: dict[str, Any]) -> list[dict[str, Any]]:
    by = step.get("by")
    return [peer for peer in by if isinstance(peer, dict)] if isinstance(by, list) else []


def _order(step: dict[str, Any]) -> tuple[str, int]:
    number = step.get("generation")
    return str(step.get("lock")), number if isinstance(number, int) else 0


def _shifts(ties: dict[tuple[Clock, Clock], float], clocks: list[Clock]) -> dict[Clock, Shift]:
    found: dict[Clock, Shift] = {}
    rest = dict.fromkeys(clocks)
    while rest:
        best = max(rest, key=lambda one: sum((one, known) in ties or (known, one) in ties for known in found))
        del rest[best]
        low = max((at.seconds + ties[one, best] for one, at in found.items() if (one, best) in ties), default=-math.inf)
        high = min((at.seconds - ties[best, one] for one, at in found.items() if (best, one) in ties), default=math.inf)
        seconds = (low + high) / 2 if low > high else min(max(0.0, low), high)
        found[best] = Shift(best[0], seconds, low, high) if found else Shift(best[0], 0.0, 0.0, 0.0)
    return found


def _tell(steps: list[tuple[Process, dict[str, Any]]], facts: Facts) -> None:
    # Makes waits, holds and evictions of the steps, which are in order.
    waits: dict[tuple[Process, Any], Span] = {}
    holds: dict[str, Span] = {}
    for process, step in steps:
        event, at, token = step["event"], step["at"], str(step.get("token", ""))
        if event in ("asked", "granted", "gave up"):
            attempt, by = (process, step.get("attempt")), _peers(step)
            span = Span(process, str(step.get("lock", "")), str(step.get("mode", "")), at, by=by)
            span.at_most, span.task = step.get("at_most"), _words(step.get("task"))
            if event == "asked":
                waits[attempt] = span
                facts.waits.append(span)
                continue
            if (wait := waits.pop(attempt, None)) is not None:
                wait.end, wait.ending, wait.token = at, event, token
                wait.by = by or wait.by
            if event == "granted":
                span.token, span.generation, span.by = token, step.get("generation"), ()
                holds[token] = span
                facts.holds.append(span)
        elif event == "evicted" and isinstance(whom := step.get("whom"), dict):
            token, who = str(whom.get("token")), f"{whom.get('host')} pid {whom.get('pid')}"
            facts.evictions.append(Eviction(at, str(step.get("lock", "")), who, process, token))
            if (hold := holds.get(token)) is not None and hold.ending in ("open", "lost"):
                hold.end, hold.ending = min(hold.end, at), "evicted"
        elif (hold := holds.get(token)) is not None:
            if event == "suspect":
                hold.doubts.append([at, math.inf])
            elif event == "restored" and hold.doubts:
                hold.doubts[-1][1] = at
            elif event in ("lost", "released") and hold.ending == "open":
                hold.end, hold.ending = at, "released" if event == "released" and step.get("stood", True) else "lost"
    _close(facts)


def _close(facts: Facts) -> None:
    # What has no end: another's grant that it excludes proves that it was over; else it lasts as long as the record.
    later: dict[tuple[str, bool], float] = {}
    for hold in sorted(facts.holds, key=lambda hold: -hold.begin):
        if hold.ending == "open":
            kinds = (True, False) if hold.mode == "write" else (True,)
            proof = min(later.get((hold.lock, kind), math.inf) for kind in kinds)
            hold.end, hold.ending = (proof, "never released") if proof < math.inf else (facts.end, "open")
        later[hold.lock, hold.mode == "write"] = hold.begin
        for doubt in hold.doubts:
            doubt[1] = min(doubt[1], hold.end)
    evicted = {(one.whom, one.lock): one.at for one in facts.evictions}
    for wait in facts.waits:
        if wait.ending == "open":
            at = evicted.get((f"{wait.process.host} pid {wait.process.pid}", wait.lock), 0.0)
            wait.end, wait.ending = (at, "evicted") if at > wait.begin else (facts.end, "open")


def _words(task: object) -> str:
    if not isinstance(task, dict):
        return ""
    inner = (f"{name} {_words(value) if isinstance(value, dict) else value}" for name, value in task.items())
    return ", ".join(inner)[:200]
