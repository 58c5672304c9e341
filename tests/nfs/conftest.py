"""The lab that all scenarios share; it goes down with the run, however that ends."""

from __future__ import annotations

import fcntl
import hashlib
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from nfs.lab import Lab, LabError, Unavailable, require
from nfs.lab.cluster import HIDDEN
from nfs.scene import MOUNTS, TESTS, Scene

#: NFSv4 keeps clients waiting for this long after a server's restart. Linux's 90 s would only make the run longer; this
#: still is longer than our leases, so that a wait for NFSv4's own state would be noticed.
_NFS4_LEASE_S = 10


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    try:
        require()
    except Unavailable as error:
        pytest.exit(str(error), returncode=error.code)
    # One lab per checkout: what a run that was killed has left behind is found, and taken down, by the next.
    checkout = hashlib.sha1(bytes(TESTS)).hexdigest()[:8]
    directory = Path(tempfile.gettempdir()) / f"nfslab-tests-{checkout}"
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
            yield lab
        finally:
            lab.down()
            signal.signal(signal.SIGTERM, before)
            Path(turn.name).unlink()


def _bring_up(lab: Lab) -> None:
    needed = {TESTS.parent, Path(sys.prefix), Path(sys.base_prefix)}
    try:
        lab.up(
            clients=2,
            version="4.2",
            lease_s=_NFS4_LEASE_S,
            grace_s=_NFS4_LEASE_S,
            bind=[path for path in needed if any(path.is_relative_to(hidden) for hidden in HIDDEN)],
        )
        for client in lab.clients:
            client.mount("3", at=MOUNTS["3"])
    except LabError as error:
        pytest.exit(str(error), returncode=error.code if isinstance(error, Unavailable) else Unavailable.code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.fixture
def scene(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Scene]:
    scene = Scene(lab, re.sub(r"[^a-z0-9_]+", "-", request.node.name.lower()).strip("-"))
    try:
        yield scene
    finally:
        scene.restore()
