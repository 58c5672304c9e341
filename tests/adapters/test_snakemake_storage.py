"""`storage.nfsrwlock`: originals are read, and replaced, under their locks only; the rest is Snakemake's own."""

from __future__ import annotations

import inspect as inspect_code
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from snakemake.io import remove
from snakemake_interface_storage_plugins.storage_provider import StorageProviderBase
from snakemake_interface_storage_plugins.tests import TestStorageBase as Base
from snakemake_storage_plugin_nfsrwlock import StorageProvider

from adapters.snakemake_scene import FORKS, LONG, PROMPT_END, Forks, Scene
from nfsrwlock import SoftReadWriteLock, inspect

KEEP = "--keep-storage-local-copies"
#: What is not shared between the submitting host and the nodes: there, each job makes its own copies.
OWN_COPIES = ("--shared-fs-usage", "persistence", "software-deployment", "sources", "source-cache")


class TestByTheInterface(Base):
    """What Snakemake's authors ask of every storage plugin."""

    __test__ = True
    files_only = False

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be in a directory of its own, as a workflow is."""
        monkeypatch.chdir(tmp_path)

    def get_storage_provider_cls(self) -> type[StorageProviderBase]:
        return StorageProvider

    def get_query(self, tmp_path: Path) -> str:
        return str(tmp_path / "shared/test.txt")

    def get_query_not_existing(self, tmp_path: Path) -> str:
        return str(tmp_path / "shared/missing.txt")


@pytest.fixture(scope="module")
def plain_forks() -> Iterator[Forks]:
    """Snakemake as it is: the other adapter, which changes it, is not imported."""
    forks = Forks(FORKS.replace("import nfsrwlock.snakemake\n", ""))
    yield forks
    forks.close()


class StorageScene(Scene):
    """A workflow in `work/` whose shared files are in `shared/`."""

    patience_s = 60.0

    def __init__(self, directory: Path, forks: Forks | None) -> None:
        super().__init__(directory, forks)
        self.shared = directory / "shared"
        self.write("shared/ref.fa", "old")

    def workflow(self, text: str, directory: str = "work") -> None:
        paths = f"shared, top = {str(self.shared)!r}, {str(self.directory)!r}\n"
        self.write(f"{directory}/Snakefile", PROMPT_END + paths)
        with (self.directory / directory / "Snakefile").open("a") as file:
            file.write(text)

    def work(self, *arguments: str, code: int = 0) -> str:
        return self.run(*arguments, code=code, directory="work")

    def copy(self, name: str) -> Path:
        copies = self.directory / "work" / ".snakemake" / "storage" / "nfsrwlock"
        return copies.joinpath(*self.shared.parts[1:], name)

    def rewrite(self, name: str, text: str) -> None:
        """Replace a shared file as everybody is to do it."""
        with SoftReadWriteLock(self.shared / name).write_lock():
            (self.shared / name).write_text(text)


@pytest.fixture
def scene(tmp_path: Path, plain_forks: Forks) -> Iterator[StorageScene]:
    stage = StorageScene(tmp_path, plain_forks)
    yield stage
    stage.clean_up()


def identity(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return path.read_text(), status.st_ino, status.st_mode, status.st_mtime_ns, status.st_nlink


READS = """
rule reads:
    input: storage.nfsrwlock(f"{shared}/ref.fa")
    output: "out"
    shell: "cat {input} > {output}"
"""
#: A job that spoils its input, as far as it can, and then waits.
SPOILS = """
rule spoils:
    input: storage.nfsrwlock(f"{shared}/ref.fa")
    output: temp("out") if config.get("temp") else "out"
    shell:
        "echo spoiled > {input}; rm {input}; echo spoiled > {input}; chmod 0 {input}; cp {input} {output}; "
        "touch begun; " + config["then"]
