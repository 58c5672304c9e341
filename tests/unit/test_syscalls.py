"""
What a cycle of acquire and release asks of the file system, where each call may be a round trip, and of Python.

What is asked of the file system is counted twice: by strace, which sees the system calls themselves, and by Python's
audit events, which need nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from actors import Stage

#: Calls that no file system hears of: memory, threads, clocks, signals, random numbers.
NO_FILES = re.compile(
    r"brk|mmap|munmap|mremap|mprotect|madvise|futex|clone3?|rseq|set_robust_list|exit|gettid|getpid|getppid|get.*id"
    r"|clock_\w+|gettimeofday|nanosleep|getrandom|rt_sig\w+|sched_\w+|restart_syscall|prctl|arch_prctl|sigaltstack"
)
ALLOWED = {
    *("mkdir", "mkdirat", "open", "openat", "fstat", "newfstatat", "lstat", "statx", "getdents64", "close", "rmdir"),
    "unlinkat",
}

CYCLES = """
import os
from nfsrwlock import SoftReadWriteLock
lock = SoftReadWriteLock("data", linger={linger})
for _ in range(3):
    os.path.lexists("/marks-the-beginning")
    lock.acquire_{mode}({timeout})
    os.path.lexists("/marks-the-middle")
    lock.release()
    os.path.lexists("/marks-the-end")
"""


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], capture_output=True).returncode == 0


def calls_of_the_latest_cycle(directory: Path, mode: str, timeout: float, linger: float) -> list[str]:
    """The system calls of the third cycle, one a line: by then the directory is there and all is imported."""
    log = directory / "strace.log"
    code = CYCLES.format(mode=mode, timeout=timeout, linger=linger)
    subprocess.run(
        ["strace", "-f", "-qq", "-o", str(log), sys.executable, "-c", code],
        cwd=directory,
        check=True,
    )
    cycle = log.read_text().rpartition("marks-the-beginning")[2].partition("marks-the-end")[0]
    # A line is "PID call(arguments) = result"; one that another thread interrupted is resumed later, and counts once.
    return [line.partition(" ")[2].strip() for line in cycle.splitlines()[1:-1] if " resumed>" not in line]


def test_a_cycle_of_a_reader_makes_twelve_system_calls_on_files_or_fewer(tmp_path: Path) -> None:
    if not can_trace():
        pytest.skip("strace is not there, or may not trace")
    calls = file_calls(tmp_path, "read", -1)
    assert 6 <= len(calls) <= 12, calls
    assert {call.partition("(")[0] for call in calls} <= ALLOWED, calls
    assert all("AT_REMOVEDIR" in call for call in calls if call.startswith("unlinkat")), calls


def test_a_timeout_costs_a_reader_no_further_system_call_on_files(tmp_path: Path) -> None:
    if not can_trace():
        pytest.skip("strace is not there, or may not trace")
    assert sorted(names(file_calls(tmp_path, "read", 5))) == sorted(names(file_calls(tmp_path, "read", -1)))


def test_a_cycle_of_a_writer_makes_no_more_than_thirty(tmp_path: Path) -> None:
    # It numbers its grant, lists twice more, and removes the number of the one before.
    if not can_trace():
        pytest.skip("strace is not there, or may not trace")
    calls = file_calls(tmp_path, "write", -1)
    assert len(calls) <= 30, calls
    assert set(names(calls)) <= ALLOWED, calls


def test_a_read_that_joins_a_kept_hold_makes_no_system_call_on_files(tmp_path: Path) -> None:
    if not can_trace():
        pytest.skip("strace is not there, or may not trace")
    # The first is not kept; the second is; the third joins it.
    assert file_calls(tmp_path, "read", -1, linger=10) == []
    assert file_calls(tmp_path, "read", 5, linger=10) == []


@pytest.mark.parametrize("name", ["there", "missing"])
def test_a_look_at_what_is_there_reads_no_directory(tmp_path: Path, name: str) -> None:
    # sshfs fetches the whole directory before it answers the first read: of 20,000 names, in 0.1 s on one machine.
    if not can_trace():
        pytest.skip("strace is not there, or may not trace")
    (tmp_path / "there").touch()
    code = f"from nfsrwlock.freshness import signature_afresh; print(signature_afresh('{name}') is not None)"
    log = tmp_path / "strace.log"
    command = ["strace", "-qq", "-y", "-e", "trace=getdents64", "-o", str(log), sys.executable, "-P", "-c", code]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert said == f"{name == 'there'}\n"
    assert (f"<{tmp_path}>" in log.read_text()) is (name == "missing")


def names(calls: list[str]) -> list[str]:
    return [call.partition("(")[0] for call in calls]


def file_calls(directory: Path, mode: str, timeout: float, linger: float = 0) -> list[str]:
    calls = calls_of_the_latest_cycle(directory, mode, timeout, linger)
    return [call for call in calls if not NO_FILES.fullmatch(call.partition("(")[0]) and "marks-the-" not in call]


AUDITED = """
def listen(event, arguments):
    if armed and event.partition(".")[0] in ("open", "os", "shutil", "socket", "subprocess", "fcntl"):
        heard.append(event)

