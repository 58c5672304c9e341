"""What the record says of the work for which a lock was taken: Snakemake's job, Dask's task, joblib's function."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from actors import PATIENCE_S
from adapters.snakemake_scene import LONG, Scene, scene

__all__ = ["scene"]


def tasks(directory: Path) -> list[tuple[str, Any]]:
    """Each file that was locked, and for what."""
    records = [json.loads(line) for file in directory.iterdir() for line in file.read_text().splitlines()]
    return [
        (Path(record["lock"]).name.removesuffix(".rwlock"), record.get("task"))
        for record in records
        if record["event"] == "granted"
    ]


@LONG
def test_snakemakes_rule_job_and_wildcards(scene: Scene) -> None:
    scene.snakefile("""
        rule all:
            input: "out/a", "out/b"
        rule use:
            input: shared_read("ref")
            output: "out/{sample}"
            shell: "touch {output}"
        """)
    scene.write("ref", "")
    scene.run(NFSRWLOCK_TRACE=str(scene.directory / "trace"))
    found = [task for name, task in tasks(scene.directory / "trace") if name == "ref"]
    assert {(task["rule"], task["wildcards"]["sample"]) for task in found} == {("use", "a"), ("use", "b")}
    assert all(isinstance(task["job"], int) for task in found)


@LONG
def test_snakemakes_report_has_a_page_about_the_locks(scene: Scene) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "timeline.md").read_text()
    (rule,) = re.findall(r"^rule locks:\n(?: .*\n)+", page, re.MULTILINE)
    workflow = """
        rule all:
            input: "locks.html"
        rule all_but_locks:
            input: "out/a", "out/b"
        rule use:
            input: shared_read("ref")
            output: "out/{sample}"
            shell: "touch {output}"
        """
    program = f"{sys.executable} -m nfsrwlock"
    scene.snakefile(textwrap.dedent(workflow) + rule.replace("nfsrwlock timeline", f"{program} timeline"))
    scene.write("ref", "")
    trace = str(scene.directory / "trace")
    scene.run(NFSRWLOCK_TRACE=trace)
    assert "rule use" in scene.read("locks.html")
    scene.run("--report", "report.html", NFSRWLOCK_TRACE=trace)
    report = scene.read("report.html")
    assert '"Locks"' in report
    assert '"locks.html"' in report


def run(code: str, directory: Path) -> list[tuple[str, Any]]:
    trace = directory / "trace"
    script = directory / "work.py"
    script.write_text(code)
    environment = {**os.environ, "NFSRWLOCK_TRACE": str(trace)}
    subprocess.run([sys.executable, script], cwd=directory, env=environment, check=True, timeout=2 * PATIENCE_S)
    return tasks(trace)


JOBLIB = """
import asyncio
from nfsrwlock.joblib import Memory, guard, locked

@locked(read="data")
def align(i): return i

@locked(write="other")
async def index(): return 1

memory = Memory("cache", verbose=0)

@memory.cache
def double(x): return 2 * x

align(1)
asyncio.run(index())
double(1)
with guard(read="plain"): pass
"""


def test_joblibs_function(tmp_path: Path) -> None:
    found = run(JOBLIB, tmp_path)
    assert ("data", {"function": "align"}) in found
    assert ("other", {"function": "index"}) in found
    assert ("plain", None) in found
    assert any(task is not None and task["function"].endswith("double") for _, task in found)


DASK = """
from dask.distributed import Client, LocalCluster
from nfsrwlock.dask import Lock

def work(i):
    with Lock("./data-in-thread"): return i

async def steps():
    async with Lock("./data-in-coroutine"): return 1

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            client.submit(work, 1, key="in-thread").result()
            client.submit(steps, key="in-coroutine").result()
            with Lock("./data-of-client"): pass
"""


def test_dasks_key(tmp_path: Path) -> None:
    found = {task["key"] if task else None for _, task in run(DASK, tmp_path)}
    assert found == {"in-thread", "in-coroutine", None}
