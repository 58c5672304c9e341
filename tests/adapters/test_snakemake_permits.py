"""Permits: no more jobs at a time than there are, in all workflows; and none is started that would wait for one."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from adapters.snakemake_scene import LONG, SLOW_TO_BEGIN, Scene, scene
from nfsrwlock import SoftReadWriteLock, SoftSemaphore, inspect

__all__ = ["scene"]

pytestmark = LONG

# Each job goes on once two have been inside together, and writes down how many are.
WORKFLOW = """
inside = (
    "touch inside.{wildcards.who}.{wildcards.name}; "
    "until [ -e together ] || [ $(echo inside.* | wc -w) -ge 2 ]; do sleep 0.05; done; touch together; "
    "{see} {wildcards.who}.{wildcards.name} licence of/{wildcards.who}; "
    "echo inside.* | wc -w > {output}; rm inside.{wildcards.who}.{wildcards.name}"
)
rule all:
    input: expand("out/{who}/{name}", who=config["who"], name=["a1", "a2", "b1", "b2", "c1", "c2"])
    localrule: True
rule without_input:
    output: "out/{who}/{name,a.}"
    resources: licence=limited("licence", 2)
    shell: inside
rule run:
    output: "out/{who}/{name,b.}"
    resources: licence=limited("licence", 2), other=limited("of/{who}", 9)
    run:
        shell(inside)
rule read:
    input: shared_read("ref/in", at_most=2, lock="licence")
    output: exclusive("out/{who}/{name,c.}")
    shell: inside
"""
CLUSTER = (
    *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh submit", "--jobs", "4"),
    *("--seconds-between-status-checks", "1", "--latency-wait", "20"),
)


@pytest.mark.parametrize("where", [("-c4",), CLUSTER], ids=["locally", "on a cluster"])
def test_no_more_jobs_of_two_workflows_run_at_a_time_than_there_are_permits(
    scene: Scene, where: tuple[str, ...]
) -> None:
    for name in ("ref/in", "of/one", "of/two"):
        scene.write(name, "data")
    scene.write("submit", 'setsid nohup sh "$1" > job.$$.log 2>&1 < /dev/null &\necho $$\n')
    scene.snakefile(WORKFLOW)
    runs = [scene.start("--nolock", *where, "--config", f"who={who}") for who in ("one", "two")]
    for run in runs:
        run.end(0)
    counts = [int(file.read_text()) for file in (scene.directory / "out").rglob("[abc][12]")]
    assert len(counts) == 12
    assert 1 <= max(counts) <= 2
    assert not inspect(scene.directory / "licence").holders
    for name in ("one.a1", "two.b1", "one.c1"):
        assert set(scene.seen(name)["licence"]) == {"read"}
    assert scene.seen("two.b2")["of/two"]
    # To Snakemake nothing has changed when a permit goes.
    text = scene.read("Snakefile")
    scene.write("Snakefile", text.replace("see =", "limited = lambda path, permits: 1\nsee =", 1))
    assert "Nothing to be done" in scene.run("--config", "who=one")


SCHEDULED = (
    SLOW_TO_BEGIN
    + """rule all:
    input: "after_go", expand("each.{n}", n=range(5))
rule free:
    output: "free"
    shell: "touch {output}"
rule after_free:
    input: "free"
    output: "after_free"
    shell: "until [ -e go ]; do sleep 0.05; done; until [ -e begun.2 ]; do sleep 0.05; done; touch {output}"
rule after_go:
    input: "after_free"
    output: "after_go"
    shell: "touch {output}"
rule each:
    output: "each.{n}"
    resources: licence=limited("licence", 4)
    shell: "touch held.{wildcards.n}; until [ -e end ]; do sleep 0.05; done; touch {output}"
"""
)


@pytest.mark.skipif(Version(version("snakemake")) < Version("9.11"), reason="before 9.11")
def test_the_scheduler_starts_no_job_that_would_wait_for_a_permit(scene: Scene) -> None:
    def begun() -> int:
        file = scene.directory / "begun"
        return file.read_text().count("\n") if file.exists() else 0

    scene.snakefile(SCHEDULED)
    others = SoftSemaphore(scene.directory / "licence", 4, poll_interval=0.05)
    others.acquire()
    others.acquire()
    run = scene.start("-c8", "--scheduler", "nfsrwlock")
    # Two of four are free, which nobody has taken yet; the end of a job lets the scheduler choose again.
    scene.wait_for(lambda: begun() and scene.exists("free"))
    scene.write("go", "")
    scene.wait_for(lambda: len(list(scene.directory.glob("held.*"))) == 2)
    scene.write("begun.2", "")
    scene.wait_for(lambda: scene.exists("after_go"))
    assert begun() == 2
    assert f"pid {inspect(scene.directory / 'licence').holders[0].pid}" in run.text
    # A permit of another comes free, and one more is started while the workflow's own two go on.
    others.release()
    scene.wait_for(lambda: len(list(scene.directory.glob("held.*"))) == 3)
    assert begun() == 3
    scene.write("end", "")
    run.end(0)
    assert " waits to read " not in run.text
    others.release()


def test_a_permit_is_given_back_when_a_job_fails_and_waited_for_no_longer_than_its_timeout(scene: Scene) -> None:
    scene.snakefile(
        """
        rule fail:
            output: "x"
            resources: licence=limited("licence", 1, timeout=float(config["timeout"]))
            shell: "{see} {rule} licence; exit 3"
        """
    )
    path = Path(scene.directory / "licence")
    scene.run("--config", "timeout=60", code=1)
    assert scene.seen("fail") == {"licence": ["read"]}
    with SoftReadWriteLock(path).write_lock(timeout=0):
        assert "gave up waiting for its locks" in scene.run("--config", "timeout=1", code=1)
    with SoftSemaphore(path, 2):
        text = scene.run("--config", "timeout=60", code=1)
    assert "is asked for by at most 1 at a time here, but process" in text
