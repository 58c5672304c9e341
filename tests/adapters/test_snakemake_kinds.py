"""Every kind of rule, on local cores and on a cluster: the right locks are held while the job runs, and only then."""

from __future__ import annotations

import os

import pytest

from adapters.snakemake_scene import Scene, scene

__all__ = ["scene"]

WORKFLOW = """
KINDS = ["shell", "run", "script", "wrapper", "benchmark", "retried", "group_2", "checked", "piped", "unpacked"]
localrules: all, pour, drink

rule all:
    input: expand("out/{kind}.txt", kind=KINDS)

rule shell:
    input: shared_read("ref/in.txt")
    output: exclusive("out/shell.txt")
    shell: "{see} {rule} {input} out/shell.txt; cat {input} > {output}"

rule run:
    input: shared_read("ref/in.txt")
    output: exclusive("out/run.txt")
    run:
        shell("{see} run {input} out/run.txt")
        with open(output[0], "w") as file:
            file.write(open(input[0]).read())

rule script:
    input: shared_read(["ref/in.txt", "ref/more.txt"], lock="ref/{name}.set")
    output: exclusive("out/{name,script}.txt")
    script: "script.py"

rule wrapper:
    input: shared_read(lambda wildcards: "ref/in.txt")
    output: exclusive("out/wrapper.txt")
    wrapper: "file:wrap"

rule benchmark:
    input: shared_read("ref/in.txt")
    output: exclusive("out/benchmark.txt")
    benchmark: repeat("bench.tsv", 2)
    shell: "{see} {rule}_$(ls seen | grep -c benchmark) {input} out/benchmark.txt; cat {input} > {output}"

rule retried:
    input: shared_read("ref/in.txt")
    output: exclusive("out/retried.txt")
    retries: 1
    resources: attempt=lambda wildcards, attempt: attempt
    shell:
        "{see} {rule}_{resources.attempt} {input} out/retried.txt; echo half > {output}; "
        "[ {resources.attempt} = 2 ] && cat {input} > {output}"

rule group_1:
    input: shared_read("ref/in.txt")
    output: exclusive("out/group_1.txt")
    group: "together"
    shell: "{see} {rule} {input} out/group_1.txt; cat {input} > {output}"

rule group_2:
    input: ancient(shared_read("out/group_1.txt"))
    output: exclusive("out/group_2.txt")
    group: "together"
    shell: "{see} {rule} {input} out/group_2.txt; cat {input} > {output}"

# Not beside these: Snakemake 9.1 and 9.13, also without locks, may forget to retry or run a group twice when a
# checkpoint ends.
checkpoint check:
    input: shared_read("ref/in.txt"), after=["out/retried.txt", "out/group_2.txt"]
    output: exclusive(directory("out/check"))
    shell: "{see} {rule} {input[0]} out/check; mkdir {output}; cat {input[0]} > {output}/one"

def checked(wildcards):
    return checkpoints.check.get().output[0] + "/one"

rule checked:
    input: shared_read(checked)
    output: exclusive("out/checked.txt")
    shell: "{see} {rule} {input} out/checked.txt; cat {input} > {output}"

rule pour:
    input: shared_read("ref/in.txt")
    output: pipe("out/pipe")
    shell: "{see} {rule} {input}; cat {input} > {output}"

rule drink:
    input: "out/pipe", also=shared_read("ref/in.txt")
    output: exclusive("out/piped.txt")
    shell: "{see} {rule} {input.also} out/piped.txt; cat {input[0]} > {output}"

rule unpacked:
    input: unpack(lambda wildcards: {"one": shared_read("ref/in.txt")}), also=shared_read(multiext("ref/", "in.txt"))
    output: exclusive("out/unpacked.txt")
    shell: "{see} {rule} {input.one} out/unpacked.txt; cat {input.one} > {output}"
"""
SCRIPT = """
import os
os.system("sh see script ref/script.set out/script.txt")
with open(snakemake.output[0], "w") as file:
    file.write(open(snakemake.input[0]).read())
"""
WRAPPER = """
from snakemake.shell import shell
shell("sh see wrapper {snakemake.input} out/wrapper.txt; cat {snakemake.input} > {snakemake.output}")
"""
EXPECTED = {
    name: {"ref/in.txt": ["read"], f"out/{name.partition('#')[0]}.txt": ["write"]}
    for name in ("shell", "run", "wrapper", "group_1", "unpacked")
} | {
    "script": {"ref/script.set": ["read"], "out/script.txt": ["write"]},
    "benchmark_0": {"ref/in.txt": ["read"], "out/benchmark.txt": ["write"]},
    "benchmark_1": {"ref/in.txt": ["read"], "out/benchmark.txt": ["write"]},
    "retried_1": {"ref/in.txt": ["read"], "out/retried.txt": ["write"]},
    "retried_2": {"ref/in.txt": ["read"], "out/retried.txt": ["write"]},
    "group_2": {"out/group_1.txt": ["read"], "out/group_2.txt": ["write"]},
    "check": {"ref/in.txt": ["read"], "out/check": ["write"]},
    "checked": {"out/check/one": ["read"], "out/checked.txt": ["write"]},
    "pour": {"ref/in.txt": ["read"]},
    "drink": {"ref/in.txt": ["read"], "out/piped.txt": ["write"]},
}


