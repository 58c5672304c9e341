"""``nfsrwlock run``: the command when all goes well, when it is signalled, and when the hold is in doubt."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

from actors import PATIENCE_S
from adapters.cli_scene import PROGRAM, QUICK, SHORT, TICKING, Scene, scene
from adapters.test_cli_doctor import environment_of
from nfsrwlock import SoftReadWriteLock
from nfsrwlock.cli import keeper
from nfsrwlock.cli.options import Request
from nfsrwlock.cli.signals import FORWARDED, Signals
from nfsrwlock.cli.waiting import Progress
from nfsrwlock.leash import OnExpiry
from nfsrwlock.processes import KEEPER_NAME

__all__ = ["scene"]


# The command's own life


@pytest.mark.parametrize(
    ("script", "code"), [("true", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
def test_the_exit_code_is_the_commands(scene: Scene, script: str, code: int) -> None:
    result = scene.run("run", "--write", "data", "--", "sh", "-c", script)
    assert (result.returncode, result.stderr) == (code, "")
    assert scene.announced() == []


def test_the_command_has_stdin_stdout_and_stderr(scene: Scene) -> None:
    result = scene.run("run", "--read", "data", "--", "sh", "-c", "cat; echo to stderr >&2", stdin="from stdin")
    assert (result.stdout, result.stderr) == ("from stdin", "to stderr\n")


def test_the_lock_is_held_while_the_command_runs(scene: Scene) -> None:
    holder = scene.hold("write")
    state = scene.state()
    assert [(peer["mode"], peer["pid"]) for peer in state["holders"]] == [("write", scene.keeper(holder))]
    holder.terminate()
    assert holder.wait() == 143
    assert scene.state()["holders"] == []


def test_readers_share_and_a_path_in_both_lists_is_written(scene: Scene) -> None:
    scene.hold("read", "shared")
    assert scene.run("run", "--read", "shared", "--timeout", "0", "--", "true").returncode == 0
    scene.hold("read", "both", "--write", "both")
    assert [peer["mode"] for peer in scene.state("both")["holders"]] == ["write"]


@pytest.mark.parametrize(
    ("command", "code"),
    [("no-such-command", 127), ("./no-such-file", 127), ("./plain-file", 126), ("./", 126), ("", 127)],
)
def test_what_cannot_run_is_refused_before_the_lock_is_asked_for(scene: Scene, command: str, code: int) -> None:
    (scene.directory / "plain-file").touch(mode=0o600)
    result = scene.run("run", "--write", "data", "--", command)
    assert result.returncode == code
    assert result.stderr.startswith(f"nfsrwlock: {command}: ")
    assert result.stderr.count("\n") == 1
    assert not scene.exists("data.rwlock")


def test_a_script_without_a_first_line_runs_in_the_shell(scene: Scene) -> None:
    script = scene.directory / "script"
    script.write_text('echo "$1"\n')
    script.chmod(0o700)
    assert scene.run("run", "--read", "data", "--", "./script", "hello").stdout == "hello\n"


def test_the_keeper_keeps_nothing_open_that_the_caller_has_open(scene: Scene) -> None:
    reader, writer = os.pipe()
    holder = scene.start("run", "--read", "data", *QUICK, "--", "sh", "-c", TICKING, pass_fds=[writer], stdout=writer)
    os.close(writer)
    scene.wait_for(scene.ticks)
    keeper = scene.keeper(holder)
    pipe = os.readlink(f"/proc/self/fd/{reader}")
    assert pipe not in scene.opened_by(keeper)
    os.close(reader)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_works_with_standard_streams_closed(scene: Scene, closed: str) -> None:
    line = f"{shlex.join(PROGRAM)} run --write data -- sh -c 'ls data.rwlock > listing' {closed}"
    assert scene.start("-c", line, program=["sh"]).wait(PATIENCE_S) == 0
    assert "write." in (scene.directory / "listing").read_text()


def test_only_what_follows_the_dashes_is_the_command(scene: Scene) -> None:
    for name in ("s1.sh", "s2.sh"):
        (scene.directory / name).write_text("#!/bin/sh\ntouch ran\n")
        (scene.directory / name).chmod(0o755)
    result = scene.run("run", "-r", "./s1.sh", "./s2.sh", "--", "true")
    assert result.returncode == 2
    assert not scene.exists("ran")


def test_a_script_goes_to_the_shell(scene: Scene) -> None:
    result = scene.run("run", "-x", "data", "-c", "echo $((1 + 1)); exit 3", SHELL="/bin/sh")
    assert (result.stdout, result.returncode) == ("2\n", 3)


def test_the_command_learns_the_numbers_of_its_grants(scene: Scene) -> None:
    show = ("--", "sh", "-c", 'echo "${NFSRWLOCK_GENERATION-none}"')
    assert scene.run("run", "-w", "b", *show).stdout == "1\n"
    assert scene.run("run", "-w", "b", "-w", "a", *show).stdout == "2 1\n"
    assert scene.run("run", "-r", "b", *show).stdout == "none\n"


@pytest.mark.parametrize("given", [{}, {"LANG": "C"}, {"LC_ALL": "C"}, {"LC_CTYPE": "C"}], ids=str)
def test_the_command_has_its_caller_s_locale(scene: Scene, given: dict[str, str]) -> None:
    """Where there is none, Python sets one for itself."""
    scene.environment = {"PATH": os.environ["PATH"], **given}
    shown = scene.run("run", "--read", "data", "--", "env").stdout.splitlines()
    assert {line for line in shown if line.startswith(("LC_", "LANG"))} == {f"{k}={v}" for k, v in given.items()}


def test_a_missing_interpreter_is_named(scene: Scene) -> None:
    (scene.directory / "script").write_text("#!/no/such/shell -e\n")
    (scene.directory / "script").chmod(0o755)
    result = scene.run("run", "--read", "data", "--", "./script")
    assert result.returncode == 127
    assert "bad interpreter: /no/such/shell" in result.stderr


# Waiting


def test_a_lock_that_is_had_at_once_is_reported_if_asked(scene: Scene) -> None:
    assert "acquired after" in scene.run("run", "--read", "data", "--verbose", "--", "true").stderr


@pytest.mark.parametrize("options", [("-n",), ("--timeout", "0m"), ("-t", "1s", "-E", "9")])
def test_options_of_flock_and_times_with_units(scene: Scene, options: tuple[str, ...]) -> None:
    scene.hold("write")
    expected = 9 if "-E" in options else 75
    assert scene.run("run", "-s", "data", *options, "--", "true").returncode == expected


def test_who_need_not_wait_sees_nothing_and_who_must_is_told_for_whom_once(scene: Scene) -> None:
    holder = scene.hold("write")
    waiter = scene.start("run", "--read", "data", *QUICK, "--", "true")
    assert waiter.stderr is not None
    told = waiter.stderr.readline()
    assert told.startswith("nfsrwlock: waiting to read data: ")
    assert "writing since" in told
    time.sleep(0.3)
    holder.terminate()
    _, more = waiter.communicate(timeout=PATIENCE_S)
    assert waiter.returncode == 0
    assert re.fullmatch(r"nfsrwlock: acquired after .* s\n", more)


def test_variables_that_are_options_of_snakemake_are_none_of_the_command_line_or_of_python(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.environment |= {"NFSRWLOCK_TIMEOUT": "0", "NFSRWLOCK_SHARE": "group"}
    for name in ("NFSRWLOCK_TIMEOUT", "NFSRWLOCK_SHARE"):
        monkeypatch.setenv(name, scene.environment[name])
    holder = scene.hold("write")
    assert (scene.directory / "data.rwlock").stat().st_mode & 0o777 == 0o700
    waiter = scene.start("run", "--read", "data", *QUICK, "--", "true", to_file=True)
    scene.wait_until_said("waiting to read")
    holder.terminate()
    assert waiter.wait(PATIENCE_S) == 0
    lock = SoftReadWriteLock(scene.directory / "data")
    assert (lock.timeout, lock.share) == (-1, "user")


def test_a_time_out_ends_with_75_and_names_the_holder(scene: Scene) -> None:
    holder = scene.hold("write")
    result = scene.run("run", "--read", "data", "--timeout", "0", "--", "true")
    assert result.returncode == 75
    assert f"pid {scene.keeper(holder)}, writing since" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("ends_by_signal", [False, True])
def test_how_a_wait_ended_is_said_also_after_the_process_that_the_user_started_stood_still(
    scene: Scene, ends_by_signal: bool
) -> None:
    scene.hold("read")
    waiter = scene.start("run", "--write", "data", "--poll", "0.01", "--timeout", "12", "--", "touch", "ran")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    keeper = scene.keeper(waiter)
    waiter.send_signal(signal.SIGSTOP)
    time.sleep(8)  # the keeper has more to tell by now than the channel takes
    if ends_by_signal:
        os.kill(keeper, signal.SIGTERM)
    else:
        scene.wait_for(lambda: len(scene.announced()) == 1)
    waiter.send_signal(signal.SIGCONT)
    assert waiter.wait(PATIENCE_S) == (143 if ends_by_signal else 75)


def test_a_time_out_behind_a_pause_of_all_processes_names_the_holder_and_no_silent_file_system(scene: Scene) -> None:
    """As `scontrol suspend` pauses them."""
    holder = scene.hold("write")
    waiter = scene.start("run", "--read", "data", "--poll", "0.1", "--timeout", "5", "--", "touch", "ran", to_file=True)
    scene.wait_until_said("writing since")
    both = [waiter.pid, scene.keeper(waiter)]
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(11.5)  # past the time-out, and the time that the keeper has to tell of it
    for pid in both:
        os.kill(pid, signal.SIGCONT)
    assert waiter.wait(PATIENCE_S) == 75
    assert f"pid {scene.keeper(holder)}, writing since" in scene.said()[-1]
    assert "has not answered" not in scene.said()[-1]


def test_a_standstill_is_no_silence_of_the_file_system(scene: Scene) -> None:
    (scene.directory / "hangs.py").write_text(
        "import os, signal\n"
        "from nfsrwlock.cli import main\n"
        "os.path.isdir = lambda path: signal.pause()\n"
        "raise SystemExit(main())\n"
    )
    program = [PROGRAM[0], str(scene.directory / "hangs.py")]
    waiter = scene.start("run", "--read", "data", "--", "true", program=program, to_file=True)
    scene.wait_for(lambda: KEEPER_NAME in [child.name for child in scene.children(waiter.pid)])
    waiter.send_signal(signal.SIGSTOP)
    time.sleep(6)  # longer than a silence that is told of
    assert scene.said() == []
    began = time.monotonic()
    waiter.send_signal(signal.SIGCONT)
    scene.wait_until_said("answers nothing so far")
    assert time.monotonic() - began > 4
    waiter.terminate()
    assert waiter.wait(PATIENCE_S) == 143


def test_a_wait_asks_once_to_be_woken_if_its_guard_dies_and_a_free_lock_never(scene: Scene) -> None:
    (scene.directory / "prctl.py").write_text(
        "from nfsrwlock.cli import keeper, main\n"
        "keeper.prctl = lambda *asked: print(*asked, file=open('asked', 'a'))\n"
        "raise SystemExit(main())\n"
    )
    program = [PROGRAM[0], str(scene.directory / "prctl.py")]
    assert scene.run("run", "--read", "data", "--", "true", program=program).returncode == 0
    assert not scene.exists("asked")
    holder = scene.hold("write")
    waiter = scene.start("run", "--read", "data", *QUICK, "--", "true", program=program, to_file=True)
    scene.wait_until_said("writing since")
    time.sleep(1)  # several looks
    holder.terminate()
    assert waiter.wait(PATIENCE_S) == 0
    assert (scene.directory / "asked").read_text().count("\n") == 1


def test_after_a_long_standstill_a_wait_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.wish = "to read data"
    progress.frame()
    progress._began -= 600
    progress.frame()
    progress.frame()
    assert capsys.readouterr().err.count("waiting") == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_and_leaves_nothing_behind(scene: Scene, signum: int) -> None:
    scene.hold("read")
    waiter = scene.start("run", "--write", "data", *QUICK, "--", "touch", "ran")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    waiter.send_signal(signum)
    assert waiter.wait(PATIENCE_S) == 128 + signum
    assert len(scene.announced()) == 1
    assert not scene.exists("ran")


@pytest.mark.parametrize("options", [(), ("--timeout", "600")])
def test_a_wait_that_ends_while_the_server_hangs_is_withdrawn_when_it_is_back(
    scene: Scene, options: tuple[str, ...]
) -> None:
    scene.hold("write")
    scene.environment |= environment_of("rmdir hangs")
    waiter = scene.start("run", "--write", "data", *options, "--", "touch", "ran")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    keeper = scene.keeper(waiter)
    (scene.directory / "hangs").touch()
    waiter.send_signal(signal.SIGINT)
    assert waiter.wait(PATIENCE_S) == 130
    time.sleep(3)
    assert len(scene.announced()) == 2
    (scene.directory / "hangs").unlink()
    scene.wait_for(lambda: len(scene.announced()) == 1)
    scene.wait_for(lambda: keeper not in [entry.pid for entry in scene.processes()])


def test_a_wait_ends_soon_after_the_process_that_the_user_started_was_killed(scene: Scene) -> None:
    scene.hold("read")
    waiter = scene.start("run", "--write", "data", "--poll", "0.1", "--", "touch", "ran")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    keeper = scene.keeper(waiter)
    waiter.kill()
    waiter.wait()
    scene.wait_for(lambda: len(scene.announced()) == 1)
    scene.wait_for(lambda: keeper not in [entry.pid for entry in scene.processes()])
    assert not scene.exists("ran")


def test_a_wait_between_long_looks_is_ended_soon_as_well(scene: Scene) -> None:
    scene.hold("read", "data", "--heartbeat", "600", "--stale", "3000")  # of a short lease, looks are not far apart
    waiter = scene.start("run", "--write", "data", "--poll", "600", "--stale", "3000", "--", "touch", "ran")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    time.sleep(0.5)
    waiter.terminate()
    assert waiter.wait(PATIENCE_S) == 143
    assert len(scene.announced()) == 1


def test_a_keeper_stays_as_long_as_something_of_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the data was named relative to the directory that the keeper leaves."""
    monkeypatch.chdir(tmp_path)
    lock = SoftReadWriteLock("data", lock_dir=tmp_path / "locks")

    def outlast(lease_s: float) -> float:
        where, others = str(tmp_path / "locks"), {"conflict_code": 75, "poll": 0.1, "share": "user"}
        began = time.monotonic()
        keeper.outlast_the_server(
            Request(write=("data",), lock_dir=where, stale=lease_s, on_expiry=OnExpiry.STOP, parents=True, **others)
        )
        return time.monotonic() - began

    with lock.write_lock():
        assert outlast(0.6) >= 0.6
    os.chdir(tmp_path)
    assert outlast(60) < 30


