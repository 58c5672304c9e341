"""
Many processes on four clients ask for the lock at one moment: how long until the first, the median, the last has it.

Who has a shared lock keeps it to the end, so that no release gets in the way of those who come. An exclusive one is
given back at once, for the others' sake. Each process has taken and released a lock of
this kind before, on its machine's own disk: what a process computes once in its life is no part of the storm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.contenders import KINDS
from benchmarks.measurements import LEAD_S, Plan, Record, is_asked_shared
from benchmarks.numbers import spread
from benchmarks.places import Late, Member, NfsLab, Place, Trouble, dismiss

#: A storm that passes sooner than this, seconds, is repeated.
_SHORT_S = 3.0


@dataclass
class _Storms:
    """What one contender did in its storms: for each, how long after its beginning the grants came."""

    grants: list[list[float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """Round by round; a contender whose first storm was long has only that one."""
    names = [name for name in plan.contenders if KINDS[name].excludes and is_asked_shared(name, plan)]
    storms = {name: _Storms() for name in names}
    wanted, crowd = names, place.spread(plan.crowd)
    try:
        for _ in range(plan.storms):
            for name in wanted:
                if not _storm(place, plan, name, crowd, storms[name]):
                    dismiss(crowd)  # some still wait, or hold what takes long to release
                    crowd = place.spread(plan.crowd)
            wanted = [name for name in wanted if _is_short(storms[name].grants[-1], plan)]
    finally:
        dismiss(crowd)
    for name, found in storms.items():
        yield _record(place, plan, name, found)


def _record(place: Place, plan: Plan, name: str, found: _Storms) -> Record:
    middle = plan.crowd // 2  # of all processes, those that never got it included
    return {
        "measurement": "storm",
        "place": place.name,
        "contender": name,
        "processes": plan.crowd,
        "limit": plan.storm_s,
        "granted": min(len(grants) for grants in found.grants),
        "failed": len(found.errors),
        "error": found.errors[0] if found.errors else None,
        "first": spread([grants[0] for grants in found.grants if grants]),
        "median": spread([grants[middle] for grants in found.grants if len(grants) > middle]),
        "last": spread([grants[-1] for grants in found.grants if len(grants) == plan.crowd]),
    }


def _is_short(grants: list[float], plan: Plan) -> bool:
    return len(grants) == plan.crowd and grants[-1] < _SHORT_S


def _storm(place: Place, plan: Plan, name: str, crowd: list[Member], found: _Storms) -> bool:
    # Returns whether the crowd has nothing to do with this lock any more.
    path = place.path()
    for member in crowd:
        member.tell("warm_up", contender=name)
        member.tell("make", contender=name, path=path, options={})
    for member in crowd:
        member.answer()
        member.answer()
    at = time.time() + LEAD_S + plan.crowd / 200
    for member in crowd:
        member.tell("acquire", at=at, keep=KINDS[name].shared)
    until = time.monotonic() + (at - time.time()) + plan.storm_s
    grants = []
    for member in crowd:
        try:
            grants.append(member.answer_by(until) - at)
        except Late:
            continue
        except Trouble as trouble:
            found.errors.append(str(trouble))
    found.grants.append(sorted(grants))
    if not _is_short(found.grants[-1], plan):
        return False
    if KINDS[name].shared:
        for member in crowd:
            member.tell("release")
        for member in crowd:
            member.answer()
    return True
