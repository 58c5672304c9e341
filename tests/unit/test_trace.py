"""What locks write into the directory that NFSRWLOCK_TRACE names, by real processes; and that no lock minds it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import Actor, Raised, Stage, wait_until

Record = dict[str, Any]

LOCK = "lock = SoftReadWriteLock('data', poll_interval=0.01, {more})"


@pytest.fixture
def directory(stage: Stage) -> Path:
    return stage.directory / "trace"


@pytest.fixture
def traced(stage: Stage, directory: Path) -> Callable[..., Actor]:
    def actor(more: str = "", **options: Any) -> Actor:
        return stage.actor(LOCK.format(more=more), NFSRWLOCK_TRACE=str(directory), **options)

    return actor


def records(directory: Path, pid: int) -> list[Record]:
    """What process ``pid`` has written, its first line included."""
    found = list(directory.glob(f"*.{pid}.*.jsonl")) if directory.exists() else []
    return [json.loads(line) for file in found for line in file.read_text().splitlines()]


def events(directory: Path, actor: Actor) -> list[str]:
    return [record["event"] for record in records(directory, actor.pid)]


def wait_for(directory: Path, actor: Actor, event: str) -> Record:
    """Wait until ``actor`` has written ``event``, and return its latest record of it."""
    wait_until(lambda: event in events(directory, actor))
    return [record for record in records(directory, actor.pid) if record["event"] == event][-1]


def test_a_process_says_who_it_is_and_what_its_lock_did(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced(host="a node/1", SLURM_JOB_ID="77")
    actor.do("with lock.write_lock(): pass")
    actor.do("with lock.read_lock(): pass")
    actor.do("with lock.read_lock(at_most=3): pass")
    assert actor.leave() == 0

    head, *steps = records(directory, actor.pid)
    assert {name: head[name] for name in ("v", "event", "host", "pid", "job")} == {
        "v": 1,
        "event": "process",
        "host": "a node/1",
        "pid": actor.pid,
        "job": "77",
    }
    assert head["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert {"start", "user", "command"} <= head.keys()
    write, _, read, _, permit, _ = steps
    assert [step["event"] for step in steps] == ["granted", "released"] * 3
    assert (write["mode"], write["generation"], "at_most" in write) == ("write", 1, False)
    assert (read["mode"], "generation" in read) == ("read", False)
    assert permit["at_most"] == 3
    for granted, released in zip(steps[::2], steps[1::2], strict=True):
        assert granted["lock"] == str(directory.parent / "data.rwlock")
        assert granted["token"] == released["token"]
        assert released["stood"] is True
        assert 0 <= granted["waited"] < 60
        assert granted["clock"] <= released["clock"]
    assert abs(head["time"] - directory.stat().st_mtime) < 600


def test_a_wait_says_who_was_in_the_way(traced: Callable[..., Actor], directory: Path) -> None:
    holder, waiter = traced(), traced()
    holder.do("lock.acquire_write()")
    held = wait_for(directory, holder, "granted")
    with pytest.raises(Raised):
        waiter.do("lock.acquire_read(until=iter([False] * 20 + [True]).__next__)")  # after as many pauses, however long
    given_up = wait_for(directory, waiter, "gave up")
    waiter.tell("lock.acquire_write()")
    wait_until(lambda: events(directory, waiter).count("asked") == 2)
    holder.do("lock.release()")
    waiter.answer()
    granted = wait_for(directory, waiter, "granted")

    in_the_way = {"mode": "write", "token": held["token"], "host": held_host(directory, holder), "pid": holder.pid}
    first, second = (record for record in records(directory, waiter.pid) if record["event"] == "asked")
    assert first["by"] == second["by"] == granted["by"] == [in_the_way]
    assert (first["attempt"], second["attempt"]) == (given_up["attempt"], granted["attempt"])
    assert first["attempt"] != second["attempt"]
    assert given_up["waited"] > 0.01
    assert "could not be acquired in time" in given_up["error"]
    assert granted["waited"] == pytest.approx(granted["clock"] - second["clock"], abs=granted["waited"] / 2 + 1)
    assert granted["generation"] == 2


def held_host(directory: Path, actor: Actor) -> str:
    return str(records(directory, actor.pid)[0]["host"])


def killed(holder: Actor, directory: Path) -> Record:
    """Let ``holder`` take the lock and be killed; return the record of its grant."""
    holder.do("lock.acquire_write()")
    held = wait_for(directory, holder, "granted")
    holder.kill()
    return held


def test_whoever_evicts_says_whom(traced: Callable[..., Actor], directory: Path) -> None:
    dead, heir = traced(), traced()
    held = killed(dead, directory)
    heir.do("lock.acquire_write()")
    evicted = wait_for(directory, heir, "evicted")
    assert evicted["whom"] == {
        "mode": "write",
        "token": held["token"],
        "pid": dead.pid,
        "host": held_host(directory, dead),
    }
    assert evicted["lock"] == held["lock"]
    wait_for(directory, heir, "granted")
    assert events(directory, heir)[-2:] == ["evicted", "granted"]
    assert events(directory, dead) == ["process", "granted"]


def test_an_operators_removal_is_an_eviction(traced: Callable[..., Actor], directory: Path) -> None:
    dead, operator = traced(), traced()
    held = killed(dead, directory)
    operator.do("import nfsrwlock; nfsrwlock.break_lock('data')")
    assert wait_for(directory, operator, "evicted")["whom"]["token"] == held["token"]


def test_a_holder_that_was_evicted_says_so(traced: Callable[..., Actor], directory: Path) -> None:
    short = "heartbeat_interval=0.5, stale_threshold=1.5"
    holder, heir = traced(short, host="a"), traced(short, host="b")
    holder.do("lock.acquire_write()")
    held = wait_for(directory, holder, "granted")
    holder.stop()
    heir.do("lock.acquire_write(30)")
    holder.go_on()
    assert wait_for(directory, holder, "lost")["token"] == held["token"]
    assert wait_for(directory, heir, "evicted")["whom"]["token"] == held["token"]
    assert "released" not in events(directory, holder)


def test_a_forked_child_has_a_file_of_its_own(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced()
    actor.do("lock.acquire_read()")
    wait_for(directory, actor, "granted")
    actor.do("own = SoftReadWriteLock('other')")
    child = actor.do(
        "import os\n"
        "def in_child():\n"
        "    with SoftReadWriteLock('childs', is_singleton=False).write_lock(): pass\n"
        "    from nfsrwlock_core import trace; trace.end_trace()\n"
        "def fork():\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        in_child(); os._exit(0)\n"
        "    return pid, os.waitpid(pid, 0)[1]\n"
    )
    assert child is None
    pid, status = actor.do("fork()")
    actor.do("lock.release()")
    assert actor.leave() == status == 0
    assert [record["event"] for record in records(directory, pid)] == ["process", "granted", "released"]
    assert records(directory, pid)[1]["lock"].endswith("childs.rwlock")
    assert events(directory, actor) == ["process", "granted", "released"]


def test_all_threads_and_tasks_write_whole_lines(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced()
    actor.do(
        "import asyncio, threading\n"
        "from nfsrwlock import AsyncSoftReadWriteLock\n"
        "def work(number):\n"
        "    for _ in range(50):\n"
        "        with SoftReadWriteLock(f'data-{number}').write_lock(): pass\n"
        "threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "async def task(number):\n"
        "    for _ in range(20):\n"
        "        async with AsyncSoftReadWriteLock(f'tasks-{number}').write_lock(): pass\n"
        "async def tasks(): await asyncio.gather(*map(task, range(3)))\n"
        "asyncio.run(tasks())\n"
    )
    assert actor.leave() == 0
    grants = [record for record in records(directory, actor.pid) if record["event"] == "granted"]
    for name, count in [*((f"data-{n}", 50) for n in range(4)), *((f"tasks-{n}", 20) for n in range(3))]:
        numbers = [grant["generation"] for grant in grants if grant["lock"].endswith(f"/{name}.rwlock")]
        assert numbers == list(range(1, count + 1))


def test_what_the_code_works_on_is_said_of_its_locks(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced()
    actor.do(
        "from nfsrwlock import traced_as\n"
        "with traced_as(rule='align', job=7), lock.read_lock(): pass\n"
        "with lock.read_lock(): pass"
    )
    assert actor.leave() == 0
    tasks = [record.get("task") for record in records(directory, actor.pid) if record["event"] == "granted"]
    assert tasks == [{"rule": "align", "job": 7}, None]


def test_what_is_held_at_the_end_of_a_process_is_recorded_to_its_end(
    traced: Callable[..., Actor], directory: Path
) -> None:
    actor = traced()
    actor.do("lock.acquire_write()")
    assert actor.leave() == 0
    assert events(directory, actor) == ["process", "granted", "released"]


def test_so_is_what_a_worker_of_multiprocessing_holds_at_its_end(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced()
    actor.do("import multiprocessing; lock.acquire_read(); lock.release()")
    actor.do("def work(): SoftReadWriteLock('data', is_singleton=False).acquire_read()")
    actor.do("worker = multiprocessing.get_context('fork').Process(target=work); worker.start(); worker.join()")
    pid = actor.do("worker.pid")
    assert [record["event"] for record in records(directory, pid)] == ["process", "granted", "released"]


#: Keeps what is logged, as a program's own handler does.
LISTEN = """
import logging
from nfsrwlock_core import trace
def drain():
    while trace._recorder is not None and not trace._recorder._steps.empty(): time.sleep(0.01)
