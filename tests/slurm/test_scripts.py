"""Batch scripts that lock by the command line, as docs/how-to/slurm.md has them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from nfsrwlock import SoftReadWriteLock, inspect
from slurm.cluster import KILL_WAIT_S, RESTART_S
from slurm.scene import SlurmScene


def submit(scene: SlurmScene, script: str) -> str:
    """Hand in a batch script; return the number of its job."""
    scene.write("data", "data\n")
    done = subprocess.run(
        ["sbatch", "--parsable", "--output=out", scene.write("script", f"#!/bin/bash\n{script}")],
        cwd=scene.directory,
        env=scene.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def holders(scene: SlurmScene) -> list[dict[str, Any]]:
    """Who holds the lock on `data`, as `nfsrwlock status` has it."""
    command = [sys.executable, "-m", "nfsrwlock", "status", "--json", scene.directory / "data"]
    (state,) = json.loads(subprocess.check_output(command))
    found: list[dict[str, Any]] = state["holders"]
    return found


def test_a_script_holds_its_lock_to_its_end_and_status_names_its_job(scene: SlurmScene) -> None:
    job = submit(
        scene,
        "set -euo pipefail; nfsrwlock hold --read data --timeout 60 --heartbeat 1 --pid $$\n"
        "srun cat data; touch at; while [ ! -e go ]; do sleep 0.1; done",
    )
    scene.wait_for(lambda: scene.exists("at"))
    scene.wait_for(lambda: [holder["job"] for holder in holders(scene)] == [job])  # from its first heartbeat on
    assert [holder["mode"] for holder in holders(scene)] == ["read"]
    scene.write("go", "")
    scene.wait_for(lambda: not scene.locks())
    assert "data\n" in scene.read("out")


def test_the_command_of_a_cancelled_job_can_clean_up_before_the_lock_is_released(scene: SlurmScene) -> None:
    scene.write("rebuild.sh", "echo half > new; trap 'rm new; exit 1' TERM; touch at; while :; do sleep 0.1; done")
    job = submit(scene, "nfsrwlock run --write data --timeout 60 -- bash rebuild.sh")
    scene.wait_for(lambda: scene.exists("at"))
    assert [holder.host for holder in inspect(scene.directory / "data").holders] == [scene.jobs()[0].node]
    scene.cluster.run("scancel", job)
    began = time.monotonic()
    while scene.locks():
        held, begun = scene.locks(), scene.exists("new")
        assert held or not begun
        assert time.monotonic() - began < KILL_WAIT_S, "long before Slurm would kill it"
    assert not scene.exists("new")


def test_a_job_that_cannot_have_its_lock_in_time_comes_back_later(scene: SlurmScene) -> None:
    scene.write("data", "data\n")
    with SoftReadWriteLock(scene.directory / "data").read_lock():
        job = submit(
            scene,
            "echo $(date +%s) >> attempts; nfsrwlock run --write data --timeout 1 -- cp data done; code=$?\n"
            'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi\n'
            'exit "$code"\n',
        )
        scene.wait_for(lambda: scene.exists("attempts"))
        scene.wait_for(lambda: [(one.id, one.state) for one in scene.jobs()] == [(job, "PENDING")])
        assert scene.locks() == [f"data.rwlock/{inspect(scene.directory / 'data').holders[0].name}"]
    scene.wait_for(lambda: scene.exists("done"))
    first, second = map(int, scene.read("attempts").split())
    assert second - first >= RESTART_S, "so long Slurm waits"
