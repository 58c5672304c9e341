"""The example in `examples/permits`, run as a person runs it."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "permits" / "run.py"


@pytest.mark.parametrize(
    ("options", "code", "first"), [(("--svg", "run.svg"), 0, "passed never"), (("--no-lock",), 1, "FAILED never")]
)
def test_the_example_passes_its_own_checks_and_without_permits_fails(
    tmp_path: Path, options: tuple[str, ...], code: int, first: str
) -> None:
    command = [sys.executable, str(EXAMPLE), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stdout + done.stderr
    checks = [line for line in done.stdout.splitlines() if line.startswith(("passed", "FAILED"))]
    assert len(checks) == 3
    assert checks[0].startswith(first)
    assert all(check.startswith("passed") for check in checks[1:])
    if code == 0:
        bars = [bar for bar in ET.parse(tmp_path / "run.svg").getroot().iter() if bar.get("data-lock")]
        assert {bar.get("data-lock") for bar in bars} == {"licence"}
