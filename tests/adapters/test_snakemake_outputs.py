"""Exclusive outputs: what readers see of them, what a failure leaves, and who makes them."""

from __future__ import annotations

import importlib.metadata
import os
import time

import pytest

from adapters.snakemake_scene import KNOWN_LOSS, LONG, Scene, scene
from adapters.snakemake_sharing import BY_RUN, BY_SHELL, CACHED, ONCE, compute_at_once
from nfsrwlock import SoftReadWriteLock

__all__ = ["scene"]

pytestmark = LONG
VERSION = tuple(int(number) for number in importlib.metadata.version("snakemake").split(".")[:2])
#: How often an output of each kind is rewritten while others read it; `make test-snakemake` does it more often.
REWRITES = {
    kind: int(os.environ.get("NFSRWLOCK_TEST_REWRITES", default)) for kind, default in (("file", 5), ("directory", 2))
}
#: Puts back what Snakemake does by itself. With it, the tests of this file must fail, and some check that they do.
#: The output is then missing until a reader has seen it, so that they meet for certain.
WITHOUT_REMOVAL = """
import time
from snakemake.jobs import Job
remove_existing_output = Job.remove_existing_output.__wrapped__
async def remove_for_a_while(self):
    await remove_existing_output(self)
    until = time.monotonic() + 60
    while os.path.exists("read") and not is_bad() and time.monotonic() < until:
        time.sleep(0.05)
Job.remove_existing_output = remove_for_a_while
"""
#: In the main process only: when the one that ran the job cleans up, nobody may have made the file yet.
WITHOUT_CLEAN_UP = """
from snakemake.jobs import Job
if workflow.is_main_process:
    Job.cleanup = Job.cleanup.__wrapped__
"""

#: The output, how to write the next line of it, and where its lines are then: five that are the same.
KINDS = {
    "file": ('"ref/set"', "echo $stamp >> {output}", "{input}"),
    "directory": ('directory("ref/set")', "mkdir -p {output}; echo $stamp > {output}/$i", "{input}/[1-5]"),
}
#: Makes a version after the one before has been read.
WRITER = """
import glob, os, time
def versions(pattern):
    return {line for path in glob.glob(pattern) for line in open(path)}
def is_bad():
    return os.path.exists("bad") or (os.path.exists("log.1") and "missing locally" in open("log.1").read())
while os.path.exists("read") and not is_bad() and not versions("LINES") <= versions("read/*"):
    time.sleep(0.05)
rule write:
    output: exclusive(OUTPUT)
    shell: "stamp=$(date +%s%N); for i in 1 2 3 4 5; do WRITE; sleep 0.03; done"
"""
READER = """
rule all:
    input: expand("read/{n}", n=range(int(config["reads"])))
rule read:
    input: ancient(shared_read("ref/set"))
    output: "read/{n}"
    shell:
        "[ ! -e stop ]; sleep 0.1; "
        "[ $(cat LINES | wc -l) = 5 ] && [ $(sort -u LINES | wc -l) = 1 ] || {{ touch bad; exit 1; }}; "
        "sort -u LINES > {output}"
"""


def rewrite_while_reading(scene: Scene, kind: str, rewrites: int, more: str = "") -> tuple[bool, int]:
    """Return whether a read was bad, and how many versions were read."""
    output, write, lines = KINDS[kind]
    writer = WRITER.replace("OUTPUT", output).replace("WRITE", write).replace("LINES", lines.format(input="ref/set"))
    scene.snakefile(more + writer, "writer.smk")
    scene.snakefile(READER.replace("LINES", lines), "reader.smk")
    scene.many("-s writer.smk")
    jobs = (
        "--config",
        f"reads={400 + 20 * rewrites}",
        "--nolock",
        "--max-jobs-per-timespan",
        "9999/1s",
        "--latency-wait",
        "0",
    )
    reader = scene.start("-s", "reader.smk", *jobs)
    scene.wait_for(lambda: any((scene.directory / "read").glob("*")))
    for code, text in scene.many(*["-s writer.smk -F --nolock"] * rewrites):
        assert code == 0, text

    def versions() -> int:
        return len({line for file in (scene.directory / "read").iterdir() for line in file.read_text().splitlines()})

    scene.wait_for(lambda: versions() > rewrites or reader.process.poll() is not None)
    scene.write("stop", "")
    reader.end(1)
    return scene.exists("bad") or "missing locally" in reader.text, versions()


