"""zarr 2, whose arrays take a lock as their ``synchronizer``; `make test-dask-zarr2` gives it an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from nfsrwlock.dask import Lock


@pytest.mark.parametrize("is_locked", [True, False])
def test_64_blocks_are_stored_into_four_chunks_by_four_processes_and_without_the_lock_some_are_lost(
    client: Any, tmp_path: Path, is_locked: bool
) -> None:
    path = tmp_path / "x.zarr"
    synchronizer = Lock(path) if is_locked else None
    target = zarr.open(str(path), "w", shape=(80, 80), chunks=(40, 40), dtype="i8", synchronizer=synchronizer)
    blocks = da.arange(6400, chunks=100, dtype="i8").reshape(80, 80).rechunk((10, 10))
    with dask.config.set({"array.store.safe-chunks": False}):
        da.store(blocks, target, lock=False)
    is_right = np.array_equal(zarr.open(str(path), "r")[:], np.arange(6400).reshape(80, 80))
    assert is_right is is_locked
    if is_locked:
        assert {entry.name for entry in Path(f"{path}.keys").iterdir()} >= {
            f"{x}%2E{y}.rwlock" for x in (0, 1) for y in (0, 1)
        }


def test_groups_and_attributes_are_changed_under_the_lock_of_their_own_key(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    group = zarr.open_group(str(path), "w", synchronizer=Lock(path))
    group.create_dataset("a", shape=4, chunks=4, dtype="i8")

    def count(number: int, group: Any) -> None:
        group.attrs.update({str(number): number})
        group["a"][number % 4] = number

    client.gather([client.submit(count, number, group, pure=False) for number in range(20)])
    assert dict(zarr.open_group(str(path), "r").attrs) == {str(number): number for number in range(20)}
    assert set(zarr.open_group(str(path), "r")["a"][:] % 4) == {0, 1, 2, 3}
