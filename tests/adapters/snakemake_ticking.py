"""A job that goes on until somebody ends it, and what must be found after its end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

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


def ticks(scene: Scene) -> list[str]:
    return [scene.read("ticks"), scene.read("ticks2")]


def is_ticking(scene: Scene) -> bool:
    before = ticks(scene)
    time.sleep(0.4)
    return before != ticks(scene)


def assert_still_ticking(scene: Scene) -> None:
    """It goes on, however long that may take it on a busy machine."""
    before = ticks(scene)
    scene.wait_for(lambda: all(now != then for now, then in zip(ticks(scene), before, strict=True)))


def pid_of_job(scene: Scene, *earlier: int) -> int:
    """The process of the job that ticks; the file with its number is empty for a moment each time it is written."""
    found: list[int] = []

    def is_told() -> bool:
        found[:] = [int(word) for word in (scene.read("pid") if scene.exists("pid") else "").split()]
        return bool(found) and found[0] not in earlier

    scene.wait_for(is_told)
    return found[0]


def start_ticking(scene: Scene, *arguments: str) -> Run:
    scene.write("ref/in", "data\n")
    scene.write("ref/out", "old\n")
    scene.snakefile(TICKING)
    run = scene.start("-F", *arguments)
    scene.wait_for(lambda: scene.exists("ticks") and scene.exists("ticks2") and scene.exists("pid"))
    assert_still_ticking(scene)
    assert len(scene.locks()) == 2
    return run


def wait_until_idle(scene: Scene, run: Run) -> None:
    """
    Wait until Snakemake does nothing but wait for its jobs.

    A SIGTERM that comes while its scheduler deals with the start or end of a job may block it for ever, with or without
    locks: the handler asks for a mutex that the same thread holds then.
    """
    status = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/status")

    def is_idle() -> bool:
        before = status.read_text().splitlines()
        time.sleep(0.3)
        after = status.read_text().splitlines()
        names = ("State:\tS", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
        looks = [[line for line in look if line.startswith(names)] for look in (before, after)]
        return looks[0] == looks[1] and len(looks[0]) == len(names)

    scene.wait_for(is_idle)


def interrupt(run: Run) -> None:
    """
    Press Ctrl-C, again if need be: asyncio loses the one that comes while Snakemake runs a task that is done.

    Not again if Snakemake has heard it and is slow: a second one would cut its end off.
    """

    def is_heard() -> bool:
        return run.process.poll() is not None or "Terminating processes on user request" in run.text

    for _ in range(10):
        os.killpg(run.process.pid, signal.SIGINT)
        until = time.monotonic() + 6
        while time.monotonic() < until:
            if is_heard():
                return
            time.sleep(0.05)


def assert_nothing_happened(scene: Scene) -> None:
    assert scene.read("ref/out") == "old\n"
    for path in ("in", "out"):  # free, or to be had at once from a process that is gone
        with SoftReadWriteLock(scene.directory / "ref" / path, is_singleton=False).write_lock(timeout=60):
            pass
    scene.wait_for(lambda: not is_ticking(scene))
