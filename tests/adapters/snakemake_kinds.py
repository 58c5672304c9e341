"""A workflow with a rule of every kind, each of which notes who holds its locks while it runs."""

from __future__ import annotations

import os

from adapters.snakemake_scene import Scene

WORKFLOW = """
KINDS = ["shell", "run", "script", "wrapper", "benchmark", "retried", "group_2", "checked", "piped", "unpacked"]
localrules: all{local}

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
    input:
        shared_read(checked),
        all=shared_read(lambda wildcards: checkpoints.check.get().output),
        plain=lambda wildcards: checkpoints.check.get().output[0],
    output: exclusive("out/checked.txt")
    shell: "{see} {rule} {input[0]} {input.all} out/checked.txt; cat {input[0]} > {output}"

rule pour:
    input: shared_read("ref/in.txt")
    output: pipe("out/pipe")
    shell: "{see} {rule} {input}; cat {input} > {output}"

rule drink:
    input: "out/pipe", also=shared_read("ref/in.txt")
    output: exclusive("out/piped.txt")
    shell: "{see} {rule} {input.also} out/piped.txt; cat {input[0]} > {output}"

rule unpacked:
    input:
        unpack(lambda wildcards: {"one": shared_read("ref/in.txt")}),
        unpack(shared_read(lambda wildcards: {"two": "ref/two.txt"})),
        shared_read(unpack(lambda wildcards: {"three": ["ref/three.txt"]})),
        also=shared_read(multiext("ref/", "in.txt")),
    output: exclusive("out/unpacked.txt")
    shell: "{see} {rule} {input.one} {input.two} {input.three} out/unpacked.txt; cat {input.one} > {output}"
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
    for name in ("shell", "run", "wrapper", "group_1")
} | {
    "unpacked": {f"ref/{name}.txt": ["read"] for name in ("in", "two", "three")} | {"out/unpacked.txt": ["write"]},
    "script": {"ref/script.set": ["read"], "out/script.txt": ["write"]},
    "benchmark_0": {"ref/in.txt": ["read"], "out/benchmark.txt": ["write"]},
    "benchmark_1": {"ref/in.txt": ["read"], "out/benchmark.txt": ["write"]},
    "retried_1": {"ref/in.txt": ["read"], "out/retried.txt": ["write"]},
    "retried_2": {"ref/in.txt": ["read"], "out/retried.txt": ["write"]},
    "group_2": {"out/group_1.txt": ["read"], "out/group_2.txt": ["write"]},
    "check": {"ref/in.txt": ["read"], "out/check": ["write"]},
    "checked": {"out/check/one": ["read"], "out/check": ["read"], "out/checked.txt": ["write"]},
    "pour": {"ref/in.txt": ["read"]},
    "drink": {"ref/in.txt": ["read"], "out/piped.txt": ["write"]},
}


def set_up(scene: Scene, local: str = "") -> None:
    """
    Write the workflow.

    :param local: rules that are not for a cluster
    """
    scene.snakefile(WORKFLOW.replace("{local}", local))
    scene.write("script.py", SCRIPT)
    scene.write("wrap/wrapper.py", WRAPPER)
    scene.write("wrap/environment.yaml", "dependencies: []\n")
    scene.write("ref/in.txt", "data\n")
    for name in ("more", "two", "three"):
        scene.write(f"ref/{name}.txt", "data\n")


def assert_all_was_locked(scene: Scene) -> set[tuple[str, int]]:
    """All jobs held their locks, and nobody holds any now; returns who held them, by host and process."""
    assert {name.removesuffix(".json") for name in os.listdir(scene.directory / "seen")} == set(EXPECTED)
    who = set()
    for name, files in EXPECTED.items():
        found = {path: sorted(set(modes)) for path, modes in scene.seen(name).items()}
        assert found == files, name
        who |= holders(scene, name)
    kinds = ("shell", "run", "script", "wrapper", "benchmark", "retried", "group_2", "checked", "piped", "unpacked")
    assert [scene.read(f"out/{kind}.txt") for kind in kinds] == ["data\n"] * len(kinds)
    assert scene.locks() == [], "released"
    assert scene.litter() == []
    return who


def holders(scene: Scene, name: str, *modes: str) -> set[tuple[str, int]]:
    """Who held the locks of a job, by host and process; in some modes, or in all."""
    return {
        (holder["host"], holder["pid"])
        for state in scene.states(name)
        for holder in state["holders"]
        if not modes or holder["mode"] in modes
    }
