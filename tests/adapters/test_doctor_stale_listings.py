"""``nfsrwlock doctor --peer`` between two clients of a real file system: one that is sound, and one that breaks (b)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from actors import PATIENCE_S
from adapters.cli_scene import Scene, scene
from adapters.test_cli_doctor import environment_of
from passthrough import passthrough

__all__ = ["scene"]

pytestmark = pytest.mark.root


def between(scene: Scene, mounts: list[Path]) -> tuple[int, dict[str, Any]]:
    """Exit code of the first node, and its report; the second one is another host but for its kernel."""
    first = scene.start("doctor", "--peer", "--json", "--rounds", "20", str(mounts[0]))
    assert first.stderr is not None
    token = re.search(r"--join ([0-9a-f]{12}) ", first.stderr.readline())
    assert token is not None
    another = environment_of("it is another host")
    second = scene.run("doctor", "--join", token[1], str(mounts[1]), NFSRWLOCK_HOST="n2", **another)
    assert (second.returncode, second.stderr) == (0, "")
    stdout, _ = first.communicate(timeout=2 * PATIENCE_S)
    (report,) = json.loads(stdout)
    return first.returncode, report


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_clients_that_keep_listings_are_found_out(scene: Scene, tmp_path: Path, seconds: float) -> None:
    served = tmp_path / "served"
    served.mkdir()
    mounts = [tmp_path / "a", tmp_path / "b"]
    with passthrough(served, mounts[0], seconds), passthrough(served, mounts[1], seconds):
        code, report = between(scene, mounts)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["file_system"]["type"] == "fuse.passthrough"
    assert (report["two_hosts"], report["peer"]) == (True, "n2")
    unfit = [name for name, check in checks.items() if check["level"] == "unfit"]
    if seconds:
        assert (code, unfit, report["verdict"]) == (1, ["listing"], "UNFIT: do not rely on locks here (listing).")
        assert "(demand b)" in checks["listing"]["text"]
        assert checks["listing"]["facts"]["missed"] > 0
        assert checks["listing"]["facts"]["own_missed"] == 0
    else:
        assert (code, unfit) == (0, [])
        assert report["verdict"].startswith("FIT: two hosts kept all demands")
    assert os.listdir(served) == []
