"""What the tests of the command line have in common: real processes, quick beats, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from actors import PATIENCE_S, beat_of
from nfsrwlock.processes import GUARD_NAME, KEEPER_NAME, Entry, process_table

PROGRAM = [sys.executable, "-m", "nfsrwlock"]
#: Beats and looks often, and has a lease that a machine with much else to do does not outlast.
QUICK = ["--heartbeat", "0.3", "--stale", "20", "--poll", "0.1"]
#: A lease short enough to watch it run out. Given after others, these options replace them.
SHORT = ["--heartbeat", "0.3", "--stale", "2", "--poll", "0.1"]
#: Writes a line every now and then, until somebody ends it.
TICKING = "while :; do echo tick >> ticks; sleep 0.05; done"


class Scene:
    """A directory to work in, and the processes that a test has started there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[str]] = []
        self._mark = f"NFSRWLOCK_TEST={directory}"
        self.environment = {**os.environ, "NFSRWLOCK_TEST": str(directory)}
        self.environment.pop("COLUMNS", None)  # pytest-xdist sets it, and it would narrow the tables

    def run(
        self, *arguments: str | bytes, stdin: str = "", program: list[str] = PROGRAM, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``nfsrwlock``, or another program, to its end."""
        return subprocess.run(
            [*program, *arguments],
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            env={**self.environment, **environment},
        )

    def start(
        self, *arguments: str, program: list[str] = PROGRAM, to_file: bool = False, **settings: Any
    ) -> subprocess.Popen[str]:
        """
        Start ``nfsrwlock`` in a process group of its own, as a shell would.

        :param to_file: what goes to stderr is for :meth:`said`, which tells it as it comes
        """
        with ExitStack() as stack:
            if to_file:
                settings["stderr"] = stack.enter_context((self.directory / "messages").open("a"))
            process = subprocess.Popen(
                [*program, *arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "process_group": 0, "text": True}
                | {"env": self.environment, **settings},
            )
        self._started.append(process)
        return process

    def hold(self, mode: str, path: str = "data", *arguments: str, to_file: bool = False) -> subprocess.Popen[str]:
        """Start a ``run`` that holds the lock until it is told to end, and wait until it does."""
        command = ["sh", "-c", f"echo > held; {TICKING}"]
        process = self.start("run", f"--{mode}", path, *QUICK, *arguments, "--", *command, to_file=to_file)
        self.wait_for(lambda: self.exists("held"))
        (self.directory / "held").unlink()
        return process

    def state(self, path: str = "data") -> dict[str, Any]:
        """What ``status`` says of the lock on ``path``."""
        state: dict[str, Any] = json.loads(self.run("status", "--json", path).stdout)[0]
        return state

    def announced(self, path: str = "data") -> list[str]:
        """The announcements in the lock directory."""
        with suppress(FileNotFoundError):
            return [
                name for name in os.listdir(self.directory / f"{path}.rwlock") if name.startswith(("read.", "write."))
            ]
        return []

    def keeper(self, process: subprocess.Popen[str]) -> int:
        """The process that holds the locks for a ``run``."""
        (keeper,) = (entry.pid for entry in self.children(process.pid) if entry.name == KEEPER_NAME)
        return keeper

    def command(self, process: subprocess.Popen[str]) -> int:
        """The process of the command of a ``run``."""
        (command,) = (entry.pid for entry in self.children(process.pid) if entry.name != KEEPER_NAME)
        return command

    def children(self, pid: int) -> list[Entry]:
        """The live children of a process."""
        return [entry for entry in process_table().values() if entry.parent == pid and not entry.dead]

    def guards(self) -> list[int]:
        """The guards in the background that ``hold`` has left there."""
        return [entry.pid for entry in self.processes() if entry.name == GUARD_NAME]

    def processes(self) -> list[Entry]:
        """All live processes that come from this test: they carry its mark in their environment."""
        ours = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]
        table = process_table() if ours else {}  # to read it takes longer, and at the end of most tests none is left
        return [table[pid] for pid in ours if pid in table and not table[pid].dead]

    def shells(self) -> list[Entry]:
        """Those of them that are commands: shells, and what these wait for."""
        return [entry for entry in self.processes() if entry.name in ("sh", "sleep", "setsid")]

    def wait_until_stopped(self) -> None:
        """Wait until all commands stand still. Whoever waits for a processor may be late to do so."""

        def stand_still() -> bool:
            shells = self.shells()
            stopped = {entry.pid for entry in shells if entry.stopped}
            # Whoever has forked by vfork() waits for its child, and is not stopped before that goes on.
            held_up = {entry.parent for entry in shells if entry.pid in stopped}
            return bool(shells) and all(
                entry.pid in stopped or (entry.state == "D" and entry.pid in held_up) for entry in shells
            )

        self.wait_for(stand_still)

    def sessions(self) -> int:
        """How many of them lead a session."""
        found = 0
        for entry in self.processes():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                found += entry.pid == os.getsid(entry.pid)
        return found

    def _is_ours(self, pid: int) -> bool:
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            return self._mark.encode() in file.read().split(b"\0")
        return False

    def ticks(self) -> int:
        """How much the command has written."""
        with suppress(FileNotFoundError):
            return (self.directory / "ticks").stat().st_size
        return 0

    def is_ticking(self, seconds: float = 0.3) -> bool:
        """Whether the command writes; not to be relied upon where it should: it may be slow."""
        before = self.ticks()
        time.sleep(seconds)
        return self.ticks() > before

    def wait_for_ticks(self) -> None:
        """Wait until the command has written more than by now."""
        before = self.ticks()
        self.wait_for(lambda: self.ticks() > before)

    def wait_for_beats(self, path: str = "data", count: int = 4) -> None:
        """Wait until the only participant of the lock on ``path`` has sent so many more heartbeats."""
        before = beat_of(self.directory / path) or 0
        self.wait_for(lambda: (beat_of(self.directory / path) or 0) >= before + count)

    def said(self) -> list[str]:
        """The lines on stderr of what was started with ``to_file``, or that a script has sent to that file."""
        with suppress(FileNotFoundError):
            return (self.directory / "messages").read_text().splitlines()
        return []

    def wait_until_said(self, text: str) -> None:
        """Wait until the latest line on stderr contains ``text``."""
        self.wait_for(lambda: text in "".join(self.said()[-1:]))

    def opened_by(self, pid: int) -> list[str]:
        """What a process has open."""
        found = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile: a heartbeat opens directories
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        return found

    def exists(self, name: str) -> bool:
        """Whether the command has made this file."""
        return (self.directory / name).exists()

    def wait_for(self, condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Wait until something has come about."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, "it did not come about"
            time.sleep(0.02)

    def close(self) -> None:
        """End what the test has started, by number, and with it what that has left running."""
        while left := self.processes():
            for entry in left:
                with suppress(ProcessLookupError):
                    os.kill(entry.pid, signal.SIGKILL)
            for process in self._started:
                process.poll()
        for process in self._started:
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()
