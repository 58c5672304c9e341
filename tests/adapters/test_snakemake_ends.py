"""How jobs end that do not end well: a lost lease, a kill, a wait that is too long. And what takes no lock at all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from adapters.snakemake_scene import KNOWN_LOSS, LONG, SLOW_TO_BEGIN, Scene, scene
from adapters.snakemake_ticking import (
    assert_nothing_happened,
    assert_still_ticking,
    interrupt,
    is_ticking,
    pid_of_job,
    start_ticking,
    wait_until_idle,
)
from nfsrwlock import SoftReadWriteLock, Timeout, break_lock, inspect
from nfsrwlock.snakemake import watchdog

__all__ = ["scene"]

pytestmark = LONG

#: The interface for schedulers may be installed beside a release that does not ask it.
with_schedulers = pytest.mark.skipif(Version(version("snakemake")) < Version("9.11"), reason="before 9.11")


def test_a_job_whose_lock_is_lost_is_stopped_and_publishes_nothing(scene: Scene) -> None:
    scene.environment["NFSRWLOCK_STALE_THRESHOLD"] = "3"
    run = start_ticking(scene, "--retries", "1")
    break_lock(scene.directory / "ref/in", force=True)
    scene.wait_for(lambda: "Trying to restart job" in run.text)
    assert "was stopped and its result is void: The lock on" in run.text
    assert "ref/in' was lost" in run.text
    (scene.directory / "pid").unlink()
    scene.wait_for(lambda: scene.exists("pid") and len(scene.locks()) == 2)  # the second attempt
    break_lock(scene.directory / "ref/out", force=True)
    run.end(1)
    assert "ref/out' was lost" in run.text
    assert_nothing_happened(scene)
    assert scene.litter() == []
    assert scene.exists("ref/out.rwlock/before"), "its next holder compares the output with that"


def test_a_run_block_whose_lock_is_lost_ends_with_its_process(scene: Scene) -> None:
    scene.snakefile(
        """
        rule tick:
            output: exclusive("ref/out", stale_threshold=6)  # if it ran out, that would be what is told
            run:
                import time
                shell("sh -c 'while :; do echo x >> ticks2; sleep 0.05; done' &")
                while True:
                    open("ticks", "a").write("x")
                    time.sleep(0.05)
        """
    )
    run = scene.start()
    scene.wait_for(lambda: scene.exists("ticks") and scene.exists("ticks2"))
    break_lock(scene.directory / "ref/out", force=True)
    run.end(1)
    assert "was killed: The lock on" in run.text
    assert not is_ticking(scene)
    assert not scene.exists("ref/out")


def test_a_job_that_overslept_its_lease_publishes_nothing(scene: Scene) -> None:
    scene.write("ref/out", "old\n")
    scene.snakefile(
        """
        rule make:
            output: exclusive("ref/out", stale_threshold=3)
            shell: "echo new > {output}; touch begun; while [ ! -e go ]; do sleep 0.05; done; sleep 1"
        """
    )
    run = scene.start("-F")
    scene.wait_for(lambda: scene.exists("begun"))
    run.kill(signal.SIGSTOP)  # it sends no heartbeats, and cannot stop its job
    with SoftReadWriteLock(scene.directory / "ref/out", poll_interval=0.1).write_lock(timeout=40):
        scene.write("ref/out", "another\n")
    scene.write("go", "")
    run.kill(signal.SIGCONT)
    run.end(1)
    assert "its result is void" in run.text
    assert scene.read("ref/out") == "another\n"


def test_a_lock_that_is_lost_right_before_the_rename_is_noticed(scene: Scene) -> None:
    scene.write("ref/out", "old\n")
    scene.snakefile(
        KNOWN_LOSS
        + """
import hashlib
from nfsrwlock import break_lock
def lose_the_lock(wildcards):
    break_lock("ref/out", force=True)
    wait_for_the_loss()
    return hashlib.sha256(b"new" + bytes([10])).hexdigest()
rule make:
    output: exclusive(ensure("ref/out", sha256=lose_the_lock), stale_threshold=3)
    shell: "echo new > {output}"
