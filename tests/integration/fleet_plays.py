# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks run over the nodes of a cluster, by ssh from this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lab.cluster import Cluster
from lab.nodes import Node
from plays import Play

# Connections end soon after a playbook has, and a lost node is noticed in seconds.
_SSH = "-o ControlMaster=auto -o ControlPersist=5 -o ConnectTimeout=5 -o ServerAliveInterval=2 -o ServerAliveCountMax=3"
_RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.MULTILINE)


class Fleet:
    """The nodes of a cluster as an inventory."""

    def __init__(self, cluster: Cluster, collection: Path, folder: Path, *others: str) -> None:
        """``others`` are further lines of the inventory."""
        self.cluster = cluster
        self._collection, self._folder, self._others = collection, folder, others

    def beside(self, *others: str) -> Fleet:
        """The same nodes, with further lines in the inventory."""
        return Fleet(self.cluster, self._collection, self._folder, *others)

    def run(
        self,
        playbook: str,
        variables: dict[str, Any],
        *options: str,
        nodes: Iterable[Node] = (),
        fails: str | None = None,
        warns: str = "",
    ) -> str:
        """Run a playbook on nodes, or on all; see `Play.run`."""
        names = [node.name for node in nodes or self.cluster.nodes]
        ssh = f"ansible_ssh_common_args='-F {self.cluster.ssh_config}' ansible_ssh_args='{_SSH} -o ControlPath={self._folder}/%h'"
        settings = f"ansible_python_interpreter=/usr/bin/python3 {ssh}"
        hosts = "\n".join([*(f"{name} {settings}" for name in names), *self._others])
        play = Play(self._collection, self._folder, hosts, self.cluster.command([]))
        return play.run(playbook, variables, "--forks", "3", *options, fails=fails, warns=warns)

    def changed(self, *arguments: Any, **options: Any) -> dict[str, int]:
        """Run as above; the hosts on which tasks changed something, and how many."""
        return {
            host: int(changed)
            for host, changed, _unreachable, _failed in _RECAP.findall(self.run(*arguments, **options))
            if int(changed)
        }
