"""Clusters of programs that were started one by one, as dask-ssh and dask-jobqueue do, each with its own settings."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client

from actors import children_of
from adapters.dask_tasks import (
    PATIENCE_S,
    cancel,
    hold_first_time,
    hold_until,
    is_complete,
    is_held,
    lease_of_lock_made_here,
    pid_of_holder,
    wait_until,
    work_alone,
)
from nfsrwlock import LockLostError, break_lock
from nfsrwlock.dask import Lock, RWLock, install
from nfsrwlock.dask.holding import TOPIC

TESTS = str(Path(__file__).parents[1])
#: So long that no test here waits for one: what ends a hold earlier is not the lease, nor the heartbeat's process.
LONG: dict[str, Any] = {"heartbeat_interval": "30s", "stale_threshold": "90s", "heartbeat": "thread"}


@contextmanager
def program(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": TESTS} | environment,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def worker(address: str, name: str, **environment: str) -> Any:
    options = ["--host", "127.0.0.1", "--nthreads", "1", "--nanny", "--death-timeout", "300"]
    return program("worker", "--scheduler-file", address, "--name", name, *options, **environment)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """
    A scheduler and two workers with nannies, as started by ssh on three hosts; a client that knows their address.

    One worker has its settings from a file in its configuration's directory, the other one from its environment, and
    that one joins after the plugins.
    """
    directory = tmp_path_factory.mktemp("hosts")
    (directory / "etc").mkdir()
    (directory / "etc" / "nfsrwlock.yaml").write_text(
        f"nfsrwlock:\n  root: {directory}/file\n  heartbeat-interval: 4s\n  stale-threshold: 12s\n"
    )
    by_file = {"DASK_CONFIG": str(directory / "etc")}
    by_environment = {
        "DASK_NFSRWLOCK__ROOT": f"{directory}/environment",
        "DASK_NFSRWLOCK__HEARTBEAT_INTERVAL": "7s",
        "DASK_NFSRWLOCK__STALE_THRESHOLD": "21s",
    }
    address = str(directory / "scheduler.json")
    ports = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    with ExitStack() as stack:
        stack.enter_context(program("scheduler", "--scheduler-file", address, *ports))
        stack.enter_context(worker(address, "file", **by_file))
        wait_until(lambda: is_complete(Path(address)), 2 * PATIENCE_S)
        client = stack.enter_context(Client(scheduler_file=address, set_as_default=False))
        client.wait_for_workers(1, timeout=2 * PATIENCE_S)
        install(client)
        stack.enter_context(worker(address, "environment", **by_environment))
        client.wait_for_workers(2, timeout=2 * PATIENCE_S)
        yield client


@pytest.mark.parametrize(("name", "lease_s"), [("file", 12), ("environment", 21)])
def test_a_lock_made_on_a_worker_goes_by_its_host_s_file_or_environment(hosts: Any, name: str, lease_s: float) -> None:
    path, lease = hosts.submit(lease_of_lock_made_here, "some name", workers=name, pure=False).result(PATIENCE_S)
    assert (Path(path).parent.name, lease) == (name, lease_s)


def test_a_lock_made_by_the_client_keeps_the_client_s_settings_on_every_worker(hosts: Any, tmp_path: Path) -> None:
    lock = Lock(tmp_path / "x", heartbeat_interval="5s", stale_threshold="33s")
    for name in ("file", "environment"):
        _, lease = hosts.submit(lease_of_lock_made_here, lock, workers=name, pure=False).result(PATIENCE_S)
        assert lease == 33


@pytest.mark.parametrize("name", ["file", "environment"])
def test_the_nanny_of_a_worker_that_was_started_by_hand_evicts_it_when_it_is_dead(
    hosts: Any, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "x"
    task = hosts.submit(hold_until, Lock(path, **LONG), str(tmp_path / "never"), workers=name, pure=False)
    pid = stop_holder(hosts, path)
    cancel(hosts, task)
    os.kill(pid, signal.SIGKILL)
    wait_for_eviction(hosts, path)
    hosts.wait_for_workers(2, timeout=2 * PATIENCE_S)


def stop_holder(client: Any, path: Path) -> int:
    """Stop the process that holds ``path``, so that it does nothing of itself any more; return its id."""
    pid = pid_of_holder(path)
    os.kill(pid, signal.SIGSTOP)
    return pid


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for_eviction(client: Any, path: Path) -> None:
    # Nobody asks for the lock, so nobody but the plugins evicts.
    wait_until(lambda: not is_held(path))
    wait_until(
        lambda: any(
            event["action"] == "evicted" and event["path"] == str(path) for _, event in client.get_events(TOPIC)
        )
    )


def test_when_a_whole_host_dies_the_lease_decides_and_the_rerun_elsewhere_waits_for_it(
    hosts: Any, tmp_path: Path
) -> None:
    # Who calls its host differently cannot be looked up in the process table by those here.
    note, lock = tmp_path / "note", Lock(tmp_path / "x", heartbeat_interval="1s", stale_threshold="3s")
    with worker(hosts.scheduler_file, "elsewhere", NFSRWLOCK_HOST="elsewhere"):
        hosts.wait_for_workers(3, timeout=2 * PATIENCE_S)
        task = hosts.submit(hold_first_time, lock, str(note), workers="elsewhere", allow_other_workers=True, pure=False)
        wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
        pid = int(note.read_text().split()[0])
        helper, *others = children_of(pid)
        assert not others
        for victim in (parent_of(pid), helper, pid):  # the helper dies with the host, too, and cleans up nothing
            os.kill(victim, signal.SIGSTOP)
        for victim in (parent_of(pid), helper, pid):
            os.kill(victim, signal.SIGKILL)
        killed = time.time()
        rerun = task.result(timeout=PATIENCE_S).splitlines()[1].split()
    assert int(rerun[0]) != pid
    # It has come within our patience, which the lease that the lock would have by itself is not.
    assert float(rerun[2]) - killed > 3 - 1 - 0.2


def test_the_dashboard_s_page_of_workers_shows_who_holds_what_and_who_waits(hosts: Any, tmp_path: Path) -> None:
    from bokeh.client import pull_session
    from bokeh.models import ColumnDataSource

    path, go = tmp_path / "x", tmp_path / "go"
    rw = RWLock(path)
    holder = hosts.submit(hold_until, rw.read, str(go), workers="file", pure=False)
    wait_until(lambda: is_held(path))
    waiter = hosts.submit(work_alone, rw.write, str(path), "w", workers="environment", pure=False)

    def shown() -> dict[str, tuple[str, str]]:
        # As a browser does: the page over HTTP, what is in it over its web socket.
        session = pull_session(url=f"{dashboard}/workers")
        try:
            for source in session.document.select({"type": ColumnDataSource}):
                if "nfsrwlock held" in source.data:
                    columns = (source.data[name] for name in ("name", "nfsrwlock held", "nfsrwlock awaited"))
                    return {name: (held, awaited) for name, held, awaited in zip(*columns, strict=True)}
            return {}
        finally:
            session.close()

    dashboard = hosts.dashboard_link.removesuffix("/status")
    with urllib.request.urlopen(f"{dashboard}/workers", timeout=PATIENCE_S) as page:
        assert page.status == 200

    def is_shown() -> bool:
        rows = shown()
        return (rows.get("file"), rows.get("environment")) == ((f"read {path}", ""), ("", f"write {path}"))

    wait_until(is_shown)
    go.touch()
    hosts.gather([holder, waiter])


def test_prometheus_sees_what_a_worker_holds_awaits_and_loses(hosts: Any, tmp_path: Path) -> None:
    path, go = tmp_path / "x", tmp_path / "go"
    rw = RWLock(path)

    def page(name: str) -> dict[str, float]:
        # The metrics of a worker as Prometheus gets them: over HTTP.
        (worker,) = (w for w in hosts.scheduler_info()["workers"].values() if w["name"] == name)
        url = f"http://127.0.0.1:{worker['services']['dashboard']}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
        values = (line.rpartition(" ") for line in lines if line.startswith("dask_worker_nfsrwlock_"))
        return {metric.removeprefix("dask_worker_nfsrwlock_"): float(value) for metric, _, value in values}

    waited, lost = page("environment")["wait_seconds_total"], page("file")["lost_total"]
    holder = hosts.submit(hold_until, rw.read, str(go), workers="file", pure=False)
    wait_until(lambda: is_held(path))
    waiter = hosts.submit(work_alone, rw.write, str(path), "w", workers="environment", pure=False)
    wait_until(lambda: page("environment")['awaited{mode="write"}'] == 1)
    wait_until(lambda: page("file")['held{mode="read"}'] == 1)
    wait_until(lambda: page("environment")["wait_seconds_total"] > waited)  # it waits yet
    go.touch()
    hosts.gather([holder, waiter])
    assert page("file")["lost_total"] == lost
    then, note = tmp_path / "then", tmp_path / "note"
    holder = hosts.submit(hold_until, rw.write, str(then), str(note), workers="file", pure=False)
    wait_until(note.exists)  # others see a hold a moment before its holder does, which then would announce itself anew
    assert break_lock(path, force=True)
    then.touch()
    assert isinstance(holder.exception(timeout=PATIENCE_S), LockLostError)
    now = page("file")
    assert (now['held{mode="read"}'], now['held{mode="write"}'], now["lost_total"]) == (0, 0, lost + 1)
    assert page("environment")['awaited{mode="write"}'] == 0


# dask-jobqueue leaves the pipes of its plain processes open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_of_dask_jobqueue_whose_nanny_hangs_is_evicted_by_its_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_jobqueue.local import (
        LocalCluster,
        LocalJob,
    )  # its jobs are plain processes; their scripts and options are the same

    async def close_job(_: object, job: str, command: str) -> None:
        with suppress(ProcessLookupError):  # theirs fails for a job that has ended before
            os.kill(int(job), signal.SIGKILL)

    monkeypatch.setattr(LocalJob, "_close_job", close_job)
    monkeypatch.setenv("PYTHONPATH", TESTS)
    path, free = tmp_path / "x", tmp_path / "free"
    with (
        LocalCluster(
            cores=1,
            processes=1,
            memory="1GB",
            log_directory=str(tmp_path),
            scheduler_options={"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"},
        ) as cluster,
        cluster.get_client() as client,
    ):
        with dask.config.set({"nfsrwlock.eviction-timeout": "2s"}):  # the nanny is given up after that, and 5 s more
            install(client)
        cluster.scale(jobs=2)
        client.wait_for_workers(2, timeout=2 * PATIENCE_S)
        works = [client.submit(work_alone, Lock(free), str(free), str(i), pure=False) for i in range(8)]
        assert client.gather(works) == [False] * 8
        task = client.submit(hold_until, Lock(path, **LONG), str(tmp_path / "never"), pure=False)
        pid = stop_holder(client, path)
        cancel(client, task)
        os.kill(parent_of(pid), signal.SIGSTOP)  # the nanny neither helps nor refuses: worse than if it were dead
        os.kill(pid, signal.SIGKILL)
        wait_for_eviction(client, path)
    del cluster
    gc.collect()
