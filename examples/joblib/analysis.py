"""What a user writes: an analysis of a genome. Many may run at once, on any hosts that share the directory."""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from joblib import Parallel, delayed

from nfsrwlock import fetch
from nfsrwlock.joblib import Guard, Memory, guard, locked

WINDOW, K = 2_000, 6
GENOME = Path(__file__).parents[1] / "data" / "lambda_virus.fa.gz"

shared = Path(os.environ["ANALYSIS_DIR"])
memory = Memory(shared / "cache", verbose=0, poll_interval=0.1)


def note(what: str) -> None:
    """One line for run.py, which counts what was computed, and by whom."""
    with open(shared / f"log.{os.getpid()}", "a") as log:
        log.write(f"{what}\n")


def unpack(target: Path) -> None:
    note("unpacked")
    with gzip.open(GENOME, "rt", encoding="ascii") as lines:
        target.write_text("".join(line.strip() for line in lines if not line.startswith(">")).upper())


def rare_kmers(sequence: str) -> list[str]:
    """The k-mers that occur once."""
    counts = Counter(sequence[place : place + K] for place in range(len(sequence) - K + 1))
    return sorted(kmer for kmer, count in counts.items() if count == 1)


@memory.cache
def window(genome: str, start: int) -> list[str]:
    """Computed once, by whoever comes first; everybody else waits and loads."""
    note(f"window {start}")
    time.sleep(0.15)  # a real analysis takes its time
    return rare_kmers(Path(genome).read_text()[start : start + WINDOW])


@locked(write=lambda start: shared / "tables" / f"{start // (8 * WINDOW)}.json")
def enter(start: int, count: int) -> None:
    """Several windows share a table: read, change, write, and nobody in between."""
    table = shared / "tables" / f"{start // (8 * WINDOW)}.json"
    rows = json.loads(table.read_text()) if table.exists() else {}
    rows[str(start)] = count
    new = table.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(rows))
    os.replace(new, table)


def work(genome: str, start: int, held: Guard) -> None:
    found = window(genome, start)
    held.check()  # is the genome still the one that was read? raises if its lock was lost
    enter(start, len(found))


def main() -> None:
    # The first to come unpacks the genome; all hold it shared for as long as they use it.
    with fetch(shared / "lambda.txt", unpack) as genome, guard(read=shared / "tables") as held:
        starts = range(0, len(genome.path.read_text()), WINDOW)
        Parallel(n_jobs=2)(delayed(work)(os.fspath(genome), start, held) for start in starts)
        genome.check()
    note("finished")


if __name__ == "__main__":
    sys.exit(main())
