# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules on a share with odd rules: warned of once, when the repository is created, and used for all that follows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from lab.odd_filesystem import mounted
from module_process import run_module

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE")

MIB = 1 << 20
# As on an SMB share of a NAS, and as on storage of objects that is mounted.
SHARE = ("no links", "any case", "fixed modes", "no locks", "no folder sync", "no sizes")
MORE = ("no exclusive names", "other owner", "other clock", "no link counts", "unknown kinds", "short reads")


def test_a_share_with_odd_rules_stores_backups_that_are_restored_to_it(hypervisor: Hypervisor, workspace: Path) -> None:
    with mounted(workspace, *SHARE, *MORE) as share, BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as domain:

        def run(module: str, check: bool = False, **options: Any) -> dict[str, Any]:
            result = run_module(workspace, module, check, repository=str(share / "r"), **options)
            assert not result.get("failed"), result
            return result

        run("cbt_repository", check=True)
        assert list(share.iterdir()) == []
        warnings = str(run("cbt_repository")["warnings"])
        for each in ("have mode 0777", "+5.0 hours", "has no locks", "only if it does not exist"):
            assert each in warnings
        assert "warnings" not in run("cbt_repository")

        expected = bytearray(4 * MIB)
        for number, mode in enumerate(("full", "incremental", "incremental")):
            offset = number * MIB
            expected[offset : offset + MIB] = domain.write_random("vda", offset, MIB, number)
            domain.flush("vda")
            result = run("cbt_backup", domain=domain.name)
            assert result["disks"][0]["mode"] == mode, result
        run("cbt_retention", keep_last=1, grace=0, collect=True)
        assert run("cbt_verify", restore_points=["all"])["restore_points"]
        os.mkdir(share / "restored")
        path = run("cbt_restore", domain=domain.name, dest=str(share / "restored"), format="raw")["disks"][0]["path"]
        assert Path(path).read_bytes() == expected
        assert os.listdir(share / "restored") == [os.path.basename(path)]
        assert not list(share.glob("r/tmp/*"))


def test_a_share_that_cannot_hold_a_repository_is_refused_before_a_backup(
    hypervisor: Hypervisor, workspace: Path
) -> None:
    with mounted(workspace, "no times") as share, BlockDomain(hypervisor, [DiskSpec("vda", MIB)]) as domain:
        result = run_module(
            workspace, "cbt_backup", domain=domain.name, repository=str(share / "r"), create_repository=True
        )
        assert result["failed"]
        assert "its file system does not report when a file was modified. Mount it with other options" in result["msg"]
        assert domain.checkpoints() == []
        assert not (share / "r" / "repository.json").exists()
