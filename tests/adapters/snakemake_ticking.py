"""A job that goes on until somebody ends it, and what must be found after its end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress

from adapters.snakemake_scene import Run, Scene
from nfsrwlock import SoftReadWriteLock

#: Ticks until somebody ends it; so does a process that has left its parent, its session and its group.
TICKING = """
rule all:
    input: "ref/out", "ref/other"
rule tick:
    input: shared_read("ref/in")
    output: exclusive("ref/out")
    shell:
        "trap 'exit 130' INT; echo half > {output}; (setsid sh -c 'while :; do echo x >> ticks2; sleep 0.05; done' &); "
        "while :; do echo $$ > pid; echo x >> ticks; sleep 0.05; done"
rule other:
    output: "ref/other"
    shell: "sleep 1; echo done > {output}"
"""


def is_ticking(scene: Scene) -> bool:
    before = [scene.read("ticks"), scene.read("ticks2")]
    time.sleep(0.4)
    return before != [scene.read("ticks"), scene.read("ticks2")]


def start_ticking(scene: Scene, *arguments: str) -> Run:
    scene.write("ref/in", "data\n")
    scene.write("ref/out", "old\n")
    scene.snakefile(TICKING)
    run = scene.start("-F", *arguments)
    scene.wait_for(lambda: scene.exists("ticks") and scene.exists("ticks2") and scene.exists("pid"))
    assert is_ticking(scene)
    assert len(scene.locks()) == 2
    return run


def interrupt(run: Run) -> None:
    """Press Ctrl-C, again if need be: asyncio loses the one that comes while Snakemake runs a task that is done."""
    for _ in range(10):
        os.killpg(run.process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(6)
            return


def assert_nothing_happened(scene: Scene) -> None:
    assert scene.read("ref/out") == "old\n"
    for path in ("in", "out"):  # free, or to be had at once from a process that is gone
        with SoftReadWriteLock(scene.directory / "ref" / path, is_singleton=False).write_lock(timeout=20):
            pass
    scene.wait_for(lambda: not is_ticking(scene), 20)
