"""Whether children under a parent's hold notice in time that the parent has stopped, with clocks far apart."""

from __future__ import annotations

import time

import pytest

from nfs.scene import LEASE_S, SETTINGS, Scene

pytestmark = pytest.mark.nfs

MINUTES_10 = 600.0
#: A child that looks often, one that looks for the first time whenever it looks, and one that lives beside its parent.
CHILDREN = ("watches", "looks once", "lives beside it")


@pytest.mark.parametrize(("version", "skew"), [("4.2", MINUTES_10), ("3", -MINUTES_10)])
def test_every_check_fails_within_the_lease_after_the_parent_was_stopped(
    scene: Scene, version: str, skew: float
) -> None:
    path = scene.path(version)
    scene.n1.skew(skew)
    scene.n2.skew(-skew)
    parent = scene.locker(scene.n1, path, SETTINGS)
    parent.do("lock.acquire_write()")
    made = [path, f"{path}.rwlock", parent.do("lock.witness().name")]
    children = {
        kind: scene.process(scene.n1 if kind == "lives beside it" else scene.n2, f"made = {made!r}")
        for kind in CHILDREN
    }
    for kind, child in children.items():
        child.tell(f"checks(made, {LEASE_S * 3}, anew={kind == 'looks once'})")
    time.sleep(LEASE_S * 1.5)
    pid = parent.do("os.getpid()")
    scene.n1.check(["kill", "-STOP", str(pid)])
    stopped = time.time()
    try:
        for kind, child in children.items():
            offset = child.node.clock()[0]
            passed = [moment - offset for moment, failure in child.answer() if not failure]
            assert sum(moment < stopped for moment in passed) > 5, f"{kind}: it passes while the parent beats"
            took = max(passed) - stopped
            print(f"NFSv{version}, {kind}: the last check passed {took:.2f} s after the stop, lease {LEASE_S:.0f} s")
            assert took <= LEASE_S
    finally:
        scene.n1.check(["kill", "-CONT", str(pid)])