"""


@pytest.mark.parametrize(
    ("then", "arguments", "code"),
    [
        ("true", (), 0),
        ("true", (KEEP,), 0),
        ("true", ("temp=1",), 0),
        ("false", (), 1),
        ("false", (KEEP, "--retries", "1"), 1),
        ("kill", (), -9),
    ],
    ids=["success", "kept", "temp", "failure", "retry", "killed"],
)
def test_nothing_that_becomes_of_a_job_and_its_copy_touches_the_original(
    scene: StorageScene, then: str, arguments: tuple[str, ...], code: int
) -> None:
    scene.workflow(SPOILS)
    before = identity(scene.shared / "ref.fa")
    # What is given last belongs to --config.
    first = [argument for argument in arguments if "=" not in argument]
    config = [argument for argument in arguments if "=" in argument]
    then = "sleep 60" if then == "kill" else then
    run = scene.start(*first, "--config", f"then={then}", *config, directory="work")
    scene.wait_for(lambda: scene.exists("work/begun"))
    if code == -9:
        run.kill()
    run.end(code)
    assert identity(scene.shared / "ref.fa") == before
    scene.run("--delete-all-output", "--config", "then=true", directory="work", code=None)
    assert identity(scene.shared / "ref.fa") == before
    assert os.listdir(scene.shared) == ["ref.fa"]
    assert "nfsrwlock.snakemake" not in run.text


def test_a_copy_is_kept_while_the_original_is_of_the_same_generation(scene: StorageScene) -> None:
    scene.workflow(READS)
    scene.work(KEEP)
    first = identity(scene.copy("ref.fa"))
    scene.work(KEEP, "--force")
    assert identity(scene.copy("ref.fa")) == first

    # An old time stamp, as from `cp -p`, hides no new version.
    scene.rewrite("ref.fa", "new")
    os.utime(scene.shared / "ref.fa", (10**9, 10**9))
    scene.work(KEEP, "--force")
    assert scene.read("work/out") == "new"

    # Nor does one that is the same: the number of the grant tells.
    scene.rewrite("ref.fa", "now")
    os.utime(scene.shared / "ref.fa", (10**9, 10**9))
    scene.work(KEEP, "--force")
    assert scene.read("work/out") == "now"


def test_copies_are_in_the_order_of_their_originals(scene: StorageScene) -> None:
    # As tools compare the times of a file and its index.
    scene.write("shared/ref.fa.fai", "index")
    for _ in range(3):
        scene.rewrite("ref.fa", "new")
    os.utime(scene.shared / "ref.fa", (10**9, 10**9))
    os.utime(scene.shared / "ref.fa.fai", (10**9 + 1, 10**9 + 1))
    index = 'storage.nfsrwlock(f"{shared}/ref.fa.fai")'
    scene.workflow(
        READS.replace("    output", f"        , {index}\n    output").replace(
            "cat", "[ {input[1]} -nt {input[0]} ] && cat"
        )
    )
    scene.work()
    assert scene.read("work/out") == "newindex"


def test_who_rewrites_the_original_under_its_lock_is_waited_for(scene: StorageScene) -> None:
    scene.workflow(READS)
    with SoftReadWriteLock(scene.shared / "ref.fa").write_lock():
        (scene.shared / "ref.fa").write_text("one half, ")
        run = scene.start(directory="work")
        scene.wait_for(lambda: "Retrieving from storage" in run.text)
        time.sleep(0.5)  # a copy would be made by then
        with (scene.shared / "ref.fa").open("a") as file:
            file.write("the other half")
    run.end(0)
    assert scene.read("work/out") == "one half, the other half"
    assert scene.locks() == []


STORES = """
rule stores:
    output: storage.nfsrwlock(f"{shared}/out")
    shell: "echo new >> {output}; touch {top}/begun; while [ ! -e {top}/go ]; do sleep 0.05; done; " + config["then"]
