"""filelock's own tests of SoftReadWriteLock, with ours in its place."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from own_tests import outcome, source

#: Those that must fail, each with its reason; docs/how-to/from-filelock.md says the same to users.
EXPECTED = {
    "test_async_exposes_configuration": "no executor of its own: None unless one was given",
    "test_async_owned_executor_stops_after_close": "the same",
    "test_async_close_after_default_executor_shutdown": "the same",
    "test_async_soft_read_after_a_sync_close_of_the_shared_singleton_raises": "each task has a hold of its own",
    "test_async_soft_release_after_a_sync_forced_release_raises_not_held_by_this_task": "the same",
}


def test_users_can_read_which_of_filelocks_own_tests_do_not_pass() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "from-filelock.md").read_text()
    assert [name for name in EXPECTED if f"`{name}`" not in page] == []


@pytest.mark.peers
@pytest.mark.timeout(400)
def test_filelocks_own_tests_pass_but_those_that_are_told(tmp_path: Path) -> None:
    release = source("filelock", version("filelock"), tmp_path)  # only its source has the tests
    script = Path(__file__).with_name("filelock_own_tests.py")
    failed, passed, text = outcome(script, release, cwd=tmp_path, seconds=380)
    assert failed == set(EXPECTED), text
    assert passed >= 130, "they were really run"
