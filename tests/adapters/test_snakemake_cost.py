"""What the adapter costs, measured beside Snakemake without it; `pytest -s` shows the figures."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

from adapters.snakemake_scene import Scene, scene

__all__ = ["scene"]

#: The rule, and what a job without locks takes on the machine for which it was made. Where that takes longer, because
#: the machine is slower or busy, the rule is stretched by as much.
JOB_MS, PLAIN_MS = 10.0, 6.0
IMPORT_MS = 100.0

#: Notes how long Snakemake was with each job, locks included.
WORKFLOW = """
import time
from snakemake.executors.local import Executor
cached_or_run = Executor.cached_or_run
def timed(self, job, *args):
    began = time.perf_counter()
    cached_or_run(self, job, *args)
    with open("times", "a") as file:
        print(job.rule.name, 1000 * (time.perf_counter() - began), file=file)
Executor.cached_or_run = timed
rule all:
    input: expand("{kind}/{n}", kind=["plain", "locked"], n=range(40))
    run: pass
rule plain:
    input: "ref/in"
    output: "plain/{n}"
    shell: "cp {input} {output}"
rule locked:
    input: shared_read("ref/in")
    output: exclusive("locked/{n}")
    shell: "cp {input} {output}"
"""
#: Prints how long the adapter took to import, and Snakemake before it, in milliseconds of the processor.
IMPORT = """
import time
began = time.process_time()
import snakemake.cli, snakemake.executors.local
between = time.process_time()
import nfsrwlock.snakemake
print(1000 * (time.process_time() - between), 1000 * (between - began))
"""


@pytest.mark.alone
def test_a_job_with_locks_that_are_free_takes_at_most_10_ms_longer(scene: Scene) -> None:
    scene.write("ref/in", "data\n")
    scene.snakefile(WORKFLOW)
    measured = []
    for _ in range(3):  # the processors may have other things to do
        scene.run("-c1", "-F", "--max-jobs-per-timespan", "999/1s")
        times: dict[str, list[float]] = {"plain": [], "locked": [], "all": []}
        for line in scene.read("times").splitlines():
            name, milliseconds = line.split()
            times[name].append(float(milliseconds))
        (scene.directory / "times").unlink()
        assert len(times["plain"]) == len(times["locked"]) == 40
        plain, locked = statistics.median(times["plain"]), statistics.median(times["locked"])
        print(f"a job takes {plain:.1f} ms, with two locks {locked:.1f} ms: {locked - plain:.1f} ms more")
        measured.append(locked - plain)
        if measured[-1] <= JOB_MS * max(1.0, plain / PLAIN_MS):
            return
    pytest.fail(f"milliseconds more per job: {measured}")


@pytest.mark.alone
def test_the_import_takes_at_most_100_ms_beyond_snakemake_s() -> None:
    def measure() -> tuple[float, float]:
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=60, check=True)
        ours, snakemake = map(float, done.stdout.split())
        return ours, snakemake

    measure()  # so that all is compiled, and in the page cache
    ours, snakemake = min(measure() for _ in range(3))
    print(f"the adapter is imported in {ours:.0f} ms, Snakemake in {snakemake:.0f} ms")
    assert ours <= IMPORT_MS