heard, armed = [], False
sys.addaudithook(listen)
# Who this process is, is looked at anew now and then, and here not just while something is counted.
from nfsrwlock_core.system import process
process._SAME_FOR_S = 1e9
# While one is held, the threads of the package and its helper process stay as they are.
SoftReadWriteLock("other", **{{"heartbeat": {form!r}}}).acquire_read()
lock = SoftReadWriteLock("data", heartbeat={form!r})
with lock.read_lock(), lock.read_lock():
    time.sleep(0.1)
"""


@pytest.mark.parametrize("form", ["thread", "process"])
def test_a_reader_announces_lists_and_withdraws(stage: Stage, form: str) -> None:
    actor = stage.actor(AUDITED.format(form=form))
    actor.do("armed = True; lock.acquire_read(); acquired = list(heard); lock.release(); armed = False")
    assert actor.do("acquired") == ["open", "os.mkdir", "os.listdir"]
    assert actor.do("heard") == ["open", "os.mkdir", "os.listdir", "open", "os.rmdir"]


@pytest.mark.parametrize("form", ["thread", "process"])
def test_a_reader_that_joins_a_kept_hold_asks_nothing(stage: Stage, form: str) -> None:
    actor = stage.actor(AUDITED.format(form=form))
    actor.do(f"lock = SoftReadWriteLock('data', heartbeat={form!r}, linger=10, is_singleton=False)")
    actor.do("for _ in range(2):\n    with lock.read_lock(): pass")
    actor.do("armed = True\nfor _ in range(50):\n    with lock.read_lock(): lock.check()\narmed = False")
    assert actor.do("heard") == []


def test_a_writer_announces_lists_numbers_and_lists_again(stage: Stage) -> None:
    actor = stage.actor(AUDITED.format(form="thread"))
    actor.do("lock.acquire_write(); lock.release()")
    actor.do("armed = True; lock.acquire_write(); acquired = list(heard); lock.release(); armed = False")
    assert actor.do("acquired") == ["open", "os.mkdir", "os.listdir", "os.mkdir", "os.listdir"]
    # Its own announcement, and the number that its own has made obsolete.
    assert Counter(actor.do("heard[5:]")) == {"os.rmdir": 2, "open": 2}


def test_what_a_holder_asks_while_it_holds_costs_nothing(stage: Stage) -> None:
    actor = stage.actor(AUDITED.format(form="thread"))
    actor.do(
        "with lock.write_lock():\n"
        "    armed = True\n"
        "    for _ in range(10):\n"
        "        lock.check()\n"
        "        with lock.write_lock(timeout=1):\n"
        "            lock.status, lock.is_locked, lock.lease_remaining, lock.compromise, lock.generation, repr(lock)\n"
        "    armed = False\n"
    )
    assert actor.do("heard") == []


def test_a_short_hold_never_pays_for_a_heartbeat_and_a_long_one_once_per_interval(stage: Stage) -> None:
    actor = stage.actor(AUDITED.format(form="thread").replace("heartbeat=", "heartbeat_interval=4, heartbeat="))
    actor.do("armed = True; lock.acquire_read(); time.sleep(1); lock.release(); armed = False; short = list(heard)")
    assert actor.do("short") == ["open", "os.mkdir", "os.listdir", "open", "os.rmdir"]
    actor = stage.actor(AUDITED.format(form="thread").replace("heartbeat=", "heartbeat_interval=1, heartbeat="))
    actor.do("armed = True; lock.acquire_read(); began = time.monotonic()")
    actor.do("while 'os.rename' not in heard: time.sleep(0.01)\narmed = False; ended = time.monotonic()")
    beats = actor.do("heard[3:]")
    # The first makes a link, the second renames it; both through descriptors.
    assert [beat for beat in beats if beat != "open"] == ["os.symlink", "os.rename"]
    assert len(beats) <= 6
    assert actor.do("ended - began") > 1.9


#: Counts the calls of functions of ours (comprehensions are none, from Python 3.12 on); and of the first `mkdir`, the
#: frames from the public call on.
COUNTED = """
import os, sys
from nfsrwlock import SoftReadWriteLock
lock = SoftReadWriteLock("data", linger={linger})
calls = frames = 0
def count(frame, event, argument):
    global calls, frames
    code = frame.f_code
    if event == "call" and "nfsrwlock_core" in code.co_filename and not code.co_name.endswith("comp>"):
        calls += 1
    if event == "c_call" and argument is os.mkdir and not frames:
        while frame.f_code.co_name != "cycle":
            frame, frames = frame.f_back, frames + 1
def cycle():
    lock.acquire_read()
    acquired = calls
    lock.release()
    return acquired, calls - acquired, frames
for _ in range(3):
    cycle()
sys.setprofile(count)
counts = cycle()
sys.setprofile(None)
print(*counts)
"""


def counted(directory: Path, linger: float) -> list[int]:
    command = [sys.executable, "-c", COUNTED.format(linger=linger)]
    return [int(word) for word in subprocess.check_output(command, cwd=directory, text=True).split()]


def test_an_uncontended_read_makes_few_python_calls(tmp_path: Path) -> None:
    acquire, release, frames = counted(tmp_path, linger=0)
    assert 20 < acquire <= 60
    assert 10 < release <= 40
    assert 0 < frames <= 8


def test_a_read_that_joins_a_kept_hold_makes_fewer(tmp_path: Path) -> None:
    acquire, release, frames = counted(tmp_path, linger=10)
    assert 10 < acquire + release <= 45
    assert frames == 0, "it announces nothing"