"""
    )
    text = scene.run("-F", code=1)
    assert "ref/out' was lost" in text
    assert scene.read("ref/out") == "old\n"


def test_when_snakemake_is_killed_its_job_is_stopped(scene: Scene) -> None:
    run = start_ticking(scene)
    scene.wait_for(scene.guards)
    (guard,) = scene.guards()
    os.kill(guard, signal.SIGTERM)  # as batch systems do, which send it to everybody
    time.sleep(0.2)
    run.kill(signal.SIGKILL)
    assert_nothing_happened(scene)
    scene.wait_for(lambda: "rule tick) was stopped: Snakemake, which held its locks, was killed" in run.text)
    assert [name for name in scene.litter() if scene.exists(name)], "what it had begun is left, beside its place"
    # The next run finds the way free, and cleans up.
    scene.snakefile('rule make:\n    output: exclusive("ref/out")\n    shell: "echo new > {output}"\n')
    (code, text), *_ = scene.many("-F --nolock ref/out --rerun-incomplete")
    assert code == 0, text
    assert scene.read("ref/out") == "new\n"
    assert scene.litter() == []


@pytest.mark.parametrize(
    "end", ["job", "both SIGINT", "both SIGTERM", "both SIGKILL", "snakemake SIGINT", "snakemake SIGTERM", "node"]
)
def test_locks_are_released_and_the_old_output_stays_however_it_ends(scene: Scene, end: str) -> None:
    if end == "node":  # nobody here can tell whether its processes live: only its lease counts
        scene.environment |= {"NFSRWLOCK_HOST": "elsewhere", "NFSRWLOCK_STALE_THRESHOLD": "4"}
    run = start_ticking(scene, *(["--retries", "2"] if end == "job" else []))
    if end == "node":
        scene.clean_up()
    elif end == "job":
        job = 0
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            job = pid_of_job(scene, job)  # it is tried again
            os.kill(job, signum)
    elif end == "both SIGINT":
        interrupt(run)
    else:
        victim, signum = end.split(maxsplit=1)[0], signal.Signals[end.split()[1]]
        if signum == signal.SIGTERM:
            scene.wait_for(lambda: "Finished jobid" in run.text)  # the other job has ended
            wait_until_idle(scene, run)
        if victim == "both":
            os.killpg(run.process.pid, signum)
        else:
            run.kill(signum)  # Snakemake ends when its jobs have ended
            time.sleep(1)
            assert_still_ticking(scene)  # the job that runs may end
            assert len(scene.locks()) == 2
            os.kill(pid_of_job(scene), signal.SIGTERM)
    run.end()
    assert run.process.returncode != 0
    if end not in ("both SIGKILL", "node"):
        assert scene.locks() == []
    if end == "job":
        assert not is_ticking(scene), "nor does the one go on that left its parent, now that the lock is free"
    scene.clean_up()
    assert_nothing_happened(scene)


def test_what_a_job_leaves_running_is_ended_before_its_locks_are_free(scene: Scene) -> None:
    scene.write("ref/in", "data")
    scene.snakefile(
        """
        from nfsrwlock.snakemake import processes
        processes._GRACE_S = 2.0
        loop = "(setsid sh -c 'echo $$ >> left; exec sleep 300' > /dev/null 2>&1 &); while [ ! -e left ]; do :; done;"
        rule all:
            input: "ref/out", "read", "late"
        rule write:
            output: exclusive("ref/out")
            shell: "{loop} echo new > {output}"
        rule read:
            input: shared_read("ref/in")
            output: "read"
            shell: "{loop} cp {input} {output}"
        rule late:
            output: exclusive("late")
            shell: "(sleep 0.5; echo whole > {output}) & echo half > {output}"
        """
    )
    scene.write("ref/out", "old")
    text = scene.run("-k", "-F", code=1)
    assert "(rule write) has left processes behind, which were ended with its locks: " in text
    assert "Its outputs may not be whole, so nothing was published. Let the rule wait for them" in text
    assert scene.read("ref/out") == "old"
    assert "(rule read) has left processes behind" in text
    assert scene.read("read") == "data"
    assert scene.read("late") == "whole\n", "what ends by itself is waited for"
    assert not [pid for pid in scene.read("left").split() if int(pid) in scene.processes()]


def test_a_process_that_is_replacing_its_program_counts_as_left_behind(tmp_path: Path) -> None:
    # While it does, it shows no environment: about one look in 300 meets that.
    again = tmp_path / "again"
    again.write_text('exec sh "$0"\n')
    restless = subprocess.Popen(["sh", str(again)], env={watchdog.VARIABLE: "mark"})
    try:
        looks = [watchdog._environment(str(restless.pid)) for _ in range(4000)]
    finally:
        restless.kill()
        restless.wait()
    assert b"" not in looks


FORKING = """
import os, select, subprocess
from contextlib import suppress
from nfsrwlock.snakemake import watchdog
from nfsrwlock.snakemake.processes import _dog
job = subprocess.Popen(["sleep", "300"], env={watchdog.VARIABLE: f"{_dog.token()}.x job 1 (rule a)"})
reader, writer = os.pipe()
if os.fork() == 0:
    _dog.token()
    os.write(writer, b"%d" % _dog._process.pid)
    os._exit(0)