@pytest.mark.timeout(400 + 10 * max(REWRITES.values()))
@pytest.mark.parametrize("kind", KINDS)
def test_readers_never_see_an_output_missing_or_half_written(scene: Scene, kind: str) -> None:
    bad, versions = rewrite_while_reading(scene, kind, REWRITES[kind])
    assert not bad, scene.runs[1].text[-3000:]
    assert versions == 1 + REWRITES[kind], "they met"
    assert scene.litter() == []


@pytest.mark.parametrize("kind", KINDS)
def test_that_test_fails_if_snakemake_removes_the_old_output(scene: Scene, kind: str) -> None:
    bad, _ = rewrite_while_reading(scene, kind, 3 if kind == "file" else 2, WITHOUT_REMOVAL)
    assert bad


FAILING = """
rule make:
    output: exclusive("../ref/x")
    shell: "echo begun; echo half > {output}; while [ ! -e ../go ]; do sleep 0.05; done; exit 1"
"""
MAKING = """
rule make:
    output: exclusive("../ref/x")
    shell: "echo whole > {output}"
"""


def fail_while_another_one_makes_it(scene: Scene, more: str) -> bool:
    """A fails on a cluster. Before its main process hears of that, B has the lock and has made the file."""
    scene.snakefile(more + FAILING, "a/Snakefile")
    scene.snakefile(MAKING, "b/Snakefile")
    scene.write("a/submit", 'setsid nohup sh "$1" > job.log 2>&1 < /dev/null &\necho $$\n')
    scene.write("a/status", "if [ -e ../told ]; then echo failed; else echo running; fi\n")
    a = scene.start(
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh submit", "--jobs", "1"),
        *("--cluster-generic-status-cmd", "sh status", "--seconds-between-status-checks", "1"),
        directory="a",
    )
    scene.wait_for(lambda: scene.exists("a/job.log") and "begun" in scene.read("a/job.log"))
    b = scene.start(directory="b")
    scene.wait_for(lambda: "waits to write" in b.text)
    assert "reading" not in b.text
    scene.write("go", "")
    b.end(0)
    assert a.process.poll() is None, "A's main process has not yet heard of the failure"
    scene.write("told", "")
    a.end(1)
    return scene.exists("ref/x") and scene.read("ref/x") == "whole\n"


def test_a_job_that_fails_leaves_what_another_workflow_has_made(scene: Scene) -> None:
    assert fail_while_another_one_makes_it(scene, "")
    assert "Removing output files" not in scene.runs[0].text
    assert scene.litter() == []


def test_that_test_fails_if_snakemake_cleans_up(scene: Scene) -> None:
    assert not fail_while_another_one_makes_it(scene, WITHOUT_CLEAN_UP)


