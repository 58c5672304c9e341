"""What tests of all adapters need: a Dask cluster, and a process with Snakemake in it; each starts slowly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask
import pytest

# Workers are forks of a process that has imported distributed, which takes each a second otherwise. And they watch
# themselves rarely: a look at all that they run a hundred times a second, and the like, takes a fifth of a core while
# they are idle, and concerns no lock. Programs that tests start have distributed's defaults.
dask.config.set(
    {
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.worker.profile.enabled": False,
        "distributed.worker.memory.monitor-interval": "1s",
        "distributed.admin.tick.interval": "500ms",
    }
)


@pytest.fixture(scope="module")  # not longer: even then, an idle cluster takes a few hundredths of a core
def cluster() -> Iterator[Any]:
    """Four worker processes with two threads each."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=4, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    """A client of the shared cluster."""
    from distributed import Client

    with Client(cluster) as client:
        yield client


@pytest.fixture(scope="session")
def forks() -> Iterator[Any]:
    """A process that has imported Snakemake, of which the runs of tests are forks."""
    from adapters.snakemake_scene import Forks

    forks = Forks()
    yield forks
    forks.close()
