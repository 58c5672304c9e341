"""The command line waits for nobody that waits for it: holds of the processes above."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from actors import PATIENCE_S
from adapters.cli_scene import PROGRAM, QUICK, Scene, scene
from nfsrwlock import SoftReadWriteLock

__all__ = ["scene"]

RUN = shlex.join([*PROGRAM, "run", *QUICK])
HOLD = shlex.join([*PROGRAM, "hold", *QUICK])


@pytest.mark.parametrize(("outer", "inner"), [("write", "write"), ("write", "read"), ("read", "write")])
def test_a_run_inside_of_a_run_that_excludes_it_fails_at_once(scene: Scene, outer: str, inner: str) -> None:
    result = scene.run("run", f"--{outer}", "data", *QUICK, "--", "sh", "-c", f"{RUN} --{inner} data -- true; exit $?")
    assert result.returncode == 75
    doing = {"read": "shared", "write": "exclusively"}[outer]
    assert "waiting would never end" in result.stderr
    assert f"holds it {doing}" in result.stderr
    assert f"nfsrwlock run --{outer} data" in result.stderr
    assert scene.announced() == []


@pytest.mark.parametrize("pid", ["", "--pid $$"])
def test_a_run_after_a_hold_in_one_script_fails_at_once(scene: Scene, pid: str) -> None:
    script = f"{HOLD} --write data {pid} || exit 1; {RUN} --write data -- true; exit $?"
    process = scene.start("-c", script, program=["sh"])
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75
    assert f"process {process.pid} (sh" in stderr


def test_a_second_hold_for_the_same_shell_fails_at_once(scene: Scene) -> None:
    process = scene.start("-c", f"{HOLD} --read data || exit 1; {HOLD} --write data; exit $?", program=["sh"])
    assert process.wait(PATIENCE_S) == 75


def test_locks_that_do_not_exclude_each_other_are_had(scene: Scene) -> None:
    inner = f"{RUN} --read data -- sh -c '{RUN} --write other -- true'"
    assert scene.run("run", "--read", "data", *QUICK, "--", "sh", "-c", inner).returncode == 0


def test_a_run_beside_another_waits_for_its_end(scene: Scene) -> None:
    # Both below one shell, which holds nothing: neither is the other's ancestor.
    first = f"{RUN} --write data -- sh -c ': > held; while ! test -e go; do sleep 0.05; done'"
    script = f"{first} & while ! test -e held; do sleep 0.05; done; {RUN} --write data -- true; exit $?"
    process = scene.start("-c", script, program=["sh"], to_file=True)
    scene.wait_until_said("waiting")
    (scene.directory / "go").touch()
    assert process.wait(PATIENCE_S) == 0


def test_who_must_not_wait_is_told_that_the_lock_is_held(scene: Scene) -> None:
    inner = f"{RUN} --write data --timeout 0 -- true; exit $?"
    result = scene.run("run", "--write", "data", *QUICK, "--", "sh", "-c", inner)
    assert result.returncode == 75
    assert "is held by" in result.stderr


def test_a_writer_between_two_readers_of_one_line_is_warned_of(scene: Scene) -> None:
    inner = f"touch held; while ! test -e go; do sleep 0.05; done; {RUN} --read data --timeout 60 -- true"
    outer = scene.start("run", "--read", "data", *QUICK, "--", "sh", "-c", inner, to_file=True)
    scene.wait_for(lambda: scene.exists("held"))
    writer = scene.start("run", "--write", "data", *QUICK, "--", "true", stderr=subprocess.DEVNULL)
    scene.wait_for(lambda: any(name.startswith("write.") for name in scene.announced()))
    (scene.directory / "go").touch()
    scene.wait_until_said("neither will ever go on")
    writer.terminate()
    assert outer.wait(PATIENCE_S) == 0


def test_python_that_was_given_a_hold_s_name_is_refused(scene: Scene) -> None:
    path = scene.directory / "data"
    lock = SoftReadWriteLock(path)
    with lock.write_lock():
        code = f"import nfsrwlock; nfsrwlock.SoftReadWriteLock({str(path)!r}).acquire_read(timeout={PATIENCE_S})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=lock.witness().in_environment({**os.environ, "NFSRWLOCK_HELD": "read.another"}),
            capture_output=True,
            text=True,
        )
    assert "DeadlockError" in done.stderr
