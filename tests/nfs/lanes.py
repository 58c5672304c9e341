"""The ways in which every client of the scenarios and the campaigns has the same export mounted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nfs.lab import Node


@dataclass(frozen=True)
class Lane:
    """
    One mount.

    :param version: of NFS
    :param options: of the mount; none leaves all as it is by default
    :param at: where it is
    """

    version: str
    options: str
    at: str

    @property
    def keeps_data_fresh(self) -> bool:
        """Whether a file opened after another client closed it is read as that one left it (close-to-open)."""
        return "nocto" not in self.options


LANES: Final = {
    "4.2": Lane("4.2", "", "/mnt/nfs"),
    "3": Lane("3", "", "/mnt/nfs3"),
    "4.0": Lane("4.0", "", "/mnt/nfs40"),
    "nocto": Lane("4.2", "nocto", "/mnt/nocto"),
    "noac": Lane("3", "noac", "/mnt/noac"),
}
#: NFSv4's own lease, and its grace period after a restart of the server, seconds: the least that a server takes. It is
#: longer than our leases, so that waiting for NFSv4's own state would be noticed.
NFS4_LEASE_S: Final = 10
#: Those for what takes long: the newest version, and the one without state.
BOTH: Final = ("4.2", "3")


def mount_all(node: Node, lanes: Mapping[str, Lane] = LANES) -> None:
    """Mount each lane that is not mounted yet."""
    for lane in lanes.values():
        if lane.at not in node.mounts:
            node.mount(lane.version, lane.options, at=lane.at)
