# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The outcome of a backup, or of its plan."""

from __future__ import annotations

import dataclasses
import typing as t

from ...busy import BACKUP_NAMES, Busy, limited_by
from ...repository.format.manifests import RestorePoint
from ..point.disk_reader import ReadDisk
from ..point.portion import Statistics
from .plan import BackupPlan, DiskPlan, Situation
from .run import BackupRun


@dataclasses.dataclass(frozen=True)
class DiskResult(DiskPlan):
    """The plan for one disk, and the outcome; ``statistics`` is None if it was not read.

    ``unmarked`` lists (offset, length) in bytes of ranges that changed although tracking did not mark them.
    ``healed_blocks`` counts damaged blocks of earlier points of which sound copies are stored now.
    """

    virtual_size: int | None = None
    statistics: Statistics | None = None
    unmarked: tuple[tuple[int, int], ...] = ()
    healed_blocks: int = 0
    busy: Busy | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Return the share of the workers' time by kind of work; empty if nothing was read."""
        return self.busy.shares(BACKUP_NAMES) if self.busy is not None else {}


@dataclasses.dataclass(frozen=True)
class BackupResult:
    """The outcome of a backup.

    ``point`` is None in check mode, and if the backup was ``skipped``. ``duration`` is in seconds.
    """

    point: RestorePoint | None
    disks: tuple[DiskResult, ...]
    warnings: tuple[str, ...]
    skipped: str | None
    duration: float = 0.0

    @property
    def limited_by(self) -> str | None:
        """Return a sentence that says what limited the reading; None if no disk was read."""
        return limited_by((disk.busy for disk in self.disks), BACKUP_NAMES)


def _disk(plan: DiskPlan, size: int | None, read: ReadDisk | None, healed: int) -> DiskResult:
    planned = DiskResult(**vars(plan), virtual_size=size)
    if read is None:
        return planned
    return dataclasses.replace(
        planned,
        virtual_size=read.size,
        dirty_bytes=read.statistics.dirty_bytes,
        statistics=read.statistics,
        unmarked=read.unmarked_bytes,
        healed_blocks=healed,
        busy=read.busy,
    )


def result_of(
    found: Situation, plan: BackupPlan, run: BackupRun | None, point: RestorePoint | None, warnings: t.Iterable[str]
) -> BackupResult:
    """Return the outcome of a plan and, if it was carried out, of its run."""
    read: t.Mapping[str, ReadDisk] = run.disks if run is not None else {}
    healed: t.Mapping[str, int] = run.healed if run is not None else {}
    sizes = {disk.target: disk.virtual_size for disk in found.facts.disks}
    disks = [_disk(each, sizes[each.target], read.get(each.target), healed.get(each.target, 0)) for each in plan.disks]
    return BackupResult(point, tuple(disks), tuple(warnings), plan.skipped)
