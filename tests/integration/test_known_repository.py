# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules and roles refuse a repository that is missing, is another one or went back, until it is accepted once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import created, run_module
from plays import Play

MIB = 1 << 20
MISSING = "is missing. If it is on a share, check that the right share is mounted."
BACK = "went back: restore point"


class Host:
    """A host with a shut-off domain, a share with its repository, and a second repository."""

    def __init__(self, domain: BlockDomain, workspace: Path) -> None:
        self.domain, self.workspace = domain, workspace
        self.share, self.other, self.out = (workspace / name for name in ("share", "other", "out"))
        self.out.mkdir()
        created(workspace, self.share)
        created(workspace, self.other)
        self.first = self.backup()["restore_point"]["id"]

    def run(self, module: str, check: bool = False, **options: Any) -> dict[str, Any]:
        return run_module(self.workspace, module, check, **{"repository": str(self.share), **options})

    def backup(self, check: bool = False, **options: Any) -> dict[str, Any]:
        return self.run("cbt_backup", check, domain=self.domain.name, mode="full", **options)

    def modules(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """All runs of modules that open a repository, by what they are."""
        named, elsewhere = {"domain": self.domain.name}, {"repository": str(self.other)}
        return {
            "cbt_backup": ("cbt_backup", named),
            "cbt_backup, which may create": ("cbt_backup", {**named, "create_repository": True}),
            "cbt_backup_info": ("cbt_backup_info", {}),
            "cbt_checkpoint": ("cbt_checkpoint", {**named, "state": "present", "create_repository": True}),
            "cbt_checkpoint absent": ("cbt_checkpoint", {**named, "state": "absent"}),
            "cbt_checkpoint reconciled": ("cbt_checkpoint", {**named, "state": "reconciled"}),
            "cbt_checkpoint_info": ("cbt_checkpoint_info", named),
            "cbt_copy from": ("cbt_copy", {"dest_repository": str(self.other)}),
            "cbt_copy to": ("cbt_copy", {**elsewhere, "dest_repository": str(self.share), "create_repository": True}),
            "cbt_repository": ("cbt_repository", {}),
            "cbt_restore": ("cbt_restore", {**named, "dest": str(self.out)}),
            "cbt_retention": ("cbt_retention", {"keep_last": 1}),
            "cbt_verify": ("cbt_verify", {}),
        }

    def all_refuse(self, reason: str) -> None:
        """Assert that every run refuses, says why and what to do, and touches nothing."""
        before = sorted(self.share.rglob("*"))
        for what, (module, options) in self.modules().items():
            result = self.run(module, **options)
            option = "dest_accept_repository: true" if what == "cbt_copy to" else " accept_repository: true"
            assert result.get("failed") and reason in result["msg"] and option in result["msg"], (what, result)
        assert (
            sorted(self.share.rglob("*")) == before
            and list(self.out.iterdir()) == []
            and self.domain.checkpoints() == []
        )


@pytest.fixture
def host(hypervisor: Hypervisor, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("XDG_STATE_HOME", str(workspace / "state"))
    with BlockDomain(hypervisor, [DiskSpec("vdb", MIB, format="raw")], start=False) as domain:
        yield Host(domain, workspace)


def test_a_share_that_is_not_mounted(host: Host) -> None:
    mounted = host.share.rename(host.workspace / "server")
    host.share.mkdir()
    host.all_refuse(MISSING)
    refused = host.backup(check=True, create_repository=True)
    assert refused["failed"] and MISSING in refused["msg"]
    host.share.rmdir()
    mounted.rename(host.share)
    assert host.backup()["changed"]


def test_an_older_copy_in_the_place_of_the_repository(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Path(shutil.copytree(host.share, host.workspace / "older"))
    lost = host.backup()["restore_point"]["id"]
    shutil.rmtree(host.share)
    older.rename(host.share)
    host.all_refuse(f"{BACK} {lost} of domain {host.domain.uuid}")
    refused = host.backup(check=True)
    assert refused["failed"] and BACK in refused["msg"]
    # On the day of a recovery, a host that never saw the repository needs no option.
    with monkeypatch.context() as fresh:
        fresh.setenv("XDG_STATE_HOME", str(host.workspace / "fresh"))
        assert host.run("cbt_restore", domain=host.domain.name, dest=str(host.out))["restore_point"]["id"] == host.first
    # One that knows it takes the older state once; check mode does not.
    assert not host.run("cbt_verify", check=True, accept_repository=True).get("failed")
    assert BACK in host.run("cbt_verify")["msg"]
    for accept in (True, False):
        points = host.run("cbt_backup_info", accept_repository=accept)["restore_points"]
        assert [point["id"] for point in points] == [host.first]
    assert host.backup()["changed"]


def test_both_repositories_of_a_copy_are_compared_each_with_an_option_of_its_own(host: Host) -> None:
    copied = {"dest_repository": str(host.other)}
    assert host.run("cbt_copy", **copied)["changed"]
    shutil.rmtree(host.other)
    created(host.workspace, host.other, accept_repository=True)
    assert host.run("cbt_copy", **copied)["changed"]
    shutil.rmtree(host.other / "points")
    refused = host.run("cbt_copy", accept_repository=True, **copied)
    assert refused["failed"] and f"The repository in {host.other} {BACK} {host.first}" in refused["msg"]
    assert host.run("cbt_copy", dest_accept_repository=True, **copied)["copied"][0]["id"] == host.first
    assert not host.run("cbt_copy", **copied)["changed"]


def test_roles_refuse_and_accept(host: Host, collections: Path, tmp_path: Path) -> None:
    play = Play(collections, tmp_path)
    variables: dict[str, Any] = {
        "cbt_repository": str(host.share),
        "cbt_domains": [host.domain.name],
        "prepare_install": False,
    }
    shutil.rmtree(host.share)
    host.share.mkdir(mode=0o700)
    play.run("role:kvm.cbt.prepare", variables, fails=MISSING)
    assert list(host.share.iterdir()) == []
    accepted = {**variables, "cbt_accept_repository": "true"}
    assert (
        play.changed("role:kvm.cbt.prepare", accepted, "--check") == play.changed("role:kvm.cbt.prepare", accepted) == 1
    )
    assert play.changed("role:kvm.cbt.prepare", variables) == 0
    assert host.backup()["changed"]
    shutil.rmtree(host.share / "points")
    play.run("role:kvm.cbt.backup", variables, fails=BACK)
    assert play.changed("role:kvm.cbt.backup", {**variables, "backup_accept_repository": "yes"}) == 1
    assert host.backup()["changed"]


def test_a_role_creates_no_repository_when_creation_is_off(collections: Path, tmp_path: Path, workspace: Path) -> None:
    variables = {
        "cbt_repository": str(workspace / "share"),
        "prepare_install": False,
        "prepare_create_repository": "false",
    }
    assert Play(collections, tmp_path).changed("role:kvm.cbt.prepare", variables) == 1
    assert list((workspace / "share").iterdir()) == []
