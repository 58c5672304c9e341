"""How jobs on Slurm end that do not end well: what becomes of their locks and of the old output."""

from __future__ import annotations

import time

from adapters.snakemake_ticking import assert_nothing_happened, interrupt, is_ticking, start_ticking
from nfsrwlock import inspect
from slurm.cluster import KILL_WAIT_S, Job
from slurm.scene import SlurmScene

#: Short enough to wait for it; the default is 90.
LEASE_S = 6


def start(scene: SlurmScene, *arguments: str) -> Job:
    """Start a job that makes ref/out, reading ref/in, and does not end; return it."""
    start_ticking(scene, "ref/out", *arguments)
    (job,) = scene.jobs()
    assert {holder.host for name in ("in", "out") for holder in inspect(scene.directory / "ref" / name).holders} == {
        job.node
    }
    return job


def has_ended(scene: SlurmScene) -> bool:
    """Whether the job works no more; a process that has left it may, where Slurm has no control groups."""
    before = scene.read("ticks")
    time.sleep(0.4)
    return scene.read("ticks") == before


def take(scene: SlurmScene, node: str, timeout_s: float) -> tuple[int, float]:
    """Ask for the lock on ref/out from a node, as another user's program would; return the exit code and the time."""
    began = time.monotonic()
    process = scene.on(node, "nfsrwlock", "run", "--write", "ref/out", "--timeout", f"{timeout_s}", "--", "true")
    output, _ = process.communicate(timeout=timeout_s + 30)
    assert process.returncode in (0, 75), output
    return process.returncode, time.monotonic() - began


def test_the_lock_of_a_dead_node_is_had_on_another_one_after_the_lease(scene: SlurmScene) -> None:
    scene.environment["NFSRWLOCK_STALE_THRESHOLD"] = str(LEASE_S)
    job = start(scene)
    scene.cluster.node(job.node).kill()
    other = next(name for name in scene.cluster.names if name != job.node)
    code, waited = take(scene, other, 60)
    assert code == 0
    assert LEASE_S < waited < LEASE_S + 10
    assert scene.read("ref/out") == "old\n"
    assert not is_ticking(scene)
    (scene.directory / "ticks").unlink()
    # Slurm starts the job again, on the node that is left. It finds the way free.
    scene.wait_for(lambda: [(one.id, one.node) for one in scene.jobs()] == [(job.id, other)])
    scene.wait_for(lambda: [holder.host for holder in inspect(scene.directory / "ref/out").holders] == [other])
    scene.wait_for(lambda: scene.exists("ticks"))
    scene.cluster.run("scancel", job.id)
    scene.wait_for(lambda: not inspect(scene.directory / "ref/out").holders)
    assert scene.litter() == [], "what the first attempt had begun is removed, too"
    scene.clean_up()
    assert_nothing_happened(scene)


def test_a_cancelled_job_cleans_up_under_its_lock_and_releases_it(scene: SlurmScene) -> None:
    job = start(scene)
    # Whoever asks has to wait, also where the number of the holder's process is nobody's, or somebody else's.
    for node in scene.cluster.names:
        assert take(scene, node, 2)[0] == 75
    assert len(scene.locks()) == 2
    scene.cluster.run("scancel", job.id)
    began = time.monotonic()
    while scene.locks():
        held, begun = scene.locks(), scene.litter()  # in this order: it may be cleaned up, then released, in between
        assert not begun or any(name.startswith("ref/out") for name in held)
        assert time.monotonic() - began < KILL_WAIT_S, "long before Slurm would kill it"
    assert scene.litter() == []
    scene.clean_up()  # with it, the process that had left its job
    assert_nothing_happened(scene)


def test_a_cancelled_job_that_does_not_listen_leaves_a_lock_that_its_node_knows_to_be_free(scene: SlurmScene) -> None:
    scene.environment["BASH_ENV"] = str(scene.write("deaf", "trap '' TERM\n"))
    job = start(scene)
    scene.cluster.run("scancel", job.id)
    scene.wait_for(lambda: not inspect(scene.directory / "ref/out").holders or has_ended(scene))
    assert len(scene.locks()) == 2, "nobody was left to release them"
    other = next(name for name in scene.cluster.names if name != job.node)
    assert take(scene, other, 2)[0] == 75
    code, waited = take(scene, job.node, 30)
    assert code == 0
    assert waited < 20, "long before the lease has run out"
    assert scene.read("ref/out") == "old\n"


def test_ctrl_c_cancels_the_jobs_and_frees_the_locks(scene: SlurmScene) -> None:
    start(scene)
    interrupt(scene.runs[0])
    scene.wait_for(lambda: not scene.locks())
    assert scene.litter() == []
    scene.clean_up()
    assert_nothing_happened(scene)
