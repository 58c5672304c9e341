"""
Recovery: how long until a waiter has the lock of a holder that was killed, or whose machine lost power.

With a lease of 3 s where there is one, so that it need not be waited for. A lease of 90 s takes 87 s longer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from benchmarks.contenders import KINDS
from benchmarks.measurements import Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import Late, Member, NfsLab, Place, Trouble, group

LEASE_S = 3.0
_OPTIONS = {"heartbeat": LEASE_S / 3, "lease": LEASE_S, "poll": 0.1}


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """All contenders at once; those that have not recovered in the first round are left out of the others."""
    scenes = {"killed, seen on its own host": (1, False)}
    if place.is_nfs:
        scenes["killed, seen from another host"] = (0, False)
    if lab is not None:
        scenes["power cut"] = (0, True)
    for scene, (seen_from, power) in scenes.items():
        names = [name for name in plan.contenders if KINDS[name].excludes and not KINDS[name].shared]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        errors: dict[str, str] = {}
        for _ in range(plan.recoveries):
            if names:
                found = _recover(place, plan, names, seen_from, lab if power else None, errors)
                names = [name for name in names if name in found]
                for name in names:
                    seconds[name].append(found[name])
        for name, values in seconds.items():
            yield {
                "measurement": "recovery",
                "place": place.name,
                "contender": name,
                "scene": scene,
                "lease": LEASE_S,
                "limit": plan.recovery_s,
                "seconds": spread(values),
                "error": errors.get(name),
            }


def _recover(
    place: Place, plan: Plan, names: list[str], seen_from: int, power: NfsLab | None, errors: dict[str, str]
) -> dict[str, float]:
    doomed = place.machines[1]
    holders = {name: doomed.member() for name in names}
    waiters = {name: place.machines[seen_from].member() for name in names}
    with group([*waiters.values()]):
        for name in names:
            path = place.path()
            for member in (holders[name], waiters[name]):
                member.do("make", contender=name, path=path, options=_OPTIONS)
            holders[name].do("acquire")
        for waiter in waiters.values():
            waiter.tell("acquire")
        time.sleep(LEASE_S / 2 + random.uniform(0, LEASE_S / 3))
        ended = time.time()
        if power is not None:
            power.power_cut(doomed)
        else:
            for holder in holders.values():
                holder.kill()
        try:
            return _grants(waiters, ended, plan.recovery_s, errors)
        finally:
            if power is not None:
                power.replace(place, doomed)


def _grants(waiters: dict[str, Member], ended: float, limit: float, errors: dict[str, str]) -> dict[str, float]:
    until = time.monotonic() + limit
    grants = {}
    for name, waiter in waiters.items():
        try:
            grants[name] = waiter.answer_by(until) - ended
        except Late:
            continue
        except Trouble as trouble:
            errors[name] = str(trouble)
    return grants
