"""
Runs distributed's own tests of Semaphore with ours in its place: `python dask_own_tests.py FILE [pytest arguments]`.

Each test has a directory of its own for the names, also after distributed has put its configuration back.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import distributed
import distributed.utils_test as utils
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import nfsrwlock.dask
from own_tests import PLAIN

distributed.Semaphore = nfsrwlock.dask.Semaphore


async def async_wait_for(predicate: Callable[[], Any], timeout: float) -> None:  # noqa: ASYNC109 - as it was there
    """What the file imports from an older distributed."""

    async def is_true() -> bool:
        found = predicate()
        return bool(await found if inspect.isawaitable(found) else found)

    async with asyncio.timeout(timeout):
        while not await is_true():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0.001)


utils.async_wait_for = async_wait_for


# distributed's own fixtures, of which the file imports only a part.
cleanup, client, cluster_fixture = utils.cleanup, utils.client, utils.cluster_fixture
loop, loop_in_thread = utils.loop, utils.loop_in_thread


@pytest.fixture(autouse=True)
def root(tmp_path: Path) -> None:
    for config in (dask.config.config, utils.original_config):
        config["nfsrwlock"] = {"root": str(tmp_path)}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    sys.exit(
        pytest.main([str(file), *PLAIN, "--rootdir", str(file.parent), *sys.argv[2:]], plugins=[sys.modules[__name__]])
    )
