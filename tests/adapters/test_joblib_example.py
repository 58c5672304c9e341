"""The example in `examples/joblib`, run as a person runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("joblib")

EXAMPLE = Path(__file__).parents[2] / "examples" / "joblib" / "run.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_passes_its_own_checks(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["ok"] * 4
