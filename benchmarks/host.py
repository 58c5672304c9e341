"""
What runs on each machine: one process that has imported everything, and forks the processes that take the locks.

So a hundred of them start in moments and share their memory. It speaks lines of JSON on its standard input and output:

    in    {"fork": NUMBER}                      start a member of this number
          {"to": NUMBER, "do": NAME, "with": {…}}  let it call a function of tasks.py
          {"kill": NUMBER}                      SIGKILL for it
    out   {"from": NUMBER, "value": …}          what the function returned
          {"from": NUMBER, "error": TEXT}       what it raised
          {"from": NUMBER, "ended": true}       the member has ended

It has no threads, for it forks, and members end with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import filelock

import nfsrwlock
from benchmarks import tasks

# Imported for the members to come; both load their parts when they are first used.
_ = nfsrwlock.SoftReadWriteLock, filelock.SoftReadWriteLock, filelock.SoftFileLock, filelock.StrictSoftFileLock
with contextlib.suppress(ImportError):
    import flufl.lock  # noqa: F401


class Host:
    """The members on this machine, and the lines between them and the conductor."""

    def __init__(self) -> None:
        self._members: dict[int, tuple[int, socket.socket]] = {}
        self._selector = selectors.DefaultSelector()
        self._buffers: dict[int, bytes] = {}
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        self._input = b""

    def run(self) -> None:
        """Pass lines on until the conductor hangs up."""
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is not None:
                        self._hear(key.data)
                    elif not self._obey():
                        return
        finally:
            for pid, _ in self._members.values():
                os.kill(pid, signal.SIGKILL)

    def _obey(self) -> bool:
        data = os.read(sys.stdin.fileno(), 65536)
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "fork" in request:
                self._fork(request["fork"])
            elif "kill" in request:
                self._kill(request["kill"])
            elif request["to"] in self._members:
                with contextlib.suppress(OSError):  # it is ending; that will be told
                    self._members[request["to"]][1].sendall(line + b"\n")
        return bool(data)

    def _fork(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            for _, other in self._members.values():
                other.close()
            self._selector.close()
            _serve(theirs)
        theirs.close()
        self._members[number] = pid, ours
        self._buffers[number] = b""
        self._selector.register(ours, selectors.EVENT_READ, number)

    def _kill(self, number: int) -> None:
        if number in self._members:
            os.kill(self._members[number][0], signal.SIGKILL)

    def _hear(self, number: int) -> None:
        pid, line = self._members[number]
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = line.recv(65536)
        *lines, self._buffers[number] = (self._buffers[number] + data).split(b"\n")
        for text in lines:
            _say({"from": number, **json.loads(text)})
        if not data:
            self._selector.unregister(line)
            line.close()
            del self._members[number], self._buffers[number]
            os.waitpid(pid, 0)
            _say({"from": number, "ended": True})


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _serve(line: socket.socket) -> NoReturn:
    # A member: does what it is told, one thing after the other. Its end releases nothing, as a kill's.
    os.close(0)
    sys.stderr = open(os.environ.get("NFSRWLOCK_BENCH_LOG", os.devnull), "a")  # noqa: SIM115
    with line, line.makefile("r") as requests:
        for text in requests:
            request = json.loads(text)
            answer: dict[str, Any]
            try:
                answer = {"value": getattr(tasks, request["do"])(**request["with"])}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": tasks.told(error)}
            line.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    Host().run()
    os._exit(0)
