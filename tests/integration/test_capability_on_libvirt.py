# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Incremental backup is switched on in a domain's definition, and off again."""

from __future__ import annotations

from pathlib import Path

from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import created, run_module

_SWITCH = "<qemu:add capability='incremental-backup'/>"


def test_the_switch_goes_on_and_off_and_the_domain_starts_with_it(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 1 << 20)], start=False) as domain:
        before = domain.xml(inactive=True)
        wanted = {"domains": [f"{domain.name[:-1]}?"]}
        planned = run_module(workspace, "cbt_capability", check=True, **wanted)
        assert (planned["changed"], planned["domains"], domain.xml(inactive=True)) == (True, [domain.name], before)
        assert run_module(workspace, "cbt_capability", **wanted)["domains"] == [domain.name]
        assert _SWITCH in domain.xml(inactive=True)
        assert not run_module(workspace, "cbt_capability", **wanted)["changed"]
        domain.start()
        assert _SWITCH in domain.xml()
        backup = run_module(
            workspace, "cbt_backup", domain=domain.name, repository=created(workspace, workspace / "repository")
        )
        assert backup["disks"][0]["mode"] == "full"
        assert run_module(workspace, "cbt_capability", state="absent", **wanted)["changed"]
        assert domain.xml(inactive=True) == before
        assert not run_module(workspace, "cbt_capability", state="absent", **wanted)["changed"]
