"""The cluster that all tests of a process share; what a test does to it is undone before the next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from debian import Unavailable
from slurm.cluster import Cluster, running_cluster
from slurm.scene import SlurmScene


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    try:
        with running_cluster() as cluster:
            yield cluster
    except Unavailable as error:
        pytest.exit(str(error), returncode=error.code)


@pytest.fixture
def scene(tmp_path: Path, cluster: Cluster) -> Iterator[SlurmScene]:
    stage = SlurmScene(tmp_path, cluster)
    yield stage
    stage.clean_up()