heard = []
class Ear(logging.Handler):
    def emit(self, record): heard.append([record.levelname, record.getMessage(), getattr(record, "event", None)])
logging.getLogger("nfsrwlock").addHandler(Ear())
"""


def test_a_full_disk_loses_the_record_not_the_lock(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced()
    actor.do(LISTEN)
    actor.do("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))")
    for _ in range(3):
        actor.do("for _ in range(20):\n    with lock.write_lock(): lock.check()")
        actor.do("drain()")
    wait_until(lambda: actor.do("heard"))
    assert [line[0] for line in actor.do("heard")] == ["WARNING"]
    assert "is not recorded in" in actor.do("heard")[0][1]
    actor.do("resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))")
    actor.do("with lock.write_lock(): pass")
    assert actor.leave() == 0
    (file,) = directory.iterdir()
    found = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError):  # half a line is where the disk was full
            found.append(json.loads(line))
    assert found[0]["v"] == 1
    assert any(record["event"] == "dropped" for record in found)
    assert 61 in [record.get("generation") for record in found], "it goes on once there is room"


@pytest.mark.parametrize("where", ["no directory", "relative", "nothing can be made"])
def test_a_directory_that_cannot_be_written_costs_one_warning(stage: Stage, where: str) -> None:
    (stage.directory / "file").write_text("")
    target = {"no directory": str(stage.directory / "file"), "relative": "trace", "nothing can be made": "/proc/trace"}
    actor = stage.actor(LOCK.format(more=""), NFSRWLOCK_TRACE=target[where])
    actor.do(LISTEN)
    for _ in range(3):
        actor.do("with lock.write_lock(): pass")
        actor.do("drain()")
    wait_until(lambda: actor.do("heard"))
    ((level, message, _),) = actor.do("heard")
    assert level == "WARNING"
    assert ("must be an absolute path" if where == "relative" else "is not recorded in") in message
    assert actor.leave() == 0
    assert not (stage.directory / "trace").exists()


def test_a_server_that_hangs_holds_up_no_lock_and_no_exit(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced()
    # A hang cannot be had otherwise without a file system of our own.
    actor.do("import threading; from nfsrwlock_core import trace; trace._QUEUED_MOST = 50")
    actor.do("trace._Recorder._write = lambda *_: threading.Event().wait()")
    actor.do("for _ in range(100):\n    with lock.write_lock(): lock.check()")
    assert actor.do("trace._recorder._steps.qsize()") == 50
    assert actor.leave() == 0


def test_the_steps_are_logged_as_without_it(traced: Callable[..., Actor], directory: Path) -> None:
    actor = traced()
    actor.do(LISTEN)
    actor.do("with lock.write_lock(): pass")
    assert actor.do("heard") == []
    actor.do("logging.getLogger('nfsrwlock').setLevel('DEBUG')")
    actor.do("with lock.write_lock(): pass")
    acquired, released = actor.do("heard")
    assert acquired == ["DEBUG", f"acquired the lock on {'data'!r} to write", "granted"]
    assert released == ["DEBUG", f"released the lock on {'data'!r}", "released"]


COUNTED = """
import sys
from nfsrwlock import SoftReadWriteLock
lock = SoftReadWriteLock("data")
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call" and "nfsrwlock_core" in frame.f_code.co_filename
def cycle():
    lock.acquire_read()
    lock.release()
for _ in range(3):
    cycle()
sys.setprofile(count)
cycle()
sys.setprofile(None)
print(calls)
"""


def test_a_cycle_that_is_recorded_makes_two_more_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for value in ("", str(tmp_path / "trace")):
        monkeypatch.setenv("NFSRWLOCK_TRACE", value)
        counts.append(int(subprocess.check_output([sys.executable, "-c", COUNTED], cwd=tmp_path, text=True)))
    off, on = counts
    assert on == off + 2
