"""Snakemake's scheduler `nfsrwlock` on Slurm: a job whose lock is busy is not submitted."""

from __future__ import annotations

import time

import pytest

from nfsrwlock import SoftReadWriteLock
from slurm.scene import SlurmScene

WORKFLOW = """
localrules: all, free
rule all:
    input: "locked", "free"
rule locked:
    input: shared_read("ref/in")
    output: "locked"
    priority: 100
    shell: "cp {input} {output}"
rule free:
    output: "free"
    shell: "touch {output}"
"""


@pytest.mark.parametrize("scheduler", ["nfsrwlock", "greedy"])
def test_a_job_whose_lock_is_busy_is_submitted_by_other_schedulers_only(scene: SlurmScene, scheduler: str) -> None:
    scene.write("ref/in", "data")
    scene.snakefile(WORKFLOW)
    with SoftReadWriteLock(scene.directory / "ref/in").write_lock():
        run = scene.start("--scheduler", scheduler)
        scene.wait_for(lambda: scene.exists("free"))
        if scheduler == "greedy":
            scene.wait_for(lambda: [job.comment for job in scene.jobs()] == ["rule_locked"])
        else:
            scene.wait_for(lambda: "(rule locked) waits for the lock on " in run.text)
            time.sleep(3)
            assert scene.jobs() == []
            assert "submitted with SLURM jobid" not in run.text
    run.end(0)
    assert scene.read("locked") == "data"