"""


def test_an_output_is_replaced_under_its_lock_as_a_whole(scene: StorageScene) -> None:
    scene.write("shared/out", "old")
    scene.workflow(STORES)
    run = scene.start("--force", "--config", "then=true", directory="work")
    scene.wait_for(lambda: scene.exists("begun"))
    with SoftReadWriteLock(scene.shared / "out").read_lock():
        assert scene.read("shared/out") == "old"
        scene.write("go", "")
        scene.wait_for(lambda: inspect(scene.shared / "out").waiters)
        assert scene.read("shared/out") == "old"
        reader = (scene.shared / "out").open()
    run.end(0)
    with reader:
        assert reader.read() == "old"
    assert scene.read("shared/out") == "new\n"
    assert sorted(os.listdir(scene.shared)) == ["out", "out.rwlock", "ref.fa"]
    assert scene.work("--config", "then=true").count("Nothing to be done")


def test_a_job_that_fails_stores_nothing(scene: StorageScene) -> None:
    scene.write("shared/out", "old")
    scene.write("go", "")
    scene.workflow(STORES)
    before = identity(scene.shared / "out")
    scene.work("--force", "--config", "then=false", code=1)
    assert identity(scene.shared / "out") == before
    # Nor does the next one find what the failed one has written.
    scene.work("--force", "--config", "then=true")
    assert scene.read("shared/out") == "new\n"


def test_a_retry_does_not_find_what_the_failed_job_has_left(scene: StorageScene) -> None:
    scene.write("shared/out", "old")
    scene.write("go", "")
    scene.workflow(STORES)
    then = f"{{ [ -e {scene.directory}/again ] || {{ touch {scene.directory}/again; exit 1; }}; }}"
    scene.work("--force", KEEP, "--retries", "1", "--config", f"then={then.replace('{', '{{').replace('}', '}}')}")
    assert scene.read("shared/out") == "new\n"


@pytest.mark.skipif(
    "should_not_be_retrieved_from_storage" in inspect_code.getsource(remove), reason="Snakemake asks to remove nothing"
)
def test_after_a_failure_of_new_code_an_old_output_is_not_taken_for_its_result(scene: StorageScene) -> None:
    rule = 'rule stores:\n    output: storage.nfsrwlock(f"{shared}/out")\n    shell: "echo %s > {output}; %s"\n'
    prefix = scene.directory / "scratch"
    for text, code in (("old", 0), ("new", 1), ("new", 0)):
        scene.workflow(rule % (text, "true" if text == "old" else f"[ -e {scene.directory}/go ]"))
        assert "Nothing to be done" not in scene.work("--local-storage-prefix", str(prefix), code=code)
        assert scene.read("shared/out") == ("new\n" if scene.exists("go") else "old\n")
        if code:
            # It is missing for this workflow only, and whatever becomes of the copies.
            scene.workflow(READS.replace("ref.fa", "out"), "other")
            scene.run("--local-storage-prefix", f"{prefix}-other", directory="other")
            assert scene.read("other/out") == "old\n"
            shutil.rmtree(prefix)
            scene.write("go", "")
    assert "Nothing to be done" in scene.work()


def test_workflows_of_two_directories_do_not_share_their_copies(scene: StorageScene) -> None:
    # One would take what the other one's job is just making for a copy of its own.
    prefix = ("--local-storage-prefix", str(scene.directory / "scratch"))
    scene.write("go", "")
    scene.workflow(STORES)
    scene.work(*prefix, "--config", "then=true")
    scene.workflow(STORES, "other")
    log = scene.run(*prefix, "--config", "then=true", directory="other", code=1)
    assert f"are those of workflows in '{scene.directory}/work': choose another --local-storage-prefix" in log
    scene.work(*prefix, "--force", "--config", "then=true")
    scene.run(*prefix[:1], f"{prefix[1]}-other", "--force", "--config", "then=true", directory="other")


def test_who_asks_to_remove_what_is_stored_is_told_that_it_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Snakemake does so before a job, after one that failed, for temp() and for --delete-all-output; not all releases.
    (tmp_path / "out").write_text("stored")
    one = StorageProvider(local_prefix=tmp_path / "local", logger=logging.getLogger()).object(str(tmp_path / "out"))
    with caplog.at_level(logging.INFO):
        one.remove()
    assert f"{tmp_path}/out stays until another one is stored: storage.nfsrwlock removes nothing" in caplog.text
    assert (tmp_path / "out").read_text() == "stored"


def test_nothing_is_stored_when_the_whole_workflow_is_killed(scene: StorageScene) -> None:
    scene.write("shared/out", "old")
    scene.workflow(STORES)
    run = scene.start("--force", "--config", "then=true", directory="work")
    scene.wait_for(lambda: scene.exists("begun"))
    run.kill()
    run.end(-9)
    scene.write("go", "")
    assert scene.read("shared/out") == "old"
    scene.work("--unlock", "--config", "then=true")
    scene.work("--rerun-incomplete", "--config", "then=true")
    assert scene.read("shared/out") == "new\n"


MANY = """
rule many:
    output: storage.nfsrwlock(directory(f"{shared}/many"))
    shell: "mkdir {output} && cd {output} && for i in $(seq 3000); do echo new > $i; done"
