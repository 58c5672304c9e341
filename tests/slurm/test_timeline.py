"""The record of a workflow on two nodes, and the picture of it: `NFSRWLOCK_SVG=FILE` keeps the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from slurm.scene import SlurmScene

JOBS = 8
WORKFLOW = f"""
localrules: all
rule all:
    input: expand("out/{{i}}", i=range({JOBS}))
rule align:
    input: shared_read("ref/genome.fa")
    output: "out/{{i}}"
    shell: "sleep $((3 + {{wildcards.i}} % 3)); cp {{input}} {{output}}"
"""
PROGRAM = (sys.executable, "-m", "nfsrwlock")


def test_the_record_tells_which_job_of_which_rule_held_what_on_which_node(scene: SlurmScene) -> None:
    scene.write("ref/genome.fa", "data")
    scene.snakefile(WORKFLOW)
    trace = scene.directory / "trace"
    scene.environment["NFSRWLOCK_TRACE"] = str(trace)
    run = scene.start("--jobs", "5")
    scene.wait_for(lambda: scene.locks() != [])
    # Until Snakemake has submitted more jobs, which wait for it.
    with scene.on("node2", *PROGRAM, "run", "--write", "ref/genome.fa", "--", "sleep", "50") as update:
        assert update.wait(130) == 0
    run.end(0)
    picture = Path(os.environ.get("NFSRWLOCK_SVG", scene.directory / "run.svg")).resolve()
    subprocess.run([*PROGRAM, "timeline", trace, "-o", picture], cwd=scene.directory, check=True)
    facts: dict[str, Any] = json.loads(subprocess.check_output([*PROGRAM, "timeline", trace, "--json"]))
    readers = [hold for hold in facts["holds"] if hold["mode"] == "read"]
    (writer,) = [hold for hold in facts["holds"] if hold["mode"] == "write"]
    assert {reader["process"]["host"] for reader in readers} == {"node1", "node2"}
    assert sorted(reader["task"].partition(",")[0] for reader in readers) == ["rule align"] * JOBS
    assert len({reader["process"]["job"] for reader in readers} - {""}) == JOBS, "each by its job's number in Slurm"
    assert writer["process"]["host"] == "node2"
    assert {peer["mode"] for peer in writer["by"]} == {"read"}
    waits = [wait for wait in facts["waits"] if wait["mode"] == "read"]
    assert waits
    assert all(peer["token"] == writer["token"] for wait in waits for peer in wait["by"])
