"""``nfsrwlock hold``: a lock for the rest of a shell script."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from actors import PATIENCE_S
from adapters.cli_scene import PROGRAM, QUICK, SHORT, TICKING, Scene, scene

__all__ = ["scene"]

HOLD = shlex.join([*PROGRAM, "hold", *QUICK])


def script(scene: Scene, text: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start a shell script in which ``hold`` stands for the command with quick beats."""
    return scene.start("-c", text.replace("hold", HOLD, 1), program=["sh"], stderr=stderr)


def holder(scene: Scene) -> int:
    """The process that holds the lock on ``data``."""
    pid: int = scene.state()["holders"][0]["pid"]
    return pid


def test_it_returns_once_the_lock_is_held_and_the_lock_lasts_as_long_as_the_shell(scene: Scene) -> None:
    process = script(scene, "hold --read data --pid $$ || exit; : > held; while ! test -e go; do sleep 0.05; done")
    scene.wait_for(lambda: scene.exists("held"))
    (peer,) = scene.state()["holders"]
    assert (peer["mode"], peer["alive"]) == ("read", True)
    scene.wait_for_beats()
    assert len(scene.announced()) == 1
    (scene.directory / "go").touch()
    assert process.wait(PATIENCE_S) == 0
    scene.wait_for(lambda: scene.announced() == [])


def test_the_parent_process_is_the_default(scene: Scene) -> None:
    process = script(scene, 'hold --write data || exit; test -n "$(ls data.rwlock | grep write)"')
    assert process.wait(PATIENCE_S) == 0
    scene.wait_for(lambda: scene.announced() == [])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_is_free_soon_after_the_shell_was_killed(scene: Scene, end: int) -> None:
    process = script(scene, f"hold --write data --pid $$ || exit; {TICKING}")
    scene.wait_for(scene.ticks)
    process.send_signal(end)
    process.wait()
    scene.wait_for(lambda: scene.announced() == [], seconds=10)  # less than the lease


def test_nobody_waits_for_the_output_of_the_processes_in_the_background(scene: Scene) -> None:
    process = script(scene, "x=$(hold --write data --pid $$ 2>&1); : > held; while ! test -e go; do sleep 0.05; done")
    scene.wait_for(lambda: scene.exists("held"))
    assert len(scene.announced()) == 1
    (scene.directory / "go").touch()
    assert process.wait(PATIENCE_S) == 0


def test_a_lock_that_cannot_be_had_fails_with_the_codes_of_run(scene: Scene) -> None:
    scene.hold("write")
    process = script(scene, "hold --read data --timeout 0; exit $?")
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75
    assert "writing since" in stderr


@pytest.mark.parametrize("pid", ["0", "-1", "4194304", "99999999999"])
def test_a_process_that_does_not_exist_is_refused(scene: Scene, pid: str) -> None:
    result = scene.run("hold", "--read", "data", "--pid", pid)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"--pid {pid}: " in result.stderr
    assert not scene.exists("data.rwlock")


def test_an_expired_lease_stops_the_shell_and_what_it_runs(scene: Scene) -> None:
    options = shlex.join(SHORT)
    process = script(scene, f"hold --write data {options} --pid $$ 2> messages || exit; sh -c '{TICKING}'")
    scene.wait_for(scene.ticks)
    keeper = holder(scene)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_until_said(f"process {process.pid} is stopped until the hold is confirmed")
    scene.wait_until_stopped()
    assert not scene.is_ticking()
    os.kill(keeper, signal.SIGCONT)
    scene.wait_for_ticks()
    scene.wait_until_said("the hold is confirmed")


def test_a_lost_hold_kills_the_shell_and_what_it_runs_and_says_so_in_a_file(scene: Scene) -> None:
    process = script(scene, f"hold --write data --pid $$ 2> messages || exit; sh -c '{TICKING}'")
    scene.wait_for(scene.ticks)
    assert scene.run("break", "data", "--yes", "--force").returncode == 0
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    # A line of the guard's, who is nobody's child here.
    scene.wait_until_said(f"process {process.pid} was killed: The lock on 'data' was lost")
    scene.wait_for(lambda: scene.shells() == [])
    assert not scene.is_ticking()


def test_when_the_keeper_is_killed_the_shell_is_killed(scene: Scene) -> None:
    process = script(scene, f"hold --write data --pid $$ || exit; {TICKING}")
    scene.wait_for(scene.ticks)
    os.kill(holder(scene), signal.SIGKILL)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    scene.wait_for(lambda: scene.shells() == [])
    assert not scene.is_ticking()


def test_when_the_guard_is_killed_the_shell_is_killed_before_the_lock_is_free(scene: Scene) -> None:
    process = script(scene, f"hold --write data --pid $$ || exit; {TICKING}")
    scene.wait_for(scene.ticks)
    scene.wait_for(scene.guards)
    (guard,) = scene.guards()
    os.kill(guard, signal.SIGKILL)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    scene.wait_for(lambda: scene.announced() == [])
    assert not scene.is_ticking()


