"""A command that runs on a node, and what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .host import LabError

if TYPE_CHECKING:
    from .node import Node


def frame(kind: bytes, data: bytes) -> bytes:
    """The agent's wire format: a type, a length, and so many bytes; guest/agent.py lists the types."""
    return kind + struct.pack(">I", len(data)) + data


def frames(sock: socket.socket, alive: Callable[[], bool] = lambda: True) -> Iterator[tuple[bytes, bytes]]:
    """The frames that come in. A node that was killed hangs up on nobody, hence ``alive``, asked in silence."""
    buffer = b""
    while True:
        while len(buffer) >= 5 and len(buffer) >= 5 + (size := struct.unpack(">I", buffer[1:5])[0]):
            yield buffer[:1], buffer[5 : 5 + size]
            buffer = buffer[5 + size :]
        while not select.select([sock], [], [], 1)[0]:
            if not alive():
                return
        data = sock.recv(65536)
        if not data:
            return
        buffer += data


def _environment() -> dict[str, str]:
    """What a command on a node gets of this process's environment. Guests write no compiled modules into the tree."""
    kept = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TERM", "TZ", "NFSRWLOCK_UNFIT")
    env = {name: value for name, value in os.environ.items() if name in kept or name.startswith(("PYTHON", "LC_"))}
    return {**env, "PYTHONDONTWRITEBYTECODE": "1"}


class Job:
    """
    A command on a node; its process group ends with the connection.

    :param stdin: whether :meth:`send` will be used
    :param env: more variables
    :param cwd: where it runs on the node
    :param on_output: told of each piece it writes: b"O" or b"E", and the bytes
    """

    def __init__(
        self,
        node: Node,
        argv: list[str],
        *,
        stdin: bool = False,
        env: dict[str, str] | None = None,
        cwd: str = "/",
        on_output: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        self.node = node
        self.argv = argv
        self.returncode: int | None = None
        self.out = bytearray()
        self.err = bytearray()
        #: Why there will be no return code.
        self.error: str | None = None
        self._on_output = on_output
        self._guest = node.require_pid()
        self._changed = threading.Condition()
        self._socket = node.connect(timeout=5)
        request = {"op": "exec", "argv": argv, "stdin": stdin, "cwd": cwd, "env": {**_environment(), **(env or {})}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        returncode, error = None, None
        try:
            for kind, data in frames(self._socket, lambda: self.node.pid() == self._guest):
                if kind == b"X":
                    returncode = json.loads(data)["rc"]
                    break
                if kind == b"M":
                    error = data.decode(errors="replace")
                    break
                with self._changed:
                    (self.out if kind == b"O" else self.err).extend(data)
                    self._changed.notify_all()
                if self._on_output is not None:
                    self._on_output(kind, data)
        except OSError as problem:
            error = repr(problem)
        with self._changed:
            self.returncode = returncode
            self.error = error or (None if returncode is not None else "the connection broke (node killed?)")
            self._changed.notify_all()
        self._socket.close()

    @property
    def done(self) -> bool:
        """Whether the command has ended, or the node it ran on."""
        return self.returncode is not None or self.error is not None

    def send(self, data: bytes) -> None:
        """Write to the command's standard input; nothing closes it."""
        self._socket.sendall(frame(b"I", data))

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the command's process group."""
        self._socket.sendall(frame(b"K", str(int(signum)).encode()))

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until ``condition`` about its output is true, or it has ended; return whether the condition is true."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self.done, timeout)
            return condition()

    def wait_for(self, text: bytes, timeout: float = 30) -> None:
        """Wait until the command has written ``text``."""
        if not self.wait_until(lambda: text in self.out, timeout):
            raise LabError(f"{self.node.name}: no {text!r} in {bytes(self.out)!r} {bytes(self.err)!r}")

    def wait(self, timeout: float | None = None) -> subprocess.CompletedProcess[bytes]:
        """Wait for the end of the command; after ``timeout`` seconds it is killed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                self.kill()
                raise subprocess.TimeoutExpired(self.argv, timeout or 0, bytes(self.out), bytes(self.err))
        if self.returncode is None:
            raise LabError(f"{self.node.name}: {self.error}")
        return subprocess.CompletedProcess(self.argv, self.returncode, bytes(self.out), bytes(self.err))

    def kill(self) -> None:
        """Hang up, on which the agent kills the command's process group."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
