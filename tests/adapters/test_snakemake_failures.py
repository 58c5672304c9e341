"""A job that fails changes nothing: not by paths that it makes up itself, not by links, not when it is cut off."""

from __future__ import annotations

import json
import os
import signal

from adapters.snakemake_scene import LONG, Scene, scene
from nfsrwlock import SoftReadWriteLock, prune

__all__ = ["scene"]

pytestmark = LONG

PARAMS = """
from pathlib import Path
rule index:
    output: exclusive("ref/deep/p.1.idx"), exclusive("ref/deep/p.2.idx")
    params:
        prefix=lambda wildcards, output: output[0][:-6],
        many=lambda wildcards, output: [os.path.dirname(output[0]), Path(output[0]).parent.name],
        name=lambda wildcards, output: Path(output[0]).parent.name,
        outer=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])) + "/deep",
        number=lambda wildcards, output: len(output),
    shell:
        "printf '%s\\n' {params.prefix} {params.many[0]} {params.many[1]} {params.name} {params.outer} {params.number}"
        " > seen.txt; for i in 1 2; do echo {config[text]} > {params.prefix}.$i.idx; done; {config[end]}"
"""


def test_params_that_are_made_from_exclusive_outputs_are_private_like_them(scene: Scene) -> None:
    scene.snakefile(PARAMS)
    (made, text), (failed, _) = scene.many("--config text=old end=true", "-F --config text=new end=false")
    assert made == 0, text
    assert failed == 1
    assert [scene.read(f"ref/deep/p.{i}.idx") for i in "12"] == ["old\n"] * 2
    prefix, *rest = scene.read("seen.txt").splitlines()
    assert prefix.startswith("ref/deep/.p.1.idx.nfsrwlock/")
    private = os.path.dirname(prefix)
    # What names no private directory is as it would be without: a sample's name, say.
    assert rest == [private, "deep", "deep", "ref/deep", "2"]
    assert scene.litter() == []


LITERAL = """
rule all:
    input: "ref/new", "ref/old", "ref/dir"
rule new:
    output: exclusive("ref/new")
    shell: "echo half > ref/new; exit 1"
rule old:
    output: exclusive("ref/old")
    shell: "echo half > ref/old; exit {config[code]}"
rule dir:
    output: exclusive(directory("ref/dir"), lock="ref/set")
    shell: "echo half > ref/dir/deep/down; exit 1"
"""


def test_what_a_failed_job_wrote_to_the_real_path_does_not_count_as_made(scene: Scene) -> None:
    scene.snakefile(LITERAL)
    scene.write("ref/old", "old\n")
    scene.write("ref/dir/deep/down", "old\n")
    (code, text), (kept, _) = scene.many("-k -F --config code=0", "-F ref/new --keep-incomplete --config code=0")
    assert (code, kept) == (1, 1)
    for path in ("new", "old", "dir"):
        assert f"ref/{path} is unfinished and was removed" in text
        assert not scene.exists(f"ref/{path}")
    (left,) = scene.litter()
    assert [path.read_text() for path in scene.directory.glob(f"{os.path.relpath(left, scene.directory)}/*/new")] == [
        "half\n"
    ], "--keep-incomplete keeps it, where it cannot be taken for whole"


CUT_OFF = """
rule all:
    input: "ref/read", "ref/made", "ref/other"
rule make:
    wildcard_constraints: name="read|made|other"
    output: exclusive("ref/{name}", once=True)
    shell: "echo half > ref/{wildcards.name}; touch begun.{wildcards.name}; sleep 300"
"""
READING = """
rule read:
    input: shared_read("ref/{name}")
    output: "{name}.copy"
    shell: "cp {input} {output}"
"""


def test_what_a_job_that_was_killed_wrote_to_the_real_path_is_removed_by_the_next_holder(scene: Scene) -> None:
    scene.snakefile(CUT_OFF)
    scene.snakefile(READING, "reading.smk")
    scene.snakefile(CUT_OFF.replace("echo half > ref/{wildcards.name};", "exit 1;"), "failing.smk")
    scene.snakefile(
        CUT_OFF.replace("sleep 300", "").replace("echo half > ref/{wildcards.name}", "echo whole > {output}")
    )
    scene.snakefile(CUT_OFF, "cut_off.smk")
    run = scene.start("-c3", "-s", "cut_off.smk")
    scene.wait_for(lambda: all(scene.exists(f"begun.{name}") for name in ("read", "made", "other")))
    run.kill(signal.SIGKILL)
    run.end()
    with SoftReadWriteLock(scene.directory / "ref/other").write_lock(timeout=60):
        scene.write("ref/other", "another's\n")
    (scene.directory / "b").mkdir()
    (scene.directory / "b/ref").symlink_to("../ref")  # another workflow, which knows nothing of the first
    (read, text), (failed, report), (made, _), (again, plan), (stale, _) = scene.many(
        "-s reading.smk read.copy --nolock",
        "-s failing.smk -d b ref/made -F",
        "-d b ref/made",
        "ref/made --nolock",
        "-s reading.smk other.copy --nolock",
    )
    assert read == 1
    assert "ref/read: an earlier job was cut off while it wrote there. Run the workflow again" in text
    assert not scene.exists("ref/read")
    assert failed == 1
    assert "ref/made is unfinished and was removed" in report
    assert made == 0
    assert scene.read("ref/made") == "whole\n"
    assert again == 0, "it was cut off, but somebody has made the file since"
    assert "Nothing to be done" in plan
    assert stale == 0, "what was written under a later grant is another's"
    assert scene.read("other.copy") == "another's\n"