def test_a_failure_leaves_the_old_output_and_the_wish_for_a_new_one(scene: Scene) -> None:
    rules = """
rule all:
    input: "ref/one", "ref/dir", "ref/a.idx", "ref/b.idx", "plain"
rule one:
    output: exclusive("ref/one"), "plain"
    shell: "echo {version} > {output[0]}; echo {version} > plain; {end}"
rule dir:
    output: exclusive(directory("ref/dir"))
    shell: "mkdir {output}; echo {version} > {output}/x; {end}"
rule several:
    output: exclusive(multiext("ref/", "a.idx", "b.idx"))
    shell:
        'd=$(dirname {output[0]}); echo {version} > $d/a.idx; echo side > $d/c.idx; [ {end} = true ]'
        ' && echo {version} > $d/b.idx'
"""
    scene.snakefile(rules.replace("{version}", "1").replace("{end}", "true"))
    scene.run()
    made = ("ref/one", "plain", "ref/dir/x", "ref/a.idx", "ref/b.idx")
    assert [scene.read(path) for path in made] == ["1\n"] * 5
    assert scene.read("ref/c.idx") == "side\n", "what is written beside an output is found beside it"
    assert scene.exists("ref/dir/.snakemake_timestamp")
    scene.snakefile(rules.replace("{version}", "2").replace("{end}", "false"))
    (failed, text), (kept, _), (_, plan) = scene.many("-k -F", "-k -F --keep-incomplete", "-n")
    assert (failed, kept) == (1, 1)
    _, _, removed = text.partition("Removing output files of failed job one")
    assert removed.splitlines()[1] == "plain", "and nothing else"
    old = ("ref/one", "ref/dir/x", "ref/a.idx", "ref/b.idx")
    assert [scene.read(path) for path in old] == ["1\n"] * 4, "as they were"
    assert scene.exists("plain"), "--keep-incomplete keeps what has no flag, as ever"
    assert len(scene.litter()) == 3, "and the private directories of the others"
    if VERSION >= (9, 13):  # before, Snakemake does not see that code has changed
        assert plan.count("Code has changed") >= 3, "failed code is not noted as that of the outputs"
    scene.snakefile(rules.replace("{version}", "3").replace("{end}", "true"))
    scene.run("-F", "--rerun-incomplete")
    assert [scene.read(path) for path in made] == ["3\n"] * 5
    assert scene.litter() == [], "what earlier runs have left is removed by the next"
    assert sorted(os.listdir(scene.directory / "ref/dir")) == [".snakemake_timestamp", "x"]


SEVERAL = """
rule several:
    output: exclusive("ref/a", stale_threshold=3), exclusive(directory("ref/b"), stale_threshold=3)
    shell: "echo {version} > {output[0]}; mkdir {output[1]}; echo {version} > {output[1]}/x"
"""
#: What happens when the first of these outputs is in its place, and the second is not.
BETWEEN = """
import os, signal, time
from nfsrwlock import break_lock
def error():
    raise OSError(28, "No space left on device")
def loss():
    break_lock("ref/a", force=True)
    wait_for_the_loss()
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
rename = os.rename
def rename_and_fail(source, target):
    rename(source, target)
    if target == "ref/a":
        os.rename = rename
        {fault}()
os.rename = rename_and_fail
"""


@pytest.mark.parametrize("fault", ["error", "loss", "kill"])
def test_no_output_is_lost_or_mixed_when_the_replacement_of_several_is_cut_off(scene: Scene, fault: str) -> None:
    scene.snakefile(SEVERAL.replace("{version}", "old"), "old.smk")
    scene.snakefile(SEVERAL.replace("{version}", "new"), "new.smk")
    scene.snakefile(KNOWN_LOSS + BETWEEN.replace("{fault}", fault) + SEVERAL.replace("{version}", "new"), "cut_off.smk")
    (made, text), (cut_off, report) = scene.many("-s old.smk", "-s cut_off.smk -F --nolock")
    assert made == 0, text
    assert cut_off == (-9 if fault == "kill" else 1), report
    if fault == "error":
        assert (scene.read("ref/a"), scene.read("ref/b/x")) == ("old\n", "old\n"), "all is as it was"
        assert scene.litter() == []
    else:
        assert scene.read("ref/a") == "new\n"
        assert not scene.exists("ref/b"), "no old one beside a new one"
        kept = sorted(scene.directory.rglob(".nfsrwlock-old.*"))
        assert [path.read_text() if path.is_file() else (path / "x").read_text() for path in kept] == ["old\n"] * 2
        if fault == "loss":
            assert "cut off while it replaced its outputs; some are missing now" in report
            assert f"are in {kept[0].parent.relative_to(scene.directory)}" in report
    if fault == "kill":  # a run that fails leaves them, too
        scene.snakefile(SEVERAL.replace("{version}", "x").replace("mkdir", "exit 1; mkdir"), "failing.smk")
        ((failed, text),) = scene.many("-s failing.smk -F --nolock --rerun-incomplete")
        assert failed == 1
        assert "Error in rule several" in text
        assert all(path.exists() for path in kept)
    ((made, text),) = scene.many("-s new.smk -F --nolock --rerun-incomplete")
    assert made == 0, text
    assert ("was cut off while it replaced its outputs. Until new ones are made" in text) == (fault != "error")
    assert (scene.read("ref/a"), scene.read("ref/b/x")) == ("new\n", "new\n")
    assert scene.litter() == []


