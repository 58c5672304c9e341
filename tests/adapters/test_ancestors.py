"""Nobody waits for a hold of an ancestor, which ends only after it: the error comes at once, whatever the form."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from adapters.cli_scene import PROGRAM, Scene, scene
from nfsrwlock import DeadlockError, SoftReadWriteLock

__all__ = ["scene"]

NESTED = shlex.join([*PROGRAM, "run"])


@pytest.mark.parametrize(("outer", "inner"), [("write", "write"), ("write", "read"), ("read", "write")])
def test_a_run_within_a_run_on_the_same_path_is_refused_at_once(scene: Scene, outer: str, inner: str) -> None:
    result = scene.run("run", f"--{outer}", "data", "--", "sh", "-c", f"{NESTED} --{inner} data -- touch ran")
    assert result.returncode == 75
    assert "by an ancestor of this process" in result.stderr
    assert not scene.exists("ran")
    assert scene.announced() == []


def test_readers_may_be_nested(scene: Scene) -> None:
    assert scene.run("run", "--read", "data", "--", "sh", "-c", f"{NESTED} --read data -- true").returncode == 0


def test_a_run_in_a_script_that_holds_is_refused_at_once(scene: Scene) -> None:
    hold = shlex.join([*PROGRAM, "hold", "--write", "data"])
    script = f"{hold} --pid $$ || exit 9\n{NESTED} --read data -- touch ran\necho $?"
    done = subprocess.run(
        ["sh", "-c", script], cwd=scene.directory, capture_output=True, text=True, timeout=120, env=scene.environment
    )
    assert done.stdout == "75\n"
    assert "by an ancestor of this process" in done.stderr
    assert not scene.exists("ran")


def test_a_reader_does_not_wait_for_a_writer_that_waits_for_its_ancestor(scene: Scene) -> None:
    outer = scene.start(
        *("run", "--read", "data", "--", "sh", "-c"),
        f"while ! test -e go; do sleep 0.05; done; {NESTED} --read data -- true",
        to_file=True,
    )
    scene.wait_for(lambda: len(scene.announced()) == 1)
    writer = scene.start("run", "--write", "data", "--", "true")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    (scene.directory / "go").touch()
    assert outer.wait(60) == 75
    assert "a writer waits in between" in (scene.directory / "messages").read_text()
    assert writer.wait(60) == 0


def test_a_time_out_of_nothing_is_a_time_out(scene: Scene) -> None:
    result = scene.run("run", "-w", "data", "--", "sh", "-c", f"{NESTED} -w data -n -E 7 -- true")
    assert result.returncode == 7
    assert "ancestor" not in result.stderr


def test_a_hold_of_somebody_else_is_waited_for(scene: Scene) -> None:
    holder = scene.hold("write")
    waiter = scene.start("run", "--read", "data", "--", "true")
    scene.wait_for(lambda: waiter.poll() is not None or is_waiting(scene, waiter))
    assert waiter.poll() is None
    holder.terminate()
    assert waiter.wait(60) == 0


def is_waiting(scene: Scene, waiter: subprocess.Popen[str]) -> bool:
    """Whether it is as far as waiting."""
    assert waiter.stderr is not None
    return "waiting" in waiter.stderr.readline()


def test_python_under_a_hold_whose_token_it_was_given_is_refused(scene: Scene) -> None:
    path = scene.directory / "data"
    with SoftReadWriteLock(path).write_lock():
        token = scene.announced()[0].split(".")[2]
        code = f"import nfsrwlock; nfsrwlock.SoftReadWriteLock({str(path)!r}).acquire_read(timeout=60)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NFSRWLOCK_HELD": f"{'0' * 32} {token}"},
            capture_output=True,
            text=True,
            timeout=50,
        )
    assert DeadlockError.__name__ in done.stderr
