"""Workflows that start together on two nodes: what they share is made once."""

from __future__ import annotations

from adapters.snakemake_sharing import BY_RUN, BY_SHELL, ONCE, compute_at_once
from nfsrwlock import SoftReadWriteLock
from slurm.scene import SlurmScene

FIVE = "abcde"


def test_five_workflows_build_one_index(scene: SlurmScene) -> None:
    scene.write("ref/in", "data")
    for name in FIVE:
        scene.snakefile(ONCE.replace("{kind}", BY_SHELL if name < "c" else BY_RUN), f"{name}/Snakefile")
    # So that all of them have planned to build it, and have a job on a node that waits for the lock.
    with SoftReadWriteLock(scene.directory / "ref/idx").write_lock():
        runs = [scene.start(directory=name) for name in FIVE]
        scene.wait_for(lambda: sum("ref" in lock for lock in scene.locks()) > len(FIVE))
        assert {job.node for job in scene.jobs()} == {"node1", "node2"}
    for run in runs:
        run.end(0)
    assert scene.read("built") == "built\n"
    assert scene.read("ref/idx") == "data"
    assert scene.locks() == []
    assert scene.litter() == []


def test_five_workflows_that_share_a_cache_compute_what_is_missing_once(scene: SlurmScene) -> None:
    # Snakemake passes --cache on to jobs only if it names rules. And here each workflow is one job of Slurm.
    rules = ("one", "directory", "several")
    compute_at_once(scene, FIVE, *rules, "--groups", *(f"{rule}=together" for rule in rules))
    assert scene.locks() == []
