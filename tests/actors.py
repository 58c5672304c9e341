"""
Real processes for tests, told line by line what to do, and what is needed to look at what they leave on disk.

An :class:`Actor` is a process with a name space of its own: ``actor.do("lock.acquire_write()")`` runs there, and gives
back its value or raises :class:`Raised`. So a test reads as a story in the order in which things happen.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

#: How long a test waits for something that should take no time; generous, for machines with much else to do.
PATIENCE_S = 60.0


class Raised(Exception):
    """What an actor was told to do raised an exception there."""

    def __init__(self, names: list[str], message: str, trace: str) -> None:
        super().__init__(f"{names[0]}: {message}\n{trace}")
        #: The names of its class and of all their bases.
        self.names = names
        self.message = message


class Actor:
    """
    A process of its own, with the names of the package for threads imported, and a few modules.

    :param directory: where it runs
    :param host: what it calls its host. Two actors with different hosts cannot look each other up in the process table,
        so between them only leases count
    :param path: put first on its module search path
    :param environment: more variables
    """

    def __init__(
        self, directory: Path, *, host: str | None = None, path: Path | None = None, **environment: str
    ) -> None:
        env = {name: value for name, value in os.environ.items() if name not in ("NFSRWLOCK_HOST", "NFSRWLOCK_DIR")}
        env |= environment
        if host is not None:
            env["NFSRWLOCK_HOST"] = host
        if path is not None:
            env["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [env.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, __file__], cwd=directory, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._buffer = b""
        self.pid = self._process.pid

    def tell(self, code: str) -> None:
        """Let it begin to run ``code``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(code).encode() + b"\n")

    def answer(self, timeout: float = PATIENCE_S) -> Any:
        """Wait for what came of the earliest code that was not answered for."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError(f"actor {self.pid} has not answered for {timeout} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise EOFError(f"actor {self.pid} has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        if "names" in answer:
            raise Raised(answer["names"], answer["message"], answer["trace"])
        return answer["value"]

    def do(self, code: str, timeout: float = PATIENCE_S) -> Any:
        """Run ``code`` there and return its value if it is an expression."""
        self.tell(code)
        return self.answer(timeout)

    def stop(self) -> None:
        """Stop it as Ctrl-Z or a batch system does, and wait until it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: process_state(self.pid) == "T")

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it by SIGKILL, and wait for that."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def leave(self) -> int:
        """Let it end by itself, as a program does at its last line; return its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(PATIENCE_S)

    def clean_up(self) -> None:
        """End it, whatever it does, and free what belongs to it here."""
        if self._process.poll() is None:
            for child in children_of(self.pid):  # one that the test made it fork, and that hangs if the test fails
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()


class Stage:
    """Where a test's actors run; all of them end with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._actors: list[Actor] = []

    def actor(self, code: str = "", *, host: str | None = None, path: Path | None = None, **environment: str) -> Actor:
        """Bring on a new actor, who has run ``code``."""
        actor = Actor(self.directory, host=host, path=path, **environment)
        self._actors.append(actor)
        if code:
            actor.do(code)
        return actor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            actor.clean_up()


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE_S, pause: float = 0.01) -> float:
    """Wait until ``condition`` is true; return how long that took, in seconds."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout:
            raise TimeoutError(f"not true after {timeout} s")
        time.sleep(pause)
    return time.monotonic() - started


def announcements(path: str | os.PathLike[str]) -> list[str]:
    """The names under which participants are announced for the lock on ``path``."""
    try:
        entries = os.listdir(f"{os.fspath(path)}.rwlock")
    except FileNotFoundError:
        return []
    return sorted(entry for entry in entries if entry.startswith(("read.", "write.")))


def beat_of(path: str | os.PathLike[str]) -> int | None:
    """The latest heartbeat of the only participant of the lock on ``path``; ``None`` before its first."""
    (name,) = announcements(path)
    beats = os.listdir(f"{os.fspath(path)}.rwlock/{name}")
    return max((int(beat.removeprefix("beat.")) for beat in beats), default=None)


def process_state(pid: int) -> str:
    """The state letter of a process as proc(5) names it; "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that only waits to be collected."""
    return process_state(pid) in ("", "Z", "X")


def children_of(pid: int) -> list[int]:
    """The ids of the living processes that ``pid`` started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


def in_forked_child(work: Callable[[], Any], timeout: float = PATIENCE_S) -> Any:
    """Run ``work`` in a forked child; return its value, which must be of JSON, or raise :class:`Raised`."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, json.dumps(_outcome_of(work), default=repr).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        if not select.select([read_end], [], [], timeout)[0]:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"the forked child has not answered for {timeout} s")
        answer = json.loads(b"".join(_blocks_of(read_end)))
    finally:
        os.close(read_end)
        os.waitpid(pid, 0)
    if "names" in answer:
        raise Raised(answer["names"], answer["message"], answer["trace"])
    return answer["value"]


def _blocks_of(fd: int) -> Iterator[bytes]:
    while block := os.read(fd, 65536):
        yield block


def _outcome_of(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": work()}
    except BaseException as error:
        names = [cls.__name__ for cls in type(error).__mro__]
        return {"names": names, "message": str(error), "trace": traceback.format_exc()}


def _play() -> None:
    # What the code prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # A shell that starts the tests in the background lets them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    me = os.getpid()
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("import gc, os, pickle, random, signal, sys, threading, time", space)
    exec("from nfsrwlock import LockSet, SoftReadWriteLock, Timeout, break_lock, inspect", space)
    for line in sys.stdin:
        code = json.loads(line)

        def work(code: str = code) -> Any:
            try:
                expression = compile(code, "<test>", "eval")
            except SyntaxError:
                expression = None
            if expression is not None:
                return eval(expression, space)
            return exec(compile(code, "<test>", "exec"), space)

        outcome = _outcome_of(work)
        if os.getpid() != me:
            sys.exit(
                outcome.get("trace") if outcome.get("message") != "0" else 0
            )  # a child that the code forked: it ends as a program does
        answers.write(json.dumps(outcome, default=repr) + "\n")


if __name__ == "__main__":
    _play()
