"""
Sixty tasks on four processes count in one file under a lock; one of the processes is killed. See README.md.

    python examples/dask/run.py [--no-lock] [--svg FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from nfsrwlock.dask import RWLock, install

TASKS = 60
#: Which task is killed with its process, the first time that it has the lock.
VICTIM = 20


def count(number: int, path: str, lock: Any) -> bool:
    """Enter ``number`` into the file, by writing it anew."""
    with lock or contextlib.nullcontext():
        seen = json.loads(Path(path).read_text())
        if number == VICTIM and not Path(f"{path}.killed").exists():
            Path(f"{path}.killed").touch()
            time.sleep(0.3)  # until the record of the grant is written
            os.kill(os.getpid(), signal.SIGKILL)
        if number in seen:
            return True  # Dask computes again what a dead worker had in memory
        time.sleep(0.005)
        new = Path(f"{path}.{number}")
        new.write_text(json.dumps([*seen, number]))
        if lock is not None:
            lock.check()  # right before it is made final
        new.rename(path)
    return True


def look(path: str, lock: Any) -> int:
    """Return how many are in the file."""
    with lock or contextlib.nullcontext():
        return len(json.loads(Path(path).read_text()))


def run(directory: Path, *, locked: bool) -> bool:
    path = directory / "seen.json"
    path.write_text("[]")
    rw = RWLock(path)
    read, write = (rw.read, rw.write) if locked else (None, None)
    with (
        LocalCluster(
            n_workers=4, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        install(client)
        tasks = [client.submit(count, number, str(path), write, pure=False) for number in range(TASKS)]
        looks = [client.submit(look, str(path), read, pure=False) for _ in range(10)]
        client.gather(looks)
        client.gather(tasks)
    seen = sorted(json.loads(path.read_text()))
    print(f"{TASKS} tasks, {len(set(seen))} of them in the file, {len(seen) - len(set(seen))} twice")
    print(f"one process was killed while it {'held the lock' if locked else 'worked'}")
    return seen == list(range(TASKS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-lock", action="store_true", help="do without the lock, to see the count go wrong")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw what the locks have recorded")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        os.environ["NFSRWLOCK_TRACE"] = f"{directory}/trace"  # which the workers inherit
        right = run(directory, locked=not options.no_lock)
        if options.svg:
            draw = [sys.executable, "-m", "nfsrwlock", "timeline", "trace", "-o", options.svg.resolve()]
            subprocess.run(draw, cwd=directory, check=True)
    print("right" if right else "WRONG")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
