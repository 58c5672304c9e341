"""filelock's own tests of SoftReadWriteLock, with ours in its place."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest

from own_tests import outcome

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
    release = f"filelock-{version('filelock')}"
    said = subprocess.check_output([sys.executable, "-m", "pip", "index", "versions", "filelock", "-vv"], text=True)
    link = re.search(rf"https://\S+/{re.escape(release)}\.tar\.gz", said)  # only its source has the tests
    assert link is not None, said
    archive, _ = urllib.request.urlretrieve(link[0], tmp_path / "source.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    script = Path(__file__).with_name("filelock_own_tests.py")
    failed, passed, text = outcome(script, tmp_path / release, cwd=tmp_path, seconds=380)
    assert failed == set(EXPECTED), text
    assert passed >= 130, "they were really run"
