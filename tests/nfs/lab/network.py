"""
The lab's two networks, in a network namespace of their own: NFS goes over one, the agents are reached over the other.

So a node whose NFS network is cut can still be asked what it sees.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import Final

from .host import enter_network_namespace, sh

#: Only ever used inside the namespace, so they collide with nothing.
_DATA: Final = "10.123.0"
_CONTROL: Final = "10.124.0"
AGENT_PORT: Final = 7777


def data_address(index: int) -> str:
    """The address of a node on the network that NFS uses."""
    return f"{_DATA}.{index + 1}"


def control_address(index: int) -> str:
    """The address of a node's agent."""
    return f"{_CONTROL}.{index + 1}"


class Network:
    """
    Bridges and veth pairs in a namespace.

    :param name: of the namespace
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"

    def up(self, nodes: int) -> None:
        """Make the namespace, with a port on each network for each of ``nodes``."""
        commands = []
        for bridge in ("data", "ctl"):
            # No spanning tree and no forward delay: a port forwards as soon as it is up.
            commands += [f"link add {bridge} type bridge stp_state 0 forward_delay 0", f"link set {bridge} up"]
        commands += [f"addr add {_CONTROL}.254/24 dev ctl", "link set lo up"]
        for index in range(nodes):
            for kind, bridge in (("d", "data"), ("c", "ctl")):
                port = f"{kind}{index}"
                commands += [
                    f"link add {port} type veth peer name {port}g",
                    f"link set {port} master {bridge} up",
                    f"link set {port}g arp off up",
                ]
        sh("ip", "netns", "add", self.name)
        sh(
            *("ip", "netns", "exec", self.name, "sysctl", "-q"),
            *("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"),
        )
        sh("ip", "-n", self.name, "-batch", "-", stdin="\n".join(commands) + "\n")

    def down(self) -> None:
        """Remove the namespace, and with it all bridges and ports."""
        if os.path.exists(self.path):
            sh("ip", "netns", "del", self.name)

    def forward(self, index: int, *, on: bool) -> None:
        """
        Let a node's port on the NFS network forward packets, or drop them both ways.

        The guest's link stays up, as behind a dead switch.
        """
        state = "3" if on else "0"
        sh("ip", "netns", "exec", self.name, "bridge", "link", "set", "dev", f"d{index}", "state", state)

    def connect(self, index: int, timeout: float) -> socket.socket:
        """A connection to a node's agent. A thread of its own makes it, since a namespace is entered per thread."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                enter_network_namespace(self.path)
                made.append(socket.create_connection((control_address(index), AGENT_PORT), timeout))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        made[0].settimeout(None)
        made[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made[0]
