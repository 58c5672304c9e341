"""
Runs filelock's own tests of SoftReadWriteLock with ours in its place: `python filelock_own_tests.py DIR [arguments]`.

DIR is an unpacked source distribution of the filelock that is installed; the arguments are pytest's. Left out are tests
that look into filelock's own modules or at its files on disk, which no other implementation has, and those that start
programs which import filelock.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path

import filelock
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import nfsrwlock
from own_tests import PLAIN, Coroutines

#: Names that only tests of the inside use.
INSIDE = re.compile(
    r"mocker|filelock\._|_mod\.|\._\w+|\b(?:read_state|holders|members|plant_holder|make_sync|make_recorded_files|flushes"
    r"|OsFiles|Participant|Snapshot|GenerationLog|_state|_members|writer_gets_in|read_and_probe|lose_hold|lost_lock|_evict_every_holder)\b"
    r"|[\"'/]gen[\"'/]|\.rw\b|from filelock import"
)

filelock.SoftReadWriteLock = nfsrwlock.SoftReadWriteLock
filelock.AsyncSoftReadWriteLock = nfsrwlock.AsyncSoftReadWriteLock


class Public:
    """Leaves out the tests of the inside."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        inside = [item for item in items if INSIDE.search(f"{inspect.getsource(item.function)} {item.fixturenames}")]
        config.hook.pytest_deselected(items=inside)
        items[:] = [item for item in items if item not in inside]


if __name__ == "__main__":
    root, *arguments = sys.argv[1:]
    os.chdir(root)
    sys.path[:0] = [root, os.path.join(root, "tasks")]
    places = Path("tests/soft/read_write")
    files = [str(file) for name in ("test_lock*.py", "test_hold.py", "test_async*.py") for file in places.glob(name)]
    plain = [*PLAIN, "--rootdir", root, "-W", "ignore", *sorted(files)]
    sys.exit(pytest.main([*plain, *arguments], plugins=[Coroutines(), Public()]))
