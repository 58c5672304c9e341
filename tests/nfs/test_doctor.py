"""``nfsrwlock doctor`` on real NFS clients: between two hosts, on a mount without close-to-open, and cut off."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nfs.lab import Lab, Node
from nfs.lanes import BOTH, LANES
from nfs.scene import Scene

pytestmark = pytest.mark.nfs

ROUNDS = 20
#: Of NFSv3, where data may be old then.
NOCTO = "/mnt/nocto3"


def doctor(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nfsrwlock", "doctor", *arguments]


def between(n1: Node, n2: Node, directory: str) -> tuple[int, dict[str, Any]]:
    """Exit code of the first node, and its report."""
    first = n1.popen(doctor("--peer", "--json", "--rounds", str(ROUNDS), directory))
    try:
        assert first.wait_until(lambda: b"--join" in first.err and first.err.endswith(b"\n"), 30), bytes(first.err)
        token = re.search(rb"--join (\w+)", first.err)
        assert token is not None
        second = n2.run(doctor("--join", token[1].decode(), directory), timeout=60)
        assert (second.returncode, second.stderr) == (0, b"")
        ended = first.wait(60)
    finally:
        with contextlib.suppress(OSError):
            first.kill()
    (report,) = json.loads(ended.stdout)
    print(json.dumps(report, indent=1))
    assert n1.check(["ls", "-A", directory]) == ""
    return ended.returncode, report


@pytest.fixture(scope="module")
def examined(lab: Lab) -> Iterator[dict[str, tuple[int, dict[str, Any]]]]:
    """By mountpoint, what two hosts found; on all mounts at once, for most of it is waiting."""
    for node in lab.clients:
        node.mount("3", "nocto,nosharecache", at=NOCTO)
    mountpoints = [*(LANES[lane].at for lane in BOTH), NOCTO]
    directories = [f"{mountpoint}/doctor-{number}" for number, mountpoint in enumerate(mountpoints)]
    for directory in directories:
        lab.clients[0].check(["mkdir", directory])
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda directory: between(*lab.clients, directory), directories)
        yield dict(zip(mountpoints, found, strict=True))
    for node in lab.clients:
        node.umount(NOCTO)


def levels(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["level"] for check in report["checks"]}


def facts(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (check["facts"] for check in report["checks"] if check["name"] == name)
    return found


@pytest.mark.parametrize("version", BOTH)
def test_two_hosts_find_nfs_fit(examined: dict[str, tuple[int, dict[str, Any]]], version: str) -> None:
    code, report = examined[LANES[version].at]
    assert code == 0
    assert (report["fit"], report["two_hosts"], report["host"], report["peer"]) == (True, True, "n1", "n2")
    assert report["file_system"]["mountpoint"] == LANES[version].at
    assert report["file_system"]["options"]["vers"] == version
    demands = {"mkdir": "ok", "listing": "ok", "removal": "ok", "data": "ok"}
    # A reply may get lost, and NFSv3 may answer from its cache of missing names: notes, both.
    assert {name: level.replace("note", "ok") for name, level in levels(report).items() if name in demands} == demands
    assert facts(report, "mkdir")["rounds"] == ROUNDS
    cost = facts(report, "cost")
    assert 3 <= cost["read"]["requests"] <= 4.2
    assert cost["read"]["requests"] < cost["write"]["requests"] <= 9


def test_without_close_to_open_locks_hold_but_data_may_be_old(examined: dict[str, tuple[int, dict[str, Any]]]) -> None:
    code, report = examined[NOCTO]
    assert code == 1
    found = levels(report)
    assert {found["mkdir"], found["listing"], found["removal"]} <= {"ok", "note"}
    assert (found["option-nocto"], found["data"], found["freshness"]) == ("unfit", "unfit", "warning")
    assert facts(report, "data")["old"] > 0
    assert report["verdict"].startswith("UNFIT: locks hold here, but data read under them may be old")
    assert report["remedies"][0] == "Mount without nocto."


def test_a_server_that_does_not_answer_is_given_up_on(scene: Scene) -> None:
    directory = scene.path("4.2", "")
    scene.n1.cut()
    result = scene.n1.run(doctor("--json", "--timeout", "3", directory), timeout=60)
    assert result.returncode == 1
    (report,) = json.loads(result.stdout)
    assert (levels(report)["answers"], report["fit"]) == ("unfit", False)
