"""The lab boots the kernel that it is given; ``make test-kernels`` gives it those of other Debian releases."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from nfs.kernels import packages, table
from nfs.lab import Lab
from nfs.lab.power import MODULES, UML

pytestmark = pytest.mark.nfs


def test_guests_boot_the_kernel_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    (tmp_path / UML).parent.mkdir(parents=True)
    (tmp_path / UML).write_text(f'#!/bin/sh\necho >>{started}\nexec /{UML} "$@"\n')
    (tmp_path / UML).chmod(0o755)
    (tmp_path / MODULES).parent.mkdir(parents=True)
    (tmp_path / MODULES).symlink_to(f"/{MODULES}")
    lab = Lab(Path(tempfile.gettempdir()) / f"nfslab-kernel-{os.getpid()}")
    monkeypatch.setenv("NFSLAB_KERNEL", str(tmp_path))
    try:
        lab.up(clients=1)
        monkeypatch.delenv("NFSLAB_KERNEL")
        lab.clients[0].kill()
        lab.clients[0].start()  # the kernel is the lab's, not that of whoever switches a machine on
        assert started.read_text() == "\n" * 3
    finally:
        lab.down()


def test_a_kernel_runs_on_the_c_library_beside_it(tmp_path: Path) -> None:
    beside = tmp_path / "libc/usr/lib/x86_64-linux-gnu"
    beside.mkdir(parents=True)
    for name in ("ld-linux-x86-64.so.2", "libc.so.6", "libutil.so.1"):
        shutil.copy(Path("/lib/x86_64-linux-gnu", name), beside)
    (tmp_path / UML).parent.mkdir(parents=True)
    shutil.copy(f"/{UML}", tmp_path / UML)
    packages._use_own_libc(tmp_path)
    assert subprocess.run([tmp_path / UML, "--version"], capture_output=True).returncode == 0
    (beside / "ld-linux-x86-64.so.2").rename(beside / "gone")
    assert not packages._starts(tmp_path)


_CHECKS: dict[str, Any] = {
    race: {"rounds": 500, "median_apart_ms": 1.0, "missed": 0} for race in ("mkdir", "listing", "removal")
}


def _row(suite: str, **lane: Any) -> dict[str, Any]:
    lane = {"title": "NFSv3", "options": "", "mind": "", "date": "2026-01-31", "kernel": "7.2.7", **lane}
    return {"suite": suite, "date": "2026-01-31", "package": "user-mode-linux 7.2um1", "lanes": {"linux-3": lane}}


def test_the_table_tells_what_a_kernel_broke() -> None:
    row = _row("sid", demands={"checks": {**_CHECKS, "listing": {**_CHECKS["listing"], "missed": 2}}})
    line = table.as_markdown({"user-mode-linux 7.2um1": row}).splitlines()[2]
    assert line.startswith(
        "| 7.2.7 | user-mode-linux 7.2um1, sid, 2026-01-31 | NFSv3 | 500; 1 / 1 / 1 ms | 0 | **missed"
    )
    assert table.is_bad(row)
    assert not table.is_bad(_row("sid", demands={"checks": _CHECKS}))
    assert table.is_bad(_row("sid", churn={"rounds": 100, "missed": 1}))
    failed = _row("sid", exclusion={"error": "Timeout: no such directory"})
    assert "| **failed** | not tested | **Timeout: no such directory** |" in table.as_markdown({"a": failed})
    assert table.is_bad(failed)


def test_the_table_has_a_line_for_a_kernel_that_cannot_be_had_or_does_not_boot() -> None:
    absent = {"suite": "buster", "date": "2026-01-31", "error": "no such release"}
    lines = table.as_markdown({"a": _row("sid", kernel="did not come up", error="srv: panic"), "buster": absent})
    assert [line.rpartition(" | ")[2] for line in lines.splitlines()[2:]] == [
        "**srv: panic** |",
        "**no such release** |",
    ]
