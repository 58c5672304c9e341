"""What the adapter adds to the engine, measured side by side in one task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.dask_tasks import cost


def test_lock_and_unlock_take_at_most_twice_as_long_as_the_core_s(client: Any, tmp_path: Path) -> None:
    best = client.submit(cost, str(tmp_path / "x"), "thread", pure=False).result()
    assert best["ours"] <= 2 * best["core"], best
