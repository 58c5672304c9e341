"""
What the scenarios are told with: Python processes on the lab's machines, and the lock settings they use.

A :class:`Remote` is an actor of actors.py on another machine: ``remote.do("lock.acquire_write()")`` runs there, and
gives back its value or raises :class:`actors.Raised`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from actors import PATIENCE_S, Raised
from nfs.lab import Job, Lab, Node
from nfs.lanes import LANES

TESTS: Final = Path(__file__).resolve().parents[1]
#: Short, so that the faults need not last long; three heartbeats as by default.
LEASE_S: Final = 3.0
#: How much longer than the lease a recovery may take: looks at the holder are a sixth of the lease apart, and a look
#: that comes late, on a machine with other things to do, lets the watching start anew.
BOUND_S: Final = LEASE_S + 2.0
SETTINGS: Final = f"heartbeat_interval={LEASE_S / 3}, stale_threshold={LEASE_S}, poll_interval=0.1"


class Remote:
    """
    A Python process on ``node``, with ``from nfsrwlock import *`` and ``from nfs.on_client import *`` done.

    :param code: what it runs first
    """

    def __init__(self, node: Node, code: str = "") -> None:
        self.node = node
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
        self._job: Job = node.popen([sys.executable, str(TESTS / "actors.py")], stdin=True, env={"PYTHONPATH": path})
        self._read = 0
        self.do("from nfs.on_client import *")
        if code:
            self.do(code)

    def tell(self, code: str) -> None:
        """Let it begin to run ``code``."""
        self._job.send(json.dumps(code).encode() + b"\n")

    def answer(self, timeout: float = PATIENCE_S) -> Any:
        """Wait for what came of the earliest code that was not answered for."""
        if not self._job.wait_until(lambda: self._line() is not None, timeout):
            if self._job.done:
                raise EOFError(f"{self}: has ended: {self._job.error or self._job.returncode} {bytes(self._job.err)!r}")
            raise TimeoutError(f"{self}: no answer for {timeout} s; it wrote {bytes(self._job.err)!r}")
        line = self._line()
        assert line is not None
        self._read += len(line) + 1
        answer = json.loads(line)
        if "names" in answer:
            raise Raised(answer["names"], answer["message"], answer["trace"])
        return answer["value"]

    def has_answered(self) -> bool:
        """Whether :meth:`answer` would not wait."""
        return self._line() is not None

    def do(self, code: str, timeout: float = PATIENCE_S) -> Any:
        """Run ``code`` there and return its value if it is an expression."""
        self.tell(code)
        return self.answer(timeout)

    def _line(self) -> bytes | None:
        line, newline, _ = bytes(self._job.out[self._read :]).partition(b"\n")
        return line if newline else None

    def end(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(OSError):
            self._job.kill()

    def __str__(self) -> str:
        return f"process on {self.node.name}"


class Scene:
    """
    One test's place on the server, its processes, and the machines.

    :param lab: which is running
    :param name: of a directory that no other test uses
    """

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.server = lab.server
        self.n1, self.n2 = lab.clients
        self.name = name
        self._processes: list[Remote] = []
        self.n1.check(["mkdir", f"{LANES['4.2'].at}/{name}"])

    def path(self, lane: str = "4.2", file: str = "data") -> str:
        """A path on one of the mounts, the same file on all."""
        return f"{LANES[lane].at}/{self.name}/{file}"

    def process(self, node: Node, code: str = "") -> Remote:
        """Start a process; it ends with the test."""
        process = Remote(node, code)
        self._processes.append(process)
        return process

    def locker(self, node: Node, path: str, settings: str = SETTINGS) -> Remote:
        """Start a process that has a ``lock`` on ``path``."""
        return self.process(node, f"lock = SoftReadWriteLock({path!r}, {settings})")

    def entries(self, path: str) -> list[str]:
        """What the server itself has in the directory of the lock on ``path``, which may not be there yet."""
        command = 'test ! -e "$1" || ls -A "$1"'
        return sorted(self.server.check(["sh", "-c", command, "sh", f"{on_server(path)}.rwlock"]).split())

    def inside(self, path: str, announcement: str) -> list[str]:
        """What the server itself has in one announcement."""
        exported = path.split("/", 3)[3]
        return self.server.check(["ls", "-A", f"/mnt/disk/export/{exported}.rwlock/{announcement}"]).split()

    def announcements(self, path: str) -> list[str]:
        """Those of the entries that stand for a holder or a waiter."""
        return [entry for entry in self.entries(path) if entry.startswith(("read.", "write."))]

    def restore(self) -> None:
        """End the processes, and undo whatever was done to the machines."""
        for process in self._processes:
            process.end()
        for node in (self.server, self.n1, self.n2):
            node.heal()
            if node.pid() is None:
                node.start()
            elif node.is_paused():
                node.resume()
            node.wait_until_ready()  # sets its clock right, too


def on_server(path: str) -> str:
    """Where the server itself has what a client has at ``path``, on any of the mounts."""
    return "/mnt/disk/export/" + path.split("/", 3)[3]


def wait_until_announced(scene: Scene, path: str, announced: int, timeout: float = PATIENCE_S) -> None:
    """Wait until so many are announced for the lock on ``path``, waiters among them."""
    end = time.monotonic() + timeout
    while len(scene.announcements(path)) < announced:
        if time.monotonic() > end:
            raise TimeoutError(f"still {scene.announcements(path)}")
        time.sleep(0.05)