with suppress(ProcessLookupError):
    select.select([os.pidfd_open(int(os.read(reader, 99)))], [], [])  # until the child's watchdog has ended
print("goes on" if job.poll() is None else "was stopped")
job.kill()
"""


def test_the_end_of_a_process_that_was_forked_stops_no_job_of_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=110)
    assert (done.stdout, done.stderr) == ("goes on\n", "")


SURVIVED = """
import os, subprocess, time
from types import SimpleNamespace
from nfsrwlock.snakemake import watchdog
from nfsrwlock.snakemake.processes import JobProcesses
rule = SimpleNamespace(name="a", workflow=SimpleNamespace())
os.environ[watchdog.VARIABLE] = "mark of an outer workflow"
job = JobProcesses(SimpleNamespace(jobid=1, rule=rule, is_run=False, is_template_engine=False)).start(["sleep", "300"])
if os.fork() == 0:  # a worker of multiprocessing, say, that outlives its parent
    while os.path.exists(f"/proc/{job.pid}"):
        time.sleep(0.05)
    print("was stopped", flush=True)
    os._exit(0)
print(job.pid in watchdog.marked(b"mark of an outer workflow"), flush=True)
os._exit(1)  # as if it were killed
"""


def test_a_job_is_stopped_when_its_process_is_killed_though_a_fork_of_that_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", SURVIVED], capture_output=True, text=True, timeout=110)
    assert done.stdout == "True\nwas stopped\n"
    assert done.stderr == "nfsrwlock: job 1 (rule a) was stopped: Snakemake, which held its locks, was killed\n"


def test_a_wait_is_told_bounded_and_given_up_when_the_workflow_ends(scene: Scene) -> None:
    scene.write("ref/in", "data")
    scene.snakefile(
        """
        from nfsrwlock.snakemake import messages
        messages._AGAIN_S = 2.0
        rule read:
            input: shared_read("ref/in", timeout=float(config["timeout"]))
            output: "out"
            shell: "cp {input} {output}"
        """
    )
    with SoftReadWriteLock(scene.directory / "ref/in").write_lock():
        runs = [scene.start("--nolock", "--config", f"timeout={timeout}") for timeout in (3, 900, "inf")]
        quiet = scene.start("--nolock", "--quiet", "all", "--config", "timeout=902")
        for run in runs[1:]:  # the first may have no time to tell it
            scene.wait_for(lambda run=run: "waits to read" in run.text)
            assert f"pid {os.getpid()}, writing since" in run.text
        assert "so far, at most 15 min: " in runs[1].text
        assert "so far, without limit: " in runs[2].text
        runs[0].end(1)
        assert "gave up waiting for its locks" in runs[0].text
        holder = re.escape(inspect(scene.directory / "ref/in").holders[0].user or "")
        waited = re.search(rf"after (\d+\.\d) s it is held by {holder}@", runs[0].text)
        assert waited, runs[0].text
        assert float(waited[1]) >= 3
        assert "hook.py" not in runs[0].text
        wait_until_idle(scene, runs[1])
        runs[1].kill(signal.SIGTERM)
        interrupt(runs[2])
        scene.wait_for(lambda: "waits to read" in quiet.text)  # --quiet hides none of minutes
        quiet.kill()
        quiet.end()
        for run in runs[1:]:
            run.end()  # the test has no patience for as long as these would wait
            assert run.process.returncode != 0
            assert "the workflow is being ended" in run.text
        assert not scene.exists("out")


def test_a_command_is_not_started_after_the_signal_that_ends_the_workflow(scene: Scene) -> None:
    # It has not got the signal. On Slurm it would run until it is killed, and leave its lock to the lease.
    scene.snakefile(
        """
        import os, time
        from nfsrwlock.snakemake import hook
        class Slow(hook.Workspace):
            def __init__(self, *args):
                super().__init__(*args)
                open("between", "w").close()
                while not os.path.exists("heard"):
                    time.sleep(0.05)
        hook.Workspace = Slow
        rule make:
            output: exclusive("ref/out")
            shell: "touch started; echo new > {output}"
        """
    )
    run = scene.start()
    scene.wait_for(lambda: scene.exists("between"))
    wait_until_idle(scene, run)
    run.kill(signal.SIGTERM)
    scene.wait_for(lambda: "Will exit after finishing currently running jobs" in run.text)
    scene.write("heard", "")
    run.end()
    assert run.process.returncode != 0
    assert "is not run: the workflow is being ended" in run.text
    assert not scene.exists("started")
    assert not scene.exists("ref/out")
    assert scene.locks() == []
    assert scene.litter() == []


def test_locks_that_a_job_or_the_two_ends_of_a_pipe_cannot_hold_together_are_told(scene: Scene) -> None:
    scene.write("ref/in", "data")
    scene.snakefile(
        """
        rule drink:
            input: "pipe"
            output: exclusive("ref/out", lock="ref/set")
            shell: "cat {input} > {output}"
        rule pour:
            input: shared_read("ref/in", lock="ref/set")
            output: pipe("pipe")
            shell: "cat {input} > {output}"
        rule differ:
            input: shared_read("ref/in", lock="ref/set"), shared_read("ref/in", lock="ref/set", share="group")
            output: "differ"
            shell: "cat {input} > {output}"
        """
    )
    text = scene.run("-k", "drink", "differ", code=1)  # not after the day for which a job waits
    assert "connected by a pipe, but exclude each other" in text
    assert re.search(r"the files of job \d+ \(rule differ\) cannot be locked: .* with two different settings", text)
    assert scene.locks() == []


def test_two_ends_of_a_pipe_that_read_the_same_do_not_wait_for_a_writer_between_them(scene: Scene) -> None:
    scene.write("ref/in", "data")
    scene.snakefile(
        """
        import os, time
        from snakemake.executors import local
        cached_or_run = local.Executor.cached_or_run
        def one_after_the_other(self, job, *args):
            while job.rule.name == "pour" and not os.path.exists("writer"):
                time.sleep(0.05)
            return cached_or_run(self, job, *args)
        local.Executor.cached_or_run = one_after_the_other
        rule drink:
            input: "pipe", also=shared_read("ref/in")
            output: exclusive("ref/out")
            shell: "{see} drink ref/in ref/out; cat {input} > {output}"
        rule pour:
            input: shared_read("ref/in"), more=shared_read("ref/more")
            output: pipe("pipe")
            shell: "cat {input} > {output}"
        """
    )
    scene.write("ref/more", "more")
    run = scene.start("drink")
    scene.wait_for(lambda: {os.path.dirname(name) for name in scene.locks()} >= {"ref/in.rwlock", "ref/out.rwlock"})
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(SoftReadWriteLock(scene.directory / "ref/in").acquire_write, scene.patience_s)
        scene.wait_for(lambda: any(name.startswith("ref/in.rwlock/write") for name in scene.locks()))
        scene.write("writer", "")
        run.end(0)
        writing.result()
    assert scene.read("ref/out") == "datamoredata"
    assert scene.seen("drink") == {"ref/in": ["read"], "ref/out": ["write"]}, "one hold, for both"
    assert not [name for name in scene.locks() if not name.startswith("ref/in.rwlock/write")]


def test_of_two_ends_of_a_pipe_one_asks_for_the_locks_and_if_it_gives_up_so_does_the_other(scene: Scene) -> None:
    scene.write("ref/in", "data")
    scene.snakefile(
        """
        import time
        from nfsrwlock.snakemake import holding
        acquire, asked = holding._acquire, []
        def when_both_are_there(job, locks, timeout):
            asked.append(job.rule.name)
            while len(asked) == 1 and not any(len(joint.listeners) == 2 for joint in holding._joints.values()):
                time.sleep(0.05)
            with open("asked", "w") as file:
                file.write(" ".join(asked))
            acquire(job, locks, 0.0)
        holding._acquire = when_both_are_there
        rule drink:
            input: "pipe"
            output: exclusive("ref/out")
            shell: "cat {input} > {output}"
        rule pour:
            input: shared_read("ref/in")
            output: pipe("pipe")
            shell: "cat {input} > {output}"
        """
    )
    with SoftReadWriteLock(scene.directory / "ref/in").write_lock():
        text = scene.run("drink", code=1)
    assert scene.read("asked") in ("drink", "pour")
    assert f"(rule {scene.read('asked')}) gave up waiting for its locks" in text
    assert "Error in rule drink" in text
    assert "Error in rule pour" in text


def test_a_job_at_a_pipe_that_is_tried_again_waits_for_the_end_of_its_first_attempt(scene: Scene) -> None:
    # Snakemake kills the shell commands at the other ends of the pipe, and does not wait for the jobs.
    scene.snakefile(
        """
        import os, time
        from nfsrwlock.snakemake import holding
        settle = holding.settle
        def note(text):
            with open("notes", "a") as file:
                print(text, file=file)
        def slow_to_end(job, locks):
            if job.rule.name == "drink" and not os.path.exists("slept"):
                open("slept", "w").close()
                until = time.monotonic() + 4
                while open("notes").read().count("begins") < 2 and time.monotonic() < until:
                    time.sleep(0.05)
                note("ends")
            settle(job, locks)
        holding.settle = slow_to_end
        rule drink:
            input: "pipe"
            output: exclusive("ref/out")
            retries: 1
            shell: "echo begins >> notes; cat {input} > {output}"
        rule pour:
            output: pipe("pipe")
            retries: 1
            shell:
                "[ -e tried ] && echo data > {output}"
                " || {{ until [ -e notes ]; do sleep 0.05; done; touch tried; exit 1; }}"
        """
    )
    scene.run("drink")
    assert scene.read("notes").split() == ["begins", "ends", "begins"]
    assert scene.read("ref/out") == "data\n"
    assert scene.litter() == []


def test_what_runs_no_job_takes_no_lock(scene: Scene) -> None:
    scene.write("in", "data")
    scene.write("out", "made")
    scene.snakefile(
        """
        rule make:
            input: shared_read("in")
            output: exclusive("out")
            shell: "cp {input} {output}"
        """
    )
    with (
        SoftReadWriteLock(scene.directory / "in").write_lock(),
        SoftReadWriteLock(scene.directory / "out").write_lock(),
    ):
        held = scene.locks()
        before = os.stat(scene.directory / "out").st_mtime_ns
        runs = ["-n -F", "--touch -F", "--list-rules", "--lint", "--report report.html", "--unlock", "--summary"]
        for (code, text), run in zip(scene.many(*runs), runs, strict=True):
            assert code == 0 or (run == "--lint" and "Traceback" not in text), (run, text)
        assert scene.locks() == held
        assert scene.read("out") == "made"
        assert os.stat(scene.directory / "out").st_mtime_ns > before, "--touch means it"
        with pytest.raises(Timeout):
            SoftReadWriteLock(scene.directory / "in", is_singleton=False).acquire_read(timeout=0)


REFUSED = {
    'output: temp(exclusive("x"))': "an exclusive() output cannot be temp(): Snakemake deletes it",
    'output: exclusive(protected("x"))': "an exclusive() output cannot be protected()",
    'output: update(exclusive("x"))': "an exclusive() output cannot be update()",
    'output: exclusive(pipe("x"))': "an exclusive() output cannot be pipe()",
    'output: shared_read("x")': "'x': shared_read() is for inputs",
    'input: exclusive("in")\n    output: "x"': "'in': exclusive() is for outputs",
    'output: exclusive("x", once=True), "y"': "once=True needs every output of the rule to be exclusive()",
    'output: exclusive("x", once=True)\n    benchmark: "b.tsv"': "once=True does not go with benchmark:",
    'output: exclusive("x")\n    shadow: "minimal"': "exclusive() outputs do not go with shadow:",
    'output: exclusive("x"), service("y")': "exclusive() outputs do not go with service()",
    'output: exclusive("x")\n    cache: True': "exclusive() outputs do not go with cache:",
    'output: exclusive("x", timeout="soon")': "exclusive: timeout must be a number of seconds, 0 or more, not 'soon'",
    'output: "x"\n    log: exclusive("x.log")': "'x.log': shared_read() and exclusive() do nothing in log:",
    'output: "x"\n    benchmark: exclusive("x.tsv")': "'x.tsv': shared_read() and exclusive() do nothing in benchmark:",
    'output: "x"\n    params: a=shared_read(["in"])': "'in': shared_read() and exclusive() do nothing in params:",
    'output: exclusive("x", share="all")': "exclusive: share must be 'user' or 'group', not 'all'",
    'output: exclusive("x", lock_dir="locks")': "exclusive: lock_dir must be the absolute path of a directory",
    'input: shared_read("in", lock_dir="~/l")\n    output: "x"': "shared_read: lock_dir must be the absolute path of",
    'output: exclusive("x", lock="")': "exclusive: lock must be a path, not ''",
    'output: exclusive(lambda wildcards: "x")': "exclusive: an output cannot be a function",
    'output: "x"\n    params: a=limited("licence", 2)': "limited() does nothing in params:, it is for resources:",
    'output: "x"\n    threads: limited("licence", 2)': "limited() does nothing in threads:, it is for resources:",
    'output: "x"\n    resources: a=limited("licence", 0)': "limited: at_most must be between 1 and 999999, got 0",
    'output: "x"\n    resources: a=limited(None, 2)': "limited: path must be a path, not None",
    'output: "x"\n    resources: a=limited("x.{a}", 2)': "'x.{a}' has a wildcard that the rule has not: a",
    'output: "x"\n    resources: a=limited("licence", 2, share="all")': "limited: share must be 'user' or 'group'",
    'input: shared_read("in", at_most="2")\n    output: "x"': "shared_read: at_most must be an integer, not str",
    'input: shared_read("in", lock="{a}.{b}")\n    output: "{b}"': "'{a}.{b}' has a wildcard that the rule has not: a",
}


def test_what_cannot_be_guarded_is_refused_when_the_workflow_is_read(scene: Scene) -> None:
    for number, rule in enumerate(REFUSED):
        scene.snakefile(f'rule x:\n    {rule}\n    shell: "touch {{output}}"\n', f"{number}.smk")
    scene.snakefile('config["nfsrwlock"] = {"tymeout": 3}\nrule x:\n    output: exclusive("x")\n', "config.smk")
    *runs, (code, text) = scene.many(*(f"-n -s {number}.smk" for number in range(len(REFUSED))), "-n -s config.smk")
    assert code == 1
    assert "config section 'nfsrwlock': 'tymeout' is no option; there are timeout" in text
    for (code, text), (rule, message) in zip(runs, REFUSED.items(), strict=True):
        assert code == 1, rule
        assert message in text, rule
        assert "in check_rules" not in text, rule
        assert "rule x, line" in text or "line " in text, rule


def test_a_flag_is_its_rule_s_own(scene: Scene) -> None:
    scene.snakefile(
        """
        rule all:
            input: "third", "fourth"
        rule first:
            output: "first"
            shell: "touch {output}"
        rule second:
            input: shared_read(rules.first.output[0])
            output: exclusive("second")
            shell: "{see} {rule} first second; touch {output}"
        rule many:
            input: "second"
            output: "many.{n}"
            shell: "touch {output}"
        rule third:
            input: rules.first.output[0], ancient(rules.second.output[0])
            output: "third"
            shell: "{see} {rule} first second; touch {output}"
        module other:
            snakefile: "other.smk"
            prefix: "other"
        use rule * from other as other_*
        use rule third as fourth with:
            input: shared_read("first"), ancient("second")
            output: "fourth"
        use rule second as other_second with:
            input: rules.first.output, rules.other_deep.output
            output: "unused"
        """
    )
    scene.snakefile(
        'rule deep:\n    output: exclusive("deep")\n    shell: "{see} deep other/deep; touch {output}"', "other.smk"
    )
    text = scene.run("-c1", "third", "other/deep", "many.1", "many.2")
    unguarded = "rule {} reads second, an exclusive() output of rule second, without shared_read()"
    assert text.count(unguarded.format("third")) == text.count(unguarded.format("many")) == 1
    assert text.count("without shared_read()") == 2
    scene.run("-c1", "fourth")  # by itself, or Snakemake 9.13.0 may run it beside the third, one core or not
    assert scene.seen("second") == {"first": ["read"], "second": ["write"]}
    assert scene.seen("third") == {"first": [], "second": []}
    assert scene.seen("fourth") == {"first": ["read"], "second": []}
    assert scene.seen("deep") == {"other/deep": ["write"]}


SCHEDULED = (
    SLOW_TO_BEGIN
    + """rule all:
    input: "locked", "free", "one", "two"
