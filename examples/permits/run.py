"""
Twelve jobs of three workflows on two nodes share four permits; one job is killed, and started again.

    python examples/permits/run.py [--no-lock] [--svg FILE]

Each job writes down when it begins and ends to use what the permits are for. The judge at the end goes by these times:
never more than four at a time, and all done. That no permit is lost it tries for itself: it takes all four.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from nfsrwlock import SoftSemaphore

PERMITS = 4
WORK_S = 0.6
PATIENCE_S = 60.0
#: The jobs of each workflow, and the node on which they run: on one machine, by the name that the lock goes by.
JOBS = {f"{workflow}{number}": f"node{1 + number % 2}" for workflow in "ABC" for number in range(1, 5)}
VICTIM = "B2"


class Use(NamedTuple):
    """One time that a job used it, seconds."""

    job: str
    begin: float
    end: float
    was_killed: bool


def work(job: str, directory: Path, *, lock: bool) -> None:
    """Be a job."""
    permit: Any = semaphore(directory) if lock else nullcontext()
    note(directory, "ready", job)
    wait_until((directory / "go").exists)
    with permit:
        note(directory, "begin", job)
        # The victim would never end by itself, and there is one.
        time.sleep(WORK_S if job != VICTIM or (directory / "killed").exists() else PATIENCE_S)
        note(directory, "end", job)


def semaphore(directory: Path) -> SoftSemaphore:
    """What the jobs share, with a lease that is short enough to be watched."""
    return SoftSemaphore(directory / "licence", PERMITS, heartbeat_interval=1, stale_threshold=3)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what should take no time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def note(directory: Path, what: str, job: str) -> None:
    """Write down that it happens now; lines of several processes do not mix."""
    with open(directory / "log", "a", encoding="ascii") as log:
        log.write(f"{time.monotonic()} {what} {job}\n")


def events(directory: Path) -> list[tuple[float, str, str]]:
    """What was written down, in order."""
    lines = (line.split() for line in (directory / "log").read_text("ascii").splitlines())
    return sorted((float(seconds), what, job) for seconds, what, job in lines)


def start(job: str, directory: Path, *, lock: bool) -> subprocess.Popen[bytes]:
    """Start a job on its node."""
    command = [sys.executable, __file__, "--job", job, "--directory", str(directory)]
    environment = os.environ | {
        "NFSRWLOCK_HOST": JOBS[job],
        "NFSRWLOCK_TRACE": str(directory / "trace"),
        "SLURM_JOB_ID": job,  # which the record names
    }
    return subprocess.Popen([*command, *([] if lock else ["--no-lock"])], env=environment)


def conduct(directory: Path, *, lock: bool) -> None:
    """Run all jobs, and kill one."""
    (directory / "log").touch()
    processes = {job: start(job, directory, lock=lock) for job in JOBS}
    wait_until(lambda: sum(what == "ready" for _, what, _ in events(directory)) == len(JOBS))
    (directory / "go").touch()
    wait_until(lambda: any(event[1:] == ("begin", VICTIM) for event in events(directory)))
    time.sleep(WORK_S / 2)
    processes[VICTIM].kill()
    processes[VICTIM].wait()
    note(directory, "killed", VICTIM)
    (directory / "killed").touch()
    processes[VICTIM] = start(VICTIM, directory, lock=lock)
    for job, process in processes.items():
        assert process.wait(PATIENCE_S) == 0, f"{job} has failed"


def uses(directory: Path) -> list[Use]:
    """Every use, from what was written down."""
    found, begun = [], {}
    for seconds, what, job in events(directory):
        if what == "begin":
            begun[job] = seconds
        elif what != "ready":
            found.append(Use(job, begun.pop(job), seconds, was_killed=what == "killed"))
    return sorted(found, key=lambda use: use.begin)


def at_a_time(found: Iterable[Use]) -> int:
    """The most that overlap."""
    count = most = 0
    for _, step in sorted([(use.begin, 1) for use in found] + [(use.end, -1) for use in found]):
        count += step
        most = max(most, count)
    return most


def show(found: list[Use]) -> None:
    """Draw who used it when."""
    zero, end = found[0].begin, max(use.end for use in found)
    scale = 60 / (end - zero)
    for job, node in JOBS.items():
        line = [" "] * 62
        for use in found:
            if use.job == job:
                begin, last = (int((moment - zero) * scale) for moment in (use.begin, use.end))
                line[begin : last + 1] = ["█"] * (last - begin + 1)
                line[last + 1] = "✗" if use.was_killed else line[last + 1]
        print(f"{job} {node} {''.join(line).rstrip()}")
    print(f"{end - zero:.1f} s")


def judge(found: list[Use], directory: Path) -> bool:
    """Say what came of it; return whether all is well."""
    most, permits = at_a_time(found), semaphore(directory)
    checks = {
        f"never more than {PERMITS} at a time: {most}": most <= PERMITS,
        "all jobs done, the killed one the second time": Counter(use.job for use in found if not use.was_killed)
        == Counter(JOBS.keys()),
        "no permit lost: all can be had": all(permits.acquire(PATIENCE_S) for _ in range(PERMITS)),
    }
    for check, passed in checks.items():
        print("passed" if passed else "FAILED", check)
    return all(checks.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-lock", action="store_true", help="without permits, to see the judge fail")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw what the locks have recorded")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(options.job, options.directory, lock=not options.no_lock)
        return 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        conduct(directory, lock=not options.no_lock)
        found = uses(directory)
        show(found)
        if options.svg:
            draw = [sys.executable, "-m", "nfsrwlock", "timeline", "trace", "-o", options.svg.resolve()]
            subprocess.run(draw, cwd=directory, check=True)
        return 0 if judge(found, directory) else 1


if __name__ == "__main__":
    sys.exit(main())
