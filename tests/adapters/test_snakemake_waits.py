"""What Snakemake's log says at the end of a workflow: the longest waits of its jobs for locks, and for whom."""

from __future__ import annotations

import os
import re
import time
from importlib.metadata import version

import pytest
from packaging.version import Version

from adapters.snakemake_scene import LONG, Run, Scene, scene
from nfsrwlock import SoftReadWriteLock
from nfsrwlock.snakemake import messages

__all__ = ["scene"]

#: At the head of a Snakefile: a second is worth naming, not only a minute.
SHORT = """
from nfsrwlock.snakemake import messages
messages._AGAIN_S = 1.0
"""
#: One job takes its locks in Snakemake's own process, one in a process of its own, and one does not wait.
WORKFLOW = """
rule all:
    input: "in-thread", "in-process", "at-once"
rule shell:
    input: shared_read("ref")
    output: "in-thread"
    shell: "touch {output}"
rule python:
    input: shared_read("ref")
    output: "in-process"
    run:
        open(output[0], "w").close()
rule other:
    input: shared_read("free")
    output: "at-once"
    shell: "touch {output}"
"""
ON_A_CLUSTER = (
    *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh submit", "--jobs", "3"),
    *("--seconds-between-status-checks", "1", "--latency-wait", "20"),
)


@pytest.fixture
def workflow(scene: Scene) -> Scene:
    for name in ("ref", "free"):
        scene.write(name, "")
    scene.snakefile(SHORT + WORKFLOW)
    return scene


def summary(run: Run) -> list[str]:
    return re.findall(r"nfsrwlock: the longest waits for locks, (.*)", run.text)


def waiting(scene: Scene) -> set[str]:
    """The rules whose jobs have told that they wait, in whatever log."""
    logs = "".join(log.read_text(errors="replace") for log in scene.directory.glob("*log*"))
    return set(re.findall(r"\(rule (\w+)\) waits to read", logs))


def left(scene: Scene) -> list[str]:
    """What is left of the notes."""
    return [path.name for path in (scene.directory / ".snakemake").glob("nfsrwlock*")]


@LONG
@pytest.mark.parametrize("arguments", [("-c3",), ON_A_CLUSTER], ids=["local", "cluster"])
def test_the_log_ends_with_the_longest_waits(workflow: Scene, arguments: tuple[str, ...]) -> None:
    # As a batch system does it: the submission returns at once, and what the job prints goes elsewhere.
    workflow.write("submit", 'setsid nohup sh "$1" > job.$$.log 2>&1 < /dev/null &\necho $$\n')
    path = workflow.directory / "ref"
    with SoftReadWriteLock(path).write_lock():
        run = workflow.start(*arguments)
        workflow.wait_for(lambda: waiting(workflow) == {"shell", "python"})
        assert left(workflow) == []
    run.end(0)
    lines = summary(run)
    seen = rf"waits to read {re.escape(str(path))}, (.+) s so far, .*: .* pid {os.getpid()}, writing since .*"
    found = [re.fullmatch(rf"{n} of 2, as last seen: job \d+ \(rule (\w+)\) {seen}", lines[n - 1]) for n in (1, 2)]
    assert {match and match[1] for match in found} == {"shell", "python"}, lines
    assert all(float(match[2]) >= 1 for match in found if match)
    assert left(workflow) == []


@LONG
def test_the_wait_of_a_job_that_gave_up_is_named_with_quiet_too_and_less_than_a_minute_is_not(
    workflow: Scene,
) -> None:
    with SoftReadWriteLock(workflow.directory / "ref").write_lock():
        long = workflow.start("in-thread", "--quiet", "all", NFSRWLOCK_TIMEOUT="2").end(1)
        (line,) = summary(long)
        assert "(rule shell) waits to read" in line
        workflow.snakefile(WORKFLOW)
        short = workflow.start("in-thread", NFSRWLOCK_TIMEOUT="2").end(1)
    assert "gave up waiting for its locks" in short.text
    assert summary(short) == []
    assert left(workflow) == []


@LONG
@pytest.mark.skipif(Version(version("snakemake")) < Version("9.11"), reason="before 9.11")
def test_what_kept_the_scheduler_from_starting_a_job_is_named(workflow: Scene) -> None:
    with SoftReadWriteLock(workflow.directory / "ref").write_lock():
        run = workflow.start("in-thread", "--scheduler", "nfsrwlock")
        workflow.wait_for(lambda: "waits for the lock on" in run.text)
        time.sleep(2)
    run.end(0)
    assert "waits to read" not in run.text
    (line,) = summary(run)
    path = re.escape(str(workflow.directory / "ref"))
    told = rf"job \d+ \(rule shell\) waited [\d.]+ s for the lock on {path} to start: .* pid {os.getpid()}, writing"
    assert re.match(rf"1 of 1, as last seen: {told}", line), line


def test_a_wait_that_cannot_be_written_down_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFSRWLOCK_SNAKEMAKE_WAITS", "/dev/null/nowhere")
    messages.note(90.0, "job 1 waits")
