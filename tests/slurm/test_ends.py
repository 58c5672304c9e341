"""How jobs on Slurm end that do not end well."""

from __future__ import annotations

from adapters.snakemake_ticking import start_ticking
from slurm.scene import SlurmScene


def test_experiment(scene: SlurmScene) -> None:
    import time

    run = start_ticking(scene, "ref/out")
    print(scene.jobs(), scene.locks())
    job, = scene.jobs()
    began = time.time()
    scene.cluster.run("scancel", job.id)
    while scene.locks() or scene.litter() or scene.jobs():
        print(round(time.time() - began, 2), scene.locks(), scene.litter(), scene.jobs(), len(scene.processes()))
        time.sleep(0.3)
        if time.time() - began > 25:
            break
    print(round(time.time() - began, 2), scene.locks(), scene.litter(), scene.jobs(), scene.processes())
    for pid in scene.processes():
        print(pid, open(f"/proc/{pid}/cmdline").read()[:100])
    print(run.text)
    for log in (scene.directory / ".snakemake/slurm_logs").rglob("*.log"):
        print(log.read_text())
    assert 0
