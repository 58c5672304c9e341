"""`storage.nfsrwlock` on two nodes: each makes its own copy, under the lock, and keeps it."""

from __future__ import annotations

from pathlib import Path

from nfsrwlock import SoftReadWriteLock
from slurm.scene import SlurmScene

WORKFLOW = """
rule all:
    input: [storage.nfsrwlock(f"{top}/out.{i}") for i in (1, 2)]
rule each:
    input: storage.nfsrwlock(f"{top}/ref.fa", keep_local=True)
    output: storage.nfsrwlock(top + "/out.{i}")
    resources: slurm_extra=lambda wildcards: f"'--nodelist=node{wildcards.i}'"
    shell: "(uname -n; echo {input}; cat {input}) > {output}"
"""


def test_each_node_makes_its_copy_under_the_lock(scene: SlurmScene) -> None:
    scene.write("ref.fa", "one half, ")
    scene.write("work/Snakefile", f"top = {str(scene.directory)!r}\n{WORKFLOW}")
    with SoftReadWriteLock(scene.directory / "ref.fa").write_lock():
        run = scene.start(
            *("--shared-fs-usage", "persistence", "software-deployment", "sources", "source-cache"),
            *("--default-storage-provider", "nfsrwlock", "--default-storage-prefix", f"{scene.directory}/work"),
            *("--remote-job-local-storage-prefix", f"{scene.directory}/scratch/$SLURMD_NODENAME"),
            directory="work",
        )
        # Both wait on their nodes, and the submitting Snakemake does not.
        scene.wait_for(lambda: sum("Retrieving from storage" in log.read_text() for log in logs(scene)) == 2)
        with (scene.directory / "ref.fa").open("a") as file:
            file.write("the other half")
    run.end(0)
    for number in "12":
        copy = f"{scene.directory}/scratch/node{number}/nfsrwlock{scene.directory}/ref.fa"
        assert scene.read(f"out.{number}") == f"node{number}\n{copy}\none half, the other half"
        assert Path(copy).read_text() == "one half, the other half"
    assert scene.read("ref.fa") == "one half, the other half"
    assert scene.locks() == []


def logs(scene: SlurmScene) -> list[Path]:
    return list((scene.directory / "work/.snakemake/slurm_logs").rglob("*.log"))
