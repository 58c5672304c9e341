"""What tests of all adapters need: signals that arrive, and a Dask cluster, one for all, for it starts slowly."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

# In the background of a script, or below nohup, some signals are ignored, and in all that is started there.
for number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
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
