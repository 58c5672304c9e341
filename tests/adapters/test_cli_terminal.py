"""The command line at a terminal: who is in the foreground, Ctrl-C, Ctrl-Z, the spinner, the question."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from adapters.cli_scene import PROGRAM, QUICK, SHORT, TICKING, Scene, scene
from nfsrwlock.processes import KEEPER_NAME

__all__ = ["scene"]

PROMPT = "ready> "
INTERRUPT, SUSPEND = "\x03", "\x1a"


class Shell:
    """An interactive shell with job control on a terminal of its own."""

    def __init__(self, scene: Scene) -> None:
        self._shown = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(scene.directory)
                environment = {**scene.environment, "PS1": PROMPT, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
                os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)
            finally:
                os._exit(127)
        self.expect(re.escape(PROMPT))
        (scene.directory / "nfsrwlock").write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
        (scene.directory / "nfsrwlock").chmod(0o700)
        self.do("PATH=$PWD:$PATH; stty -echo cols 200 rows 40")

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._terminal, text.encode())

    def enter(self, line: str) -> None:
        """Type a line."""
        self.type(line + "\n")

    def do(self, line: str) -> str:
        """Type a line, and return what is shown until the shell is ready again."""
        self.enter(line)
        return self.ready()

    def ready(self) -> str:
        """What is shown until the shell is ready again."""
        return self.expect(re.escape(PROMPT))

    def expect(self, pattern: str, seconds: float = 30) -> str:
        """Wait until something is shown; return all that was shown since the last time, up to its end."""
        limit = time.monotonic() + seconds
        while (match := re.search(pattern, self._shown)) is None:
            left = limit - time.monotonic()
            assert left > 0, f"{pattern!r} did not appear in {self._shown!r}"
            if select.select([self._terminal], [], [], left)[0]:
                self._shown += os.read(self._terminal, 65536).decode("utf-8", "replace")
        shown, self._shown = self._shown[: match.end()], self._shown[match.end() :]
        return shown

    def close(self) -> None:
        """Hang up."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)


@pytest.fixture
def shell(scene: Scene) -> Iterator[Shell]:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    shell = Shell(scene)
    yield shell
    with suppress(ProcessLookupError):
        shell.close()


RUN = f"nfsrwlock run --write data {shlex.join(QUICK)} --"
RUN_SHORT = f"nfsrwlock run --write data {shlex.join(SHORT)} --"
#: As TICKING, but without starting a process each time: some shells do so by vfork, and a Ctrl-Z that stops the child
#: before it has become `sleep` does not stop the shell, which stands in vfork until then. No shell sees such a job as
#: stopped.
TICKING_ALONE = "exec 3<> <(:); while :; do echo tick >> ticks; read -t 0.05 -u 3; done"


def test_the_command_reads_from_the_terminal(shell: Shell) -> None:
    shell.enter(f"{RUN} sh -c 'echo who?; read name; echo hello $name'")
    shell.expect("who\\?")
    shell.enter("world")
    assert "hello world" in shell.ready()
    assert "code 0" in shell.do("echo code $?")


def test_ctrl_c_reaches_the_command_and_the_lock_is_released(shell: Shell, scene: Scene) -> None:
    shell.enter(f"{RUN} sh -c 'echo begun; exec sleep 60'")
    shell.expect("begun")
    shell.type(INTERRUPT)
    shell.ready()
    assert "code 130" in shell.do("echo code $?")
    assert scene.announced() == []


def test_a_command_may_handle_ctrl_c_itself(shell: Shell) -> None:
    shell.enter(f"{RUN} sh -c 'trap \"echo caught; exit 5\" INT; echo begun; while :; do sleep 0.1; done'")
    shell.expect("begun")
    shell.type(INTERRUPT)
    assert "caught" in shell.ready()
    assert "code 5" in shell.do("echo code $?")