rule locked:
    input: shared_read("ref/in")
    output: "locked"
    priority: 100
    shell: "cp {input} {output}"
rule free:
    output: "free"
    shell: "touch {output}"
rule each:
    wildcard_constraints: name="one|two"
    output: exclusive("{name}", lock="ref/both")
    shell: "sleep 1; ls -d ref/both.rwlock/write.* > {wildcards.name}.seen; touch {output}"
"""
)


@with_schedulers
def test_with_the_scheduler_a_job_whose_lock_is_busy_takes_no_core(scene: Scene) -> None:
    scene.write("ref/in", "data")
    scene.snakefile(SCHEDULED)
    with SoftReadWriteLock(scene.directory / "ref/in").write_lock():
        run = scene.start("-c2", "--scheduler", "nfsrwlock")
        begun = scene.directory / "begun"
        # So both cores could have been had; a shell makes the file before it writes.
        scene.wait_for(lambda: begun.exists() and begun.read_text() and scene.exists("free"))
        assert begun.read_text().count("\n") == 1, "the other one, whose lock nobody has yet, is not started beside it"
        scene.write("go", "")
        scene.wait_for(lambda: all(scene.exists(name) for name in ("free", "one", "two")))
        assert re.search(r"\(rule locked\) waits for the lock on .*/ref/in to start: ", run.text)
        assert f"pid {os.getpid()}, writing since" in run.text
        # Older releases do not ask the scheduler when a single job is ready; then it is started last, and waits.
        started = run.text.find("localrule locked")
        assert started < 0 or started > max(run.text.rfind("localrule free"), run.text.rfind("localrule each"))
    run.end(0)
    assert scene.read("locked") == "data"
    for name in ("one", "two"):  # neither was started to wait for the other
        assert len(scene.read(f"{name}.seen").split()) == 1
    assert "ref/both to start: " not in run.text, "nobody need hear of the workflow's own jobs"


COUNTED = """
import atexit, time
from nfsrwlock.snakemake import admission
busy = []
counts = {"inspect": 0, "plan_of": 0}
def counted(name, function):
    def count(*args, **kwargs):
        counts[name] += 1
        if "busy" in str(args[0]):
            busy.append(time.monotonic())
        return function(*args, **kwargs)
    return count
