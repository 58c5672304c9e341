"""What the tests on Slurm have in common: workflows whose jobs it runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from adapters.snakemake_scene import Scene
from slurm.cluster import Cluster, Job


class SlurmScene(Scene):
    """A directory with a workflow, and the Slurm cluster that runs its jobs."""

    #: Without `squeue` for the status the executor asks `sacct`, for which Slurm needs a database.
    arguments = (
        *("--executor", "slurm", "--slurm-status-command", "squeue", "--jobs", "20", "--cores", "2"),
        *("--default-resources", "mem_mb=100", "runtime=10", "--latency-wait", "20"),
        # A job is looked at after so many seconds; if none has ended then, ten seconds later, then after twenty more.
        *("--slurm-init-seconds-before-status-checks", "6"),
    )
    patience_s = 200.0

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        super().__init__(directory)
        self.cluster = cluster
        self.environment |= cluster.environment

    def jobs(self) -> list[Job]:
        """What Slurm runs, or has waiting."""
        return self.cluster.jobs()

    def on(self, node: str, *argv: str) -> subprocess.Popen[str]:
        """Start a program on a node, as somebody who is logged in there."""
        return subprocess.Popen(
            [*self.cluster.node(node).entrance, "env", f"--chdir={self.directory}", *argv],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def clean_up(self) -> None:
        """End all that is left, jobs included."""
        for run in self.runs:
            run.kill()  # so that it submits nothing any more
        self.cluster.cancel()
        super().clean_up()  # a process that has left its job keeps that from coming to its end
        self.cluster.restore()
