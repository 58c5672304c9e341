"""
A long random campaign: ``python tests/simulation/long.py --seconds 600 --seed 1 [--jobs 2]``.

Plays one number after the other, says once a minute how far it got, and in the end what it all amounted to. Each broken
promise is printed with the command that plays the run again; exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation import campaign
from simulation.witness import Counts

_EVERY_S = 60.0


def play(work: tuple[int, str | None, float]) -> tuple[int, Counts | None, str]:
    """Play one run; returns its number, what it amounted to (``None``: it was too late to begin), what went wrong."""
    seed, kind, until = work
    if time.monotonic() >= until:  # a pool takes in hundreds of numbers ahead
        return seed, None, ""
    try:
        return seed, campaign.run(seed, kind=kind)[0], ""
    except Exception as error:
        return seed, Counts(), f"{type(error).__name__}: {error}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="the first number (default: %(default)d)")
    parser.add_argument("--kind", choices=campaign.KINDS, help="only runs of this kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)d)")
    options = parser.parse_args(arguments)
    began = told = time.monotonic()
    until = began + options.seconds
    total, kinds, broken = Counts(), Counter[str](), 0

    def numbers() -> Iterator[tuple[int, str | None, float]]:
        yield options.seed, options.kind, math.inf  # on a machine that is slow to begin, one run is one
        for seed in itertools.count(options.seed + 1):
            if time.monotonic() >= until:
                return
            yield seed, options.kind, until

    def report() -> None:
        seconds = time.monotonic() - began
        played = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        print(f"{seconds:7.0f} s: {kinds.total()} runs ({played}), {broken} broken; {total}", flush=True)

    pool = multiprocessing.Pool(options.jobs) if options.jobs > 1 else None
    try:
        for seed, counts, trouble in pool.imap(play, numbers(), chunksize=4) if pool else map(play, numbers()):
            if counts is None:
                continue
            kind = options.kind or campaign.kind_of(seed)
            kinds[kind] += 1
            total.add(counts)
            if trouble:
                broken += 1
                print(
                    f"run {seed} ({kind}): {trouble}\n  python tests/simulation/replay.py {seed} --kind {kind}",
                    flush=True,
                )
            if time.monotonic() - told >= _EVERY_S:
                told = time.monotonic()
                report()
    finally:
        if pool is not None:
            pool.terminate()
    report()
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
