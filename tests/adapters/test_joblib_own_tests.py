"""joblib's own tests of Memory, with ours in its place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("joblib")

#: Those that must fail, each with its reason.
EXPECTED = {
    "test_memory_objects_repr": "compares a repr: the class is LockingMemorizedFunc, not MemorizedFunc",
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_of_joblibs_own_tests_pass_but_those_that_compare_a_repr(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("joblib_own_tests.py"), "-q", "-rfE", f"--basetemp={tmp_path}/base"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE))
    passed = re.search(r"(\d+) passed", done.stdout)
    assert failed == set(EXPECTED), done.stdout
    assert passed is not None
    assert int(passed[1]) >= 70, "the suite was really run"
