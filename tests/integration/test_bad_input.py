# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input gets one clear message and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.reference import same_bytes, snapshot_reference
from module_process import created, run_module

from _cbt.repository.repository import open_repository

MIB = 1 << 20


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def domain(hypervisor: Hypervisor) -> t.Iterator[BlockDomain]:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB), DiskSpec("vdb", 4 * MIB + 512)]) as made:
        made.write_random("vda", 0, 3 * MIB, 1)
        made.write("vdb", 0, MIB, 2)
        yield made


@pytest.fixture
def backed_up(domain: BlockDomain, workspace: Path) -> dict[str, t.Any]:
    result = run_module(
        workspace, "cbt_backup", domain=domain.name, repository=created(workspace, workspace / "repository")
    )
    assert not result.get("failed"), result
    return result


@pytest.fixture
def small_mount(workspace: Path) -> t.Iterator[Path]:
    """A file system of 2 MiB."""
    folder = workspace / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _pack(repository: Path) -> Path:
    return next(path for path in (repository / "packs").rglob("*") if path.is_file())


def _only(repository: Path, pattern: str) -> Path:
    return next(repository.glob(f"points/*/*/{pattern}"))


BACKUPS: dict[str, tuple[dict[str, t.Any], str]] = {
    "unknown domain": ({"domain": "no-such-domain"}, "There is no domain no-such-domain on this host; it has"),
    "libvirt down": (
        {"uri": "qemu+unix:///system?socket=/nonexistent/socket"},
        "Cannot connect to libvirt at qemu+unix:///system",
    ),
    "no such disk": ({"include_disks": ["vdz"]}, "has no disk vdz; it has vda, vdb"),
    "no such disk to exclude": ({"exclude_disks": ["sda"]}, "has no disk sda; it has vda, vdb"),
    "nothing left": ({"exclude_disks": ["vda", "vdb"]}, "There is nothing to back up"),
    "no scratch directory": ({"scratch_dir": "/nonexistent/scratch"}, "Choose another with scratch_dir"),
    "relative repository": ({"repository": "relative/path"}, "is not an absolute path"),
    "agent required": ({"quiesce": "required"}, "Cannot freeze the file systems"),
    "incremental impossible": ({"mode": "incremental"}, "Use mode auto to read these disks in full"),
    "absurd workers": ({"workers": 0}, "must be between 1 and 64"),
    "absurd rate": ({"rate_limit": 0}, "Omit it to read without a limit"),
    "missing repository": ({"create_repository": False}, "There is no repository in"),
}


@pytest.mark.parametrize("case", BACKUPS)
def test_an_impossible_backup_reports_the_reason_and_changes_nothing(
    case: str, domain: BlockDomain, workspace: Path
) -> None:
    overrides, message = BACKUPS[case]
    repository = workspace / "repository"
    result = run_module(
        workspace,
        "cbt_backup",
        **{"domain": domain.name, "repository": str(repository), "create_repository": True, **overrides},
    )
    assert result["failed"] and message in result["msg"], result
    assert "Traceback" not in json.dumps(result)
    assert (domain.checkpoints(), domain.job_running()) == ([], False)
    assert not repository.exists() or list(open_repository(str(repository)).store.list("points")) == []


def test_a_directory_with_other_files_is_not_a_repository(domain: BlockDomain, workspace: Path) -> None:
    folder = workspace / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"meow")
    for module in ("cbt_backup", "cbt_restore", "cbt_verify", "cbt_backup_info"):
        extra = {"domain": domain.name, **({"dest": str(workspace)} if module == "cbt_restore" else {})}
        result = run_module(workspace, module, repository=str(folder), **extra)
        assert result["failed"] and "is not a repository" in result["msg"], result
    assert _tree(folder) == {"cat.jpg": b"meow"}


def test_a_repository_of_a_newer_format_is_refused_by_name(
    domain: BlockDomain, workspace: Path, backed_up: t.Any
) -> None:
    from _cbt.repository.format import envelope

    repository = workspace / "repository"
    (repository / "repository.json").write_bytes(envelope.encode("repository", 2, {"id": "00", "anything": "new"}))
    before = _tree(repository)
    for module in ("cbt_backup", "cbt_restore", "cbt_verify", "cbt_backup_info", "cbt_checkpoint"):
        extra = {"domain": domain.name, **({"dest": str(workspace)} if module == "cbt_restore" else {})}
        result = run_module(workspace, module, repository=str(repository), **extra)
        assert result["failed"] and "has format 2" in result["msg"] and "Update" in result["msg"], result
    assert _tree(repository) == before