@pytest.fixture
def workflow(scene: Scene) -> Scene:
    scene.snakefile(WORKFLOW)
    scene.write("script.py", SCRIPT)
    scene.write("wrap/wrapper.py", WRAPPER)
    scene.write("wrap/environment.yaml", "dependencies: []\n")
    scene.write("ref/in.txt", "data\n")
    scene.write("ref/more.txt", "data\n")
    return scene


def assert_all_was_locked(scene: Scene, main: int) -> set[int]:
    assert {name.removesuffix(".json") for name in os.listdir(scene.directory / "seen")} == set(EXPECTED)
    pids = set()
    for name, files in EXPECTED.items():
        found = {path: sorted(set(modes)) for path, modes in scene.seen(name).items()}
        assert found == files, name
        pids |= {holder["pid"] for state in scene.states(name) for holder in state["holders"]}
    kinds = ("shell", "run", "script", "wrapper", "benchmark", "retried", "group_2", "checked", "piped", "unpacked")
    assert [scene.read(f"out/{kind}.txt") for kind in kinds] == ["data\n"] * len(kinds)
    assert scene.locks() == [], "released"
    assert scene.litter() == []
    return pids


def test_each_kind_of_rule_holds_its_locks_on_local_cores(workflow: Scene) -> None:
    run = workflow.start("--cores", "4").end(0)
    pids = assert_all_was_locked(workflow, run.process.pid)
    # All were held by Snakemake's own process, but for the `run:` block, which has one of its own.
    assert run.process.pid in pids
    assert len(pids) == 2
    # Nothing is made again because of the flags; not because of their removal either.
    assert "Nothing to be done" in workflow.run()
    for name in ("Snakefile",):
        text = workflow.read(name).replace("lock_cache, shared_read", "lock_cache")
        text = text.replace("import exclusive,", "import exclusive as _e,").replace(
            "see =", "exclusive = lambda x: x\nshared_read = lambda x, lock=None: x\nsee ="
        )
        workflow.write(name, text)
    assert "Nothing to be done" in workflow.run()


def test_each_kind_of_rule_holds_its_locks_where_a_cluster_runs_it(workflow: Scene) -> None:
    # As a batch system does it: the submission returns at once, and the job is nobody's child.
    workflow.write("submit", 'setsid nohup sh "$1" > job.$$.log 2>&1 < /dev/null &\necho $$\n')
    run = workflow.start(
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh submit", "--jobs", "3"),
        *("--seconds-between-status-checks", "1", "--latency-wait", "20"),
    ).end(0)
    pids = assert_all_was_locked(workflow, run.process.pid)
    assert len(pids) >= 9, "each job's lock is held by the process that runs it"
    for name in set(EXPECTED) - {"pour", "drink"}:  # these two run locally
        holders = [holder for state in workflow.states(name) for holder in state["holders"]]
        assert run.process.pid not in {holder["pid"] for holder in holders if holder["mode"] == "write"}, name
