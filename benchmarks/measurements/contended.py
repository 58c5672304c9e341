"""
Contended: an exclusive lock, or one of a few permits, that is asked for again as soon as it is given back.

Either by a few processes, on two clients; or by ever more threads of one process, each with a lock object of its own.
Each has taken such a lock before, and what happens in the beginning, when all ask at one moment, is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.contenders import KINDS
from benchmarks.measurements import LEAD_S, Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import PATIENCE_S, NfsLab, Place, Trouble, group, used

#: Those that are compared here.
_NAMES = ("nfsrwlock-write", "filelock-write", "soft", "lockf-write")
#: Clients that the processes are on, processes in all, and for how long each holds, seconds.
_CLIENTS = 2
_LOCAL, _NFS = (4, 0.005), (8, 0.01)
#: The same for permits, which nobody else has.
_PERMITS = (12, 0.05)
#: For how long each of the threads holds, seconds.
_THREAD_HOLD_S = 0.002
#: This part of the time passes before counting begins.
_UNCOUNTED = 0.25


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """One contender after the other: each needs the machine for itself."""
    names = [name for name in plan.contenders if name in _NAMES]
    processes, hold = _NFS if place.is_nfs else _LOCAL
    for name in names:
        yield _contest(place, plan, name, processes, 1, hold)
    if "nfsrwlock-write" in names:
        processes, hold = _PERMITS
        yield _contest(place, plan, "nfsrwlock-permit", processes, 1, hold)
    for threads in plan.threads:
        for name in names:
            if KINDS[name].threads:
                yield _contest(place, plan, name, 1, threads, _THREAD_HOLD_S)


def _contest(place: Place, plan: Plan, name: str, processes: int, threads: int, hold: float) -> Record:
    path = place.path()
    found: list[dict[str, Any]] = []  # of each thread
    errors: list[str] = []
    with group([place.machines[number % _CLIENTS].member() for number in range(processes)]) as members:
        for member in members:
            member.do("warm_up", contender=name)
        begin = time.time() + LEAD_S + threads / 200
        since = begin + plan.contended_s * _UNCOUNTED
        until = begin + plan.contended_s
        times = {"begin": begin, "since": since, "until": until}
        for member in members:
            member.tell("contend", contender=name, path=path, threads=threads, hold=hold, **times)
        time.sleep(max(since - time.time(), 0))
        before = place.requests() if place.is_nfs else {}
        for member in members:
            try:
                found += member.answer(plan.contended_s + PATIENCE_S)
            except Trouble as trouble:
                errors.append(str(trouble))
        after = place.requests() if place.is_nfs else {}
    errors += [one["error"] for one in found if one["error"] is not None]
    counts = [len(one["waits"]) for one in found]
    waits = [wait for one in found for wait in one["waits"]]
    record: Record = {
        "measurement": "contended",
        "place": place.name,
        "contender": name,
        "processes": processes,
        "threads": threads,
        "hold": hold,
        "watched": round(until - since, 3),
        "cycles per second": round(len(waits) / (until - since), 2),
        "fewest": min(counts, default=0),
        "most": max(counts, default=0),
        "seconds": spread(waits),
        "longest": round(max([*waits, *(one["waiting"] for one in found)], default=0), 4),
        "failed": len(errors),
        "error": errors[0] if errors else None,
    }
    if place.is_nfs and waits:
        sent = used(before, after)
        kinds = {kind: round(count / len(waits), 3) for kind, count in sorted(sent.items(), key=lambda item: -item[1])}
        record |= {"requests": round(sum(sent.values()) / len(waits), 3), "requests by kind": kinds}
    return record
