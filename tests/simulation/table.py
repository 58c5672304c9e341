"""
Who finds each mutant: ``make mutants``, some minutes. Prints a table, as docs/evidence/mutants.md has it.

Exit code 1 if one was not found.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation import campaign, schedules
from simulation.exhaustive import Search
from simulation.mutants import MUTANTS
from simulation.test_campaign import ELSEWHERE, found_by_run
from simulation.test_exhaustive import BROKEN, UNTIMELY, UNTIMELY_BOUNDS
from simulation.witness import Violation


def find(name: str) -> list[str]:
    """Return who finds a mutant, in words."""
    found = []
    if name not in ELSEWHERE and (seed := found_by_run(MUTANTS[name])) is not None:
        found.append(f"run {seed + 1} ({MUTANTS[name].kind or campaign.kind_of(seed)})")
    with MUTANTS[name].applied():
        if name in BROKEN:
            try:
                Search(BROKEN[name]).run()
            except Violation:
                found.append(f"search, {BROKEN[name].modes}")
        if name in UNTIMELY:
            try:
                schedules.search(UNTIMELY_BOUNDS)
            except Violation:
                found.append("schedules")
    return found


def main() -> int:
    missed = 0
    print("| Broken on purpose | The rule | Found by |\n|---|---|---|")
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for name, found in zip(MUTANTS, pool.imap(find, MUTANTS), strict=True):
            missed += not found
            print(f"| {name} | {MUTANTS[name].rule} | {'; '.join(found) or 'NOBODY'} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
