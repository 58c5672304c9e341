"""Workers that are killed, removed, retired or restarted; a scheduler that dies; tasks that hold the GIL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

from adapters.dask_tasks import (
    PATIENCE_S,
    cancel,
    hold_after,
    hold_first_time,
    hold_gil_then_check,
    hold_until,
    is_complete,
    is_held,
    pid_of_holder,
    run_program,
    take_each,
    wait_until,
    work_alone,
)
from nfsrwlock import SoftReadWriteLock, inspect
from nfsrwlock.dask import Lock, RWLock, install
from nfsrwlock.dask.holding import TOPIC, activity
from nfsrwlock.dask.journal import Entry, evict_dead, read_journal

#: So long that no test here waits for one: what ends a hold earlier is not the lease.
LONG: dict[str, Any] = {"heartbeat_interval": "30s", "stale_threshold": "90s", "heartbeat": "thread"}


@contextmanager
def new_pair() -> Iterator[Any]:
    """Two worker processes with one thread each, and the plugins."""
    with (
        # The cluster would give up for good who is not back so soon, by default after 15 s.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10m"}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        install(client)
        yield client


@pytest.fixture(scope="module")
def pair() -> Iterator[Any]:
    """One pair for all tests whose workers end by signals only, after which their nannies start others."""
    with new_pair() as client:
        yield client


@pytest.fixture
def client(pair: Any) -> Any:
    """The pair again, when both workers are there."""
    wait_until(lambda: len(pair.scheduler_info()["workers"]) == 2, 2 * PATIENCE_S)
    return pair


def worker_of(client: Any, pid: int) -> str:
    return next(address for address, other in client.run(os.getpid).items() if other == pid)


def journal_of(client: Any, pid: int) -> str:
    workers = client.scheduler_info()["workers"]
    return f"{workers[worker_of(client, pid)]['local_directory']}.nfsrwlock"


def events(client: Any, action: str) -> list[dict[str, Any]]:
    return [event for _, event in client.get_events(TOPIC) if event["action"] == action]


@pytest.mark.alone
def test_after_sigkill_of_a_worker_the_rerun_has_the_lock_at_once(client: Any, tmp_path: Path) -> None:
    path, note = tmp_path / "x", tmp_path / "note"
    task = client.submit(hold_first_time, Lock(path, **LONG), str(note), pure=False)
    wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    killed = time.time()
    os.kill(int(note.read_text().split()[0]), signal.SIGKILL)
    second = task.result(timeout=PATIENCE_S).splitlines()[1].split()
    assert float(second[2]) - float(second[1]) < 2
    assert float(second[1]) >= killed


def test_the_nanny_evicts_a_dead_worker_for_those_who_cannot_see_that_it_is_dead(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "x"
    task = client.submit(hold_until, Lock(path, **LONG), str(tmp_path / "never"), pure=False, retries=0)
    pid = pid_of_holder(path)
    journal = journal_of(client, pid)
    os.kill(pid, signal.SIGSTOP)  # its process is alive: nobody may evict it
    assert evict_dead(journal, 0.3) == []
    cancel(client, task)
    os.kill(pid, signal.SIGKILL)
    # Nobody asks for the lock here, so nobody else evicts.
    wait_until(lambda: not is_held(path))
    wait_until(lambda: any(event["path"] == str(path) for event in events(client, "evicted")))


def test_the_usual_death_of_a_worker_is_an_event_though_its_heartbeat_process_cleans_up(
    client: Any, tmp_path: Path
) -> None:
    path, before = tmp_path / "x", tmp_path / "before"
    task = client.submit(hold_after, RWLock(before).write, RWLock(path).read, str(tmp_path / "never"), pure=False)
    pid = pid_of_holder(path)
    cancel(client, task)
    journal = journal_of(client, pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: any(event["path"] == str(path) for event in events(client, "evicted")))
    (event,) = [event for event in events(client, "evicted") if event["path"] == str(path)]
    assert event["mode"] == "read"
    assert not is_held(path)
    assert not any(event["path"] == str(before) for event in events(client, "evicted"))
    wait_until(lambda: not os.path.exists(journal))


def test_a_journal_says_what_is_held_and_awaited(tmp_path: Path) -> None:
    path, held, waiter = str(tmp_path / "journal"), Lock(tmp_path / "held"), RWLock(tmp_path / "awaited").read
    activity.open_journal(path)
    with Lock(tmp_path / "released"):
        pass
    rival = SoftReadWriteLock(tmp_path / "awaited", is_singleton=False)
    with held:
        with rival.write_lock():
            assert waiter.acquire(timeout="50ms") is False
            thread = threading.Thread(target=waiter.acquire)
            thread.start()
            both = {Entry(True, "write", held.path, ""), Entry(False, "read", waiter.path, "")}
            wait_until(lambda: read_journal(path) == (os.getpid(), True, both))
        thread.join()
        entries = {Entry(True, "write", held.path, ""), Entry(True, "read", waiter.path, "")}
        assert read_journal(path) == (os.getpid(), True, entries)
        waiter.release()
        activity.close_journal(path)
        assert os.path.exists(path)  # somebody may look after our death
    assert (activity.held, activity.awaited) == ([], [])
    assert not os.path.exists(path)


def test_a_zombie_counts_as_dead(tmp_path: Path) -> None:
    program = (
        "import sys, time; from nfsrwlock.dask import Lock; from nfsrwlock.dask.holding import activity\n"
        "activity.open_journal(sys.argv[1] + '.journal'); lock = Lock(sys.argv[1], stale_threshold=90)\n"
        "lock.acquire(); print('held', flush=True); time.sleep(60)\n"
    )
    path, journal = tmp_path / "x", f"{tmp_path}/x.journal"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert evict_dead(journal, 0.2) == []
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not reaped
        (evicted,) = evict_dead(journal, 5)
        assert evicted.mode == "write"
        assert not is_held(path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_who_is_killed_between_the_grant_and_its_note_has_held_the_lock(tmp_path: Path) -> None:
    program = (
        "import sys, time; from nfsrwlock import SoftReadWriteLock\n"
        "from nfsrwlock.dask.journal import Entry, open_journal, write_journal\n"
        "write_journal(open_journal(sys.argv[1] + '.journal'), [Entry(False, 'write', sys.argv[1], '')])\n"
        "SoftReadWriteLock(sys.argv[1]).acquire_write(); print('held', flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "x"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.kill()
    assert [(entry.mode, entry.path) for entry in evict_dead(f"{path}.journal", 5)] == [("write", str(path))]
    assert not is_held(path)


def test_who_has_closed_its_files_but_is_not_dead_yet_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a process that is being killed, for a moment.
    program = (
        "import os, sys, time; from nfsrwlock.dask import Lock\n"
        "from nfsrwlock.dask.journal import Entry, open_journal, write_journal\n"
        "journal = open_journal(sys.argv[1] + '.journal')\n"
        "write_journal(journal, [Entry(True, 'write', sys.argv[1], '')])\n"
        "lock = Lock(sys.argv[1]); lock.acquire(); os.close(journal); print('held', flush=True); time.sleep(60)\n"
    )
    path, is_looked_at = tmp_path / "x", threading.Event()
    evicted: list[Any] = []

    def look(*arguments: Any, **options: Any) -> Any:
        state = inspect(*arguments, **options)
        is_looked_at.set()
        return state

    monkeypatch.setattr("nfsrwlock.dask.journal.inspect", look)
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        looker = threading.Thread(target=lambda: evicted.extend(evict_dead(f"{path}.journal", PATIENCE_S)))
        looker.start()
        assert is_looked_at.wait(PATIENCE_S)
        assert is_held(path)
        process.kill()
    looker.join()
    assert [entry.path for entry in evicted] == [str(path)]
    assert not is_held(path)


def test_removing_a_worker_that_lives_takes_no_lock_from_its_task_until_it_is_dead(client: Any, tmp_path: Path) -> None:
    path, go = tmp_path / "x", tmp_path / "go"
    holder = client.submit(hold_until, Lock(path, **LONG), str(go), pure=False)
    pid = pid_of_holder(path)
    token = inspect(path).holders[0].token
    address = worker_of(client, pid)
    os.kill(pid, signal.SIGSTOP)  # it cannot end by itself, which it would do when it hears of its removal
    try:
        client.run_on_scheduler(_remove, address=address)
        rerun = client.submit(work_alone, Lock(path, **LONG), str(path), "rerun", pure=False)
        wait_until(lambda: inspect(path).waiters)  # the holder's own rerun is the first in the other worker's thread
        time.sleep(2)
        assert [peer.token for peer in inspect(path).holders] == [token]
        assert not rerun.done()
    finally:
        os.kill(pid, signal.SIGKILL)
    go.touch()
    assert rerun.result(timeout=PATIENCE_S) is False
    holder.result(timeout=PATIENCE_S)


async def _remove(dask_scheduler: Any, address: str) -> None:
    await dask_scheduler.remove_worker(address, stimulus_id="test", close=False)


def test_retiring_a_worker_takes_no_lock_from_its_task(tmp_path: Path) -> None:
    path, go = tmp_path / "x", tmp_path / "go"
    with new_pair() as client:
        holder = client.submit(hold_until, Lock(path, **LONG), str(go), pure=False)
        pid = pid_of_holder(path)
        token = inspect(path).holders[0].token
        client.retire_workers([worker_of(client, pid)], close_workers=False, remove=False)
        time.sleep(1)
        assert [peer.token for peer in inspect(path).holders] == [token]
        go.touch()
        wait_until(lambda: not is_held(path))
        del holder


def test_a_restart_frees_the_locks_of_the_processes_that_it_ended_and_of_no_other(tmp_path: Path) -> None:
    path, other = tmp_path / "x", tmp_path / "other"
    with new_pair() as client:
        client.submit(hold_until, Lock(path, **LONG), str(tmp_path / "never"), pure=False)
        pid = pid_of_holder(path)
        with Lock(other) as mine:
            # A nanny of distributed's whose worker took long to end does not always come back; that is not waited for.
            client.restart(wait_for_workers=False)
            wait_until(lambda: not is_held(path))
            wait_until(lambda: not Path(f"/proc/{pid}").exists())
            mine.check()
            assert is_held(other)


def test_held_and_awaited_locks_are_metrics_and_waits_are_measured(client: Any, tmp_path: Path) -> None:
    path, go = tmp_path / "x", tmp_path / "go"
    rw = RWLock(path)
    holder = client.submit(hold_until, rw.read, str(go), pure=False)
    wait_until(lambda: is_held(path))
    waiter = client.submit(work_alone, rw.write, str(path), "w", pure=False)

    def metrics() -> set[str]:
        workers = client.scheduler_info()["workers"].values()
        return {worker["metrics"].get(f"nfsrwlock {what}") for worker in workers for what in ("held", "awaited")}

    wait_until(lambda: {f"read {path}", f"write {path}"} <= metrics())
    # A long wait is an event while it lasts, with whom it is for.
    wait_until(lambda: any(event["path"] == str(path) for event in events(client, "waiting")))
    (event,) = [event for event in events(client, "waiting") if event["path"] == str(path)]
    assert len(event["blockers"]) == 1
    # On a busy machine the reader, whom nobody keeps waiting, may have taken as long.
    assert not any((event["path"], event["mode"]) == (str(path), "write") for event in events(client, "waited"))
    go.touch()
    client.gather([holder, waiter])
    wait_until(lambda: metrics() == {""})
    wait_until(
        lambda: any((event["path"], event["mode"]) == (str(path), "write") for event in events(client, "waited"))
    )
    wait_until(lambda: client.run_on_scheduler(_measured))


def test_what_a_task_keeps_is_not_held_by_the_next_one_in_its_thread(client: Any, tmp_path: Path) -> None:
    def keep(rw: Any) -> list[Any]:
        from distributed import get_worker

        get_worker().kept = rw
        return [threading.get_ident(), rw.write.acquire(), RWLock(rw.path).read.acquire(blocking=False)]

    def ask(rw: Any) -> list[Any]:
        return [threading.get_ident(), rw.read.acquire(blocking=False)]

    def give_up() -> None:
        from distributed import get_worker

        del get_worker().kept

    where = {"workers": next(iter(client.scheduler_info()["workers"])), "pure": False}
    thread, *kept = client.submit(keep, RWLock(tmp_path / "x"), **where).result(timeout=PATIENCE_S)
    assert kept == [True, True]
    assert client.submit(ask, RWLock(tmp_path / "x"), **where).result(timeout=PATIENCE_S) == [thread, False]
    client.submit(give_up, **where).result(timeout=PATIENCE_S)
    wait_until(lambda: not is_held(tmp_path / "x"))


def test_a_path_that_is_no_text_is_shown_all_the_same(client: Any, tmp_path: Path) -> None:
    path, go, shown = os.fsencode(tmp_path) + b"/x\xff", tmp_path / "go", f"{tmp_path}/x\\xff"
    holder = client.submit(hold_until, Lock(path, **LONG), str(go), pure=False)
    pid = pid_of_holder(os.fsdecode(path))
    address = worker_of(client, pid)

    def metric() -> str | None:
        # The worker has it with the first report after the import.
        held: str | None = client.scheduler_info()["workers"][address]["metrics"].get("nfsrwlock held")
        return held

    wait_until(lambda: metric() == f"write {shown}")
    waiter = client.submit(work_alone, Lock(path), str(tmp_path / "y"), "w", pure=False)
    wait_until(lambda: any(event["path"] == shown for event in events(client, "waiting")))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: any(event["path"] == shown for event in events(client, "evicted")))
    go.touch()
    client.gather([holder, waiter])


def _measured(dask_scheduler: Any) -> bool:
    spent = dask_scheduler.cumulative_worker_metrics
    return any("nfsrwlock-wait" in key for key in spent)


def _tell_of_a_wait() -> Any:
    from nfsrwlock.dask.context import current_worker, thread_caller
    from nfsrwlock.dask.holding import activity

    activity.report("waited", Lock("/x")._level(thread_caller()), seconds=1.0)
    worker = current_worker()
    return worker and worker.address


def _tell_the_end(dask_worker: Any) -> None:
    dask_worker.log_event(TOPIC, {"action": "end"})


def test_of_several_workers_in_one_process_the_one_whose_task_waited_tells_of_it() -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        install(client)
        _tell_of_a_wait()  # by none of their tasks: both tell of it
        wait_until(lambda: len(events(client, "waited")) == 2)
        workers = {event["worker"] for event in events(client, "waited")}
        assert workers == set(client.scheduler_info()["workers"])
        address = client.submit(_tell_of_a_wait).result()
        # What each worker tells after that arrives after what it told before.
        client.run(_tell_the_end)
        wait_until(lambda: len(events(client, "end")) == 2)
        assert [event["worker"] for event in events(client, "waited")[2:]] == [address]


def test_locks_that_are_just_taken_are_no_events(client: Any, tmp_path: Path) -> None:
    before = len(client.get_events(TOPIC))
    client.submit(take_each, [Lock(tmp_path / str(number)) for number in range(20)], pure=False).result()
    client.run(_tell_the_end)
    wait_until(lambda: len(client.get_events(TOPIC)) >= before + 2)
    assert {event["action"] for _, event in client.get_events(TOPIC)[before:]} == {"end"}


def _installed(dask_worker: Any) -> list[int]:
    from prometheus_client import REGISTRY

    from nfsrwlock.dask.holding import activity

    named = [name for name in (*dask_worker.metrics, *dask_worker.handlers) if "nfsrwlock" in name]
    journal = f"{dask_worker.local_directory}.nfsrwlock"
    metrics = {family.name for family in REGISTRY.collect() if "nfsrwlock" in family.name}
    return [len(named), len(activity.workers), len(metrics), os.path.exists(journal)]


def _nanny_handlers(dask_worker: Any) -> int:
    return len([name for name in dask_worker.handlers if "nfsrwlock" in name])


def test_installing_twice_uninstalling_and_installing_again_leave_one_or_none(client: Any) -> None:
    install(client)
    assert list(client.run(_installed).values()) == [[2, 1, 4, True]] * 2
    client.unregister_worker_plugin("nfsrwlock-worker")
    assert list(client.run(_installed).values()) == [[0, 0, 0, False]] * 2
    assert list(client.run(_nanny_handlers, nanny=True).values()) == [0] * 2
    install(client)
    assert list(client.run(_installed).values()) == [[2, 1, 4, True]] * 2
    assert list(client.run(_nanny_handlers, nanny=True).values()) == [0] * 2


def test_the_plugin_s_end_releases_nothing(client: Any, tmp_path: Path) -> None:
    path, go = tmp_path / "x", tmp_path / "go"
    holder = client.submit(hold_until, Lock(path), str(go), pure=False)
    wait_until(lambda: is_held(path))
    client.unregister_worker_plugin("nfsrwlock-worker")
    assert is_held(path)
    go.touch()
    holder.result()
    install(client)


@pytest.mark.parametrize("what", [None, "tcp://localhost:1"])
def test_what_is_no_client_is_refused(what: Any) -> None:
    with pytest.raises(TypeError, match="Client"):
        install(what)


SHORT_LEASE_S = 3.0
SHORT: dict[str, Any] = {"heartbeat_interval": "500ms", "stale_threshold": f"{SHORT_LEASE_S}s"}


@pytest.mark.parametrize(("heartbeat", "outcome"), [("auto", "held"), ("thread", "LostOrExpired")])
def test_a_task_that_holds_the_gil_for_longer_than_the_lease(
    client: Any, tmp_path: Path, heartbeat: Any, outcome: str
) -> None:
    path, note, fifo = tmp_path / "x", tmp_path / "note", tmp_path / "fifo"
    os.mkfifo(fifo)
    rival = Lock(path, **SHORT)
    # Whatever happens here, the task has the GIL until this end is written to, or closed.
    with open(fifo, "r+b", buffering=0) as go:
        lock = Lock(path, heartbeat=heartbeat, **SHORT)
        task = client.submit(hold_gil_then_check, lock, str(fifo), str(note), pure=False)
        wait_until(note.exists)
        # Where heartbeats starve somebody else gets in; else the first one after the pause would prove that nobody has.
        got_it = rival.acquire(timeout=2 * SHORT_LEASE_S if outcome == "held" else PATIENCE_S)
        go.write(b"!")
        said = task.result(timeout=PATIENCE_S)
    assert got_it == (outcome != "held")
    if got_it:
        rival.release()
    assert said == "held" if outcome == "held" else said in ("LockLostError", "LeaseExpiredError")


def test_exclusion_goes_on_when_the_scheduler_is_killed(tmp_path: Path) -> None:
    path, go, address_file = tmp_path / "x", tmp_path / "go", tmp_path / "scheduler.json"
    program = [sys.executable, "-m", "dask"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    start = [*program, "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0"]
    scheduler = subprocess.Popen([*start, "--scheduler-file", str(address_file)], **quiet)
    workers: list[subprocess.Popen[bytes]] = []
    try:
        work = [*program, "worker", "--nthreads", "1", "--no-dashboard", "--scheduler-file", str(address_file)]
        # One with a nanny, one without, as dask-ssh and dask-jobqueue may start them.
        for nanny in ("--nanny", "--no-nanny"):
            worker = subprocess.Popen([*work, nanny, "--death-timeout", "60"], **quiet)
            workers += [worker]
        wait_until(lambda: is_complete(address_file), 2 * PATIENCE_S)
        with Client(scheduler_file=str(address_file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=2 * PATIENCE_S)
            install(client)
            client.submit(hold_until, Lock(path, **LONG), str(go), pure=False)
            pid_of_holder(path)
            scheduler.kill()
            scheduler.wait()
            time.sleep(1)
            assert Lock(path).acquire(timeout=1) is False
            go.touch()
            assert Lock(path).acquire(timeout=PATIENCE_S) is True
    finally:
        for process in (*workers, scheduler):
            process.terminate()
        for process in (*workers, scheduler):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.mark.alone
def test_no_thread_and_no_process_is_left_five_seconds_after_the_last_release(tmp_path: Path) -> None:
    program = (
        "import os, sys, threading, time\n"
        "from nfsrwlock.dask import Lock\n"
        "def others(): return threading.active_count() - before, "
        "open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read().split()\n"
        "before = threading.active_count()\n"
        "with Lock(sys.argv[1], heartbeat='process'), Lock(sys.argv[1] + '2', heartbeat='thread'): during = others()\n"
        "assert during[0] and during[1], during\n"
        "time.sleep(5)\n"
        "assert others() == (0, []), others()\n"
    )
    done = run_program(program, tmp_path / "x")
    assert (done.returncode, done.stderr) == (0, "")
