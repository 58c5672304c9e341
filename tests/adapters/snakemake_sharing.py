"""Workflows that share what they make: an index that is built once, and Snakemake's cache between workflows."""

from __future__ import annotations

import os
from collections import Counter

from adapters.snakemake_scene import Scene

ONCE = """
rule all:
    input: "done"
rule index:
    input: ref=shared_read("../ref/in")
    output: exclusive("../ref/idx", once=True), exclusive(directory("../ref/idx.d"), once=True)
    {kind}
rule use:
    input: "../ref/idx", "../ref/idx.d"
    output: touch("done")
"""
BY_SHELL = 'shell: "echo built >> ../built; cp {input} {output[0]}; mkdir {output[1]}"'
BY_RUN = 'run: shell("echo built >> ../built; cp {input} {output[0]}; mkdir {output[1]}")'

#: Whoever computes does so until a file says that it is enough.
CACHED = """
lock_cache(timeout=100)
wait = "while [ ! -e ../enough ]; do sleep 0.1; done"
rule all:
    input: "one.txt", "dir", "a.idx", "b.idx"
rule one:
    output: "one.txt"
    cache: True
    shell: "echo one >> ../computed; {wait}; echo data > {output}"
rule directory:
    output: directory("dir")
    cache: True
    run: shell("echo dir >> ../computed; {wait}; mkdir {output}; echo data > {output}/x")
rule several:
    output: multiext("", "a.idx", "b.idx")
    cache: True
    shell: "echo several >> ../computed; {wait}; for f in {output}; do echo $f > $f; done"
"""


def compute_at_once(scene: Scene, names: str, *arguments: str) -> None:
    """Start workflows that share a cache; each thing must be computed by one of them, and the cache be as it should."""
    scene.write("cache/.keep", "")
    for name in names:
        scene.snakefile(CACHED, f"{name}/Snakefile")
    environment = {"SNAKEMAKE_OUTPUT_CACHE": str(scene.directory / "cache")}
    runs = [scene.start("--cache", *arguments, directory=name, **environment) for name in names]
    scene.wait_for(lambda: _have_met(scene, len(names)))
    scene.write("enough", "")
    for run in runs:
        run.end(0)
    assert sorted(scene.read("computed").split()) == ["dir", "one", "several"]
    for name in names:
        assert scene.read(f"{name}/one.txt") == scene.read(f"{name}/dir/x") == "data\n"
        assert scene.read(f"{name}/b.idx") == "b.idx\n"
    entries = [name for name in os.listdir(scene.directory / "cache") if not name.endswith((".rwlock", ".keep"))]
    assert len(entries) == 4
    assert not any((scene.directory / "cache" / name / "dir").exists() for name in entries), "no directory in another"


def _have_met(scene: Scene, count: int) -> bool:
    # In all workflows, something is being computed, or waits for the lock on the entry of it in the cache.
    computed = Counter(scene.read("computed").split() if scene.exists("computed") else [])
    asked = Counter(os.path.dirname(lock) for lock in scene.locks())
    return count in (*computed.values(), *asked.values())
