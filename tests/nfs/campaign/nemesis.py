"""What goes wrong in a campaign: faults of clients, of the network and of the server, at random, and undone again."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nfs.lab import Lab, LabError, Node

from .history import Fault

#: Faults by name, and how often each is chosen.
KINDS = {
    "pause": 4, "power cut": 2, "network cut": 4, "kill": 4,
    "clock": 3, "delay": 1, "nfsd restart": 1, "server crash": 1, "helper kill": 3, "helper pause": 2,
}  # fmt: skip

#: Those whose end everybody has to wait for.
OF_THE_SERVER = ("nfsd restart", "server crash")

_ATTEMPTS = 3
#: What the command line of a heartbeat process says.
_HELPER = "nfsrwlock_core[.].*main"
#: Whom a kill has met if all processes of the machine had just ended.
NOBODY = "nobody"


@dataclass
class Nemesis:
    """
    Does one fault after the other, each in its own thread, so that faults of different machines overlap.

    :param kinds: of faults, as :data:`KINDS` has them
    :param note: told of each fault when it is over (or when it begins and cannot be undone)
    :param kill: kills one process of a client by SIGKILL, and returns its name
    :param restart: starts the processes of a client anew, after it was switched on again
    """

    lab: Lab
    seed: int
    lease_s: float
    kinds: Mapping[str, int]
    note: Callable[[Fault], None]
    kill: Callable[[Node, random.Random], str]
    restart: Callable[[Node], None]

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._busy: set[str] = set()
        self._running: list[threading.Thread] = []
        #: What went wrong with a fault itself.
        self.errors: list[str] = []

    def strike(self) -> None:
        """Begin one fault, on a machine that has none."""
        kind = self._chance.choices(list(self.kinds), list(self.kinds.values()))[0]
        on_server = kind in OF_THE_SERVER
        # Drawn whether used or not, so that a seed's choices do not depend on what was busy.
        node = self.lab.server if on_server else self._chance.choice(self.lab.clients)
        seed = self._chance.randrange(1 << 30)
        if node.name in self._busy:
            return
        self._busy.add(node.name)
        thread = threading.Thread(target=self._carry_out, args=(kind, node, random.Random(seed)))
        self._running.append(thread)
        thread.start()

    def pause_s(self) -> float:
        """How long to wait before the next one: mostly short, now and then long enough for everything to calm down."""
        return self._chance.choice([0.5, 1, 2, 4, 3 * self.lease_s])

    def is_at(self, node: Node) -> bool:
        """Whether a fault of this machine is under way, so that it may be off, or on and without its mounts yet."""
        return node.name in self._busy

    def make_peace(self) -> None:
        """Wait until every fault is over."""
        for thread in self._running:
            thread.join()
        self._running.clear()

    def _carry_out(self, kind: str, node: Node, chance: random.Random) -> None:
        began = time.monotonic()
        try:
            detail = getattr(self, "_" + kind.replace(" ", "_"))(node, chance)
        except Exception as error:
            self.errors.append(f"{kind} of {node.name}: {error!r}")
        else:
            if detail == NOBODY:
                return
            self.note(Fault(kind, detail or node.name, began, time.monotonic()))
        finally:
            self._busy.discard(node.name)

    def _seconds(self, chance: random.Random) -> float:
        return chance.choice([0.2, 0.6, 1.2, 2.0]) * self.lease_s * chance.uniform(0.8, 1.2)

    def _pause(self, node: Node, chance: random.Random) -> None:
        node.pause()
        try:
            time.sleep(self._seconds(chance))
        finally:
            node.resume()

    def _power_cut(self, node: Node, chance: random.Random) -> None:
        node.kill()
        time.sleep(chance.uniform(0, self.lease_s))
        node.boot()
        for left in reversed(range(_ATTEMPTS)):  # while the server is away, mounting takes longer than it may
            try:
                node.wait_until_ready()
                node.remount()
                break
            except (LabError, subprocess.TimeoutExpired):
                if not left:
                    raise
        self.restart(node)

    def _network_cut(self, node: Node, chance: random.Random) -> str | None:
        try:
            node.cut(chance.choice(["both", "out", "in"]))
        except (LabError, OSError):  # the server, which has to do the last one, has crashed
            return NOBODY
        try:
            time.sleep(self._seconds(chance))
        finally:
            node.heal()
        return None

    def _kill(self, node: Node, chance: random.Random) -> str:
        return self.kill(node, chance)

    def _helper_kill(self, node: Node, chance: random.Random) -> str | None:
        return self._to_a_helper(node, chance, "KILL")

    def _helper_pause(self, node: Node, chance: random.Random) -> str | None:
        if (met := self._to_a_helper(node, chance, "STOP")) == NOBODY:
            return NOBODY
        time.sleep(self._seconds(chance))
        node.run(["pkill", "-CONT", "-f", _HELPER])
        return met

    def _to_a_helper(self, node: Node, chance: random.Random, signal: str) -> str | None:
        found = node.run(["pgrep", "-f", _HELPER]).stdout.decode().split()
        if not found or node.run(["kill", f"-{signal}", chance.choice(found)]).returncode:
            return NOBODY
        return None

    def _clock(self, node: Node, chance: random.Random) -> None:
        node.skew(chance.choice([-600, -90, -1, 1, 90, 600]))

    def _delay(self, node: Node, chance: random.Random) -> None:
        node.delay(chance.choice([1, 5, 20]))
        try:
            time.sleep(self._seconds(chance))
        finally:
            node.delay(0)

    def _nfsd_restart(self, node: Node, chance: random.Random) -> None:
        self.lab.restart_nfsd(chance.uniform(0, self.lease_s))

    def _server_crash(self, node: Node, chance: random.Random) -> None:
        node.kill()
        time.sleep(chance.uniform(0, self.lease_s))
        node.start()
