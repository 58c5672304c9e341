"""What the tests of the Snakemake adapter have in common: real workflows, run by real Snakemake processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nfsrwlock.snakemake import watchdog

#: At the head of every Snakefile. `see NAME PATH...` notes who holds the locks, as an outsider is shown it.
HEAD = f"""
from nfsrwlock.snakemake import exclusive, lock_cache, shared_read
see = "sh {{workflow.basedir}}/see"
python = {sys.executable!r}
"""
SEE = f"""
name=$1; shift; mkdir -p seen
exec {sys.executable} -m nfsrwlock status --json "$@" > seen/$name.json
"""


#: At the head of a Snakefile: waits until the loss of a lock that was broken is known, a heartbeat later.
KNOWN_LOSS = """
import time
from nfsrwlock import HoldStatus
from nfsrwlock.snakemake import holding
settle, mine = holding.settle, []
def note_the_locks(job, locks):
    mine.append(locks)
    settle(job, locks)
holding.settle = note_the_locks  # Snakemake's work is done, and nothing is published yet
def wait_for_the_loss():
    while mine[-1].status is HoldStatus.HELD:
        time.sleep(0.05)
"""
#: Runs Snakemake several times, each in a process of its own that need not import it again.
MANY = """
import json, os, sys
import snakemake.cli
for number, arguments in enumerate(json.load(sys.stdin)):
    pid = os.fork()
    if pid == 0:
        log = os.open(f"many.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        snakemake.cli.main(arguments)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class Run:
    """A Snakemake process."""

    def __init__(self, scene: Scene, arguments: tuple[str, ...], environment: dict[str, str], directory: str) -> None:
        self.log = scene.directory / f"log.{len(scene.runs)}"
        self._patience_s = scene.patience_s
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", "--nocolor", *arguments],
                cwd=scene.directory / directory,
                env={**scene.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def end(self, code: int | None = None) -> Run:
        """Wait for its end; the exit code must be ``code``."""
        found = self.process.wait(self._patience_s)
        assert code is None or found == code, f"exit code {found}\n{self.text[-5000:]}"
        return self

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send it a signal: the main process alone."""
        self.process.send_signal(signum)


class Scene:
    """A directory with a workflow, and the processes that a test has started there."""

    #: What Snakemake is told first.
    arguments: tuple[str, ...] = ("-c2",)
    #: How long a test waits for something that takes some Snakemake processes, seconds. It only bounds what would never
    #: happen, so it is generous: on a busy machine, a process of Snakemake's needs ten seconds to start.
    patience_s = 150.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runs: list[Run] = []
        self._mark = f"NFSRWLOCK_TEST={directory}".encode()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NFSRWLOCK", "SNAKEMAKE"))},
            "NFSRWLOCK_TEST": str(directory),
            "XDG_CACHE_HOME": str(directory / "xdg"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        (directory / "see").write_text(SEE)

    def write(self, path: str, text: str) -> Path:
        """Make a file; indentation common to all lines is removed."""
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        return file

    def snakefile(self, text: str, path: str = "Snakefile") -> None:
        """Write a workflow, which can use the names of :data:`HEAD`."""
        self.write(path, HEAD.replace("{workflow.basedir}", str(self.directory)) + textwrap.dedent(text))

    def start(self, *arguments: str, directory: str = ".", **environment: str) -> Run:
        """Start Snakemake."""
        run = Run(self, (*self.arguments, *arguments), environment, directory)
        self.runs.append(run)
        return run

    def run(self, *arguments: str, code: int | None = 0, directory: str = ".", **environment: str) -> str:
        """Run Snakemake to its end; return its log."""
        return self.start(*arguments, directory=directory, **environment).end(code).text

    def many(self, *runs: str) -> list[tuple[int, str]]:
        """Run Snakemake once for each line of arguments, one after the other; return exit codes and logs."""
        done = subprocess.run(
            [sys.executable, "-c", MANY],
            cwd=self.directory,
            env=self.environment,
            input=json.dumps([["-c2", "--nocolor", *shlex.split(run)] for run in runs]),
            capture_output=True,
            text=True,
            timeout=self.patience_s + 20 * len(runs),
        )
        codes = [int(line) for line in done.stdout.split()]
        assert len(codes) == len(runs), done.stderr
        return [(code, self.read(f"many.{number}")) for number, code in enumerate(codes)]

    def read(self, path: str) -> str:
        """The text of a file."""
        return (self.directory / path).read_text()

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return (self.directory / path).exists()

    def seen(self, name: str) -> dict[str, list[str]]:
        """What `see` noted: for each file, how it was held."""
        return {
            os.path.relpath(state["lock_path"], self.directory).removesuffix(".rwlock"): [
                holder["mode"] for holder in state["holders"]
            ]
            for state in self.states(name)
        }

    def states(self, name: str) -> list[dict[str, Any]]:
        """What `see` noted, in full."""
        found: list[dict[str, Any]] = json.loads(self.read(f"seen/{name}.json"))
        return found

    def locks(self) -> list[str]:
        """All announcements in all lock directories: who holds or waits right now."""
        return sorted(
            os.path.join(os.path.relpath(directory, self.directory), name)
            for directory, names, _ in os.walk(self.directory)
            if directory.endswith(".rwlock")
            for name in names
            if name.startswith(("read.", "write."))
        )

    def litter(self) -> list[str]:
        """Private directories that are left."""
        return [
            os.path.join(directory, name)
            for directory, names, _ in os.walk(self.directory)
            for name in names
            if name.endswith(".nfsrwlock")
        ]

    def processes(self) -> list[int]:
        """All live processes that the test has started, however indirectly."""
        return [pid for pid in watchdog.marked(self._mark) if not _is_zombie(pid)]

    def guards(self) -> list[int]:
        """The watchdogs among them that are ready, which is when they take their name."""
        found = []
        for pid in self.processes():
            with suppress(OSError):  # it has ended
                if Path(f"/proc/{pid}/comm").read_text().strip() == watchdog.NAME:
                    found.append(pid)
        return found

    def _clues(self) -> list[str]:
        """What is going on, for whoever must find out why something else is not."""
        running = []
        for pid in self.processes():
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                place = Path(f"/proc/{pid}/wchan").read_text()
                running.append(f"  {pid} {state} {place} {command[:200]}")
        return [*(run.text for run in self.runs), "announced:", *self.locks(), "running:", *running]

    def wait_for(self, condition: Callable[[], object], seconds: float | None = None) -> None:
        """Wait until something is so."""
        until = time.monotonic() + (self.patience_s if seconds is None else seconds)
        while not condition():
            assert time.monotonic() < until, "\n".join(["it did not happen", *self._clues()])
            time.sleep(0.02)

    def clean_up(self) -> None:
        """End all that is left."""
        for _ in range(50):
            left = self.processes()
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.05)
        for run in self.runs:
            run.process.wait()


#: For tests that start Snakemake many times. Like the patience of a scene, it only ends what would never end.
LONG = pytest.mark.timeout(400)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    stage = Scene(tmp_path)
    yield stage
    stage.clean_up()
