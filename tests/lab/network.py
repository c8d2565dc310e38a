# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The network that joins the nodes of a cluster, invisible to the rest of the machine."""

from __future__ import annotations

from pathlib import Path

from lab.namespaces import Namespaces
from lab.process import run_tool

_PREFIX = "10.77.0"
_BRIDGE = "lab"


class Network:
    """A bridge in a network namespace of its own, so that several clusters may use the same addresses."""

    # Where programs run by `command` can be reached by the nodes, such as an object store.
    address = f"{_PREFIX}.1"

    def __init__(self, log: Path) -> None:
        self._namespaces = Namespaces(["net"], ["cat"], log)
        try:
            self._ip("link", "set", "lo", "up")
            self._ip("link", "add", _BRIDGE, "type", "bridge")
            self._ip("address", "add", f"{self.address}/24", "dev", _BRIDGE)
            self._ip("link", "set", _BRIDGE, "up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def node_address(number: int) -> str:
        """The address of the node of this number, from 1."""
        return f"{_PREFIX}.{10 + number}"

    def command(self, words: list[str]) -> list[str]:
        """The command that runs a program in this network: the rest of the machine is as it was."""
        return self._namespaces.command(words)

    def join(self, node: Namespaces, number: int) -> None:
        """Give a node a port of the bridge and an address."""
        port = f"port{number}"
        # The node's end is created in its place: no name of an interface can be taken there.
        self._ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
        self._ip("link", "set", port, "master", _BRIDGE, "up")
        inside = [f"--target={node.pid}", "--net", "ip"]
        run_tool(["nsenter", *inside, "link", "set", "lo", "up"])
        run_tool(["nsenter", *inside, "address", "add", f"{self.node_address(number)}/24", "dev", "eth0"])
        run_tool(["nsenter", *inside, "link", "set", "eth0", "up"])

    def close(self) -> None:
        """Remove the network. May be called twice."""
        self._namespaces.close()

    def _ip(self, *words: str) -> None:
        run_tool(self.command(["ip", *words]))
