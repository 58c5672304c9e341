"""
Where measurements happen: machines with processes on them, and a directory that they share.

Locally, the machines are four groups of processes on this one. On the NFS lab of tests/nfs/lab, they are kernels of
their own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from nfs.lab import Lab, Node

ROOT: Final = Path(__file__).resolve().parents[1]
#: How long anything may take that is not itself the thing measured, seconds.
PATIENCE_S: Final = 120.0


class Late(Exception):
    """What was waited for has not come in time."""


class Trouble(Exception):
    """What a process was told to do raised an error there, or the process is gone."""


class Channel(Protocol):
    """How lines get to a host process."""

    def send(self, line: bytes) -> None:
        """Send a line."""

    def close(self) -> None:
        """End the host process."""


class Machine:
    """
    One machine's host process (host.py) and the members it forks.

    :param name: of the machine
    :param node: of the lab, ``None`` locally
    """

    def __init__(self, name: str, node: Node | None = None) -> None:
        self.name = name
        self.node = node
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._answers: dict[int, list[dict[str, Any]]] = {}
        self._buffer = b""
        self._channel: Channel = _Local(self._take) if node is None else _Remote(node, self._take)
        #: A member for what is not measured.
        self.helper = self.member()

    def member(self) -> Member:
        """Start a process."""
        number = next(self._numbers)
        with self._changed:
            self._answers[number] = []
        self.send({"fork": number})
        return Member(self, number)

    def send(self, what: dict[str, Any]) -> None:
        """Tell the host process something."""
        with self._changed:
            self._channel.send(json.dumps(what).encode() + b"\n")

    def close(self) -> None:
        """End it, and all its members."""
        self._channel.close()

    def next_answer(self, number: int, until: float) -> dict[str, Any]:
        """Wait for a member's next answer, until a moment of the monotonic clock."""
        with self._changed:
            answers = self._answers[number]
            if not self._changed.wait_for(lambda: answers, max(until - time.monotonic(), 0)):
                raise Late(f"member {number} of {self.name}")
            return answers[0] if "ended" in answers[0] else answers.pop(0)

    def _take(self, data: bytes) -> None:
        with self._changed:
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                self._answers[answer.pop("from")].append(answer)
            self._changed.notify_all()


