"""
The watchdog: a small process that outlives Snakemake for as long as it takes to stop the jobs that it left behind.

A job whose Snakemake process was killed (SIGKILL, out of memory) would work on, and nobody holds its locks any more.
Jobs are known by a token in their environment, which everything that they start inherits. The watchdog learns of its
parent's death by the end of its standard input.

What it does not do: find processes that cleared their environment, on other systems than Linux or under other users.

It is run as a script and needs nothing but the standard library; only :func:`marked` is used by importing it.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress

VARIABLE = "NFSRWLOCK_JOB"
#: The name by which `nfsrwlock run` knows those that it must never stop.
NAME = "nfsrwlock-guard"
_PATIENCE_S = 30.0


def marked(token: bytes) -> list[int]:
    """Return the processes, of those this one may look at, that carry ``token`` in their environment."""
    found = []
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    me = os.getpid()
    for name in names:
        if name.isdigit() and int(name) != me:
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if token in file.read():
                        found.append(int(name))
            except OSError:
                continue  # it has ended, or belongs to somebody else
    return found


def _stop(token: bytes) -> None:
    # Stopped first, so that none can start another one unseen; killed when nobody new turns up.
    stopped: set[int] = set()
    until = time.monotonic() + _PATIENCE_S
    while (found := set(marked(token))) and time.monotonic() < until:
        new = found - stopped
        for pid in new or found:
            with suppress(OSError):
                os.kill(pid, signal.SIGSTOP if new else signal.SIGKILL)
        stopped = found if new else set()
        if not new:
            time.sleep(0.01)


def main() -> None:
    """Read lines, each with the jobs by their tokens, until the parent is gone; stop those of the last line."""
    # Batch systems send a signal to all processes of a job at once. This one ends with its parent, not before.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(NAME)
    jobs: dict[str, str] = {}
    for line in sys.stdin.buffer:
        with suppress(ValueError):  # cut off: that job has not begun
            jobs = json.loads(line)
    for token, label in jobs.items():
        if marked(token.encode()):
            _stop(token.encode())
            with suppress(OSError):
                print(f"nfsrwlock: {label} was stopped: Snakemake, which held its locks, was killed", file=sys.stderr)


if __name__ == "__main__":
    main()