def test_ctrl_c_ends_the_loop_around_it(shell: Shell) -> None:
    shell.enter(f'for i in 1 2; do {RUN} sh -c "echo round $i; exec sleep 60"; done')
    shell.expect("round 1")
    shell.type(INTERRUPT)
    assert "round 2" not in shell.ready()


def test_ctrl_c_ends_the_script_around_it(shell: Shell) -> None:
    shell.enter(f"sh -c '{RUN} sh -c \"echo begun; exec sleep 60\"; echo went on'")
    shell.expect("begun")
    shell.type(INTERRUPT)
    assert "went on" not in shell.ready()


def test_a_suspended_wait_that_is_killed_leaves_nothing_behind(shell: Shell, scene: Scene) -> None:
    scene.hold("write")
    shell.enter(f"{RUN} touch ran")
    scene.wait_for(lambda: len(scene.announced()) == 2)
    shell.expect("waiting")
    shell.type(SUSPEND)
    assert "Stopped" in shell.ready()

    def keepers() -> int:
        return [entry.name for entry in scene.processes()].count(KEEPER_NAME)

    assert keepers() == 2  # it may just be announcing itself anew, so on disk there may be nothing of it
    shell.do("kill -KILL %1")
    scene.wait_for(lambda: keepers() == 1)
    assert len(scene.announced()) == 1
    assert not scene.exists("ran")


def test_ctrl_z_suspends_the_job_and_fg_continues_it(shell: Shell, scene: Scene) -> None:
    shell.enter(f"{RUN} bash -c '{TICKING_ALONE}'")
    scene.wait_for(scene.ticks)
    shell.type(SUSPEND)
    assert "Stopped" in shell.ready()
    assert not scene.is_ticking()
    assert len(scene.announced()) == 1
    shell.enter("fg")
    scene.wait_for_ticks()
    shell.type(INTERRUPT)
    shell.ready()
    assert scene.announced() == []


def test_a_job_whose_hold_was_lost_while_it_was_suspended_is_killed_before_it_runs(shell: Shell, scene: Scene) -> None:
    shell.enter(f"{RUN_SHORT} bash -c '{TICKING_ALONE}'")
    scene.wait_for(scene.ticks)
    shell.type(SUSPEND)
    assert "Stopped" in shell.ready()
    assert scene.run("break", "data", "--yes", "--force").returncode == 0
    time.sleep(2)  # a heartbeat has found out, or the lease has run out
    before = scene.ticks()
    assert "the command was killed" in shell.do("fg")
    assert "code 76" in shell.do("echo code $?")
    assert scene.ticks() == before


@pytest.mark.parametrize("neighbours", ["| cat", "2>&1 | cat | cat"])
def test_in_a_pipeline_the_neighbours_keep_the_terminal_until_the_command_asks_for_it(
    shell: Shell, neighbours: str
) -> None:
    shell.enter(f"{RUN} sh -c 'echo who?; read name; echo hello $name' {neighbours}")
    shell.expect("who\\?")
    shell.enter("world")
    assert "hello world" in shell.ready()
    shell.enter(f"{RUN} sh -c 'echo begun; exec sleep 60' {neighbours}")
    shell.expect("begun")
    shell.type(INTERRUPT)
    shell.ready()
    assert "code 0" in shell.do("nfsrwlock run --write data --timeout 0 -- true; echo code $?")


def test_in_the_background_reading_from_the_terminal_suspends_the_job(shell: Shell) -> None:
    shell.do(f"{RUN} sh -c 'read name; echo hello $name' &")
    while "Stopped" not in shell.do("jobs"):
        time.sleep(0.05)
    shell.enter("fg")
    shell.enter("world")
    shell.expect("hello world")
    shell.ready()


def test_the_terminal_is_given_back_and_repaired_when_the_command_is_killed(shell: Shell) -> None:
    shell.do("stty echo")
    shell.do(f"sh -c '{RUN} sh -c \"stty -echo -icanon; kill -KILL \\$\\$\"; stty -a > modes'")
    shown = shell.do("stty -echo; cat modes")
    assert re.search(r"(?<!-)\becho\b", shown)
    assert re.search(r"(?<!-)\bicanon\b", shown)


