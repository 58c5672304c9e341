"""
The leash: a job works only while its locks are certain.

When a lease has run out before a heartbeat succeeded, the job's processes are stopped, before any peer may enter. They
continue if the hold turns out never to have ended (the file server is back), and are killed if it was lost. Python
code of a ``run:`` block works in Snakemake's own process, which cannot stop itself and go on sending heartbeats: such
a process ends at once.

What cannot be done: to take back what the job has already handed to the kernel.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from nfsrwlock.processes import Entry, family, freeze, kill, thaw
from nfsrwlock.snakemake import watchdog
from nfsrwlock.snakemake.flags import is_exclusive
from nfsrwlock.snakemake.messages import LockingError, job_name, warn
from nfsrwlock.text import printable
from nfsrwlock_core import HoldStatus, LockError, LockSet

_LOOK_S: Final = 0.1
#: For so long a job that has succeeded waits for the processes that it has left behind.
_GRACE_S: Final = 5.0
#: Where the engine reads what a process was started under.
_HELD: Final = "NFSRWLOCK_HELD"
#: What the thread that runs a job is working on.
_here = threading.local()


class Leash:
    """
    The processes of one job, and what may become of them.

    :param may_start: called before a process is started; raises if none may be
    """

    def __init__(self, job: Any, may_start: Callable[[Any], None]) -> None:
        self._job = job
        self._may_start = may_start
        self._locks: LockSet | None = None
        self._in_process = bool(job.is_run or job.is_template_engine)
        self._token = secrets.token_hex(16)
        self._started: list[subprocess.Popen[Any]] = []
        self._stopped: dict[int, None] = {}
        self._mutex = threading.RLock()
        self._guard: threading.Thread | None = None
        self._ended = False

    @contextmanager
    def around(self, locks: LockSet) -> Iterator[None]:
        """Let the job run in this block, in this thread, under ``locks``, which are held."""
        self._locks = locks
        _here.leash = self
        if locks.status is not HoldStatus.HELD:  # a word may have come before there was anybody to listen
            self.on_compromise(None)
        try:
            yield
            self._wait_for_the_last()
        finally:
            _here.leash = None
            kill(self._left)  # what goes on would do so without the locks
            with self._mutex:
                self._ended = True
                thaw(self._stopped)
            if self._started:
                _dog.forget(self._token)

    # Starting processes

    def start(self, *args: Any, **settings: Any) -> subprocess.Popen[Any]:
        """Start one of the job's processes; in the place of :class:`subprocess.Popen`."""
        self._may_start(self._job)
        environment = dict(os.environ if settings.get("env") is None else settings["env"])
        outer = environment.get(watchdog.VARIABLE)
        environment[watchdog.VARIABLE] = f"{outer}:{self._token}" if outer else self._token
        if self._locks is not None:
            with suppress(LockError):  # they are lost, and the job will hear of that
                held = [lock.witness().name for lock in self._locks.locks]
                environment[_HELD] = " ".join([*environment.get(_HELD, "").split(), *held])
        if not self._started:
            _dog.guard(self._token, job_name(self._job))
        process = subprocess.Popen(*args, **(settings | {"env": environment}))
        with self._mutex:
            self._started.append(process)
        if self._guard is not None:
            self._pull()
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

    # Pulling it

    def on_compromise(self, _compromise: object) -> None:
        """The lease has run out, or the hold was lost. Called from a thread of the engine."""
        with self._mutex:
            if self._locks is None or self._ended:
                return
            self._pull()
            if self._guard is None:
                self._guard = threading.Thread(target=self._watch, name="nfsrwlock-leash", daemon=True)
                self._guard.start()

    def _watch(self) -> None:
        wait = threading.Event()
        while not self._ended:
            self._pull()
            wait.wait(_LOOK_S)

    def _pull(self) -> None:
        with self._mutex:
            if self._ended or self._locks is None:
                return
            status = self._locks.status
            if status is HoldStatus.HELD:
                if self._stopped:
                    thaw(self._stopped)
                    warn(self._job, f"{job_name(self._job)} goes on: its locks are confirmed, they were never lost")
                return
            if self._in_process:
                self._end_this_process()
            if status is HoldStatus.SUSPECT:
                first = not self._stopped
                freeze(self._everyone, self._stopped)
                if first and self._stopped:
                    warn(
                        self._job,
                        f"{job_name(self._job)} is stopped until its locks are certain: "
                        "the lease has run out before a heartbeat succeeded",
                    )
            else:
                kill(self._everyone)
                self._stopped.clear()

    def _end_this_process(self) -> None:
        assert self._locks is not None
        warn(
            self._job,
            f"{job_name(self._job)} is ended, and with it the process that runs its Python code: {reason(self._locks)}",
        )
        kill(self._everyone)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(1)


def reason(locks: LockSet) -> str:
    """Say why ``locks`` are not held any more."""
    try:
        locks.check()
    except RuntimeError as error:
        return str(error)
    return "its locks were lost for a while"


def start_process(*args: Any, **settings: Any) -> subprocess.Popen[Any]:
    """Start a process as :class:`subprocess.Popen` does; on the leash, if this thread runs a job that is on one."""
    leash: Leash | None = getattr(_here, "leash", None)
    return subprocess.Popen(*args, **settings) if leash is None else leash.start(*args, **settings)


class _Dog:
    """The watchdog of this process, started when it is first needed."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._jobs: dict[str, str] = {}

    def guard(self, token: str, label: str) -> None:
        """If this process dies from now on, what carries ``token`` is stopped."""
        with self._mutex:
            self._jobs[token] = label
            self._tell(f"+{token} {label}\n")

    def forget(self, token: str) -> None:
        """The job has ended."""
        with self._mutex:
            self._jobs.pop(token, None)
            self._tell(f"-{token}\n")

    def _tell(self, line: str) -> None:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", watchdog.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is not for it
                cwd="/",
            )
            line = "".join(f"+{token} {label}\n" for token, label in self._jobs.items())
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(line.encode("utf-8", "replace"))
            self._process.stdin.flush()


_dog: Final = _Dog()
