"""What a lock costs in a task, measured side by side in one task; `pytest -s` shows the figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from adapters.dask_tasks import cost


@pytest.mark.alone
@pytest.mark.parametrize("heartbeat", [None, "thread"], ids=["default", "thread"])
@pytest.mark.parametrize(("other", "times"), [("core", 2), pytest.param("distributed", 1, marks=pytest.mark.peers)])
def test_lock_and_unlock_cost_at_most_twice_the_core_s_and_less_than_distributed_s(
    client: Any, tmp_path: Path, heartbeat: str | None, other: str, times: int
) -> None:
    measured = []
    for attempt in range(3):  # the disk and the processors may have other things to do, for a while
        time.sleep(10 * attempt)
        measured.append(client.submit(cost, str(tmp_path / "x"), heartbeat, pure=False).result())
        print(", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in measured[-1].items()))
        if measured[-1]["ours"] <= times * measured[-1][other]:
            return
    pytest.fail(f"medians, ms: {measured}")