def test_a_stopped_command_can_be_given_up_with_ctrl_c(shell: Shell, scene: Scene) -> None:
    shell.enter(f"{RUN_SHORT} sh -c '{TICKING}'")
    scene.wait_for(scene.ticks)
    os.kill(scene.state()["holders"][0]["pid"], signal.SIGSTOP)
    shell.expect("the command is stopped until the hold is confirmed")
    shell.type(INTERRUPT)
    shell.expect("was asked to end: killed")
    os.kill(scene.state()["holders"][0]["pid"], signal.SIGCONT)
    shell.ready()
    assert "code 76" in shell.do("echo code $?")


def test_a_spinner_shows_who_is_in_the_way_and_vanishes(shell: Shell, scene: Scene) -> None:
    holder = scene.hold("write")
    shell.enter("nfsrwlock run --read data --poll 0.1 -- echo 'it runs'")
    waits = rf"waiting (\d+) s to read data: .*pid {scene.keeper(holder)}, writing since"
    first = re.findall(waits, shell.expect(waits))[-1]
    shell.expect(rf"waiting (?!{first} s)\d+ s")  # they pass
    holder.terminate()
    shell.expect("\x1b\\[K(?:.|\n)*it runs")  # the line is erased
    shell.ready()


def test_who_need_not_wait_is_shown_nothing(shell: Shell) -> None:
    assert "\x1b" not in shell.do("nfsrwlock run --read data -- true")


def test_a_wait_in_the_background_is_one_line_and_no_spinner(shell: Shell, scene: Scene) -> None:
    scene.hold("write")
    shell.enter("nfsrwlock run --read data -- true &")  # whether the prompt or the message comes first is open
    assert "\x1b" not in shell.expect("nfsrwlock: waiting to read data: .*\n")
    shell.do("kill %1")


def test_ctrl_c_ends_the_wait_and_the_loop_around_it(shell: Shell, scene: Scene) -> None:
    scene.hold("write")
    shell.enter("for i in 1 2; do echo round $i; nfsrwlock run --read data -- true; done")
    shell.expect("waiting")
    shell.type(INTERRUPT)
    assert "round 2" not in shell.ready()
    assert "code 130" in shell.do("echo code $?")


def test_break_asks_and_does_nothing_unless_told_yes(shell: Shell, scene: Scene) -> None:
    (scene.directory / "data.rwlock").mkdir(mode=0o700)
    (scene.directory / "data.rwlock" / "write.of-another-version").mkdir()
    shell.enter("nfsrwlock break data")
    shell.expect("Remove this hold\\? \\[y/N\\]")
    shell.enter("")
    assert "nothing was removed" in shell.ready()
    assert "code 1" in shell.do("echo code $?")
    assert scene.announced() == ["write.of-another-version"]
    shell.enter("nfsrwlock break data")
    shell.expect("\\[y/N\\]")
    shell.enter("y")
    assert "removed" in shell.ready()
    assert scene.announced() == []


def test_watching_follows_the_lock(shell: Shell, scene: Scene) -> None:
    shell.enter("nfsrwlock status --watch data")
    shell.expect("free, and never locked so far")
    holder = scene.hold("write")
    shell.expect(f"held by a writer(?:.|\n)*{scene.keeper(holder)}")
    holder.terminate()
    shell.expect("free \\(generation 1\\)")
    shell.type(INTERRUPT)
    shell.ready()
    assert "code 0" in shell.do("echo code $?")


def test_what_prune_prints_stands_alone_on_its_lines(scene: Scene, shell: Shell) -> None:
    for name in ("one", "two"):
        assert scene.run("run", "--write", name, "--", "true").returncode == 0
    shown = shell.do("nfsrwlock prune -u 0 .")
    for name in ("one", "two"):
        assert re.search(rf"(\A|[\nGK]){re.escape(os.path.realpath(scene.directory))}/{name}: removed\r\n", shown)