for name in ("inspect", "plan_of"):
    setattr(admission, name, counted(name, getattr(admission, name)))
def write_down():
    with open("counts", "w") as file:
        print(*counts.values(), len(busy), int(busy[-1] - busy[0]), file=file)
if workflow.is_main_process:
    atexit.register(write_down)
rule all:
    input: expand("{kind}/{n}", kind=["one", "two"], n=range(20))
rule one:
    input: shared_read("ref/in")
    output: exclusive("one/{n}")
    shell: "touch {output}"
rule two:
    input: shared_read("ref/busy")
    output: exclusive("two/{n}")
    shell: "touch {output}"
"""


@with_schedulers
def test_the_scheduler_looks_at_each_lock_once_and_tells_of_it_in_one_line(scene: Scene) -> None:
    for name in ("in", "busy"):
        scene.write(f"ref/{name}", "data")
    scene.snakefile(COUNTED)
    began = time.monotonic()
    with SoftReadWriteLock(scene.directory / "ref/busy").write_lock():
        run = scene.start("-c8", "--scheduler", "nfsrwlock")
        scene.wait_for(lambda: sum(scene.exists(f"one/{n}") for n in range(20)) == 20)
    run.end(0)
    assert run.text.count("to start: ") == 1
    assert re.search(r"20 jobs wait for the lock on .*/ref/busy to start: .*writing since", run.text)
    looks, plans, of_busy, seconds = map(int, scene.read("counts").split())
    assert plans == 41, "one for each job"
    assert of_busy <= seconds + 3, "at most once a second"
    # The lock of each job before it starts; each of the 40 if one is found busy, but none twice within a second.
    assert looks <= 42 + 21 * (time.monotonic() - began)


def test_a_job_may_lock_a_part_of_its_work_itself(scene: Scene) -> None:
    scene.snakefile(
        """
        from nfsrwlock import SoftReadWriteLock
        rule all:
            input: "one", "two", "three"
        rule three:
            output: "three"
            script: "script.py"
        rule one:
            output: "one"
            run:
                with SoftReadWriteLock("ref/x").write_lock(timeout=50):
                    shell("{see} one ref/x ref/env")
                shell("{see} after ref/x ref/env; touch {output}")
        rule two:
            output: "two"
            shell:
                "nfsrwlock hold --write ref/y --timeout 50 --pid $$; {see} two ref/y ref/env; touch {output}"
        """
    )
    scene.write("ref/x", "")
    scene.write(
        "script.py",
        """
        import os
        from nfsrwlock import SoftReadWriteLock
        with SoftReadWriteLock("ref/z").read_lock(timeout=50):
            os.system("sh see three ref/z ref/env")
        open(snakemake.output[0], "w").close()
        """,
    )
    done = subprocess.run(
        [sys.executable, "-m", "nfsrwlock", "run", "--write", "ref/env", "--", "snakemake", "-c2"],
        cwd=scene.directory,
        env=scene.environment,
        capture_output=True,
        text=True,
        timeout=scene.patience_s,
    )
    assert done.returncode == 0, done.stderr
    assert scene.seen("one") == {"ref/x": ["write"], "ref/env": ["write"]}
    assert scene.seen("after") == {"ref/x": [], "ref/env": ["write"]}
    assert scene.seen("two") == {"ref/y": ["write"], "ref/env": ["write"]}
    assert scene.seen("three") == {"ref/z": ["read"], "ref/env": ["write"]}
    scene.wait_for(lambda: not scene.locks())


def test_a_workflow_within_a_job_does_not_wait_for_the_job_s_own_lock(scene: Scene) -> None:
    scene.write("ref/out", "old\n")
    scene.write(
        "inner/Snakefile",
        "from nfsrwlock.snakemake import shared_read\n"
        'rule inner:\n    input: shared_read("../ref/out")\n    output: "copy"\n    shell: "cp {input} {output}"\n',
    )
    scene.snakefile(
        """
        rule outer:
            output: exclusive("ref/out")
            shell: "(cd inner && {config[python]} -m snakemake -c1 > log 2>&1 || echo $? > code); echo new > {output}"
        """
    )
    scene.run("-F", "--config", f"python={sys.executable}")
    assert scene.read("inner/code") == "1\n"
    assert "waiting would never end" in scene.read("inner/log")
    assert scene.read("ref/out") == "new\n"