"""


def test_under_a_lost_lock_nothing_is_stored(scene: StorageScene) -> None:
    scene.write("shared/many/1", "old")
    scene.workflow(MANY)
    run = scene.start("--force", "--storage-nfsrwlock-stale-threshold", "1", directory="work")
    scene.wait_for(lambda: any(name.endswith(".partial") for name in os.listdir(scene.shared)))
    run.kill(signal.SIGSTOP)
    # Another one has the lock after the lease, and writes.
    with SoftReadWriteLock(scene.shared / "many", timeout=60).write_lock():
        scene.write("shared/many/1", "of another one")
        run.kill(signal.SIGCONT)
        run.end(1)
    assert "LockLostError" in run.text
    assert os.listdir(scene.shared / "many") == ["1"]
    assert scene.read("shared/many/1") == "of another one"


def test_directories_are_read_and_replaced_as_a_whole(scene: StorageScene) -> None:
    scene.write("shared/dir/a/data", "data")
    SoftReadWriteLock(scene.shared / "dir/a/data").write_lock().__enter__()
    (scene.shared / "dir/a").chmod(0o555)
    scene.write("shared/made/stale", "of an earlier run")
    scene.workflow(
        """
rule make:
    input: storage.nfsrwlock(f"{shared}/dir")
    output: storage.nfsrwlock(directory(f"{shared}/made"))
    shell: "cp -r {input} {output}; touch {output}/more"
"""
    )
    scene.work("--force")
    found = sorted(str(path.relative_to(scene.shared / "made")) for path in (scene.shared / "made").rglob("*"))
    assert found == [".snakemake_timestamp", "a", "a/data", "more"]
    assert (scene.shared / "made/a").stat().st_mode & 0o700 == 0o700  # a copy that is not writable could not be removed
    assert not scene.copy("dir").exists()
    assert "Nothing to be done" in scene.work()


@pytest.mark.parametrize("query", ["ref.fa", "/nfs/../ref.fa", "//nfs/ref.fa", "/nfs/ref/", "/", "s3://bucket/ref.fa"])
def test_a_query_that_is_no_absolute_path_is_refused(scene: StorageScene, query: str) -> None:
    scene.workflow(f"rule reads:\n    input: storage.nfsrwlock({query!r})\n    output: 'out'\n    shell: 'false'\n")
    log = scene.work(code=1)
    assert (
        f"query {query} is invalid: write the absolute path of a file or directory, such as /nfs/ref/genome.fa" in log
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--storage-nfsrwlock-share", "everybody"], "share"),
        (["--storage-nfsrwlock-lock-dir", "locks"], "lock_dir must be an absolute path"),
        (["--storage-nfsrwlock-stale-threshold", "0"], "stale_threshold must be"),
        (["--storage-nfsrwlock-heartbeat", "none"], "heartbeat"),
        ([], "timout"),
    ],
)
def test_settings_that_make_no_sense_are_refused(scene: StorageScene, settings: list[str], said: str) -> None:
    misspelt = "storage nfsrwlock:\n    provider='nfsrwlock', timout=5\n"
    scene.workflow(("" if settings else misspelt) + READS)
    log = scene.work(*settings, code=1)
    assert "storage.nfsrwlock cannot be set so, {" in log
    assert said in log.partition("cannot be set so, ")[2].partition("}: ")[2]


def test_settings_are_those_of_the_locks(scene: StorageScene) -> None:
    copies = READS.replace('"out"', 'storage.nfsrwlock(f"{shared}/out")')
    scene.workflow(copies)
    locks = scene.directory / "locks"
    locks.mkdir()
    arguments = ("--storage-nfsrwlock-lock-dir", str(locks), "--storage-nfsrwlock-timeout", "0.5")
    with SoftReadWriteLock(scene.shared / "ref.fa", lock_dir=locks).write_lock():
        log = scene.work(*arguments, code=1)
        # As in a Snakefile.
        scene.workflow(f"storage nfsrwlock:\n    provider='nfsrwlock', lock_dir={str(locks)!r}, timeout=0.5\n{copies}")
        assert "Timeout" in scene.work(code=1)
    assert f"{scene.shared}/ref.fa" in log
    assert "Timeout" in log
    assert f"pid {os.getpid()}" in log
    scene.work(*arguments, "--storage-nfsrwlock-timeout", "inf")
    assert sorted(os.listdir(scene.shared)) == ["out", "ref.fa"]


@pytest.mark.parametrize("link", ["", "shared"])
def test_an_original_is_never_handed_out_as_a_copy(scene: StorageScene, link: str) -> None:
    # Snakemake deletes what it takes for a copy, also when it cannot be had.
    scene.workflow(
        READS.replace('"out"', 'storage.nfsrwlock(f"{shared}/deep/out")') + "rule all:\n    input: rules.reads.output\n"
    )
    if link:
        scene.copy("").parent.mkdir(parents=True)
        scene.copy("").symlink_to(scene.shared)
    else:
        scene.write("work/.snakemake/storage/x", "")
        (scene.directory / "work/.snakemake/storage/nfsrwlock").symlink_to("/")
    before = identity(scene.shared / "ref.fa")
    log = scene.work(code=1)
    assert "itself, which Snakemake would delete: choose another --local-storage-prefix" in log
    assert identity(scene.shared / "ref.fa") == before
    assert not Path("/.workflow").is_symlink()
    assert not scene.exists("shared/deep")


def test_processes_on_a_node_make_one_copy(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for number in range(2000):
        (tmp_path / f"dir/{number}").touch()
    program = """if True:
        import logging, os, sys
        from pathlib import Path
        from snakemake_storage_plugin_nfsrwlock import StorageProvider
        one = StorageProvider(local_prefix=Path("local"), logger=logging.getLogger()).object(sys.argv[1])
        one.local_path().parent.mkdir(parents=True, exist_ok=True)
        print(flush=True)
        input()
        one.retrieve_object()
        print(os.stat(one.local_path()).st_ino)
    """
    many = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "dir"],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in many:
        assert process.stdout is not None
        process.stdout.readline()
    for process in many:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
    assert len({process.communicate()[0] for process in many}) == 1


TWO = """
rule all:
    input: "first", "second"