def test_an_output_that_is_not_what_the_rule_says_is_not_published(scene: Scene) -> None:
    scene.snakefile(
        """
        rule all:
            input: "ref/missing", "ref/dir", "ref/file", "ref/empty", "ref/two", "far/gone"
        rule gone:
            output: exclusive("far/gone")
            shell: "touch {output}; rm -r far/.gone.nfsrwlock"
        rule missing:
            output: exclusive("ref/missing")
            shell: "touch beside"
        rule dir:
            output: exclusive("ref/dir")
            shell: "mkdir {output}"
        rule file:
            output: exclusive(directory("ref/file"))
            shell: "touch {output}"
        rule empty:
            output: exclusive(ensure("ref/empty", non_empty=True))
            shell: "touch {output}"
        rule two:
            output: exclusive("ref/two"), exclusive("ref/three")
            shell: "touch {output[0]}"
        """
    )
    scene.write("ref/empty", "old")
    text = scene.run("-k", "-F", code=1)
    assert "has not made its output 'ref/missing'" in text
    assert "the output 'ref/dir' is a directory; mark it directory()" in text
    assert "the output 'ref/file' is no directory, although marked directory()" in text
    assert "unexpected empty output files" in text
    assert "has not made its output 'ref/three'" in text
    assert "made of its output 'far/gone' is gone. Either 'far' was removed or replaced meanwhile" in text
    assert sorted(name for name in os.listdir(scene.directory / "ref") if not name.endswith(".rwlock")) == ["empty"]
    assert scene.read("ref/empty") == "old"


def test_what_was_no_directory_may_become_one_and_the_other_way_round(scene: Scene) -> None:
    scene.snakefile(
        """
        rule all:
            input: "ref/file", "ref/dir", "ref/link"
        rule file:
            output: exclusive("ref/file")
            shell: "echo new > {output}"
        rule dir:
            output: exclusive(directory("ref/dir"))
            shell: "mkdir {output}; echo new > {output}/x"
        rule link:
            output: exclusive(directory("ref/link"))
            shell: "mkdir {output}; echo new > {output}/x"
        """
    )
    for path in ("ref/file/x", "ref/dir", "other/x"):
        scene.write(path, "old\n")
    (scene.directory / "ref/link").symlink_to("../other")
    scene.run("-F")
    assert [scene.read(path) for path in ("ref/file", "ref/dir/x", "ref/link/x")] == ["new\n"] * 3
    assert scene.read("other/x") == "old\n"
    assert not (scene.directory / "ref/link").is_symlink()
    assert scene.litter() == []


def test_workflows_that_start_together_build_it_once_and_can_be_made_to_build_it_again(scene: Scene) -> None:
    scene.write("ref/in", "data")
    for name in ("a", "b", "c"):
        scene.snakefile(ONCE.replace("{kind}", BY_SHELL if name == "a" else BY_RUN), f"{name}/Snakefile")
    with SoftReadWriteLock(scene.directory / "ref/idx").write_lock():  # so that all of them have planned to build it
        runs = [scene.start(directory=name) for name in ("a", "b", "c")]
        scene.wait_for(lambda: all("waits to write" in run.text for run in runs))
    for run in runs:
        run.end(0)
    assert scene.read("built") == "built\n"
    assert sum("has nothing to do" in run.text for run in runs) == 2
    assert sum("code and params of whoever made them, which are not compared with its own" in r.text for r in runs) == 2
    before = os.stat(scene.directory / "ref/idx").st_mtime_ns
    # Nobody has touched what was made, so nobody makes it again.
    assert all("Nothing to be done" in scene.run(directory=name) for name in ("a", "b"))
    assert os.stat(scene.directory / "ref/idx").st_mtime_ns == before
    # Who insists gets a new one, also where the job runs in a process of its own, which is always forced.
    scene.run("-R", "index", directory="a")
    scene.run("-R", "index", directory="b")
    assert scene.read("built") == "built\n" * 3
    # An input that has changed is a reason for all, and again one of them builds.
    time.sleep(0.05)
    scene.write("ref/in", "new data")
    with SoftReadWriteLock(scene.directory / "ref/idx").write_lock():
        runs = [scene.start(directory=name) for name in ("b", "c")]
        scene.wait_for(lambda: all("waits to write" in run.text for run in runs))
    for run in runs:
        run.end(0)
    assert scene.read("built") == "built\n" * 4
    assert scene.read("ref/idx") == "new data"


