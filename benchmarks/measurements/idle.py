"""What a crowd costs that does nothing: requests per second of those who wait, and of those who hold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.contenders import KINDS, writer_of
from benchmarks.measurements import Plan, Record, is_asked_shared
from benchmarks.places import Late, Member, NfsLab, Place, Trouble, group, used

#: For how long the holders may take to come, seconds.
_COME_S = 20.0


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """One crowd after the other, because a mount's requests are counted together."""
    if not place.is_nfs:
        return
    for name in plan.contenders:
        if not (KINDS[name].excludes and is_asked_shared(name, plan)):
            continue
        what = "waiters"
        try:
            yield from _waiters(place, plan, name)
            if name in ("nfsrwlock-read", "filelock-read"):
                what = "holders"
                yield _holders(place, plan, name)
        except Trouble as trouble:
            yield {"measurement": what, "place": place.name, "contender": name, "error": str(trouble)}


def _waiters(place: Place, plan: Plan, name: str) -> Iterator[Record]:
    path = place.path()
    # Only this project's waiters wait ever more rarely, so only for them later windows tell more.
    windows = plan.windows_s if name == "nfsrwlock-read" else plan.windows_s[:1]
    with group(place.spread(plan.crowd + 1)) as members:
        holder, *waiters = members
        holder.do("make", contender=writer_of(name), path=path, options={})
        holder.do("acquire")
        for waiter in waiters:
            waiter.tell("make", contender=name, path=path, options={})
        for waiter in waiters:
            waiter.answer()
        errors: list[str] = []
        began = time.monotonic()
        for waiter in waiters:
            waiter.tell("wait")
        for waiter in waiters:
            waiter.answer()
        for start, length in windows:
            time.sleep(max(began + start - time.monotonic(), 0))
            polls_before = _polls(waiters, errors)
            before, moment = place.requests(), time.monotonic()
            polls_between = _polls(waiters, errors)
            time.sleep(length)
            polls_then = _polls(waiters, errors)
            after, seconds = place.requests(), time.monotonic() - moment
            polls_after = _polls(waiters, errors)
            # Counting takes time itself, so polls are counted on both sides of each count of requests.
            polls = (polls_then + polls_after - polls_before - polls_between) / 2
            yield _record("waiters", place, plan, name, used(before, after), seconds) | {
                "waited": start,
                "watched": round(seconds, 1),
                "failed": len(errors),
                "error": errors[0] if errors else None,
                "polls per second": round(polls / seconds, 2) if polls else None,
                "requests per poll": round(sum(used(before, after).values()) / polls, 3) if polls else None,
            }


def _holders(place: Place, plan: Plan, name: str) -> Record:
    path = place.path()
    beat = plan.heartbeat_s
    with group(place.spread(plan.crowd)) as members:
        for member in members:
            member.tell("make", contender=name, path=path, options={"heartbeat": beat, "lease": 3 * beat})
        for member in members:
            member.answer()
        for member in members:
            member.tell("acquire")
        until = time.monotonic() + _COME_S
        try:
            for member in members:
                member.answer_by(until)
        except Late:
            raise Trouble(f"they do not all hold it within {_COME_S:g} s") from None
        # The first heartbeat makes a file, and at the second the client gives back the server's leave to cache that
        # file. The later ones are what a holder costs.
        time.sleep(3.5 * beat)
        before, moment = place.requests(), time.monotonic()
        time.sleep(3 * beat)
        after, seconds = place.requests(), time.monotonic() - moment
    sent = used(before, after)
    # This project's heartbeat is a rename; others are counted by the clock.
    beats = sent["RENAME"] if name == "nfsrwlock-read" else plan.crowd * seconds / beat
    return _record("holders", place, plan, name, sent, seconds) | {
        "heartbeat": beat,
        "requests per heartbeat": round(sum(sent.values()) / beats, 3),
    }


def _polls(members: list[Member], errors: list[str]) -> int:
    for member in members:
        member.tell("polls")
    errors.clear()
    total = 0
    for member in members:
        try:
            total += member.answer() or 0
        except Trouble as trouble:
            errors.append(str(trouble))
    return total


def _record(
    measurement: str, place: Place, plan: Plan, name: str, sent: dict[str, int], seconds: float
) -> dict[str, Any]:
    return {
        "measurement": measurement,
        "place": place.name,
        "contender": name,
        "processes": plan.crowd,
        "requests per second": round(sum(sent.values()) / seconds, 1),
        "requests by kind": {kind: round(count / seconds, 2) for kind, count in sorted(sent.items())},
    }
