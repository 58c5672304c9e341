"""Processes of several clients storm one lock: what they say they held, on the host's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nfs.campaign.history import Hold
from nfs.lab import Node
from nfs.scene import Remote

#: Such short holds need no heartbeat; a machine that stands still for seconds must not end a test about exclusion.
SETTINGS: Final = {"heartbeat_interval": 10, "poll_interval": 0.02, "timeout": 20}


@dataclass(frozen=True)
class Storm:
    """
    What came of a storm.

    :param said: each hold as :func:`on_client.storm` returns it, with who had it
    :param holds: the same on the host's clock
    :param error_s: by how much two of their times may be wrong
    """

    said: list[tuple[str, dict[str, Any]]]
    holds: list[Hold]
    error_s: float

    @property
    def writes(self) -> list[Hold]:
        """The exclusive holds."""
        return [hold for hold in self.holds if hold.mode == "write"]


def storm(processes: Sequence[Remote], paths: dict[str, str], seconds: float) -> Storm:
    """
    Let them read and write one file, and hear what they held.

    :param paths: of the file, by the name of the client
    """
    nodes = {process.node.name: process.node for process in processes}
    clocks_before = clocks_of(nodes)
    for seed, process in enumerate(processes):
        process.tell(f"storm({paths[process.node.name]!r}, {SETTINGS!r}, {seconds}, {seed})")
    said: list[tuple[str, dict[str, Any]]] = []
    for number, process in enumerate(processes):
        said += [(f"{process.node.name} process {number}", record) for record in process.answer(4 * seconds + 75)]
    clocks_after = clocks_of(nodes)

    # A clock may be wrong by half the time its answer took, and by as much as it moved meanwhile.
    error_s = 0.0
    for (offset, error), (later, later_error) in zip(clocks_before.values(), clocks_after.values(), strict=True):
        error_s += error + later_error + abs(later - offset)
    holds = [_on_the_hosts_clock(who, record, clocks_before[who.split()[0]][0], error_s) for who, record in said]
    return Storm(said, holds, error_s)


def clocks_of(nodes: dict[str, Node]) -> dict[str, tuple[float, float]]:
    """How far each client's clock is off, and how uncertain that is; asked often, for a machine that is busy."""
    asked = {name: [node.clock() for _ in range(5)] for name, node in nodes.items()}
    return {name: min(answers, key=lambda answer: answer[1]) for name, answers in asked.items()}


def _on_the_hosts_clock(who: str, record: dict[str, Any], offset: float, error_s: float) -> Hold:
    released = record["released"] - offset
    return Hold(
        *(who, 0, record["mode"], record["granted"] - offset),
        lease_s=0.0,  # nobody loses a hold here
        error_s=error_s / 2,  # of both holds of a pair together, no more than of all clocks
        generation=record["generation"],
        until=released,
        end=released,
    )
