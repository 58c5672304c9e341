"""What a read cycle costs while so many readers hold the lock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks.contenders import KINDS
from benchmarks.measurements import Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import Late, NfsLab, Place, Trouble, group, used

_CYCLES = 15
#: Up to here every reader is a lock that is held. As each one lists all before it, thousands would take minutes; the
#: further ones are announcements under names as a lock makes them. Locks without announcements get holders only.
_REALLY = 100


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """The holders are lock objects of their own in three processes; the cycle is measured on another client."""
    for name in plan.contenders:
        if name in ("nfsrwlock-read", "filelock-read", "floor"):
            yield from _grow(place, plan, name)


def _grow(place: Place, plan: Plan, name: str) -> Iterator[Record]:
    path = place.path()
    machines = place.machines
    with group([machines[0].member(), *(machine.member() for machine in machines[1:])]) as members:
        one, *others = members
        one.do("make", contender=name, path=path, options={})
        held = 1  # the one that is measured counts
        for size in plan.sizes:
            ends = time.monotonic() + plan.growth_s
            really = size <= _REALLY and KINDS[name].excludes
            shares = [(size - held + number) // len(others) for number in range(len(others))]
            for other, share in zip(others, shares, strict=True):
                other.tell("hold_many", contender=name, path=path, count=share, really=really)
            record: Record = {"measurement": "growth", "place": place.name, "contender": name, "readers": size}
            try:
                for other in others:
                    other.answer_by(ends)
                held = size
                one.do("cycles", count=2)
                before = one.machine.helper.do("requests", mountpoint=place.mountpoint)
                times = one.do("cycles", count=_CYCLES)
            except Late:
                yield record | {"late": plan.growth_s}
                return
            except Trouble as trouble:
                yield record | {"error": str(trouble)}
                return
            sent = used(before, one.machine.helper.do("requests", mountpoint=place.mountpoint))
            record["seconds"] = spread(times)
            if place.is_nfs:
                record["requests"] = round(sum(sent.values()) / _CYCLES, 2)
                record["requests by kind"] = {kind: round(count / _CYCLES, 2) for kind, count in sorted(sent.items())}
            yield record
            if statistics.median(times) > plan.growth_s / _CYCLES:
                return
