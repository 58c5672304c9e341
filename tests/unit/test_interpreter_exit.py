"""
Locks that are taken while the interpreter exits, when no thread can be started any more.

Python 3.12 refuses there what earlier and later ones allow, so the refusal is brought about: in real processes, in
their exit handlers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actors import announcements

PROGRAM = """
import asyncio, atexit, sys, threading, time
from nfsrwlock import AsyncSoftReadWriteLock, FileLock, LeaseExpiredError, LockSet, SoftReadWriteLock

def refuse(self):
    raise RuntimeError("can't create new thread at interpreter shutdown")

async def write():
    async with AsyncSoftReadWriteLock("data").write_lock(timeout=5):
        pass

def at_exit():
    threading.Thread.start = refuse
    {at_exit}
    print("done")

atexit.register(at_exit)
"""


def run(at_exit: str, directory: Path) -> str:
    code = PROGRAM.format(at_exit=at_exit.replace("\n", "\n    "))
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=directory, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0
    return process.stdout.strip() or process.stderr


@pytest.mark.parametrize(
    "at_exit",
    [
        "with SoftReadWriteLock('data').write_lock(timeout=5): pass",
        "with SoftReadWriteLock('data', heartbeat='process').read_lock(): pass",
        "SoftReadWriteLock('data').acquire_write()",
        "with FileLock('data'): pass",
        "with LockSet(write=['data'], read=['other']): pass",
        "asyncio.run(write())",
    ],
    ids=["block", "process", "never released", "FileLock", "LockSet", "asyncio"],
)
def test_a_lock_can_be_taken_at_exit_and_is_given_back(tmp_path: Path, at_exit: str) -> None:
    assert run(at_exit, tmp_path) == "done"
    assert announcements(tmp_path / "data") == []


def test_what_is_held_at_exit_without_heartbeats_ends_with_its_first_lease(tmp_path: Path) -> None:
    at_exit = """
lock = SoftReadWriteLock('data', heartbeat_interval=0.1, stale_threshold=0.5)
lock.acquire_write()
lock.check()
while lock.lease_remaining > 0:
    time.sleep(0.01)
try:
    lock.check()
except LeaseExpiredError:
    lock.release()"""
    assert run(at_exit, tmp_path) == "done"
    assert announcements(tmp_path / "data") == []
