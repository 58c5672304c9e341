"""Three workflows that know nothing of each other share one index, which is rebuilt meanwhile.

    python examples/snakemake/run.py [--updates N] [--no-lock]

Exit code 0 if the index was built once and every read was placed where it came from, 1 if not. See README.md.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
GENOME = HERE.parent / "data" / "lambda_virus.fa.gz"
WORKFLOWS, SAMPLES, READS = 3, 2, 50
TOLERANCE = 25
"""Bases by which the start of an alignment may differ from that of the read."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3, help="how often the index is rebuilt while it is used (3)")
    parser.add_argument("--no-lock", action="store_true", help="without locks, to see what they are for")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nfsrwlock-snakemake-") as directory:
        return play(Path(directory), options.updates, locked=not options.no_lock)


def play(stage: Path, updates: int, *, locked: bool) -> int:
    ref = stage / "ref"
    ref.mkdir()
    with gzip.open(GENOME) as source, open(ref / "genome.fa", "wb") as target:
        shutil.copyfileobj(source, target)

    print(f"{WORKFLOWS} workflows start at once, with one index between them that is not there yet", flush=True)
    began = time.monotonic()
    names = [f"workflow-{number + 1}" for number in range(WORKFLOWS)]
    runs = {name: start(stage / name, "Snakefile", ref, locked) for name in names}
    while not (ref / "genome.mmi").exists() and any(run.poll() is None for run in runs.values()):
        time.sleep(0.05)
    print(f"{time.monotonic() - began:4.1f} s  the index is there; it is rebuilt {updates} times while they align")
    failed_updates = sum(start(stage / "update", "update.smk", ref, locked, "-F").wait() != 0 for _ in range(updates))
    codes = {name: run.wait() for name, run in runs.items()}
    print(f"{time.monotonic() - began:4.1f} s  all have ended\n")

    right, wrong = placed(stage, names)
    builds = count(ref / "builds.index")
    checks = (
        (all(code == 0 for code in codes.values()), f"workflows that succeeded: {list(codes.values()).count(0)}"),
        (builds == 1, f"times that the workflows built the index: {builds}"),
        (failed_updates == 0, f"rebuilds under way that succeeded: {updates - failed_updates} of {updates}"),
        (right == WORKFLOWS * SAMPLES * READS, f"reads placed where they come from: {right}, elsewhere: {wrong}"),
    )
    for passed, text in checks:
        print(f"{'passed' if passed else 'FAILED'}  {text}")
    for name, code in codes.items():
        if code != 0:
            print(f"\nthe end of the log of {name}:\n" + "\n".join(log(stage / name).splitlines()[-15:]))
    return 0 if all(passed for passed, _ in checks) else 1


def start(directory: Path, snakefile: str, ref: Path, locked: bool, *more: str) -> subprocess.Popen[bytes]:
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "snakemake", "-s", str(HERE / snakefile), "--cores", "1", "--nocolor", *more]
    config = ["--config", f"ref={ref}", f"samples={SAMPLES}", *([] if locked else ["lock="])]
    with open(directory / "log", "ab") as output:
        return subprocess.Popen([*command, *config], cwd=directory, stdout=output, stderr=output)


def placed(stage: Path, names: list[str]) -> tuple[int, int]:
    right = wrong = 0
    for name in names:
        for file in (stage / name / "aligned").glob("*.tsv"):
            for line in file.read_text().splitlines():
                place, _, found = line.partition("\t")
                if found and abs(int(place) - int(found)) <= TOLERANCE:
                    right += 1
                else:
                    wrong += 1
    return right, wrong


def count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def log(directory: Path) -> str:
    return (directory / "log").read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
