# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several nodes on one network, with a folder of storage which all of them have."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lab.closing import Closing
from lab.network import Network
from lab.nodes import Node
from lab.ssh import Ssh
from lab.workspace import make_workspace


class Cluster(Closing):
    """`nodes` hypervisors named node1, node2 and so on. Everything is removed at the end."""

    def __init__(
        self, nodes: int = 2, shared: bool = True, trees: Sequence[Path | None] = (), ssh: bool = False
    ) -> None:
        """Start the nodes.

        With `shared` they have one folder of storage, else each has its own. `trees` are their
        root file systems in order; None, or nothing for the last ones, is this machine's own.
        With `ssh` root reaches them by key, see `ssh_config`.
        """
        self.nodes: list[Node] = []
        self._cleanup = ExitStack()
        try:
            self._folder = make_workspace()
            self._cleanup.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self.network = Network(self._folder / "network.log")
            self._cleanup.callback(self.network.close)
            hosts = {f"node{number}": self.network.node_address(number) for number in range(1, nodes + 1)}
            self._ssh = Ssh(self._folder / "ssh", hosts) if ssh else None
            for number, name in enumerate(hosts, start=1):
                storage = self._folder / ("shared" if shared else f"storage{number}")
                storage.mkdir(exist_ok=True)
                tree = trees[number - 1] if number <= len(trees) else None
                node = Node(name, number, self.network, self._folder / name, storage, tree, self._ssh, hosts)
                self._cleanup.callback(node.close)
                self.nodes.append(node)
        except BaseException:
            self.close()
            raise

    @property
    def shared(self) -> Path:
        """The folder of storage which all nodes have, under this path as this machine does."""
        (path,) = {node.storage for node in self.nodes}
        return path

    @property
    def ssh_config(self) -> Path:
        """Settings for `ssh -F`, with the nodes' names; only programs in the network (`command`) reach them."""
        assert self._ssh is not None, "the cluster was made without ssh"
        return self._ssh.config

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """The command that runs a program of this machine in the network of the nodes."""
        return self.network.command([str(word) for word in words])

    def run(self, words: Sequence[str | Path], timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine in the network of the nodes to its end, whatever it ends with."""
        command = self.command(words)
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )

    def close(self) -> None:
        """Remove nodes, network and storage. May be called twice."""
        self._cleanup.close()
