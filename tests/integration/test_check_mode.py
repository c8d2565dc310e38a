# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode predicts: the estimate's mode and reason of each disk are those of the run that follows."""

from __future__ import annotations

import typing as t
from pathlib import Path

from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from module_process import created, run_module

MIB = 1 << 20


def _decisions(result: t.Mapping[str, t.Any]) -> list[tuple[str, str, str]]:
    assert not result.get("failed"), result
    return [(disk["target"], disk["mode"], disk["reason"]) for disk in result["disks"]]


def test_the_estimate_and_the_run_agree_in_every_situation(hypervisor: Hypervisor, workspace: Path) -> None:
    disks = [
        DiskSpec("vda", 16 * MIB),
        DiskSpec("vdb", 4 * MIB + 512),
        DiskSpec("vdc", 4 * MIB, format="raw"),
        DiskSpec("vdd", 4 * MIB, compat="0.10"),
        DiskSpec("vde", 4 * MIB, readonly=True),
        DiskSpec("sda", MIB, device="cdrom"),
    ]
    repository = str(workspace / "repository")
    with BlockDomain(hypervisor, disks) as domain:

        def both(**options: t.Any) -> dict[str, t.Any]:
            arguments = {
                "domain": domain.name,
                "repository": repository,
                "create_repository": not Path(repository).exists(),
                **options,
            }
            checkpoints = domain.checkpoints()
            there = Path(repository).exists()
            estimate = run_module(workspace, "cbt_backup", check=True, **arguments)
            assert estimate["changed"] and "restore_point" not in estimate
            assert (domain.checkpoints(), Path(repository).exists()) == (checkpoints, there)
            result = run_module(workspace, "cbt_backup", **arguments)
            assert _decisions(estimate) == _decisions(result)
            for planned, done in zip(estimate["disks"], result["disks"]):
                assert planned["virtual_size"] == done["virtual_size"]
                assert planned["dirty_bytes"] is None or abs(planned["dirty_bytes"] - done["dirty_bytes"]) < 65536
            return result

        domain.write_random("vda", 0, 2 * MIB, 1)
        first = both()
        assert [disk["mode"] for disk in first["disks"]] == ["full", "full", "scan", "scan", "scan", "skipped"]
        domain.write("vda", 0, MIB, 2)
        second = both()
        assert [disk["mode"] for disk in second["disks"]] == [
            "incremental",
            "incremental",
            "scan",
            "scan",
            "scan",
            "skipped",
        ]
        both(mode="incremental", include_disks=["vda", "vdc"])
        third = both()  # vdb was left out of the last one
        assert [disk["mode"] for disk in third["disks"]][:2] == ["incremental", "full"]
        both(mode="copy", scan_untracked=False)
        both(mode="full", exclude_disks=["vdb"])
        domain.kill()
        domain.start()
        crashed = both()
        assert crashed["disks"][0]["mode"] == "full"
        assert domain.checkpoints() == [crashed["restore_point"]["checkpoint"]]


def test_a_restore_in_check_mode_reports_the_images_and_writes_none(hypervisor: Hypervisor, workspace: Path) -> None:
    out = workspace / "out"
    out.mkdir()
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB), DiskSpec("vdb", 4 * MIB)]) as domain:
        domain.write("vda", 0, MIB, 1)
        arguments = {"domain": domain.name, "repository": created(workspace, workspace / "repository")}
        assert run_module(workspace, "cbt_backup", **arguments)["changed"]
        planned = run_module(workspace, "cbt_restore", check=True, dest=str(out), exclude_disks=["vdb"], **arguments)
        assert list(out.iterdir()) == []
        done = run_module(workspace, "cbt_restore", dest=str(out), exclude_disks=["vdb"], **arguments)
        assert (
            [disk["path"] for disk in planned["disks"]]
            == [disk["path"] for disk in done["disks"]]
            == [str(path) for path in out.iterdir()]
        )


def test_tracking_in_check_mode_changes_nothing_and_predicts(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB), DiskSpec("vdb", 4 * MIB, format="raw")]) as domain:
        arguments = {"domain": domain.name, "repository": str(workspace / "repository")}
        refused = run_module(workspace, "cbt_checkpoint", **arguments)
        assert (
            refused["failed"]
            and "There is no repository in" in refused["msg"]
            and not (workspace / "repository").exists()
        )
        arguments["create_repository"] = True
        planned = run_module(workspace, "cbt_checkpoint", check=True, **arguments)
        assert planned["changed"] and domain.checkpoints() == []
        first = run_module(workspace, "cbt_checkpoint", **arguments)
        assert first["changed"] and domain.checkpoints() == [first["checkpoint"]]
        assert [disk["tracked"] for disk in first["disks"]] == [True, False]
        for check in (True, False):
            again = run_module(workspace, "cbt_checkpoint", check=check, **arguments)
            assert not again["changed"] and again["checkpoint"] == first["checkpoint"]
        assert run_module(workspace, "cbt_checkpoint", check=True, state="absent", **arguments)["changed"]
        assert domain.checkpoints() == [first["checkpoint"]]
        assert run_module(workspace, "cbt_checkpoint", state="absent", **arguments)["changed"]
        assert domain.checkpoints() == [] and domain.bitmaps("vda") == []
        assert not run_module(workspace, "cbt_checkpoint", state="absent", **arguments)["changed"]


def test_absent_leaves_the_checkpoints_of_others_and_works_on_a_shut_off_domain(
    hypervisor: Hypervisor, workspace: Path
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as domain:
        others = "<domaincheckpoint><name>theirs</name></domaincheckpoint>"
        domain.handle.checkpointCreateXML(others, 0)
        one = {"domain": domain.name, "repository": created(workspace, workspace / "one")}
        two = {"domain": domain.name, "repository": created(workspace, workspace / "two")}
        assert run_module(workspace, "cbt_backup", **one)["changed"]
        kept = run_module(workspace, "cbt_backup", **two)["restore_point"]["checkpoint"]
        domain.destroy()
        assert run_module(workspace, "cbt_checkpoint", state="absent", **one)["changed"]
        assert sorted(domain.checkpoints()) == sorted(["theirs", kept])
        domain.start()
        assert {bitmap["name"] for bitmap in domain.bitmaps("vda", marks=True)} == {"theirs", kept, f"{kept}@vda"}
        assert run_module(workspace, "cbt_backup", mode="incremental", **two)["changed"]
        assert run_module(workspace, "cbt_checkpoint", state="absent", **two)["changed"]
        assert [bitmap["name"] for bitmap in domain.bitmaps("vda", marks=True)] == domain.checkpoints() == ["theirs"]