class Member:
    """A process on a machine, which has one contender at a time."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.number = number

    def tell(self, do: str, **arguments: Any) -> None:
        """Let it begin to call a function of tasks.py."""
        self.machine.send({"to": self.number, "do": do, "with": arguments})

    def answer(self, timeout: float = PATIENCE_S) -> Any:
        """Wait for what the earliest call returned that was not answered for."""
        return self.answer_by(time.monotonic() + timeout)

    def answer_by(self, until: float) -> Any:
        """Wait for it until a moment of the monotonic clock."""
        answer = self.machine.next_answer(self.number, until)
        if "value" not in answer:
            raise Trouble(answer.get("error", "the process has ended"))
        return answer["value"]

    def do(self, do: str, *, timeout: float = PATIENCE_S, **arguments: Any) -> Any:
        """Call a function of tasks.py there and return its value."""
        self.tell(do, **arguments)
        return self.answer(timeout)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.machine.send({"kill": self.number})


class _Local:
    """A host process on this machine."""

    def __init__(self, take: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks/host.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._take = take
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            while data := os.read(self._process.stdout.fileno(), 65536):
                self._take(data)

    def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Remote:
    """A host process on a machine of the lab."""

    def __init__(self, node: Node, take: Any) -> None:
        self._job = node.popen(
            [sys.executable, str(ROOT / "benchmarks/host.py")],
            stdin=True,
            on_output=lambda kind, data: take(data) if kind == b"O" else sys.stderr.buffer.write(data),
        )

    def send(self, line: bytes) -> None:
        self._job.send(line)

    def close(self) -> None:
        self._job.kill()


@dataclass
class Place:
    """
    A directory that the machines share.

    :param name: short, as the results call it
    :param label: for people
    :param machines: four of them
    :param root: the directory
    :param mountpoint: of NFS, for its request counters; ``None`` locally
    :param facts: what else is to be said of it
    """

    name: str
    label: str
    machines: list[Machine]
    root: str
    mountpoint: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def is_nfs(self) -> bool:
        """Whether requests to a file server can be counted."""
        return self.mountpoint is not None

    def path(self) -> str:
        """A path in a fresh directory of its own, for one lock."""
        directory = f"{self.root}/{self.name}.{next(self._numbers)}"
        self.machines[0].helper.do("make_directory", path=directory)
        return f"{directory}/data"

    def spread(self, count: int) -> list[Member]:
        """Start so many processes, evenly on the machines."""
        return [self.machines[number % len(self.machines)].member() for number in range(count)]

    def requests(self) -> dict[str, int]:
        """How many requests of each kind all machines together have sent so far."""
        total: dict[str, int] = {}
        for machine in self.machines:
            for kind, count in machine.helper.do("requests", mountpoint=self.mountpoint).items():
                total[kind] = total.get(kind, 0) + count
        return total


def used(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """The requests between two counts, by kind, without the sign of life that NFSv4 clients send by themselves."""
    kinds = {kind: after[kind] - before.get(kind, 0) for kind in after if kind != "SEQUENCE"}
    return {kind: count for kind, count in kinds.items() if count}


@contextlib.contextmanager
def group(members: list[Member]) -> Iterator[list[Member]]:
    """Kill the members at the end, and wait until they are gone."""
    try:
        yield members
    finally:
        dismiss(members)


def dismiss(members: list[Member]) -> None:
    """Kill the members, and wait until they are gone."""
    for member in members:
        member.kill()
    deadline = time.monotonic() + PATIENCE_S
    for member in members:
        with contextlib.suppress(Late):
            while "ended" not in member.machine.next_answer(member.number, deadline):
                pass


@contextlib.contextmanager
def local_place(directory: str | None) -> Iterator[list[Place]]:
    """A temporary directory in ``directory`` and four host processes on this machine."""
    machines: list[Machine] = []
    with tempfile.TemporaryDirectory(prefix="nfsrwlock-bench-", dir=directory) as root:
        try:
            machines += [Machine(f"local{number}") for number in range(4)]
            kind = machines[0].helper.do("file_system", path=root)
            yield [Place("local", f"local ({kind})", machines, root, facts={"file system": kind})]
        finally:
            for machine in machines:
                machine.close()


class NfsLab:
    """
    The lab of tests/nfs/lab with four clients, and the places on it.

    :param directory: of the lab's state
    """

    def __init__(self, directory: str) -> None:
        sys.path.append(str(ROOT / "tests"))
        from nfs.lab import Lab

        self.lab: Lab = Lab(directory)
        self.machines: list[Machine] = []

    def up(self) -> None:
        """Bring it up with host processes; take down what an earlier run left there."""
        from nfs.lab import to_bind

        self.lab.down()
        self.lab.up(
            clients=4,
            mem_mib=512,
            bind=to_bind(),
        )
        for node in self.lab.clients:
            node.mount("3", at="/mnt/nfs3")
        self.machines += [Machine(node.name, node) for node in self.lab.clients]

    def down(self) -> None:
        """End everything."""
        for machine in self.machines:
            machine.close()
        self.machines.clear()
        self.lab.down()

    def renew(self, place: Place) -> None:
        """Bring it down and up again: User-Mode Linux was seen to lose an interrupt of the server's disk."""
        self.down()
        self.up()
        for node in self.lab.clients:
            node.delay(place.facts["delay ms"])

    def place(self, version: str, delay_ms: float) -> Place:
        """Set the network delay of the clients, and give the place for a version of NFS."""
        for node in self.lab.clients:
            node.delay(delay_ms)
        mountpoint = "/mnt/nfs3" if version == "3" else "/mnt/nfs"
        label = f"NFSv{version}" + (f" + {delay_ms:g} ms" if delay_ms else "")
        name = f"nfs{version}" + (f"-{delay_ms:g}ms" if delay_ms else "")
        place = Place(name, label, self.machines, mountpoint, mountpoint)
        place.facts = {"version": version, "delay ms": delay_ms}
        return place

    def kernel(self) -> str:
        """The version of the guests' kernel."""
        return self.lab.clients[0].check(["uname", "-r"]).strip()

    def power_cut(self, machine: Machine) -> None:
        """Let a machine's power go. :meth:`replace` brings it back."""
        assert machine.node is not None
        machine.node.kill()

    def replace(self, place: Place, machine: Machine) -> None:
        """Switch a machine on again, with a new host process."""
        assert machine.node is not None
        index = self.machines.index(machine)
        machine.close()
        machine.node.start()
        machine.node.delay(place.facts["delay ms"])
        self.machines[index] = Machine(machine.name, machine.node)
