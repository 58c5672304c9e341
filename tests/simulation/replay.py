"""
Play one simulated run again and print its history: ``python tests/simulation/replay.py SEED [--kind KIND]``.

Exit code 1 if the run breaks a promise of the protocol.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation import campaign, mutants
from simulation.witness import Violation


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("--kind", choices=campaign.KINDS, help="play it as this kind of run, whatever the number says")
    parser.add_argument("--mutant", choices=mutants.MUTANTS, help="with the protocol broken in this way")
    parser.add_argument("--quiet", action="store_true", help="only the verdict")
    options = parser.parse_args(arguments)
    kind = options.kind or campaign.kind_of(options.seed)
    with mutants.MUTANTS[options.mutant].applied() if options.mutant else nullcontext():
        try:
            counts, history = campaign.run(options.seed, kind=kind, record=not options.quiet)
        except Violation as violation:
            verdict, code, history = f"BROKEN: {violation}", 1, violation.history
        else:
            verdict, code = f"kept: {counts}", 0
    print("\n".join([*history, f"run {options.seed} ({kind}): {verdict}"]))
    return code


if __name__ == "__main__":
    sys.exit(main())
