"""
Eight processes use one lock while its directory is pruned all the time: `python pruning_storm.py --seconds 60`.

Each adds lines to a file under the exclusive lock and reads it under the shared one. Exit code 1, with what went wrong,
if a call raised, a hold was lost, an update was lost, or a number fell while somebody held the lock. Prints how often
the directory was removed, and how often the lock was held.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nfsrwlock_core import SoftReadWriteLock
from nfsrwlock_core.inspection import list_lock

sys.path.insert(0, str(Path(__file__).parents[1]))

from nfs.on_client import prune_it

PROCESSES = 8


def highest(lock: SoftReadWriteLock) -> int:
    """Return the highest number in the lock directory."""
    return list_lock(lock.lock_path).highest_generation


def use(data: Path, seconds: float, seed: int) -> int:
    """Take the lock again and again, with pauses in which it may be pruned; return how many lines were added."""
    chance, until, added = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        lock = SoftReadWriteLock(data, is_singleton=False, poll_interval=0.02)
        if chance.random() < 0.5:
            with lock.write_lock():
                assert lock.generation == highest(lock), "a writer's number is the highest while it holds"
                with data.open("a") as file:
                    file.write("1\n")
                added += 1
                time.sleep(chance.random() * 0.004)
                assert lock.generation == highest(lock), "the number fell below that of a writer that holds"
        else:
            with lock.read_lock():
                before, lines = highest(lock), data.read_text()
                time.sleep(chance.random() * 0.004)
                assert highest(lock) == before, "the number changed while a reader held the lock"
                assert data.read_text() == lines, "the data changed while a reader held the lock"
        time.sleep(chance.random() * 0.2)
    return added


def conduct(here: Path, seconds: float) -> int:
    """Start the processes, and one that prunes."""
    data = here / "data"
    data.touch()
    arguments = [sys.executable, __file__, "--data", str(data), "--seconds", str(seconds), "--seed"]
    users = [
        subprocess.Popen([*arguments, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(PROCESSES + 1)
    ]
    try:
        removed, *added = [int(user.communicate()[0] or -1) for user in users]
    finally:
        for user in users:
            user.kill()
            user.wait()
    lines = len(data.read_text().splitlines())
    print(f"{sum(added)} lines added, {lines} there, the directory was removed {removed} times")
    return int(min(added) < 0 or sum(added) != lines or removed < 1)


def main() -> int:
    """Be the conductor, a process that uses the lock, or (of seed 0) the one that prunes it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.data is not None:
        print(use(given.data, given.seconds, given.seed) if given.seed else prune_it(str(given.data), given.seconds))
        return 0
    with tempfile.TemporaryDirectory() as here:
        return conduct(Path(here), given.seconds)


if __name__ == "__main__":
    sys.exit(main())
