"""distributed's own tests of Semaphore, with ours in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from own_tests import outcome, source

#: The latest release whose source has the tests. distributed 2026.8 itself passes 18 of the 21.
RELEASE = "2021.4.0"
#: Those that must fail, each with its reason; docs/reference/dask.md says the same to users.
EXPECTED = {
    **dict.fromkeys(
        (
            *("test_serializable", "test_release_simple", "test_access_semaphore_by_name", "test_metrics"),
            "test_release_once_too_many_resilience",
        ),
        "asks the scheduler how many leases there are",
    ),
    **dict.fromkeys(
        ("test_release_semaphore_after_timeout", "test_oversubscribing_leases"),
        "stops the refreshing of leases to let them run out",
    ),
    **dict.fromkeys(("test_release_retry", "test_release_failure"), "breaks the connection to the scheduler"),
    **dict.fromkeys(("test_close_async", "test_close_sync"), "close() forgets the semaphore for everybody there"),
    "test_release_once_too_many": "raises on Dask's loop at the call there, here when it is awaited",
}


@pytest.mark.peers
@pytest.mark.timeout(300)
def test_distributeds_own_tests_pass_but_those_that_are_told(tmp_path: Path) -> None:
    file = source("distributed", RELEASE, tmp_path) / "distributed" / "tests" / "test_semaphore.py"
    moved = file.rename(tmp_path / file.name)  # away from the package of that release
    script = Path(__file__).with_name("dask_own_tests.py")
    failed, passed, text = outcome(script, moved, f"--basetemp={tmp_path}/base", cwd=tmp_path, seconds=280)
    assert failed == set(EXPECTED), text
    assert passed == 9, "they were really run"
