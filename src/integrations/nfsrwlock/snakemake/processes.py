"""
The processes of a job: they work only while its locks are certain (:mod:`nfsrwlock.leash`).

Python code of a ``run:`` block works in Snakemake's own process, which cannot stop itself and go on sending heartbeats:
such a process ends at once when a lease has run out before a heartbeat succeeded.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from nfsrwlock.leash import Leash, why_not_held
from nfsrwlock.processes import Entry, family, kill
from nfsrwlock.snakemake import watchdog
from nfsrwlock.snakemake.flags import is_exclusive
from nfsrwlock.snakemake.holding import refuse_if_ending
from nfsrwlock.snakemake.messages import LockingError, job_name, warn
from nfsrwlock.text import flush, printable
from nfsrwlock_core import HoldStatus, LockError, LockSet

_LOOK_S: Final = 0.1
#: For so long a job that has succeeded waits for the processes that it has left behind.
_GRACE_S: Final = 5.0
#: What the thread that runs a job is working on.
_here = threading.local()


class JobProcesses:
    """The processes of one job, and what may become of them."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._locks: LockSet | None = None
        self._in_process = bool(job.is_run or job.is_template_engine)
        what = f"the process that runs the Python code of {job_name(job)}" if self._in_process else job_name(job)
        self._leash = Leash(self._everyone, what, lambda line: warn(job, line))
        self._token = secrets.token_hex(16)
        self._started: list[subprocess.Popen[Any]] = []
        self._mutex = threading.RLock()
        self._guard: threading.Thread | None = None

    @contextmanager
    def under(self, locks: LockSet) -> Iterator[None]:
        """Let the job run in this block, in this thread, under ``locks``, which are held."""
        self._locks = locks
        _here.job = self
        if locks.status is not HoldStatus.HELD:  # a word may have come before there was anybody to listen
            self.on_compromise(None)
        try:
            yield
            self._wait_for_the_last()
        finally:
            _here.job = None
            kill(self._left)  # what goes on would do so without the locks
            with self._mutex:
                self._locks = None
                self._leash.let_go()

    # Starting processes

    def start(self, *args: Any, **settings: Any) -> subprocess.Popen[Any]:
        """Start one of the job's processes; in the place of :class:`subprocess.Popen`."""
        refuse_if_ending(self._job)
        environment = dict(os.environ if settings.get("env") is None else settings["env"])
        outer = environment.get(watchdog.VARIABLE, "")
        environment[watchdog.VARIABLE] = f"{outer}:{_dog.token()}.{self._token} {job_name(self._job)}"
        if self._locks is not None:
            with suppress(LockError):  # they are lost, and the job will hear of that
                for lock in self._locks.locks:
                    environment = lock.witness().in_environment(environment)
        process = subprocess.Popen(*args, **(settings | {"env": environment}))
        with self._mutex:
            self._started.append(process)
            self._leash.enforce()
        return process

    def _everyone(self) -> list[Entry]:
        if self._in_process:
            return family([os.getpid()])
        # What was started here and is not yet waited for keeps its number, so it cannot be somebody else.
        roots = [process.pid for process in self._started if process.returncode is None]
        return family([*roots, *watchdog.marked(self._token.encode())])

    def _left(self) -> list[Entry]:
        return family(watchdog.marked(self._token.encode())) if self._started else []

    def _wait_for_the_last(self) -> None:
        # A shell does not wait for what it has started by >(…), which still writes what it has read.
        until = time.monotonic() + _GRACE_S
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        if left:
            names = printable(", ".join(f"{entry.pid} ({entry.name})" for entry in left))
            text = f"{job_name(self._job)} has left processes behind, which were ended with its locks: {names}. "
            advice = "Let the rule wait for them, or start what must go on by 'env -u NFSRWLOCK_JOB'"
            if any(map(is_exclusive, self._job.output)):
                raise LockingError(f"{text}Its outputs may not be whole, so nothing was published. {advice}")
            warn(self._job, text + advice)

    # While the locks are not certain

    def on_compromise(self, _compromise: object) -> None:
        """The lease has run out, or the hold was lost. Called from a thread of the engine."""
        with self._mutex:
            self._look()
            if self._locks is not None and self._guard is None:
                self._guard = threading.Thread(target=self._watch, name="nfsrwlock-leash", daemon=True)
                self._guard.start()

    def _watch(self) -> None:
        while self._locks is not None:
            self._look()
            time.sleep(_LOOK_S)

    def _look(self) -> None:
        with self._mutex:
            if self._locks is None:
                return
            status = self._locks.status
            is_over = self._in_process and status is not HoldStatus.HELD  # it cannot stop itself, and be continued
            self._leash.apply(HoldStatus.LOST if is_over else status, why_not_held(self._locks))
            if is_over:
                flush()
                os._exit(1)


def start_process(*args: Any, **settings: Any) -> subprocess.Popen[Any]:
    """Start a process as :class:`subprocess.Popen` does, for the job that this thread runs under locks, if any."""
    job: JobProcesses | None = getattr(_here, "job", None)
    return subprocess.Popen(*args, **settings) if job is None else job.start(*args, **settings)


class _Dog:
    """The watchdog of this process, started when it is first needed."""

    def __init__(self) -> None:
        self._reset()
        # The parent's jobs are not to be stopped when a forked child ends, nor to go on until it does.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._mutex = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._token = secrets.token_hex(16)

    def token(self) -> str:
        """Return what the processes of jobs carry, so that they are stopped if this process dies from now on."""
        with self._mutex:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", watchdog.__file__, self._token],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C is not for it
                    cwd="/",
                )
            return self._token


_dog: Final = _Dog()
