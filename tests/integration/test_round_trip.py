# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job, once, through the modules: back up, write, back up again, verify, restore, compare."""

from __future__ import annotations

from pathlib import Path

from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.reference import same_bytes, snapshot_reference
from module_process import run_module

MIB = 1 << 20


def test_a_disk_backed_up_twice_is_restored_to_the_bytes_it_had(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 32 * MIB + 512)]) as domain:
        common = {"repository": str(workspace / "repository"), "domain": domain.name}
        domain.write_random("vda", 0, 8 * MIB, 1)
        full = run_module(workspace, "cbt_backup", **common, create_repository=True)
        domain.write_random("vda", 4 * MIB, MIB, 2)
        domain.write_zeroes("vda", 6 * MIB, MIB)
        incremental = run_module(workspace, "cbt_backup", **common)
        expected = snapshot_reference(domain, hypervisor.folder())["vda"]
        verified = run_module(workspace, "cbt_verify", **common, restore_points=["all"])
        dest = workspace / "restored"
        dest.mkdir()
        restored = run_module(workspace, "cbt_restore", **common, dest=str(dest), format="qcow2")
    modes = [result["disks"][0]["mode"] for result in (full, incremental)]
    assert modes == ["full", "incremental"]
    assert [point["status"] for point in verified["restore_points"]] == ["ok", "ok"]
    assert same_bytes(Path(restored["disks"][0]["path"]), expected, "qcow2", "raw") is None