def test_pruning_keeps_what_is_known_of_a_job_that_was_cut_off(scene: Scene) -> None:
    """The number under which it wrote would come again, and what somebody else wrote then be taken for its own."""
    scene.snakefile(CUT_OFF, "cut_off.smk")
    scene.snakefile(READING, "reading.smk")
    run = scene.start("-s", "cut_off.smk", "ref/other")
    scene.wait_for(lambda: scene.exists("begun.other"))
    run.kill(signal.SIGKILL)
    run.end()
    other = scene.directory / "ref/other"
    assert prune(other, unused_s=0) == "something else is in it"
    with SoftReadWriteLock(other).write_lock(timeout=60):
        scene.write("ref/other", "another's\n")
    ((code, text),) = scene.many("-s reading.smk other.copy --nolock")
    assert code == 0, text
    assert scene.read("other.copy") == "another's\n"


LINKS = """
rule all:
    input: "out/link", "out/absolute", "out/db", "out/tree", "out/other", "out/two"
rule link:
    output: exclusive("out/link")
    shell: "ln -sr ref/in {output}"
rule absolute:
    output: exclusive("out/absolute"), exclusive("out/target")
    shell: "echo new > {output[1]}; ln -s $(realpath {output[1]}) {output[0]}"
rule db:
    output: exclusive(directory("out/db"))
    shell: "mkdir -p {output}/deep; ln -sr ref/in {output}/deep/in"
rule other:
    output: exclusive("out/other")
    shell: "ln -s ../nowhere {output}"
rule two:
    output: exclusive("out/two"), "out/three"
    shell: "echo new > {output[0]}"
rule tree:
    output: exclusive(directory("out/tree")), exclusive("out/right"), exclusive("out/real")
    shell:
        "mkdir {output[0]}; ln -s ../right {output[0]}/up; ln -s up {output[0]}/two;"
        " ln -s $(realpath ref/in) {output[0]}/in;"
        " ln -s gone {output[0]}/gone; ln -s ../real {output[0]}/moved;"
        " ln -s ../ref/in {output[1]}; echo real > {output[2]}"
"""


def test_an_output_that_would_lead_nowhere_from_its_place_is_refused_before_anything_is_replaced(scene: Scene) -> None:
    scene.snakefile(LINKS)
    scene.write("ref/in", "data\n")
    old = ("link", "absolute", "target", "db/deep/in", "other", "two")
    for name in old:
        scene.write(f"out/{name}", "old\n")
    ((code, text),) = scene.many("-k -F")
    assert code == 1
    for link, target in (("out/link", "../../../ref/in"), ("out/db/deep/in", "../../../../../ref/in")):
        assert f"has made '{link}' a symbolic link to '{target}'" in text
    assert "has made 'out/absolute' a symbolic link to" in text
    assert "has made 'out/other' a symbolic link to '../nowhere'" in text
    assert 'ln -s "$(realpath {input})" {output}' in text
    assert "has not made its output 'out/three'" in text, "a job whose other outputs are missing fails, too"
    assert [scene.read(f"out/{name}") for name in old] == ["old\n"] * len(old)
    assert scene.read("out/tree/two") == scene.read("out/right") == scene.read("out/tree/in") == "data\n"
    assert scene.read("out/tree/moved") == "real\n"
    assert scene.litter() == []


def test_files_beside_the_outputs_are_put_back_if_the_outputs_cannot_be_replaced(scene: Scene) -> None:
    scene.snakefile(
        """
        replace = os.replace
        def full(source, target):
            if str(target) == "ref/one":
                raise OSError(28, "No space left on device")
            replace(source, target)
        os.replace = full
        rule one:
            output: exclusive("ref/one")
            shell: "echo new > {output}; echo new > {output}.log; echo new > {output}.idx"
        """
    )
    for name in ("one", "one.log"):
        scene.write(f"ref/{name}", "old\n")
    ((code, text),) = scene.many("-F")
    assert code == 1
    assert "No space left on device" in text
    assert [scene.read(f"ref/{name}") for name in ("one", "one.log")] == ["old\n"] * 2
    assert not scene.exists("ref/one.idx")
    assert scene.litter() == []


def test_a_made_up_record_costs_no_file_that_is_not_the_job_s(scene: Scene) -> None:
    """Whoever may write beside the lock may write the record, too, or put a link in its place."""
    scene.snakefile('rule a:\n    output: exclusive("ref/a")\n    shell: "echo new > {output}"')
    scene.write("precious", "mine\n")
    precious = str(scene.directory / "precious")
    os.makedirs(scene.directory / "ref/a.rwlock", 0o700)
    scene.write("ref/a.rwlock/before", json.dumps({"generation": 0, "before": {precious: "otherwise"}}))
    ((code, text),) = scene.many("")
    assert code == 0, text
    assert scene.read("precious") == "mine\n"
    os.symlink(precious, scene.directory / "ref/a.rwlock/before")
    ((code, text),) = scene.many("-F")
    assert code == 0, text
    assert scene.read("precious") == "mine\n"
    for generation, before in enumerate((7, [precious], None), start=2):
        scene.write("ref/a.rwlock/before", json.dumps({"generation": generation, "before": before}))
        ((code, text),) = scene.many("-F")
        assert code == 0, text
