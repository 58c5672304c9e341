"""
The watchdog: a small process that outlives Snakemake for as long as it takes to stop the jobs that it left behind.

A job whose Snakemake process was killed (SIGKILL, out of memory) would work on, and nobody holds its locks any more.
Everything that a job starts inherits a mark in its environment: a token of the Snakemake process, one of the job, and
the job's name. The watchdog learns of its parent's death by the end of its standard input.

What it does not do: find processes that cleared their environment, on other systems than Linux or under other users.

It is run as a script and needs nothing but the standard library; only :func:`marked` is used by importing it.
"""

import os
import signal
import sys
import time
from contextlib import suppress

VARIABLE = "NFSRWLOCK_JOB"
#: The name by which `nfsrwlock run` knows those that it must never stop.
NAME = "nfsrwlock-guard"
_PATIENCE_S = 30.0
#: How often to look for an environment: a process that is just replacing its program shows none.
_LOOKS = 20


def marked(token: bytes) -> dict[int, str]:
    """Return the processes that carry ``token`` in their environment, each with what follows it there."""
    found = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    me = os.getpid()
    for name in names:
        if name.isdigit() and int(name) != me:
            try:
                _, mark, rest = _environment(name).partition(token)
            except OSError:
                continue  # it has ended, or belongs to somebody else
            if mark:
                found[int(name)] = rest.partition(b"\0")[0].decode(errors="replace")
    return found


def _environment(pid: str) -> bytes:
    for _ in range(_LOOKS):
        with open(f"/proc/{pid}/environ", "rb") as file:
            if found := file.read():
                return found
        os.stat(f"/proc/{pid}/exe")  # the kernel's own processes have none
        time.sleep(0.001)
    return b""


def _stop(token: bytes) -> set[str]:
    # Stopped first, so that none can start another one unseen; killed when nobody new turns up.
    marks: set[str] = set()
    stopped: set[int] = set()
    until = time.monotonic() + _PATIENCE_S
    while (found := marked(token)) and time.monotonic() < until:
        marks.update(found.values())
        new = found.keys() - stopped
        for pid in new or found:
            with suppress(OSError):
                os.kill(pid, signal.SIGSTOP if new else signal.SIGKILL)
        stopped = set(found) if new else set()
        if not new:
            time.sleep(0.01)
    return marks


def main() -> None:
    """Wait until the parent is gone, and stop what carries its token, which is the argument."""
    # Batch systems send a signal to all processes of a job at once. This one ends with its parent, not before.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(NAME)
    sys.stdin.buffer.read()
    # Of a mark, what follows the job's token; behind a colon comes that of a workflow within the job.
    for job in sorted({mark.partition(" ")[2].partition(":")[0] for mark in _stop(sys.argv[1].encode())}):
        with suppress(OSError):
            print(f"nfsrwlock: {job} was stopped: Snakemake, which held its locks, was killed", file=sys.stderr)


if __name__ == "__main__":
    main()
