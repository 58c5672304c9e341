"""The example in `examples/dask`, run as a person runs it."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "dask" / "run.py"


def test_the_example_counts_right_and_draws_its_timeline(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--svg", "run.svg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 tasks, 60 of them in the file, 0 twice" in done.stdout
    bars = [bar for bar in ET.parse(tmp_path / "run.svg").getroot().iter() if bar.get("data-lock")]
    assert {bar.get("data-lock") for bar in bars} == {"seen.json"}
    assert {"exclusive", "shared"} <= {bar.get("class") for bar in bars}
