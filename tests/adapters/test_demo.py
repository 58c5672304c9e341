"""The demonstration in `examples/demo`, run as a person runs it, in its short form."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest.importorskip("mappy")
pytest.importorskip("rich")

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "run.py"

pytestmark = pytest.mark.slow


def run_demo(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # A width and a host name from outside would change what is printed and who can judge whom.
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NFSRWLOCK_DIR")}
    return subprocess.run(
        [sys.executable, str(DEMO), "--seconds", "8", *options],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def verdict(output: str, title: str) -> str:
    """The first word of the line of the summary that is about this."""
    return next(line.split()[0] for line in output.splitlines() if title in line)


def test_the_demonstration_passes_its_own_checks_and_draws_the_timeline(tmp_path: Path) -> None:
    done = run_demo(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "all checks passed" in done.stdout
    assert "3,600 of 3,600 (100.0%)" in done.stdout
    for title in (
        "Index built once per version",
        "No conflicting holds overlapped",
        "Generations strictly increase",
        "Lock of job-2 recovered",
        "Lock of job-3 recovered",
    ):
        assert verdict(done.stdout, title) == "ok"
    picture = ET.parse(tmp_path / "demo-timeline.svg").getroot()
    words = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"job-1", "job-2", "job-3", "updater", "version 3"} <= words
    assert [path.name for path in tmp_path.iterdir()] == ["demo-timeline.svg"]


def test_without_the_lock_the_checks_of_the_demonstration_fail(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--no-lock", "--svg", str(tmp_path / "no-lock.svg"))

    assert done.returncode == 1, done.stdout + done.stderr
    for title in (
        "Index built once per version",
        "Reference and index always fit together",
        "No conflicting holds overlapped",
    ):
        assert verdict(done.stdout, title) == "FAIL"


def test_a_wrong_option_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--svg", str(tmp_path / "nowhere" / "picture.svg"))

    assert done.returncode == 2
    assert "there is no directory" in done.stderr
    assert list(tmp_path.iterdir()) == []
