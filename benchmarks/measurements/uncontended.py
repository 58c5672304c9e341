"""Acquire and release with nobody else there: time, and requests to the server by kind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from benchmarks.measurements import Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import Member, NfsLab, Place, Trouble, group, used

_TURNS_MIN = 5


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """Turn by turn, so that whatever slows the machine down slows all contenders down alike."""
    machine = place.machines[0]
    members = {name: machine.member() for name in plan.contenders}
    errors: dict[str, str] = {}
    with group(list(members.values())):
        cycles = {}
        for name, member in members.items():
            try:
                member.do("make", contender=name, path=place.path(), options={})
                member.do("cycles", count=2)  # makes directories, imports what is left
                cycles[name] = max(round(plan.turn_s / max(min(member.do("cycles", count=3)), 1e-5)), 1)
            except Trouble as trouble:
                errors[name] = str(trouble)
        times: dict[str, list[float]] = {name: [] for name in members}
        requests: dict[str, Counter[str]] = {name: Counter() for name in members}
        ends = time.monotonic() + plan.cycle_s
        turns = 0
        while turns < _TURNS_MIN or time.monotonic() < ends:
            turns += 1
            for name in [name for name in members if name not in errors]:
                try:
                    took, sent = _turn(place, members[name], cycles[name])
                except Trouble as trouble:
                    errors[name] = str(trouble)
                else:
                    times[name] += took
                    requests[name].update(sent)
    for name in members:
        record: Record = {
            "measurement": "uncontended",
            "place": place.name,
            "contender": name,
            "seconds": spread(times[name]),
        }
        if name in errors:
            record["error"] = errors[name]
        if place.is_nfs and times[name]:
            count = len(times[name])
            kinds = {kind: round(sent / count, 3) for kind, sent in requests[name].most_common()}
            record |= {"requests": round(sum(requests[name].values()) / count, 3), "requests by kind": kinds}
        yield record


def _turn(place: Place, member: Member, cycles: int) -> tuple[list[float], dict[str, int]]:
    helper = member.machine.helper
    before = helper.do("requests", mountpoint=place.mountpoint)
    took = member.do("cycles", count=cycles)
    return took, used(before, helper.do("requests", mountpoint=place.mountpoint))
