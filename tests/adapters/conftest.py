"""What tests of all adapters need: a Dask cluster, and a process with Snakemake in it; each starts slowly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask
import pytest

# Workers are forks of a process that has imported distributed, which takes each a second otherwise. Programs that tests
# start have distributed's default: each worker is a process from the beginning.
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})


@pytest.fixture(scope="module")  # not longer: the five processes of an idle cluster take a tenth of a core
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