rule first:
    priority: 1
    input: storage.nfsrwlock(f"{shared}/ref.fa")
    output: "first"
    shell: "cat {input} > {output}"
rule second:
    input: storage.nfsrwlock(f"{shared}/other.fa")
    output: "second"
    shell: "cat {input} > {output}"
"""


@LONG
@pytest.mark.parametrize("own_copies", [True, False])
def test_only_where_jobs_make_their_own_copies_a_busy_lock_holds_up_one_job_alone(
    scene: StorageScene, own_copies: bool
) -> None:
    scene.write("shared/other.fa", "other")
    scene.workflow(TWO)
    (scene.directory / "submit").write_text("setsid sh $1 > $1.log 2>&1 < /dev/null & echo $!\n")
    submit = (
        *("--executor", "cluster-generic", "--cluster-generic-submit-cmd", f"sh {scene.directory}/submit", "-j2"),
        *("--seconds-between-status-checks", "1"),
    )
    default = ("--default-storage-provider", "nfsrwlock", "--default-storage-prefix", f"{scene.directory}/work")
    with SoftReadWriteLock(scene.shared / "ref.fa").write_lock():
        run = scene.start(*submit, *default, *(OWN_COPIES if own_copies else ()), directory="work")
        if own_copies:
            scene.wait_for(lambda: scene.exists("work/second"))
        else:
            scene.wait_for(lambda: "Retrieving from storage" in run.text)
            time.sleep(1)
            assert "Submitted job" not in run.text
    run.end(0)
    assert scene.read("work/first") + scene.read("work/second") == "oldother"


def test_a_path_alone_finds_no_storage_by_mistake() -> None:
    # With several plugins installed, Snakemake asks each whether a query without a name is its own.
    assert StorageProvider.is_valid_query("/nfs/{sample}.fa")
    assert StorageProvider.is_valid_query("{directory}/ref.fa")
    assert not StorageProvider.is_valid_query("https://host/{sample}.fa")
    assert not StorageProvider.is_valid_query("results/{sample}.fa")


def test_the_plugin_changes_nothing_of_snakemake() -> None:
    # Every process of Snakemake imports it.
    program = "import sys, snakemake_storage_plugin_nfsrwlock; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not {"nfsrwlock.snakemake", "nfsrwlock.fetching", "nfsrwlock_core.lock"} & {*loaded}
