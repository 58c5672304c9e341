"""A writer among readers that come and go: how long until it has the lock."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.contenders import KINDS, writer_of
from benchmarks.measurements import Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import Late, Member, NfsLab, Place, Trouble, group

#: Readers hold and pause for these times on average, seconds; at any moment about half of them hold.
_HOLD_S = 0.2
_PAUSE_S = 0.2


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """For those with shared holds, one after the other: each needs the machine for itself."""
    for name in plan.contenders:
        if KINDS[name].excludes and KINDS[name].shared:
            yield _among_readers(place, plan, name)


def _among_readers(place: Place, plan: Plan, name: str) -> Record:
    path = place.path()
    waits: list[float] = []
    waiting: float | None = None
    error: str | None = None
    with group(place.spread(plan.readers + 1)) as members:
        writer, *readers = members
        for member in members:
            contender = writer_of(name) if member is writer else name
            member.tell("make", contender=contender, path=path, options={})
        for member in members:
            member.answer()
        until = time.time() + 3600
        for reader in readers:
            reader.tell("come_and_go", until=until, hold=_HOLD_S, pause=_PAUSE_S)
        time.sleep(2 * (_HOLD_S + _PAUSE_S))  # they fill the room
        ends = time.monotonic() + plan.writer_s
        while time.monotonic() < ends and not len(waits) == plan.writer_waits > 0:
            asked = time.time()
            writer.tell("acquire")
            try:
                waits.append(writer.answer_by(ends) - asked)
                writer.do("release")
            except Late:
                waiting = time.time() - asked
                break
            except Trouble as trouble:
                error = str(trouble)
                break
            time.sleep(2 * (_HOLD_S + _PAUSE_S))  # and again
        failed = list(_errors(readers))
    if waiting is not None and waits and waiting <= max(waits):
        waiting = None  # the time was up; it had not waited for longer than usual
    return {
        "measurement": "writer",
        "place": place.name,
        "contender": name,
        "readers": plan.readers,
        "seconds": spread(waits),
        "waiting": None if waiting is None else round(waiting, 3),
        "failed": len(failed),
        "error": error or next(iter(failed), None),
    }


def _errors(readers: list[Member]) -> Iterator[str]:
    # Readers never end by themselves, so an answer is an error.
    now = time.monotonic()
    for reader in readers:
        try:
            reader.answer_by(now)
        except Late:
            continue
        except Trouble as trouble:
            yield str(trouble)
