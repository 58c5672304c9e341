"""What it takes to start: the interpreter alone, with this package, with a lock, and a command under a lock."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measurements import Plan, Record
from benchmarks.numbers import spread
from benchmarks.places import NfsLab, Place, group

#: What is started, by its label: arguments of the interpreter.
PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import nfsrwlock": ["-c", "import nfsrwlock"],
    "import nfsrwlock; nfsrwlock.SoftReadWriteLock": ["-c", "import nfsrwlock; nfsrwlock.SoftReadWriteLock"],
    "nfsrwlock run --read PATH -- true": ["-m", "nfsrwlock", "run", "--read", "PATH", "--", "true"],
}


def measure(place: Place, plan: Plan, lab: NfsLab | None) -> Iterator[Record]:
    """In turns, and locally only: on NFS it would be the environment that is measured."""
    if place.is_nfs:
        return
    path = place.path()
    times: dict[str, list[float]] = {program: [] for program in PROGRAMS}
    with group([place.machines[0].member()]) as (member,):
        for turn in range(plan.starts + 1):
            for program, arguments in PROGRAMS.items():
                took = member.do("start", arguments=[path if one == "PATH" else one for one in arguments])
                if turn:  # the first one fills caches
                    times[program].append(took)
    for program, took in times.items():
        yield {
            "measurement": "start",
            "place": place.name,
            "contender": "nfsrwlock-read",
            "program": program,
            "seconds": spread(took),
        }
