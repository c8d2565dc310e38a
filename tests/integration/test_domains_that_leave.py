# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain is decommissioned: its tracking is removed, and its restore points outlive it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import created, run_module
from plays import Play

MIB = 1 << 20


class Stage:
    """A repository with restore points of two domains, and plays on this host."""

    def __init__(self, workspace: Path, collections: Path, folder: Path) -> None:
        self.workspace = workspace
        self.repository = created(workspace, workspace / "repository")
        self._play = Play(collections, folder)

    def play(self, what: str, *options: str, fails: str | None = None, **variables: Any) -> str:
        """Run a playbook or roles; what Ansible printed."""
        return self._play.run(what, {"cbt_repository": self.repository, **variables}, *options, fails=fails)

    def module(self, name: str, **options: Any) -> dict[str, Any]:
        """Run a module, which must succeed."""
        result = run_module(self.workspace, name, repository=self.repository, **options)
        assert not result.get("failed"), result
        return result

    def points(self, **conditions: Any) -> list[str]:
        """Ids of restore points."""
        return [point["id"] for point in self.module("cbt_backup_info", **conditions)["restore_points"]]


@pytest.fixture
def stage(workspace: Path, collections: Path, tmp_path: Path) -> Stage:
    return Stage(workspace, collections, tmp_path)


def tracked(stage: Stage, name: str) -> tuple[list[str], list[str]]:
    """The checkpoints of a domain, and the bitmaps of its disk."""
    (found,) = run_module(stage.workspace, "cbt_checkpoint_info", domain=name)["domains"]
    return [each["name"] for each in found["checkpoints"]], [each["name"] for each in found["disks"][0]["bitmaps"]]


def changes(printed: str) -> int:
    return int(re.findall(r"changed=(\d+)", printed)[-1])


def table(printed: str) -> list[list[str]]:
    """The words of the lines of the table."""
    (found,) = re.findall(r'"msg": (\[\n.*?\n    \])', printed, re.DOTALL)
    return [line.split() for line in json.loads(found)]


def test_a_domain_leaves_and_its_restore_points_are_kept_and_then_removed(hypervisor: Hypervisor, stage: Stage) -> None:
    leave = "kvm.cbt.decommission"
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as staying:
        with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as domain:
            name = domain.name
            uuid = run_module(stage.workspace, "cbt_domain_info", domains=[name])["domains"][0]["uuid"]
            domain.write_bytes("vda", MIB, b"what the guest wrote")
            for each in (name, name, staying.name):
                stage.module("cbt_backup", domain=each)
            stage.play(leave, fails="none-such was found neither", decommission_domains=f"{name},none-such")
            stage.play(leave, fails="without wildcards", decommission_domains=f"{name[:-1]}?")
            before, other = tracked(stage, name), tracked(stage, staying.name)
            assert all(before) and all(other)
            foreseen = stage.play(leave, "--check", decommission_domains=name, decommission_restore_points="remove")
            assert "2 removed" in foreseen and tracked(stage, name) == before
            assert changes(stage.play(leave, decommission_domains=name)) == 1
            assert (tracked(stage, name), tracked(stage, staying.name)) == (([], []), other)
            assert changes(stage.play(leave, decommission_domains=uuid)) == 0
        # libvirt no longer knows the domain.
        ids = stage.points(domain=name)
        assert len(ids) == 2 and stage.points(domain=uuid) == ids
        for given in (name, uuid):
            (stage.workspace / given).mkdir()
            restored = stage.module("cbt_restore", domain=given, dest=str(stage.workspace / given), format="raw")
            disk = Path(restored["disks"][0]["path"]).read_bytes()
            assert disk[MIB:].startswith(b"what the guest wrote")
        every = ",".join(f"role:kvm.cbt.{role}" for role in ("verify", "restore_points", "retention"))
        rows = table(stage.play(every, verify_domains=name, retention_domains=[name], retention_keep_last=1))
        assert {row[0]: row[1] for row in rows} == {"DOMAIN": "POINTS", name: "2", staying.name: "1"}
        assert [row[-3:] for row in rows if row[0] == name] == [["ok", "0", "crash"]]
        assert stage.points(domain=name) == ids[1:]
        removed = stage.play(leave, decommission_domains=[name], decommission_restore_points="remove")
        assert changes(removed) == 1 and stage.points(domain=name) == []
        assert len(stage.points()) == 1
        stage.module("cbt_retention", undelete=[ids[1]])
        assert stage.points(domain=uuid) == ids[1:]