def test_many_outputs_are_made_once_and_anew_if_forced_in_a_process_of_its_own(scene: Scene) -> None:
    scene.snakefile(
        """
        PARTS = expand("ref/a_rather_long_name_for_one_of_many_parts.{n}.vcf.gz", n=range(1500))
        rule make:
            output: exclusive(PARTS, once=True, lock="ref/parts")
            run:
                open("made", "a").write("x")
                for path in output:
                    open(path, "w").close()
        """
    )
    (first, text), (forced, report) = scene.many("-q", "-q -F")
    assert (first, forced) == (0, 0), text + report
    assert scene.read("made") == "xx"
    assert scene.litter() == []


def test_workflows_that_share_a_cache_compute_what_is_missing_once(scene: Scene) -> None:
    compute_at_once(scene, "abc", "-c4")


PIPED = """
rule pour:
    input: shared_read("a_ref/in")
    output: pipe("pipe")
    shell: "cat {input} > {output}"
"""


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "at the end of a pipe"])
def test_a_job_takes_its_entry_in_the_cache_before_its_files(scene: Scene, piped: bool) -> None:
    # As is done for a `run:` block, whose files are locked by a process of its own. In another order the two wait for
    # each other: one has the entry and queues for a file behind a writer, who waits for the other, who has the file.
    scene.write("cache/.keep", "")
    scene.write("a_ref/in", "data\n")  # sorts before the cache
    scene.snakefile(
        """
        lock_cache()
        rule cached:
            input: shared_read("a_ref/in")
            output: "out"
            cache: True
            shell: "cat {input} > {output}"
        """
    )
    if piped:
        text = scene.read("Snakefile").replace('shared_read("a_ref/in")', '"pipe"')
        scene.write("Snakefile", text + PIPED)
    with SoftReadWriteLock(scene.directory / "a_ref/in").write_lock():
        run = scene.start("--cache", "--", "out", SNAKEMAKE_OUTPUT_CACHE=str(scene.directory / "cache"))
        scene.wait_for(lambda: "waits to read" in run.text)
        assert len([name for name in scene.locks() if name.startswith("cache/")]) == 1
    run.end(0)
    assert scene.read("out") == "data\n"


def test_a_cache_that_jobs_on_a_cluster_will_not_use_is_told(scene: Scene) -> None:
    scene.snakefile(CACHED)
    scene.write("cache/.keep", "")
    cluster = (
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", "false", "--jobs", "3", "one.txt"),
        *("--seconds-between-status-checks", "1"),
    )
    environment = {"SNAKEMAKE_OUTPUT_CACHE": str(scene.directory / "cache")}
    warning = "jobs on a cluster do not use the cache, as Snakemake does not tell them to: name the rules"
    assert warning in scene.run(*cluster, "--cache", code=1, **environment)
    assert warning not in scene.run(*cluster, "--cache", "one", code=1, **environment)


