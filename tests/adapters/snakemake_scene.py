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
from typing import Any, Final

import pytest

from nfsrwlock.snakemake import watchdog

#: At the head of every Snakefile, so that a process of Snakemake's ends when its work is done. Else it would wait for
#: up to a second for the timers by which its scheduler looks for more jobs.
PROMPT_END = """
import threading
threading.Timer.daemon = True
"""
#: What follows it. `see NAME PATH...` notes who holds the locks, as an outsider is shown it.
HEAD = f"""{PROMPT_END}
from nfsrwlock.snakemake import exclusive, limited, lock_cache, shared_read
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
#: Runs Snakemake in processes of their own that need not import it again; told by lines of JSON.
FORKS = """
import atexit, gc, json, os, signal, sys, threading
import snakemake.cli, snakemake.profiles, snakemake.report.html_reporter, snakemake.storage, dpath, pulp, smart_open
import nfsrwlock.snakemake
gc.freeze()  # a collection in a child would touch, and so copy, all that is shared
def run(arguments, directory, environment, log):
    os.setpgid(0, 0)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [snakemake.__path__[0] + "/__main__.py", *arguments]
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    try:
        snakemake.cli.main(arguments)
    except SystemExit as end:  # which it is here, too; but what is shared with the parent is not torn down
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(end.code or 0))
while line := sys.stdin.readline():
    request = json.loads(line)
    if isinstance(request, int):
        pid, status = os.waitpid(request, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        run(**request)  # which exits
    try:
        os.setpgid(pid, pid)  # whoever of the two comes first
    except OSError:
        pass
    print(pid, flush=True)
"""


class Forks:
    """A process that has imported Snakemake; each run is a fork of it. That saves most of what a start takes."""

    def __init__(self, program: str = FORKS) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: object) -> Any:
        """Start what is described and return its number; or return the exit code of a number, once it has ended."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._server.communicate()


class Fork:
    """What :class:`subprocess.Popen` would be for such a run."""

    def __init__(self, forks: Forks, **request: object) -> None:
        self._forks = forks
        self.pid: int = forks.ask(request)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (timeout or float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


class Run:
    """A Snakemake process."""

    def __init__(self, scene: Scene, arguments: tuple[str, ...], environment: dict[str, str], directory: str) -> None:
        self.log = scene.directory / f"log.{len(scene.runs)}"
        self._patience_s = scene.patience_s
        arguments = ("--nocolor", *arguments)
        where, environment = str(scene.directory / directory), {**scene.environment, **environment}
        self.log.touch()  # there is a text at once
        self.process: Fork | subprocess.Popen[bytes]
        if scene.forks is not None:
            self.process = Fork(
                scene.forks, arguments=arguments, directory=where, environment=environment, log=str(self.log)
            )
            return
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *arguments],
                cwd=where,
                env=environment,
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

    def __init__(self, directory: Path, forks: Forks | None = None) -> None:
        self.directory = directory
        #: What runs Snakemake; ``None``: each is started anew.
        self.forks = forks
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
        done = []
        for line in runs:
            run = self.start(*shlex.split(line)).end()
            done.append((run.process.wait(), run.text))
        return done

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
        started = [*watchdog.marked(self._mark), *(run.process.pid for run in self.runs if run.process.poll() is None)]
        return [pid for pid in set(started) if not _is_zombie(pid)]

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


#: Begins a Snakefile: a job of the rule ``each`` says that it has begun, and takes its locks once there is ``go``.
SLOW_TO_BEGIN: Final = """
import os, time
from snakemake.executors import local
cached_or_run = local.Executor.cached_or_run
def slow_to_take_its_locks(self, job, *args):
    if job.rule.name == "each":
        with open("begun", "a") as file:
            print(job, file=file)
        while not os.path.exists("go"):
            time.sleep(0.05)
    return cached_or_run(self, job, *args)
local.Executor.cached_or_run = slow_to_take_its_locks
"""

#: For tests that start Snakemake many times. Like the patience of a scene, it only ends what would never end.
LONG = pytest.mark.timeout(400)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture
def scene(tmp_path: Path, forks: Forks) -> Iterator[Scene]:
    stage = Scene(tmp_path, forks)
    yield stage
    stage.clean_up()
