"""A campaign on a lab that is up: starts the processes, lets the nemesis strike, and hears what they say."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nfs.lab import Job, Lab, Node
from nfs.lanes import LANES, NFS4_LEASE_S, Lane, mount_all

from .history import Event, Fault, Verdict, judge, on_the_hosts_clock, waits
from .nemesis import KINDS, NOBODY, Nemesis

_TESTS: Final = Path(__file__).resolve().parents[2]
_PACKAGE: Final = "campaign"

#: The users, beside root, of the locks that a group shares, and their group.
_USERS: Final = (4001, 4002)
_GROUP: Final = 4000
#: So many tasks take locks in a process that has tasks.
_TASKS: Final = 3
#: Leases of the processes, as parts of the campaign's; heartbeat processes have none of the shortest, for a new one has
#: to be started within it when one was killed.
_LEASES: Final = (1, 1 / 2, 3)
_POLLS_S: Final = (0.1, 1.0)

#: How long a process may take to end in order after the last fault, beyond two leases, seconds: it may wait for a
#: server that it finds late, and for all who wait before it.
_ENDING_S: Final = 90.0


@dataclass
class _Machine:
    """A client as it runs since it was switched on."""

    node: Node
    offset: float
    error_s: float


@dataclass
class _Process:
    who: str
    job: Job
    machine: _Machine
    lane: str
    unread: bytes = b""


class Campaign:
    """
    One campaign.

    :param lab: which is up
    :param place: a directory on the export that nobody else uses
    :param seed: of all choices; the times at which they take effect are those of real machines
    :param processes: on each client
    :param locks: how many files there are; half of them are root's, the others a group's
    :param lease_s: of most of the processes; others have half of that, or three times
    :param permits: how many may hold a lock at a time, if all are taken with this limit and have one lease; otherwise
        some of the holds of half of the locks have a limit
    :param lanes: how the clients reach the files
    :param actors: kinds of processes
    :param faults: as :data:`nemesis.KINDS` has them
    """

    def __init__(
        self,
        lab: Lab,
        place: str,
        *,
        seed: int,
        processes: int,
        locks: int,
        lease_s: float,
        permits: int | None = None,
        lanes: Mapping[str, Lane] = LANES,
        actors: Sequence[str] = ("thread", "tasks", "user", "process"),
        faults: Mapping[str, int] = KINDS,
    ) -> None:
        self.lab = lab
        self.place = place
        self.seed = seed
        self.clients = len(lab.clients)
        self.processes = processes
        self.locks = locks
        self.lease_s = lease_s
        self.permits = permits
        self._mounts = lanes
        self._kinds = actors
        self._fault_kinds = faults
        self.events: list[Event] = []
        self.faults: list[Fault] = []
        #: What went wrong with the campaign itself.
        self.errors: list[str] = []
        #: What each process wrote to standard error.
        self.words: dict[str, str] = {}
        #: The largest error of a machine's clock, seconds.
        self.clock_error_s = 0.0
        #: How long it was after the last fault until every process had ended in order, seconds.
        self.ending_s = 0.0
        #: How each process reached the files.
        self.lanes: dict[str, str] = {}
        self._machines: dict[str, _Machine] = {}
        self._running: dict[str, _Process] = {}
        self._numbers = {node.name: 0 for node in lab.clients}
        self._changing = threading.RLock()
        self._stopping = False

    def run(self, seconds: float, report: Callable[[str], None] = lambda line: None, every_s: float = 60.0) -> Verdict:
        """
        Play for so long, make peace, let everybody end, and judge.

        :param report: told once in ``every_s`` how far it is
        """
        for node in self.lab.clients:
            mount_all(node, self._mounts)
        shared = f"{self._first_mount}/{self.place}/group"
        self.lab.clients[0].check(["mkdir", "-p", shared])
        self.lab.clients[0].check(["chown", f":{_GROUP}", shared])
        self.lab.clients[0].check(["chmod", "2770", shared])
        for node in self.lab.clients:
            self._start_machine(node)
        nemesis = Nemesis(
            *(self.lab, self.seed, self.lease_s, self._fault_kinds),
            note=self.faults.append, kill=self._kill_one, restart=self._start_machine,
        )  # fmt: skip
        began = told = time.monotonic()
        try:
            while time.monotonic() - began < seconds:
                time.sleep(min(nemesis.pause_s(), max(0.0, began + seconds - time.monotonic())))
                nemesis.strike()
                self._look_after(nemesis)
                if time.monotonic() - told > every_s:
                    told = time.monotonic()
                    report(self._so_far(told - began))
        finally:
            nemesis.make_peace()
            self.errors += nemesis.errors
            self._end()
        return judge(self.events, self.faults, permits_only=self.permits is not None)

    def leftovers(self) -> list[str]:
        """What the server still has in the locks' directories that stands for a holder or a waiter."""
        directories = [f"{path}.rwlock" for path, _ in self._locks("/mnt/disk/export").values()]
        found = self.lab.server.check(["sh", "-c", 'for d; do ls -A "$d" 2>/dev/null; done', "sh", *directories])
        return [name for name in found.split() if name.startswith(("read.", "write."))]

    def write_lock_anew(self) -> float:
        """Take each lock exclusively, from a process that knows nothing of the campaign; return the seconds it took."""
        locks = self._locks(self._first_mount).values()
        began = time.monotonic()
        for kind in dict.fromkeys(share for _, share in locks):
            wanted = [f"--write={path}" for path, share in locks if share == kind]
            self.lab.clients[0].check(
                [sys.executable, "-m", "nfsrwlock", "run", f"--share={kind}", *wanted, "--", "true"],
                timeout=self.lease_s * max(_LEASES) + 60,
                env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            )
        return time.monotonic() - began

    @property
    def _first_mount(self) -> str:
        return next(iter(self._mounts.values())).at

    def _locks(self, mount: str) -> dict[int, tuple[str, str]]:
        # Where they are below `mount`, and who shares them.
        own = self.locks // 2
        return {n: (f"{mount}/{self.place}/{'' if n < own else 'group/'}{n}", "user" if n < own else "group")
                for n in range(self.locks)}  # fmt: skip

    # -- processes ----------------------------------------------------------------------------------------------------

    def _start_machine(self, node: Node) -> None:
        offset, error = node.monotonic()
        with self._changing:
            self.clock_error_s = max(self.clock_error_s, error)
            self._machines[node.name] = _Machine(node, offset, error)
            for _ in range(self.processes):
                self._start_process(node)

    def _start_process(self, node: Node) -> None:
        number = self._numbers[node.name]
        self._numbers[node.name] += 1
        lane = list(self._mounts)[(number + node.index) % len(self._mounts)]
        chance = random.Random(f"{self.seed} {node.name} {number}")
        kind = self._kinds[number % len(self._kinds)]
        leases = [part for part in _LEASES if part >= 1 or kind != "process"] if self.permits is None else [1]
        lease_s = self.lease_s * chance.choice(leases)
        locks = self._locks(self._mounts[lane].at)
        settings = {
            "locks": {n: lock for n, lock in locks.items() if kind != "user" or lock[1] == "group"},
            "options": {
                "heartbeat_interval": lease_s / 3,
                "stale_threshold": lease_s,
                "poll_interval": chance.choice(_POLLS_S),
                "heartbeat": "process" if kind == "process" else "thread",
            },
            "limits": {n: self.permits or n % 4 + 1 for n in locks if self.permits or n % 2},
            "permits": self.permits is not None,
            "tasks": _TASKS if kind == "tasks" else 0,
            "user": (chance.choice(_USERS), _GROUP) if kind == "user" else None,
            "seed": chance.randrange(1 << 30),
        }
        who = f"{node.name}.{number}"
        ready = threading.Event()

        def hear(kind: bytes, data: bytes) -> None:
            ready.wait()
            self._hear(process, kind, data)

        job = node.popen(
            [sys.executable, str(_TESTS / "nfs" / _PACKAGE / "actor.py"), json.dumps(settings)],
            stdin=True,
            env={"NFSRWLOCK_GRACE_PERIOD": str(NFS4_LEASE_S)},
            on_output=hear,
        )
        process = _Process(who, job, self._machines[node.name], lane)
        self.lanes[who] = lane
        self._running[who] = process
        ready.set()

    def _hear(self, process: _Process, kind: bytes, data: bytes) -> None:
        if kind != b"O":  # the lock's warnings, and whatever a process dies of
            with self._changing:
                self.words[process.who] = self.words.get(process.who, "") + data.decode(errors="replace")
            return
        *lines, process.unread = (process.unread + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            who = process.who + (f"/{task}" if (task := said.pop("task")) else "")
            event = Event(who, said.pop("event"), said.pop("at"), process.machine.error_s, said)
            event = on_the_hosts_clock(event, process.machine.offset)
            with self._changing:
                self.events.append(event)

    def _look_after(self, nemesis: Nemesis) -> None:
        # Who was killed is replaced; who ended by itself should not have.
        with self._changing:
            for who, process in list(self._running.items()):
                if not process.job.done:
                    continue
                node = process.machine.node
                if nemesis.is_at(node):
                    continue  # whoever has it in hand starts its processes, once it has its mounts
                del self._running[who]
                if process.job.returncode is not None and process.job.returncode != -9:
                    self.errors.append(f"{who} ended with code {process.job.returncode}")
                if process.machine is self._machines[node.name] and process.job.returncode is not None:
                    self._start_process(node)

    def _kill_one(self, node: Node, chance: random.Random) -> str:
        with self._changing:
            mine = sorted(who for who, process in self._running.items() if process.machine.node.name == node.name)
            if not mine:
                return NOBODY
            process = self._running[chance.choice(mine)]
        found = node.run(["pgrep", "-f", f"/{_PACKAGE}/actor.py .*{self._mark(process)}"]).stdout.decode().split()
        if not found or node.run(["kill", "-KILL", *found]).returncode:
            return NOBODY
        return process.who

    def _mark(self, process: _Process) -> str:
        seed: int = json.loads(process.job.argv[-1])["seed"]
        return f'"seed": {seed}[,}}]'

    def _end(self) -> None:
        for node in self.lab.clients:
            node.heal()
            node.delay(0)
            node.skew(0)
        self.lab.server.skew(0)
        began = time.monotonic()
        for process in self._running.values():
            with contextlib.suppress(OSError):
                process.job.send(b"\n")
        for process in self._running.values():
            left = began + 2 * self.lease_s * max(_LEASES) + _ENDING_S - time.monotonic()
            if not process.job.wait_until(lambda job=process.job: job.done, max(left, 0.1)):  # type: ignore[misc]
                self.errors.append(f"{process.who} has not ended; it is on {process.lane}")
            elif process.job.returncode not in (0, -9, None):
                self.errors.append(f"{process.who} ended with code {process.job.returncode}")
            process.job.kill()
        with self._changing:
            died_of = ("Traceback", "Fatal Python error")
            self.errors += [
                f"{who} wrote: {said}" for who, said in self.words.items() if any(t in said for t in died_of)
            ]
        self.ending_s = time.monotonic() - began
        for machine in self._machines.values():
            offset, error = machine.node.monotonic()
            if abs(offset - machine.offset) > error + machine.error_s + 0.005:
                moved = offset - machine.offset
                self.errors.append(f"the monotonic clock of {machine.node.name} has moved by {moved:.4f} s")

    def _so_far(self, seconds: float) -> str:
        with self._changing:
            granted = sum(event.event == "granted" for event in self.events)
            return f"{seconds:6.0f} s: {granted} holds, {len(self.faults)} faults, {len(self._running)} processes"


def document(campaign: Campaign, verdict: Verdict, seconds: float) -> dict[str, Any]:
    """All figures of a campaign, for JSON."""
    by_lane: dict[str, int] = {}
    for event in campaign.events:
        if event.event == "granted":
            lane = campaign.lanes[event.who.partition("/")[0]]
            by_lane[lane] = by_lane.get(lane, 0) + 1
    endings: dict[str, int] = {}
    for hold in verdict.holds:
        endings[hold.ending or "never"] = endings.get(hold.ending or "never", 0) + 1
    kinds: dict[str, int] = {}
    for fault in campaign.faults:
        kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
    figures = {
        "seed": campaign.seed,
        "seconds": round(seconds),
        "lease_s": campaign.lease_s,
        "clients": campaign.clients,
        "processes": campaign.clients * campaign.processes,
        "locks": campaign.locks,
        "asked": verdict.events["ask"],
        "timed out": verdict.events["timeout"],
        "shared holds": verdict.count("read"),
        "exclusive holds": verdict.count("write"),
        "holds by lane": dict(sorted(by_lane.items())),
        "endings": dict(sorted(endings.items())),
        "heartbeats seen": verdict.events["beat"],
        "suspect": verdict.events["suspect"],
        "restored": verdict.events["restored"],
        "faults": dict(sorted(kinds.items())),
        "clock error, ms": round(campaign.clock_error_s * 1e3, 2),
        "until all had ended, s": round(campaign.ending_s, 1),
        "violations": [violation.what for violation in verdict.violations],
        "errors": campaign.errors,
    }
    if campaign.permits:
        met = waits(verdict.holds, campaign.faults)
        figures["permits"] = campaign.permits
        figures["a permit was free while one waited for it, at most s"] = round(met.vacant_s, 2)
        figures["overtaken by others, at most"] = met.overtaken
    return figures
