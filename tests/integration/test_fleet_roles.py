# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles of every night, and restore, over several hosts: what fails is told at the end and keeps nothing else from being done."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import run_module
from test_roles import Play, collections

__all__ = ["collections"]

MIB = 1 << 20
LOCAL = "ansible_connection=local ansible_python_interpreter=/usr/bin/python3"
TWO = f"kvm1 {LOCAL}\nkvm2 {LOCAL}"  # both are this machine, so that each domain is on two hosts
DEAD = 'dead ansible_host=127.0.0.1 ansible_port=9 ansible_ssh_common_args="-o ConnectTimeout=2"'


class Fleet:
    """Domains of one disk each, a repository, and hosts to run playbooks on."""

    def __init__(self, collections: Path, folder: Path, workspace: Path, hypervisor: Hypervisor, stack: ExitStack) -> None:
        self._collections, self._folder, self._hypervisor, self._stack = collections, folder, hypervisor, stack
        self.repository = workspace / "repository"
        self.workspace = workspace

    def domain(self, start: bool = True) -> BlockDomain:
        return self._stack.enter_context(BlockDomain(self._hypervisor, [DiskSpec("vda", 4 * MIB)], start=start))

    def play(self, hosts: str = TWO) -> Play:
        return Play(self._collections, self._folder, hosts)

    def points(self) -> list[dict[str, Any]]:
        """The restore points of the repository."""
        found: list[dict[str, Any]] = run_module(self.workspace, "cbt_backup_info", repository=str(self.repository))["restore_points"]
        return found

    def variables(self, *domains: str, **more: Any) -> dict[str, Any]:
        return {"cbt_repository": str(self.repository), "cbt_domains": list(domains), **more}


@pytest.fixture
def fleet(collections: Path, tmp_path: Path, workspace: Path, hypervisor: Hypervisor) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(collections, tmp_path, workspace, hypervisor, stack)


def _summed_up(printed: str) -> list[str]:
    """The lines of the summary, of which there must be one."""
    found: list[str] = re.findall(r'"__summary.lines": (\[.*?\n    \]|\[\])', printed, re.DOTALL)
    assert len(found) == 1, printed
    lines: list[str] = json.loads(found[0])
    return lines


def test_a_night_over_hosts_of_which_one_is_dead_and_domains_of_which_one_fails(fleet: Fleet) -> None:
    good, off, bad, excluded, other = fleet.domain(), fleet.domain(start=False), fleet.domain(start=False), fleet.domain(), fleet.domain()
    lost = bad.image("vda").rename(bad.image("vda").with_suffix(".lost"))
    pattern = f"{good.name[:-1]}?"
    variables = fleet.variables(pattern, off.name, bad.name, excluded.name, "no-such", cbt_exclude_domains=[f"{excluded.name[:-2]}*"])

    check = _summed_up(fleet.play().run("kvm.cbt.backup", variables, "--check", fails="Not all went well"))
    assert f"backup on kvm1: {good.name}: would look at 4.0 MiB: vda full" in check
    assert not fleet.repository.exists() and good.checkpoints() == []

    lines = _summed_up(fleet.play(f"{TWO}\n{DEAD}").run("kvm.cbt.backup", variables, fails="Not all went well"))
    assert sum("vda full" in line for line in lines) == 2 and not any(excluded.name in line or other.name in line for line in lines)
    assert any(line.startswith(f"backup on kvm1: FAILED: {bad.name}: ") for line in lines)
    assert any(line.startswith("backup on dead: UNREACHABLE: ") for line in lines)
    assert "backup: MISSING: no-such is on no host that was asked" in lines
    assert sorted(point["domain"] for point in fleet.points()) == sorted([good.name, off.name])

    lost.rename(bad.image("vda"))
    variables["cbt_domains"].remove("no-such")
    night = {**variables, "retention_keep_last": 1, "verify_restore_points": ["all"]}
    lines = _summed_up(fleet.play().run("kvm.cbt.site", night))
    assert [line for line in lines if line.startswith("reconcile")] == [
        f"reconcile on kvm1: {name}: in order" for name in sorted([good.name, off.name, bad.name])
    ]
    assert not any("on kvm2" in line for line in lines)
    assert sorted(point["domain"] for point in fleet.points()) == sorted([good.name, off.name, bad.name])
    for step, told in (("verify", "restore points are sound"), ("retention", "1 kept")):
        assert sum(line.startswith(f"{step} on kvm1: ") and told in line for line in lines) == 3
