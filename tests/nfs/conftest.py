"""The lab that all scenarios share; it goes down with the run, however that ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from _pytest.runner import runtestprotocol

from nfs.lab import Lab, LabError, Unavailable, require, to_bind
from nfs.lanes import NFS4_LEASE_S, mount_all
from nfs.scene import TESTS, Scene

#: How long the server's own disk may take to answer a command on the server itself, seconds.
_DISK_S = 20

#: The lab that is up.
_labs: list[Lab] = []


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    try:
        require()
    except Unavailable as error:
        pytest.exit(str(error), returncode=error.code)
    # One lab per checkout and worker: what a run that was killed has left behind is found, and taken down, by the next.
    checkout = hashlib.sha1(bytes(TESTS)).hexdigest()[:8]
    directory = Path(tempfile.gettempdir()) / f"nfslab-tests-{checkout}{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    with open(f"{directory}.lock", "w") as turn:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pytest.exit("the NFS tests of this checkout run already", returncode=1)
        before = signal.signal(signal.SIGTERM, _interrupt)
        lab = Lab(directory)
        try:
            lab.down()
            _bring_up(lab)
            _labs.append(lab)
            yield lab
        finally:
            _labs.clear()
            lab.down()
            signal.signal(signal.SIGTERM, before)
            Path(turn.name).unlink()


def _bring_up(lab: Lab) -> None:
    try:
        lab.up(
            clients=2,
            version="4.2",
            lease_s=NFS4_LEASE_S,
            grace_s=NFS4_LEASE_S,
            bind=to_bind(),
        )
        for client in lab.clients:
            mount_all(client)
    except LabError as error:
        pytest.exit(str(error), returncode=error.code if isinstance(error, Unavailable) else Unavailable.code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """
    Run a scenario, and run it again, in a lab made anew, if it was the lab that failed.

    User-Mode Linux was seen to lose an interrupt of its disk: from then on the server guest hangs in every command that
    touches its *own* disk, NFS or not. That, and nothing else, counts as the lab's failure, and only once a scenario.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    if any(report.failed for report in reports) and _labs and _disk_hangs(_labs[0]):
        sys.stderr.write(f"\n{item.nodeid}: the server guest hangs at its own disk; again, in a new lab\n")
        _labs[0].down()
        _bring_up(_labs[0])
        item._initrequest()  # type: ignore[attr-defined]  # as pytest-rerunfailures does
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _disk_hangs(lab: Lab) -> bool:
    try:
        lab.server.run(["sh", "-c", "ls -A /mnt/disk/export && sync"], timeout=_DISK_S)
    except (subprocess.TimeoutExpired, LabError, OSError):
        return True
    return False


@pytest.fixture
def scene(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(lab, re.sub(r"[^a-z0-9_]+", "-", request.node.name.lower()).strip("-"))
    try:
        yield scene
    finally:
        scene.restore()