@pytest.mark.parametrize("victim", ["pack", "vda-*.map", "manifest.json"])
@pytest.mark.parametrize("harm", ["truncated", "empty", "missing", "changed"])
def test_a_damaged_object_is_named_by_verify_and_never_restored(
    victim: str, harm: str, domain: BlockDomain, workspace: Path, backed_up: t.Any
) -> None:
    repository = workspace / "repository"
    path = _pack(repository) if victim == "pack" else _only(repository, victim)
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = {
        "truncated": whole[:middle],
        "empty": b"",
        "changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[harm])
    out = workspace / "out"
    out.mkdir()
    restored = run_module(
        workspace, "cbt_restore", domain=domain.name, repository=str(repository), dest=str(out), include_disks=["vda"]
    )
    assert restored["failed"] and list(out.iterdir()) == [], restored
    verified = run_module(
        workspace, "cbt_verify", repository=str(repository), restore_points=["all"], fail_on_damage=False
    )
    if (victim, harm) == ("manifest.json", "missing"):  # then the point does not exist
        assert "went back" in restored["msg"] and "went back" in verified["msg"]
        return
    point = verified["restore_points"][0]
    assert point["status"] in ("damaged", "incomplete") and point["damage"], verified
    assert point["status"] == "incomplete" or harm != "missing"
    if victim != "manifest.json":
        assert point["damage"][0]["disk"] == "vda"
    if (victim, harm) == ("pack", "changed"):
        assert f"at offset {point['damage'][0]['offset']}:" in restored["msg"]
    failing = run_module(workspace, "cbt_verify", repository=str(repository), restore_points=["all"])
    assert failing["failed"] and "cannot be restored as they were" in failing["msg"]


@pytest.mark.parametrize("victim", ["vda-*.map", "manifest.json"])
def test_the_backup_after_damage_of_a_points_own_objects_is_full_with_the_reason(
    victim: str, domain: BlockDomain, workspace: Path, backed_up: t.Any
) -> None:
    repository = workspace / "repository"
    path = _only(repository, victim)
    path.write_bytes(path.read_bytes()[:-1])
    refused = run_module(workspace, "cbt_backup", domain=domain.name, repository=str(repository), mode="incremental")
    assert refused["failed"], refused
    result = run_module(workspace, "cbt_backup", domain=domain.name, repository=str(repository))
    assert result["disks"][0]["mode"] == "full", result
    assert victim == "manifest.json" or "cannot be built on" in result["disks"][0]["reason"]
    verified = run_module(
        workspace, "cbt_verify", repository=str(repository), restore_points=[result["restore_point"]["id"]]
    )
    assert verified["restore_points"][0]["status"] == "ok", verified


def test_a_full_target_is_named_and_nothing_is_left(domain: BlockDomain, workspace: Path, small_mount: Path) -> None:
    repository = created(workspace, small_mount / "repository")
    result = run_module(workspace, "cbt_backup", domain=domain.name, repository=repository, compression="none")
    assert result["failed"] and "Free space there" in result["msg"], result
    assert (domain.checkpoints(), domain.job_running()) == ([], False)
    left = [name for name in _tree(small_mount / "repository") if not name.startswith("reserve")]  # space for retention
    assert left == ["repository.json"]


def test_a_restore_that_cannot_fit_is_refused_beforehand(
    domain: BlockDomain, workspace: Path, small_mount: Path, backed_up: t.Any
) -> None:
    arguments = {
        "domain": domain.name,
        "repository": str(workspace / "repository"),
        "dest": str(small_mount),
        "format": "raw",
    }
    result = run_module(workspace, "cbt_restore", **arguments)
    assert result["failed"] and "are needed and" in result["msg"], result
    assert list(small_mount.iterdir()) == []


RESTORES: dict[str, tuple[dict[str, t.Any], str]] = {
    "unknown point": (
        {"restore_point": "20200101T000000Z-00000000"},
        "There is no restore point 20200101T000000Z-00000000",
    ),
    "unknown domain": ({"domain": "nobody"}, "holds no restore point of nobody; it holds points of"),
    "too early": ({"until": "2001-01-01"}, "There is no restore point"),
    "unreadable date": ({"until": "yesterday"}, "Cannot read the date yesterday"),
    "no such disk": ({"include_disks": ["vdq"]}, "has no disk vdq; it has vda, vdb"),
    "no such disk in the map": ({"disk_map": {"vdq": "/var/tmp/x"}}, "has no disk vdq"),
    "missing folder": ({"dest": "/nonexistent/folder"}, "does not exist"),
    "relative path": ({"disk_map": {"vda": "x.qcow2"}}, "is not absolute"),
}


@pytest.mark.parametrize("case", RESTORES)
def test_an_impossible_restore_reports_the_reason_and_writes_nothing(
    case: str, domain: BlockDomain, workspace: Path, backed_up: t.Any
) -> None:
    overrides, message = RESTORES[case]
    out = workspace / "out"
    out.mkdir()
    arguments = {"domain": domain.name, "repository": str(workspace / "repository"), "dest": str(out), **overrides}
    for check in (True, False):
        result = run_module(workspace, "cbt_restore", check=check, **arguments)
        assert result["failed"] and message in result["msg"], result
        assert list(out.iterdir()) == []


def test_an_existing_image_and_a_running_domains_disk_are_not_overwritten(
    domain: BlockDomain, workspace: Path, backed_up: t.Any
) -> None:
    out = workspace / "out"
    out.mkdir()
    mine = out / f"{domain.name}-vda.qcow2"
    mine.write_bytes(b"precious")
    arguments = {"domain": domain.name, "repository": str(workspace / "repository")}
    refused = run_module(workspace, "cbt_restore", dest=str(out), **arguments)
    assert refused["failed"] and "exists already" in refused["msg"], refused
    assert [path.name for path in out.iterdir()] == [mine.name] and mine.read_bytes() == b"precious"
    running = run_module(workspace, "cbt_restore", disk_map={"vda": str(domain.image("vda"))}, force=True, **arguments)
    assert running["failed"] and f"in use by the running domain {domain.name}" in running["msg"], running
    blind = run_module(
        workspace,
        "cbt_restore",
        disk_map={"vda": str(domain.image("vda"))},
        force=True,
        uri="test:///default",
        **arguments,
    )
    assert blind["failed"] and "in use by" in blind["msg"], blind
    forced = run_module(workspace, "cbt_restore", dest=str(out), force=True, **arguments)
    assert forced["changed"], forced
    assert same_bytes(mine, snapshot_reference(domain, workspace)["vda"], "qcow2", "raw") is None


def test_paths_with_spaces_and_names_beyond_ascii(hypervisor: Hypervisor, workspace: Path) -> None:
    base = workspace / "Sicherung für König"
    base.mkdir()
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)], name=f"größe {os.getpid()} ß") as domain:
        domain.write_random("vda", 0, MIB, 5)
        repository = created(workspace, base / "das Lager")
        assert run_module(workspace, "cbt_backup", domain=domain.name, repository=repository, tags={"grund": "übung"})[
            "changed"
        ]
        domain.write("vda", MIB, MIB, 6)
        assert (
            run_module(workspace, "cbt_backup", domain=domain.name, repository=repository)["disks"][0]["mode"]
            == "incremental"
        )
        out = base / "zurück geholt"
        out.mkdir()
        restored = run_module(workspace, "cbt_restore", domain=domain.name, repository=repository, dest=str(out))
        assert restored["changed"], restored
        copies = snapshot_reference(domain, workspace)
        assert same_bytes(Path(restored["disks"][0]["path"]), copies["vda"], "qcow2", "raw") is None
        points = run_module(workspace, "cbt_backup_info", repository=repository, domain=domain.name)["restore_points"]
        assert [point["domain"] for point in points] == [domain.name] * 2
        assert points[0]["tags"] == {"grund": "übung"}


def test_a_foreign_job_is_reported_and_left_alone(domain: BlockDomain, workspace: Path) -> None:
    from lab.reference import pull_job_xml

    domain.handle.backupBegin(pull_job_xml(domain, workspace), None, 0)
    result = run_module(
        workspace, "cbt_backup", domain=domain.name, repository=created(workspace, workspace / "repository")
    )
    assert result["failed"] and "a backup job is running on it that is not ours" in result["msg"], result
    assert domain.job_running()
    domain.abort_job()
