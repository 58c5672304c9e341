"""
The race of ``tests/nfs/filesystems`` for demand (b), between clients that keep listings and clients that do not.

No file system of the table breaks (b), so one is made that does. It needs no lab: mount namespaces stand for clients.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.test_cli_doctor import environment_of
from nfs.filesystems import trials
from nfs.filesystems.descriptions import DESCRIPTIONS
from passthrough import passthrough

pytestmark = pytest.mark.root

EXTENT = trials.Extent(rounds=20, storm_s=0.0, campaign_s=0.0, crashes=0)


class Job:
    """A command, as the lab's nodes start them."""

    def __init__(self, argv: list[str], env: dict[str, str], log: Path) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(argv, env={**os.environ, **env}, cwd="/", stdout=out, stderr=err)

    @property
    def out(self) -> bytes:
        return self._out.read_bytes()

    @property
    def err(self) -> bytes:
        return self._err.read_bytes()

    def wait_until(self, holds: Callable[[], bool], timeout: float) -> bool:
        end = time.monotonic() + timeout
        while not holds() and self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        return holds()

    def wait(self) -> Any:
        return SimpleNamespace(returncode=self._process.wait(60), stdout=self.out, stderr=self.err)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Client:
    """Where commands see the mounts of the process ``pid``."""

    def __init__(self, pid: int, log: Path, env: dict[str, str]) -> None:
        self._enter = ["nsenter", "--target", str(pid), "--mount", "--"]
        self._log, self._env = log, env

    def popen(self, argv: list[str]) -> Job:
        return Job([*self._enter, *argv], self._env, self._log)

    def check(self, argv: list[str]) -> str:
        return subprocess.run([*self._enter, *argv], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_clients_that_keep_listings_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    served, mountpoint = tmp_path / "served", tmp_path / "mnt"
    served.mkdir()
    monkeypatch.setattr(trials, "MOUNTPOINT", str(mountpoint))
    with (
        passthrough(served, mountpoint, seconds, unseen=True) as first,
        passthrough(served, mountpoint, seconds, unseen=True) as second,
    ):
        another = {"NFSRWLOCK_HOST": "n2", **environment_of("it is another host")}
        lab: Any = SimpleNamespace(
            clients=[Client(first, tmp_path / "n1", {}), Client(second, tmp_path / "n2", another)]
        )
        found = trials.demands(lab, DESCRIPTIONS["linux-4.2"], EXTENT)
    checks = found["checks"]
    assert "fuse.passthrough from passthrough" in checks["file-system"]["text"]
    assert [name for name, check in checks.items() if check["level"] == "unfit"] == (["listing"] if seconds else [])
    assert (checks["listing"]["missed"] > 0, checks["listing"]["own_missed"]) == (seconds > 0, 0)