def test_a_lock_names_a_set_of_files_and_settings_come_from_flag_environment_and_config(scene: Scene) -> None:
    scene.snakefile(
        """
        configfile: "config.yaml"
        inputflags: shared_read
        locks = os.path.abspath("locks")
        rule all:
            input: "out/x", "out/both"
        rule x:
            wildcard_constraints: name="x"
            input: "ref/in", set=shared_read(["ref/a", "ref/b"], lock="ref/{name}.set", lock_dir=locks)
            output: exclusive("out/{name}", heartbeat="process")
            shell:
                "{see} all ref/in out/x; {python} -m nfsrwlock status --json --lock-dir {locks} ref/x.set "
                "> seen/set.json; touch {output}"
        rule both:
            input: shared_read(expand("ref/{name}", name=["a", "b"]))
            output: exclusive("out/both", lock="ref/a")
            shell: "{see} both ref/a ref/b; touch {output}"
        """
    )
    scene.write("config.yaml", "nfsrwlock: {stale_threshold: 40, timeout: 50, share: group}\n")
    for path in ("ref/in", "ref/a", "ref/b", "locks/.keep", "elsewhere/.keep"):
        scene.write(path, "")
    scene.run(NFSRWLOCK_STALE_THRESHOLD="45")
    assert scene.seen("all") == {"ref/in": ["read"], "out/x": ["write"]}
    (found,) = scene.states("set")
    assert [holder["mode"] for holder in found["holders"]] == ["read"]
    assert found["holders"][0]["lease"] == 45, "the environment goes before the config"
    assert not scene.exists("ref/x.set.rwlock")
    assert scene.seen("both") == {"ref/a": ["write"], "ref/b": ["read"]}, "what is both read and written is written"
    assert (scene.directory / "ref/in.rwlock").stat().st_mode & 0o070 == 0o070, "the group takes part"
    scene.run("-F", "out/both", NFSRWLOCK_DIR=str(scene.directory / "elsewhere"), NFSRWLOCK_SHARE="user")
    assert sorted(scene.seen("both").values()) == [["read"], ["write"]]
    assert all(os.path.dirname(path) == "elsewhere" for path in scene.seen("both"))
    modes = {path.stat().st_mode & 0o777 for path in (scene.directory / "elsewhere").glob("*.rwlock")}
    assert modes == {0o700}, "the environment goes before the config"
    with SoftReadWriteLock(scene.directory / "ref/in", share="group").write_lock():
        assert "gave up waiting for its locks" in scene.run("-F", "out/x", code=1, NFSRWLOCK_TIMEOUT="1")


#: A storage that keeps its files in the directory `store`.
STORAGE = """
import os, shutil
from snakemake_interface_storage_plugins.storage_object import StorageObjectRead, StorageObjectWrite
from snakemake_interface_storage_plugins.storage_provider import StorageProviderBase, StorageQueryValidationResult
class StorageProvider(StorageProviderBase):
    example_queries = classmethod(lambda cls: [])
    rate_limiter_key = lambda self, query, operation: None
    default_max_requests_per_second = lambda self: 100.0
    use_rate_limiter = lambda self: False
    is_valid_query = classmethod(lambda cls, query: StorageQueryValidationResult(query=query, valid=True))
    list_objects = lambda self, query: ()
class StorageObject(StorageObjectRead, StorageObjectWrite):
    place = property(lambda self: os.path.join("store", self.query))
    async def inventory(self, cache):
        pass
    get_inventory_parent = lambda self: None
    local_suffix = lambda self: self.query
    cleanup = lambda self: None
    exists = lambda self: os.path.exists(self.place)
    mtime = lambda self: os.path.getmtime(self.place)
    size = lambda self: os.path.getsize(self.place)
    retrieve_object = lambda self: shutil.copyfile(self.place, self.local_path())
    def store_object(self):
        os.makedirs(os.path.dirname(self.place), exist_ok=True)
        shutil.copyfile(self.local_path(), self.place)
    remove = lambda self: os.remove(self.place)
"""


