"""The truth, and what the demonstration made of it.

Each check compares what the processes did with something they were not told: where the reads came from, when others
held the lock, how often something may happen. Each can fail, and `run.py --no-lock` shows that they do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

from conductor import FAR_VICTIM, HOSTS
from events import Event, Kind
from genome import Origin, circular_distance, start_on_version
from history import History, Kill, Span
from worker import Result

VERSIONS = (1, 2, 3)
TOLERANCE_BASES = 25
"""How far from the truth a read may be placed: its errors include inserted and missing bases."""


@dataclass(frozen=True)
class Truth:
    origins: Mapping[str, Origin]
    """By name of the read."""
    genome_length: int
    lease: float | None
    """Seconds; None if there was no lock."""


@dataclass(frozen=True)
class Check:
    title: str
    passed: bool
    detail: str


def load_results(directory: Path) -> list[Result]:
    return [Result.from_json(json.loads(path.read_text())) for path in sorted(directory.glob("*.json"))]


def check_all(events: list[Event], history: History, results: list[Result], truth: Truth) -> list[Check]:
    return [
        built_once(history),
        reads_in_place(results, truth),
        files_fit(results),
        nothing_overlapped(history.holds),
        generations_increase(history.holds),
        *(recovered(kill, history.holds, truth.lease) for kill in history.kills if truth.lease is not None),
        somebody_was_killed(history.kills),
        all_ended_well(events),
    ]


def built_once(history: History) -> Check:
    makers = {version: [build.who for build in history.builds if build.version == version] for version in VERSIONS}
    detail = "; ".join(f"version {version} by {' and '.join(who) or 'nobody'}" for version, who in makers.items())
    passed = all(len(who) == 1 for who in makers.values()) and len(history.builds) == len(VERSIONS)
    return Check("Index built once per version", passed, detail)


def reads_in_place(results: Iterable[Result], truth: Truth) -> Check:
    """Every read is placed once, where it belongs on the version of the reference that its reader had read."""
    placed: Counter[str] = Counter()
    right: Counter[int] = Counter()
    for result in results:
        version = result.reference_version
        if version is None:
            continue
        for placement in result.placements:
            origin = truth.origins[placement.read]
            expected = start_on_version(origin, version, truth.genome_length)
            off = circular_distance(placement.start, expected, truth.genome_length)
            placed[placement.read] += 1
            right[version] += placement.strand == origin.strand and off <= TOLERANCE_BASES
    total, good = len(truth.origins), right.total()
    seen = ", ".join(f"{right[version]:,} on version {version}" for version in VERSIONS)
    detail = f"{good:,} of {total:,} ({good / total:.1%}) within {TOLERANCE_BASES} bases: {seen}"
    each_once = set(placed.values()) == {1}
    each_version_read = all(right[version] > 0 for version in VERSIONS)
    passed = good == total and each_once and each_version_read
    return Check("Each read placed on the version its reader saw", passed, detail)


def files_fit(results: list[Result]) -> Check:
    mixed = sum(result.problem is None and result.reference_version != result.index_version for result in results)
    broken = sum(result.problem is not None for result in results)
    detail = f"{len(results)} batches: {mixed} with reference and index of two versions, {broken} with half a file"
    return Check("Reference and index always fit together", mixed == broken == 0, detail)


def nothing_overlapped(holds: tuple[Span, ...]) -> Check:
    conflicts = [
        (one, other)
        for one, other in combinations(holds, 2)
        if one.who != other.who and "write" in (one.mode, other.mode) and one.overlaps(other)
    ]
    writes = sum(hold.mode == "write" for hold in holds)
    detail = f"{len(holds) - writes} shared and {writes} exclusive holds, {len(conflicts)} conflicts"
    return Check("No conflicting holds overlapped", writes > 0 and not conflicts, detail)


def generations_increase(holds: tuple[Span, ...]) -> Check:
    """Each exclusive hold has a higher number than the one before; a shared hold shows the number of the last one."""
    writes = [hold for hold in holds if hold.mode == "write"]
    numbers = [hold.generation for hold in writes]
    if None in numbers:
        return Check("Generations strictly increase", False, "exclusive holds without a generation")
    increasing = all((one or 0) < (other or 0) for one, other in pairwise(numbers))
    strays = 0
    for hold in holds:
        if hold.mode == "read":
            before = [write.generation or 0 for write in writes if write.start < hold.start]
            strays += (hold.generation or 0) != (before[-1] if before else 0)
    detail = f"{', '.join(map(str, numbers))}; {strays} shared holds showed another than the last one granted"
    return Check("Generations strictly increase", increasing and strays == 0, detail)


def recovered(kill: Kill, holds: tuple[Span, ...], lease: float) -> Check:
    """A dead job's lock comes free: at once where its death can be seen, elsewhere not before its lease has run out."""
    title = f"Lock of {kill.who} recovered, killed while it held it"
    if kill.hold is None:
        return Check(title, True, "killed a moment too late, not in a hold; tried again")
    if kill.recovered is None:
        return Check(title, False, "never seen to be free again")
    took = kill.recovered - kill.time
    if kill.who != FAR_VICTIM:
        return Check(title, took < lease, f"in {took:.2f} s: its process was seen to be gone")
    granted = [hold.start for hold in holds if hold.mode == "write" and hold.start > kill.time]
    kept = bool(granted) and granted[0] - kill.hold.start >= lease
    detail = f"in {took:.2f} s: nobody else was on {HOSTS[kill.who]}, so its lease of {lease:g} s had to run out"
    return Check(title, kept and took < 3 * lease, detail if kept else f"{detail}, but a writer was granted before")


def somebody_was_killed(kills: tuple[Kill, ...]) -> Check:
    in_hold = [kill for kill in kills if kill.hold]
    detail = ", ".join(f"{kill.who} ({kill.hold.mode})" for kill in in_hold if kill.hold) or "nobody"
    return Check("A job was killed while it held the lock", bool(in_hold), detail)


def all_ended_well(events: Iterable[Event]) -> Check:
    codes = [(event.who, event.details["code"]) for event in events if event.kind is Kind.ENDED]
    bad = [f"{who} ended with {code}" for who, code in codes if code != 0]
    return Check("All jobs done", bool(codes) and not bad, ", ".join(bad) or f"{len(codes)} processes ended with 0")
