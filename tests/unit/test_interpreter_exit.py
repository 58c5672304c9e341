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


DAEMON = """
import asyncio, atexit, os, threading
atexit.register(lambda: print(len([name for name in os.listdir("data.rwlock") if name[0] in "rw"])))
from nfsrwlock import AsyncSoftReadWriteLock, LockSet, SoftReadWriteLock

held, end = threading.Event(), threading.Event()

def work():
    with SoftReadWriteLock("data").{mode}_lock():
        held.set()
        end.wait()

def work_in_a_loop():
    async def hold():
        async with AsyncSoftReadWriteLock("data").{mode}_lock():
            held.set()
            await asyncio.Event().wait()
    asyncio.run(hold())

thread = threading.Thread(target={target}, daemon=True)
thread.start()
held.wait()
"""


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize("target", ["work", "work_in_a_loop"])
def test_a_daemon_thread_keeps_its_lock_until_the_process_has_ended(tmp_path: Path, target: str, mode: str) -> None:
    code = DAEMON.format(target=target, mode=mode)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
    # Whose thread has ended needs it no more; nor does anybody once the process is dead.
    code = f"{code}SoftReadWriteLock('other').acquire_write()\n".replace('"data.rwlock"', '"other.rwlock"')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


BROKEN_OFF = """
import errno, time
from nfsrwlock import SoftReadWriteLock
from nfsrwlock_core.system.directory import LockDirectory

lock, rmdir, tries = SoftReadWriteLock("data", linger={linger}), LockDirectory.rmdir, []

def remove(self, name=""):
    if name.startswith("read."):
        tries.append(name)
        if len(tries) == 1:
            raise {error}
        time.sleep(0.3)  # longer than a process takes to end
    rmdir(self, name)

for _ in range(2):
    with lock.read_lock():
        pass
LockDirectory.rmdir = remove
{last}
"""


@pytest.mark.parametrize(
    ("error", "linger", "last"),
    [
        ("KeyboardInterrupt", 0, "with lock.read_lock(): pass"),
        ("KeyboardInterrupt", 10, "lock.acquire_write()"),  # for which the kept hold makes way
        ("OSError(errno.EIO, 'no answer')", 0, "with lock.read_lock(): pass"),
    ],
    ids=["interrupted", "interrupted while it makes way", "refused"],
)
def test_a_release_that_was_broken_off_is_finished_before_the_process_ends(
    tmp_path: Path, error: str, linger: float, last: str
) -> None:
    code = BROKEN_OFF.format(error=error, linger=linger, last=last)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ("KeyboardInterrupt" in done.stderr) == (error == "KeyboardInterrupt")
    assert announcements(tmp_path / "data") == []