def test_a_file_in_a_storage_is_refused_and_local_is_the_way_out(scene: Scene) -> None:
    scene.write("snakemake_storage_plugin_directory/__init__.py", STORAGE)
    for path in ("store/ref/in", "ref/in"):
        scene.write(path, "data\n")
    for name, about in {
        "written": 'output: exclusive("ref/out")',
        "read": 'input: shared_read("ref/in")\n    output: "out"',
        "local": 'input: shared_read(local("ref/in"))\n    output: exclusive(local("ref/out"))',
        "around": 'input: local(shared_read("ref/in"))\n    output: local(exclusive("ref/around"))',
    }.items():
        scene.snakefile(f'rule x:\n    {about}\n    shell: "cp ref/in {{output}}"\n', f"{name}.smk")
    options = "--default-storage-provider directory --local-storage-prefix prefix -c1 -s"
    scene.environment["PYTHONPATH"] = os.pathsep.join([str(scene.directory), os.environ.get("PYTHONPATH", "")])
    (written, refusal), (read_, other), (local, text), (around, more) = scene.many(
        *(f"{options} {name}.smk" for name in ("written", "read", "local", "around"))
    )
    assert (written, read_) == (1, 1)
    assert "cannot be in a storage: it is not on a shared file system" in refusal
    assert 'as in exclusive(local("x"))' in refusal
    assert "is in a storage, and cannot be locked: " in other
    assert 'as in shared_read(local("x"))' in other
    assert (local, around) == (0, 0), text + more
    assert scene.read("ref/out") == scene.read("ref/around") == "data\n"
    assert scene.exists("ref/in.rwlock")
    assert not scene.exists("store/ref/out")


def test_a_name_may_be_as_long_in_bytes_as_its_lock_can_be(scene: Scene) -> None:
    names = ["a" * 248, "\u540d" * 82, "\U0001f600" * 62]
    scene.snakefile(
        f"""
        import os
        NAMES = {[f"out/{name}" for name in names]!r}
        ELSEWHERE = {[f"out/{name}" for name in ("b" * 255, chr(0x5B57) * 85)]!r}
        rule all:
            input: NAMES, ELSEWHERE
        for number, path in enumerate(NAMES + ELSEWHERE):
            rule:
                name: f"make_{{number}}"
                output: exclusive(path, lock_dir=os.path.abspath("locks") if path in ELSEWHERE else None)
                shell: "echo made > '{{output}}'"
        """
    )
    scene.write("locks/.keep", "")
    scene.run()
    assert [scene.read(f"out/{name}") for name in names] == ["made\n"] * 3
    assert scene.litter() == []


def test_what_is_locked_or_half_made_is_no_data_to_a_workflow_that_looks_for_files(scene: Scene) -> None:
    look = 'print("FOUND", [sorted(glob_wildcards(pattern)[0]) for pattern in ("ref/{name}.fa", "ref/{name}")])\n'
    scene.snakefile(f"{look}rule one:\n    run: pass\n", "module.smk")
    module = 'module other:\n    snakefile: "module.smk"\nuse rule * from other as other_*\n'
    scene.snakefile(f"{look}rule all:\n    run: pass\n{module}", "globbing.smk")
    for path in ("a.fa", "sub/c.fa", ".b.fa.nfsrwlock/token/b.fa", ".b.fa.nfsrwlock/token/deep/b.fa"):
        scene.write(f"ref/{path}", "")
    with SoftReadWriteLock(scene.directory / "ref/a.fa").write_lock():
        ((code, text),) = scene.many("-n -s globbing.smk all")
    assert code == 0, text
    assert text.count("FOUND [['a', 'sub/c'], ['a.fa', 'sub', 'sub/c.fa']]") == text.count("FOUND") == 2


def test_without_a_flag_nothing_is_as_it_would_not_be_without_the_import(scene: Scene) -> None:
    scene.snakefile(
        """
        rule fails:
            input: "in"
            output: "out", directory("dir")
            shell: "[ ! -e out ] || touch stale; touch {output[0]}; mkdir -p {output[1]}; exit 1"
        """
    )
    scene.write("in", "")
    scene.write("out", "old")
    text = scene.run("-F", code=1)
    assert not scene.exists("stale"), "the old output is removed before the job"
    assert not scene.exists("out"), "and the new one when it has failed"
    assert not scene.exists("dir")
    assert "Removing output files of failed job fails" in text
    assert "nfsrwlock" not in text
    assert not list(scene.directory.rglob("*.rwlock"))
