"""
Handover: from the moment of a release on one client until the lock is held on another that waited for it.

It depends on how the waiter polls: on its poll interval, and where waiters poll more rarely the longer they wait, on
how long it has waited. So there are short waits for each interval, and long ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.contenders import KINDS
from benchmarks.measurements import Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import Late, Member, NfsLab, Place, Trouble, group

#: The least time that a waiter waits before the release; up to a poll interval is added.
_WAIT_S = 1.0
#: No handover takes longer than this, seconds, or is counted as this.
_LATE_S = 30.0
#: Pairs of processes on a lock each, per contender; they work at the same time.
_PAIRS = 2


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """All contenders at once, each on locks of its own: they do little but wait."""
    names = [name for name in plan.contenders if KINDS[name].excludes and not KINDS[name].shared]
    for poll in plan.polls:
        own = poll == plan.polls[0]  # those whose polling cannot be set are asked once
        asked = [name for name in names if KINDS[name].polls or own]
        yield from _handovers(place, plan, asked, poll, _WAIT_S, plan.handovers)
    if plan.long_wait_s:
        polling = [name for name in names if KINDS[name].polls]
        yield from _handovers(place, plan, polling, 0.25, plan.long_wait_s, 1, pairs=2 * _PAIRS)


def _handovers(
    place: Place, plan: Plan, names: list[str], poll: float, wait: float, rounds: int, pairs: int = _PAIRS
) -> Iterator[Record]:
    with ThreadPoolExecutor(len(names) * pairs) as pool:
        begun = {
            name: [pool.submit(partial(_pair, place, name, poll, wait, rounds, first=pair)) for pair in range(pairs)]
            for name in names
        }
        for name, futures in begun.items():
            seconds: list[float] = []
            errors: list[str] = []
            for future in futures:
                try:
                    seconds += future.result()
                except Trouble as trouble:
                    errors.append(str(trouble))
            yield {
                "measurement": "handover",
                "place": place.name,
                "contender": name,
                "poll": poll if KINDS[name].polls else None,
                "waited": wait,
                "seconds": spread(seconds),
                "error": errors[0] if errors else None,
            }


def _pair(place: Place, name: str, poll: float, wait: float, rounds: int, *, first: int) -> list[float]:
    machines = place.machines
    path = place.path()
    pair = [machines[(2 * first + side) % len(machines)].member() for side in (0, 1)]
    seconds: list[float] = []
    with group(pair):
        for member in pair:
            member.do("make", contender=name, path=path, options={"poll": poll})
        holder, waiter = pair
        holder.do("acquire")
        for _ in range(rounds):
            seconds.append(_hand_over(holder, waiter, wait + random.uniform(0, poll)))
            holder, waiter = waiter, holder
    return seconds


def _hand_over(holder: Member, waiter: Member, wait: float) -> float:
    waiter.tell("acquire")
    time.sleep(wait)
    released: float = holder.do("release")
    try:
        granted: float = waiter.answer(_LATE_S)
    except Late:
        return _LATE_S
    return granted - released