def test_a_suspended_wait_is_not_given_the_lock_behind_its_users_back(scene: Scene) -> None:
    holder = scene.hold("write")
    waiter = scene.start("run", "--read", "data", *QUICK, "--", "touch", "ran")
    assert waiter.stderr is not None
    assert "waiting" in waiter.stderr.readline()
    waiter.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, waiter.pid, os.WSTOPPED)
    holder.terminate()
    holder.wait()
    time.sleep(0.5)
    assert scene.announced() == []
    waiter.send_signal(signal.SIGCONT)
    assert waiter.wait(PATIENCE_S) == 0
    assert scene.exists("ran")


# Signals


def test_the_end_of_a_child_only_wakes() -> None:
    with Signals(FORWARDED) as signals:
        os.kill(os.getpid(), signal.SIGCHLD)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.wait(PATIENCE_S) == [signal.SIGUSR1]


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_reach_the_whole_process_group(scene: Scene, name: str) -> None:
    trap = f"trap 'exit 42' {name}; : > ready; while :; do sleep 0.05; done"
    script = f"sh -c \"trap 'touch below; exit' {name}; : > ready-below; while :; do sleep 0.05; done\" & {trap}"
    process = scene.start("run", "--write", "data", *QUICK, "--", "sh", "-c", script)
    scene.wait_for(lambda: scene.exists("ready") and scene.exists("ready-below"))
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(PATIENCE_S) == 42
    # Shells without job control let their background jobs ignore INT and QUIT.
    if name not in ("INT", "QUIT"):
        scene.wait_for(lambda: scene.exists("below"))


