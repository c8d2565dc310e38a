# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules on a directory in which folders were replaced by links to the host: each ends in words, and the host stays as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import run_module

from _cbt.repository.format import names

MIB = 1 << 20
LONG_AGO = 1_000_000_000  # seconds since 1970: all that lapses has lapsed
# The module that reads or tidies each folder.
READERS = {
    names.VERIFIED: "cbt_verify",
    names.DAMAGED: "cbt_verify",
    names.TRASH: "cbt_retention",
    names.DOOMED: "cbt_retention",
    names.DRAFTS: "cbt_retention",
    names.LEASES: "cbt_retention",
    names.CONDEMNED: "cbt_retention",
    names.REMOVED: "cbt_retention",
    names.HOLDS: "cbt_repository_info",
    names.HOOKS: "cbt_backup",
    names.TEMPORARY: "cbt_backup",
    names.PACKS: "cbt_restore",
    names.POINTS: "cbt_backup_info",
}
# What a run need not look at: nothing is said of it then.
UNREAD = {names.REMOVED}


class Host:
    """A domain with a backup, and a tree of the host, in which there is what an enemy would have deleted."""

    def __init__(self, workspace: Path, domain: BlockDomain) -> None:
        self.workspace, self.domain = workspace, domain
        self.repository, self.outside = workspace / "repository", workspace / "outside"
        self.dest = workspace / "dest"
        self.dest.mkdir()
        self.run("cbt_backup", create_repository=True)

    def run(self, module: str, **options: Any) -> dict[str, Any]:
        """One run of a module on the repository."""
        domain = {"cbt_retention": {}, "cbt_backup_info": {}, "cbt_repository_info": {}}.get(
            module, {"domain": self.domain.name}
        )
        return run_module(self.workspace, module, **{"repository": str(self.repository), **domain, **options})

    def read(self, folder: str) -> dict[str, Any]:
        """Run the module that reads a folder, after the guest wrote."""
        self.domain.write_random("vda", 2 * MIB, MIB, len(self.tree()))
        options: dict[str, dict[str, Any]] = {
            "cbt_verify": {"restore_points": ["all"], "fail_on_damage": False},
            "cbt_retention": {"keep_last": 1, "grace": 0},
            "cbt_restore": {"dest": str(self.dest)},
        }
        return self.run(READERS[folder], **options.get(READERS[folder], {}))

    def replace(self, folder: str) -> None:
        """Put a link in the place of a folder. It leads to what was there and to files that have the names of objects, all of them old."""
        place, target = self.repository / folder, self.outside / folder
        self.outside.mkdir(exist_ok=True)
        if place.exists():
            shutil.copytree(place, target)
            place.rename(self.workspace / f"kept-{folder}")
        target.mkdir(exist_ok=True)
        inner = target / self.domain.uuid / "20200101T000000Z-00000000"
        inner.mkdir(parents=True, exist_ok=True)
        for path in (
            target / ("0" * 16),
            target / ("0" * 32),
            target / "fstab",
            inner / ("0" * 16),
            inner.with_name("20200101T000000Z-00000001"),
        ):
            path.write_bytes(b"precious")
            os.utime(path, (LONG_AGO, LONG_AGO))
        place.symlink_to(target)

    def give_back(self, folder: str) -> None:
        """Take the link away again."""
        (self.repository / folder).unlink()
        if (self.workspace / f"kept-{folder}").exists():
            (self.workspace / f"kept-{folder}").rename(self.repository / folder)

    def tree(self) -> dict[str, tuple[int, int, bytes]]:
        """All there is outside."""
        return {
            str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in self.outside.rglob("*")
        }


@pytest.fixture
def host(hypervisor: Hypervisor, workspace: Path) -> Iterator[Host]:
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as domain:
        domain.write_random("vda", 0, MIB, 1)
        yield Host(workspace, domain)


def test_every_folder_of_a_repository_has_a_module_that_reads_it() -> None:
    folders = {kind.template.partition("/")[0] for kind in names.KINDS if "/" in kind.template}
    assert set(READERS) == {*folders, names.TEMPORARY}


def test_no_module_follows_a_link_in_the_place_of_a_folder(host: Host) -> None:
    for folder in READERS:
        host.replace(folder)
        before = host.tree()
        assert len(before) > 4
        result = host.read(folder)
        said = f"{result.get('msg', '')} {result.get('warnings', '')} {result.get('restore_points', '')}"
        assert host.tree() == before, f"{folder}: {said}"
        assert folder in UNREAD or (folder in said and str(host.repository) in said), f"{folder}: {result}"
        host.give_back(folder)
    assert list(host.dest.iterdir()) == []
    restored = host.read(names.PACKS)
    assert restored.get("changed"), restored
