"""Three analyses at once over one shared directory, one of them killed; then the books are checked. See README.md."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = 3
PATIENCE_S = 120


def start(directory: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ANALYSIS_DIR": str(directory), "PYTHONPATH": str(HERE)}
    environment.pop("NFSRWLOCK_DIR", None)
    # By its name, so that the functions of children and parents are those of one module; a session of its own, to kill.
    return subprocess.Popen(
        [sys.executable, "-c", "import analysis; analysis.main()"],
        env=environment,
        cwd=directory,
        start_new_session=True,
    )


def notes(directory: Path) -> Counter[str]:
    return Counter(line for log in directory.glob("log.*") for line in log.read_text().splitlines())


def kill(program: subprocess.Popen[bytes]) -> None:
    """The program and its children, as a batch system does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def run(directory: Path) -> bool:
    (directory / "tables").mkdir()
    began = time.monotonic()
    programs = [start(directory) for _ in range(PROGRAMS)]
    try:
        while not any(note.startswith("window") for note in notes(directory)):
            if time.monotonic() - began > PATIENCE_S:
                raise TimeoutError("no program has begun")
            time.sleep(0.05)
        kill(programs[0])
        print(f"{PROGRAMS} programs with 2 workers each; one was killed after {time.monotonic() - began:.1f} s")
        codes = [program.wait(PATIENCE_S) for program in programs[1:]]
    finally:
        for program in programs:
            kill(program)
    took = time.monotonic() - began
    return report(directory, codes, took)


def report(directory: Path, codes: list[int], took: float) -> bool:
    os.environ["ANALYSIS_DIR"] = str(directory)
    sys.path.insert(0, str(HERE))
    analysis = importlib.import_module("analysis")
    genome = (directory / "lambda.txt").read_text()
    starts = range(0, len(genome), analysis.WINDOW)
    truth = {start: len(analysis.rare_kmers(genome[start : start + analysis.WINDOW])) for start in starts}
    found = {
        int(row): count
        for table in (directory / "tables").glob("*.json")
        for row, count in json.loads(table.read_text()).items()
    }
    counted = notes(directory)
    computed = [counted[f"window {start}"] for start in starts]
    checks = [
        ("The other programs finished", codes == [0] * (PROGRAMS - 1), f"exit codes {codes}, {took:.1f} s"),
        # The victim may have been unpacking; a builder that is killed is followed by one more.
        ("Genome unpacked once", counted["unpacked"] == 1, f"{counted['unpacked']} times, {len(genome):,} bases"),
        (
            "Each window computed once",
            all(computed) and sum(computed) <= len(computed) + 2,
            f"{sum(computed)} computations of {len(computed)} windows; 2 workers were killed",
        ),
        ("No row of a table lost, all as computed alone", found == truth, f"{len(found)} of {len(truth)} rows"),
    ]
    for title, passed, detail in checks:
        print(f"{'ok  ' if passed else 'FAIL'}  {title}: {detail}")
    return all(passed for _, passed, _ in checks)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nfsrwlock-joblib-") as place:
        sys.exit(0 if run(Path(place)) else 1)
