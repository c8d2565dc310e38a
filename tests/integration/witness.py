# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup with an independent witness: what the exports held is copied by nbdcopy while the job runs."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

import libvirt
from lab.domain import BlockDomain, Domain
from lab.reference import copy_exports, same_bytes

from _cbt.control import Control, Progress
from _cbt.hypervisor.connection import Session
from _cbt.operations.backup.backup import BackupRequest, backup
from _cbt.operations.backup.plan import BackupPolicy
from _cbt.operations.backup.result import BackupResult
from _cbt.operations.backup.run import BackupOptions
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.format import names
from _cbt.repository.repository import Repository


@dataclasses.dataclass(frozen=True)
class Witnessed:
    """A backup and raw copies of what the disks held when it began, by target."""

    result: BackupResult
    copies: t.Mapping[str, Path]

    @property
    def id(self) -> str:
        """Id of the restore point."""
        assert self.result.point is not None
        return self.result.point.id


def ask(domain: str, start_paused: bool = False, abort_foreign_job: bool = False, **wanted: t.Any) -> BackupRequest:
    """A request from the fields of BackupPolicy and BackupOptions together."""
    names = {field.name for field in dataclasses.fields(BackupPolicy)}
    wish = BackupPolicy(**{key: value for key, value in wanted.items() if key in names})
    options = BackupOptions(**{key: value for key, value in wanted.items() if key not in names})
    return BackupRequest(domain, wish, options, start_paused, abort_foreign_job)


def witnessed_backup(
    domain: BlockDomain,
    repository: Repository,
    folder: Path,
    request: BackupRequest | None = None,
    meanwhile: t.Callable[[], None] = lambda: None,
) -> Witnessed:
    """Back up; ``meanwhile`` is called once the job runs and before anything is copied, so that guest writes then must not show."""
    copies: dict[str, Path] = {}

    def observe(progress: Progress) -> None:
        if progress.phase == "publishing":  # the last moment in which the job's exports stand
            meanwhile()
            copies.update(copy_exports(domain, folder))

    result = backup(session_of(domain), repository, request or ask(domain.name), control=Control(observe))
    return Witnessed(result, copies)


def differences(domain: str, repository: Repository, taken: Witnessed, folder: Path, fmt: str = "raw") -> list[str]:
    """What differs between a restore of the point and the witness's copies; empty if nothing does."""
    result = restore(repository, RestoreRequest(domain, restore_point=taken.id, dest=str(folder), format=fmt))
    found = []
    for disk in result.disks:
        unlike = same_bytes(Path(disk.path), taken.copies[disk.target], fmt, "raw")
        if unlike is not None:
            found.append(f"{taken.id} {disk.target}: {unlike}")
        Path(disk.path).unlink()
    return found


def disk_result(result: BackupResult, target: str) -> t.Any:
    """What a backup says of one disk."""
    return next(disk for disk in result.disks if disk.target == target)


def differing(disk: t.Any) -> int:
    """Bytes of a disk that were not as before: stored now, or known from elsewhere."""
    return int(disk.statistics.new_bytes + disk.statistics.deduplicated_bytes)


def session_of(domain: Domain) -> Session:
    """The engine's session with the libvirt a domain of the lab lives on."""
    uri = domain.hypervisor.uri
    return Session(lambda: libvirt.open(uri), uri)


def unfinished(repository: Repository) -> list[str]:
    """Names of the files that a repository in a directory has in the making."""
    folder = Path(repository.store.location) / names.TEMPORARY
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