def test_ignore_leaves_the_shell_alone(scene: Scene) -> None:
    process = script(scene, f"hold --write data --pid $$ --on-expiry ignore 2> messages || exit; {TICKING}")
    scene.wait_for(scene.ticks)
    assert scene.run("break", "data", "--yes", "--force").returncode == 0
    scene.wait_until_said(f"process {process.pid} goes on without a lock")
    scene.wait_for_ticks()
    assert process.poll() is None


def test_a_signal_ends_the_wait(scene: Scene) -> None:
    scene.hold("write")
    waiting = scene.start("hold", "--read", "data", *QUICK)
    assert waiting.stderr is not None
    assert "waiting to read data" in waiting.stderr.readline()
    waiting.terminate()
    assert waiting.wait(PATIENCE_S) == 143


def test_the_processes_in_the_background_leave_the_callers_directory_and_descriptors_alone(scene: Scene) -> None:
    reader, writer = os.pipe()
    process = scene.start("-c", f"{HOLD} --write data --pid $$ || exit; {TICKING}", program=["sh"], pass_fds=[writer])
    os.close(writer)
    scene.wait_for(scene.ticks)
    pipe = os.readlink(f"/proc/self/fd/{reader}")
    os.close(reader)
    scene.wait_for(scene.guards)  # it leaves while the script goes on already
    (guard,) = scene.guards()
    scene.wait_for(lambda: pipe not in scene.opened_by(guard))
    assert pipe not in scene.opened_by(holder(scene))
    for pid in (holder(scene), guard):
        assert os.getsid(pid) not in (os.getsid(0), os.getsid(process.pid))
    assert Path(os.readlink(f"/proc/{guard}/cwd")) == Path("/")


# Given back before the end


def releasing(scene: Scene, text: str) -> subprocess.Popen[str]:
    """Start a script in which ``release`` stands for the command, too."""
    return script(scene, text.replace("release", shlex.join([*PROGRAM, "release"])), stderr=subprocess.PIPE)


def test_a_script_gives_its_lock_back_and_goes_on(scene: Scene) -> None:
    process = releasing(
        scene, "hold --write data --read other || exit; release data || exit; ls data.rwlock other.rwlock; echo alive"
    )
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stderr) == (0, "")
    assert stdout.split() == ["data.rwlock:", "gen.1", "other.rwlock:", "alive"], "one hold ends as a whole"
    scene.wait_for(lambda: scene.guards() == [])


def test_what_one_process_has_is_not_given_back_by_another(scene: Scene) -> None:
    other = script(scene, "hold --read data || exit; : > held; while ! test -e go; do sleep 0.05; done")
    scene.wait_for(lambda: scene.exists("held"))
    process = releasing(scene, "hold --read data || exit; release data; echo $?; release data; echo $?; exit")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert stdout.split() == ["0", "2"]
    assert f"no 'nfsrwlock hold' keeps it for process {process.pid}" in stderr
    assert len(scene.announced()) == 1
    assert scene.run("release", "--pid", str(other.pid), "data").returncode == 0
    assert scene.announced() == []
    (scene.directory / "go").touch()
    assert other.wait(PATIENCE_S) == 0


def test_a_lock_that_nobody_took_by_hold_stays(scene: Scene) -> None:
    run = scene.hold("write")
    refused = scene.run("release", "data")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    os.kill(scene.keeper(run), signal.SIGUSR1)
    scene.wait_for_beats()
    assert len(scene.announced()) == 1
    assert run.poll() is None


def test_a_script_whose_lock_was_lost_does_not_outlive_giving_it_back(scene: Scene) -> None:
    long = "--heartbeat 60 --stale 200"
    wait = ": > held; while ! test -e go; do sleep 0.05; done"
    process = releasing(scene, f"hold {long} --write data --pid $$ || exit; {wait}; release data; : > after")
    scene.wait_for(lambda: scene.exists("held"))
    keeper = holder(scene)
    os.kill(keeper, signal.SIGSTOP)
    (scene.directory / "go").touch()
    pending = Path(f"/proc/{keeper}/status")
    bit = 1 << (signal.SIGUSR1 - 1)
    scene.wait_for(lambda: int(re.findall(r"ShdPnd:\s*(\w+)", pending.read_text())[0], 16) & bit)
    assert scene.run("break", "--yes", "--force", "data").returncode == 0
    os.kill(keeper, signal.SIGCONT)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not scene.exists("after")


def test_what_is_stopped_is_not_given_back(scene: Scene) -> None:
    process = script(scene, f"hold {shlex.join(SHORT)} --write data --pid $$ || exit; {TICKING}")
    scene.wait_for(scene.ticks)
    keeper = holder(scene)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_for(lambda: not scene.is_ticking())
    release = scene.start("release", "--pid", str(process.pid), "data")
    os.kill(keeper, signal.SIGCONT)
    assert release.wait(PATIENCE_S) == 0
    scene.wait_for_ticks()
    assert scene.announced() == []
