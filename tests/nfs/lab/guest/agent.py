"""
The control agent: runs in each guest and carries out what the lab asks for. Only the standard library.

One TCP connection is one request: a line of JSON, then frames; a frame is one type byte, a 4-byte big-endian length and
that many bytes:

    to the agent    I data for standard input (none: end of file), K number of a signal to send
    from the agent  O standard output, E standard error, X the answer in JSON (last), M an error

A client that vanishes kills its command's whole process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import IO, Any

#: Grandchildren that still hold the pipes get this long after the command's end.
LAST_WORDS_S = 0.5


def frame(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack(">I", len(data)) + data


def answer(conn: socket.socket, **value: object) -> None:
    conn.sendall(frame(b"X", json.dumps(value).encode()))


def recv_line(conn: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = conn.recv(1)
        if not byte:
            return b""
        line += byte
    return line


class Command:
    """A command, and the connection over which it is steered."""

    def __init__(self, conn: socket.socket, request: dict[str, Any]) -> None:
        self.conn = conn
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE if request["stdin"] else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=request["cwd"],
            env=request["env"],
            bufsize=0,
            start_new_session=True,
        )
        self.received = b""
        self.for_stdin = b""
        self.stdin_ends = False
        self.poll = select.poll()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.outputs = {self.process.stdout.fileno(): b"O", self.process.stderr.fileno(): b"E"}
        self.stdin: IO[bytes] | None = self.process.stdin
        if self.stdin:
            os.set_blocking(self.stdin.fileno(), False)

    def guide(self) -> None:
        """Carry data to and fro until the command has ended."""
        pidfd = os.pidfd_open(self.process.pid)
        for fd in (self.conn.fileno(), pidfd, *self.outputs):
            self.poll.register(fd, select.POLLIN)
        deadline = None
        try:
            while deadline is None or (self.outputs and time.monotonic() < deadline):
                for fd, _ in self.poll.poll(None if deadline is None else 100):
                    if fd in self.outputs:
                        self._pass_on(fd)
                    elif fd == pidfd:
                        self.process.wait()
                        self.poll.unregister(pidfd)
                        deadline = time.monotonic() + LAST_WORDS_S
                    elif fd == self.conn.fileno():
                        self._obey()
                if self.stdin:
                    self._feed(self.stdin)
            answer(self.conn, rc=self.process.returncode)
        except OSError:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            # Not waited for here: with the file server away, a process on a hard mount may take for ever to end.
            threading.Thread(target=self.process.wait, daemon=True).start()
        finally:
            os.close(pidfd)
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()

    def _pass_on(self, fd: int) -> None:
        data = os.read(fd, 65536)
        if data:
            self.conn.sendall(frame(self.outputs[fd], data))
        else:
            self.poll.unregister(fd)
            del self.outputs[fd]

    def _obey(self) -> None:
        data = self.conn.recv(65536)
        if not data:
            raise ConnectionError
        self.received += data
        while len(self.received) >= 5:
            size = struct.unpack(">I", self.received[1:5])[0]
            if len(self.received) < 5 + size:
                return
            kind, data = self.received[:1], self.received[5 : 5 + size]
            self.received = self.received[5 + size :]
            if kind == b"K":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, int(data))
            elif data:
                self.for_stdin += data
            else:
                self.stdin_ends = True

    def _feed(self, stdin: IO[bytes]) -> None:
        if self.for_stdin:
            try:
                self.for_stdin = self.for_stdin[os.write(stdin.fileno(), self.for_stdin) :]
            except BlockingIOError:
                pass
            except OSError:  # it has closed its standard input
                self.for_stdin = b""
        if self.for_stdin:
            self.poll.register(stdin.fileno(), select.POLLOUT)
            return
        with contextlib.suppress(KeyError):
            self.poll.unregister(stdin.fileno())
        if self.stdin_ends:
            stdin.close()
            self.stdin = None


def execute(conn: socket.socket, request: dict[str, Any]) -> None:
    try:
        command = Command(conn, request)
    except OSError as error:
        conn.sendall(frame(b"E", f"nfslab: {request['argv'][0]}: {error}\n".encode()))
        answer(conn, rc=127 if isinstance(error, FileNotFoundError) else 126)
        return
    command.guide()


def handle(conn: socket.socket) -> None:
    try:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = json.loads(recv_line(conn) or b"{}")
        if request.get("op") == "exec":
            execute(conn, request)
        elif request.get("op") == "clock":
            if "step" in request:
                time.clock_settime(time.CLOCK_REALTIME, time.time() + request["step"])
            answer(conn, time=time.time(), monotonic=time.monotonic())
    except Exception as error:  # one bad request must not end the node
        with contextlib.suppress(OSError):
            conn.sendall(frame(b"M", repr(error).encode()))
    finally:
        conn.close()


def main() -> None:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((sys.argv[1], int(sys.argv[2])))
    server.listen(64)
    print("nfslab: agent ready", flush=True)
    while True:
        conn, _ = server.accept()
        threading.Thread(target=handle, args=(conn,), daemon=True).start()


if __name__ == "__main__":
    main()
