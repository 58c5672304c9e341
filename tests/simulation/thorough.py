"""
The exhaustive searches that are too large for every test run: ``make exhaustive``, some minutes each.

Prints the size of each, and the way to the first broken promise if there is one; exit code 1 then.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation import schedules
from simulation.exhaustive import Bounds, Search
from simulation.witness import Violation

SEARCHES = {
    "writer and reader, three heartbeats": Bounds(modes="WR", beats=3),
    "writer and reader, a failing call and a death": Bounds(modes="WR", faults=1),
    "writer and reader that asks for its generation": Bounds(modes="WR", generation=True, beats=0, crashes=0),
    "writer and reader that asks for its generation, a failing call": Bounds(
        modes="WR", generation=True, faults=1, expiries=(1, 0), beats=0, crashes=0
    ),
    "two writers, both announce themselves twice": Bounds(modes="WW", announcements=2, beats=0, crashes=0),
    "two writers, one gives way": Bounds(modes="WW", announcements=(1, 2), gives_way=True, crashes=0),
    "two writers, of which one gives way, and a reader, a lease runs out": Bounds(
        modes="WWR", gives_way=True, beats=0, expiries=(1, 0, 0), crashes=0
    ),
    "writer and two readers, two leases run out, a death": Bounds(modes="WRR", beats=0, expiries=(1, 1, 0)),
    "two writers and a reader, a lease runs out, a death": Bounds(modes="WWR", beats=0, expiries=(1, 0, 0)),
    "one permit, two readers, a failing call": Bounds(modes="11", faults=1, crashes=0),
    "one permit, two readers, both announce themselves twice": Bounds(modes="11", announcements=2, gives_way=True),
    "one permit, three readers, a lease runs out, a death": Bounds(modes="111", beats=0, expiries=(1, 0, 0)),
    "two permits, three readers, a lease runs out, a death": Bounds(modes="222", beats=0, expiries=(1, 0, 0)),
    "two permits, three readers, one gives way": Bounds(
        modes="222", announcements=(1, 1, 2), gives_way=True, beats=0, expiries=(1, 0, 0), crashes=0
    ),
    "a writer and two readers for one permit, a lease runs out": Bounds(
        modes="W11", beats=0, expiries=(1, 0, 0), crashes=0
    ),
    "a writer, a reader without a limit and one with a permit, a death": Bounds(
        modes="W1R", beats=0, expiries=(1, 0, 0)
    ),
}


SCHEDULES = {
    "writer, two hosts whose callers leave notes": schedules.Bounds(
        ticks=4, calls=2, beats=1, shared_watch=(False, False)
    ),
    "writer, a host whose callers leave notes, two heartbeats": schedules.Bounds(calls=2, shared_watch=(False,)),
}


def main() -> int:
    broken = 0
    for name, bounds in SEARCHES.items():
        began = time.monotonic()
        try:
            explored = Search(bounds, limit=50_000_000).run()
        except Violation as violation:
            broken += 1
            print(f"{name}: {violation}", flush=True)
        else:
            seconds = time.monotonic() - began
            size = f"{explored.states} states, {explored.transitions} transitions"
            print(f"{name}: {size}, no promise broken ({seconds:.0f} s)", flush=True)
    for name, within in SCHEDULES.items():
        began = time.monotonic()
        try:
            states, evicted = schedules.search(within)
        except Violation as violation:
            broken += 1
            print(f"{name}: {violation}", flush=True)
        else:
            seconds = time.monotonic() - began
            print(
                f"{name}: schedules to {states} states, {evicted} of them after an eviction, "
                f"no promise broken ({seconds:.0f} s)",
                flush=True,
            )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