def test_a_signal_to_the_process_that_status_names_reaches_the_command(scene: Scene) -> None:
    process = scene.hold("write")
    os.kill(scene.state()["holders"][0]["pid"], signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 143
    assert scene.announced() == []


def test_an_ignored_hangup_stays_ignored(scene: Scene) -> None:
    process = scene.start(
        "-c",
        "trap '' HUP; exec \"$@\"",
        "sh",
        *PROGRAM,
        "run",
        "--read",
        "data",
        *QUICK,
        "--",
        "sh",
        "-c",
        TICKING,
        program=["sh"],
    )
    scene.wait_for(scene.ticks)
    process.send_signal(signal.SIGHUP)
    os.kill(scene.command(process), signal.SIGHUP)
    scene.wait_for_ticks()
    assert process.poll() is None


def test_a_suspended_run_suspends_its_command_and_keeps_its_lock(scene: Scene) -> None:
    process = scene.hold("write")
    process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    scene.wait_for(lambda: not scene.is_ticking())  # it is stopped just before `run` is, but may be in a write
    before = scene.ticks()
    scene.wait_for_beats()
    assert scene.ticks() == before
    assert len(scene.announced()) == 1
    process.send_signal(signal.SIGCONT)
    scene.wait_for_ticks()
    process.terminate()
    assert process.wait(PATIENCE_S) == 143


# When the hold is in doubt


def test_an_expired_lease_stops_the_command_until_a_beat_confirms_the_hold(scene: Scene) -> None:
    process = scene.hold("write", "data", *SHORT, to_file=True)
    keeper = scene.keeper(process)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_until_said("the command is stopped until the hold is confirmed")
    scene.wait_until_stopped()
    assert not scene.is_ticking()
    os.kill(keeper, signal.SIGCONT)
    scene.wait_for_ticks()
    scene.wait_until_said("it never ended; the command goes on")
    process.terminate()
    assert process.wait(PATIENCE_S) == 143
    assert len(scene.said()) == 2


def test_processes_that_left_the_group_are_stopped_and_killed_as_well(scene: Scene) -> None:
    if shutil.which("setsid") is None:
        pytest.skip("needs setsid(1)")
    daemon = f"sh -c 'setsid sh -c \"{TICKING}\" &'"
    process = scene.start(
        *("run", "--write", "data", *SHORT, "--", "sh", "-c", f"{daemon}; setsid sh -c '{TICKING}' & exec sleep 600"),
        to_file=True,
    )
    scene.wait_for(lambda: scene.sessions() >= 3)
    scene.wait_for(scene.ticks)
    keeper = scene.keeper(process)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_until_said("is stopped until")
    scene.wait_until_stopped()
    assert not scene.is_ticking()
    os.kill(keeper, signal.SIGKILL)
    assert process.wait(PATIENCE_S) == 76
    scene.wait_for(lambda: scene.shells() == [])
    assert not scene.is_ticking()


def test_a_hold_lost_behind_a_pause_kills_the_command(scene: Scene) -> None:
    process = scene.hold("write", "data", *SHORT, to_file=True)
    keeper = scene.keeper(process)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_until_said("is stopped until")
    assert scene.run("break", "data", "--yes", "--force").returncode == 0
    assert scene.run("run", "--write", "data", "--timeout", f"{PATIENCE_S}", "--", "true").returncode == 0
    os.kill(keeper, signal.SIGCONT)
    assert process.wait(PATIENCE_S) == 76
    assert "the command was killed: The lock on 'data' was lost" in scene.said()[-1]
    scene.wait_for(lambda: scene.shells() == [])
    assert not scene.is_ticking()


def test_an_eviction_is_noticed_at_the_next_beat(scene: Scene) -> None:
    process = scene.hold("write")
    assert scene.run("break", "data", "--yes", "--force").returncode == 0
    assert process.wait(10) == 76  # less than the lease


def test_a_command_that_ends_by_itself_with_0_after_a_loss_ends_with_76(scene: Scene) -> None:
    process = scene.start(
        "run",
        "--write",
        "data",
        *QUICK,
        "--on-expiry",
        "ignore",
        "--",
        "sh",
        "-c",
        ": > held; while ! test -e go; do sleep 0.05; done",
        to_file=True,
    )
    scene.wait_for(lambda: scene.exists("held"))
    assert scene.run("break", "data", "--yes", "--force").returncode == 0
    scene.wait_until_said("the command goes on without a lock")  # a heartbeat has found out
    (scene.directory / "go").touch()
    assert process.wait(PATIENCE_S) == 76
    assert "what the command did (it ended with 0) was not guarded to its end" in scene.said()[-1]


def test_kill_kills_at_once_when_the_lease_has_run_out(scene: Scene) -> None:
    process = scene.hold("write", "data", *SHORT, "--on-expiry", "kill")
    keeper = scene.keeper(process)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_for(
        lambda: scene.children(process.pid) == [entry for entry in scene.children(process.pid) if entry.pid == keeper]
    )
    os.kill(keeper, signal.SIGCONT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 76
    assert "the command was killed (--on-expiry=kill)" in stderr


def test_ignore_only_says_so(scene: Scene) -> None:
    process = scene.hold("write", "data", *SHORT, "--on-expiry", "ignore", to_file=True)
    keeper = scene.keeper(process)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_until_said("the command goes on although the lock is not certain")
    scene.wait_for_ticks()
    os.kill(keeper, signal.SIGCONT)
    scene.wait_until_said("the hold is confirmed")
    process.terminate()
    assert process.wait(PATIENCE_S) == 143


def test_a_stopped_command_that_is_asked_to_end_is_killed_without_running_again(scene: Scene) -> None:
    script = f"trap 'touch cleaned; exit 3' TERM; {TICKING}"
    process = scene.start("run", "--write", "data", *SHORT, "--", "sh", "-c", script, to_file=True)
    scene.wait_for(scene.ticks)
    keeper = scene.keeper(process)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_until_said("is stopped until")
    process.terminate()
    scene.wait_until_said("was asked to end: killed")
    os.kill(keeper, signal.SIGCONT)
    assert process.wait(PATIENCE_S) == 76
    assert not scene.exists("cleaned")


# When one of the two processes is killed or stopped


def test_when_the_keeper_is_killed_the_command_is_killed(scene: Scene) -> None:
    process = scene.hold("write")
    os.kill(scene.keeper(process), signal.SIGKILL)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 76
    assert "the process that held it has died" in stderr
    scene.wait_for(lambda: scene.shells() == [])
    assert not scene.is_ticking()


def test_when_the_guard_is_killed_the_command_is_killed_before_the_lock_is_free(scene: Scene) -> None:
    process = scene.hold("write")
    process.kill()
    assert scene.run("run", "--write", "data", "--timeout", f"{PATIENCE_S}", "--", "true").returncode == 0
    assert not scene.is_ticking()


def test_when_the_guard_is_killed_ignore_keeps_the_lock_until_the_command_ends(scene: Scene) -> None:
    process = scene.hold("write", "data", "--on-expiry", "ignore")
    command = scene.command(process)
    process.kill()
    process.wait()
    scene.wait_for_beats()
    scene.wait_for_ticks()
    assert len(scene.announced()) == 1
    os.kill(command, signal.SIGKILL)
    scene.wait_for(lambda: scene.announced() == [])


def test_a_stopped_guard_is_no_reason_to_lose_the_lock(scene: Scene) -> None:
    process = scene.hold("write")
    process.send_signal(signal.SIGSTOP)
    scene.wait_for_beats()
    scene.wait_for_ticks()
    assert len(scene.announced()) == 1
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(PATIENCE_S) == 143


def test_an_inner_run_keeps_its_lock_while_the_outer_one_is_in_doubt(scene: Scene) -> None:
    inner_run = shlex.join([*PROGRAM, "run", "--write", "inner", *SHORT, "--", "sh", "-c", TICKING])
    process = scene.start(
        *("run", "--write", "outer", *SHORT, "--", "sh", "-c", f"exec {inner_run} 2> inner-messages"), to_file=True
    )
    scene.wait_for(scene.ticks)
    keeper = scene.keeper(process)
    os.kill(keeper, signal.SIGSTOP)
    scene.wait_until_said("is stopped until")
    before = scene.ticks()
    scene.wait_for_beats("inner", 9)  # longer than its lease
    assert scene.ticks() == before
    (inner,) = (entry for entry in scene.processes() if entry.name == KEEPER_NAME and entry.pid != keeper)
    assert not inner.stopped
    os.kill(keeper, signal.SIGCONT)
    scene.wait_for_ticks()
    process.terminate()
    assert process.wait(PATIENCE_S) == 143
    assert (scene.directory / "inner-messages").read_text() == ""
