"""dask-jobqueue's SLURMCluster: workers in jobs on two nodes, one of which is switched off while a task there holds."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.dask_tasks import die_first_time, hold_first_time, wait_until, work_alone
from nfsrwlock.dask import Lock, install
from slurm.scene import SlurmScene

TESTS = Path(__file__).parents[1]
PATIENCE_S = 90.0


@pytest.fixture
def client(scene: SlurmScene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a cluster of two jobs, one on each node."""
    from dask_jobqueue import SLURMCluster

    for name, value in {**scene.cluster.environment, "PYTHONPATH": str(TESTS)}.items():
        monkeypatch.setenv(name, value)
    with (
        SLURMCluster(
            cores=1,
            processes=1,
            memory="500MB",
            walltime="00:10:00",
            interface="lo",
            local_directory=str(scene.directory),
            log_directory=str(scene.directory),
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        cluster.get_client() as client,
    ):
        install(client)
        cluster.scale(jobs=2)
        client.wait_for_workers(2, timeout=PATIENCE_S)
        wait_until(lambda: set(client.run(socket.gethostname).values()) == {"node1", "node2"})
        yield client


def on(client: Any, node: str) -> str:
    return next(address for address, name in client.run(socket.gethostname).items() if name == node)


def test_tasks_on_two_nodes_exclude_each_other_and_who_dies_with_its_lock_is_evicted_by_its_nanny(
    client: Any, scene: SlurmScene
) -> None:
    path, note = scene.directory / "x", scene.directory / "note"
    works = [client.submit(work_alone, Lock(path), str(path), str(number), pure=False) for number in range(20)]
    assert client.gather(works) == [False] * 20
    lock = Lock(path, heartbeat="thread")
    task = client.submit(
        die_first_time, lock, str(note), workers=on(client, "node1"), allow_other_workers=True, pure=False
    )
    died, held = task.result(timeout=PATIENCE_S)
    assert held - died < 15  # a lease is six times as long


def test_when_a_node_is_switched_off_the_rerun_on_the_other_one_waits_for_the_lease(
    client: Any, scene: SlurmScene
) -> None:
    note, lock = scene.directory / "note", Lock(scene.directory / "x", heartbeat_interval="2s", stale_threshold="6s")
    task = client.submit(
        hold_first_time, lock, str(note), workers=on(client, "node1"), allow_other_workers=True, pure=False
    )
    wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    scene.cluster.node("node1").kill()
    killed = time.time()
    rerun = task.result(timeout=PATIENCE_S).splitlines()[1].split()
    assert 6 - 2 - 0.5 < float(rerun[2]) - killed < 60
