# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists the blocks of a disk that changed, without reading the disk."""

from __future__ import annotations

import contextlib
import typing as t

from ...blocks.extents import BlockRange, joined, to_blocks
from ...blocks.nbd import Source
from ...endpoint import Export
from ...errors import Refused
from ...grid import byte_range
from ...hypervisor import backup_job, leftovers, offline_export, scratch
from ...hypervisor.connection import Domain, Session
from ...hypervisor.domain import DomainFacts, require_files_here
from ...hypervisor.other_hosts import OtherHosts
from ...repository.format.map_changes import changes
from ...repository.format.maps import ExtentMap, Run
from ...repository.repository import Repository
from ...repository.selecting import by_id
from ..backup import situation, spot_check
from ..backup.plan import why_not_base
from ..point.parent_blocks import ParentBlocks

UNRELATED = "Restore points are unrelated"


class ChangedRange(t.NamedTuple):
    """``length`` bytes of a disk from ``offset`` that changed; ``zero`` if they read as zero now."""

    offset: int
    length: int
    zero: bool


def _in_bytes(ranges: t.Iterable[BlockRange], size: int) -> list[ChangedRange]:
    return [ChangedRange(*byte_range(each.first, each.count, size), each.zero) for each in joined(ranges)]


def compare(repository: Repository, old: ExtentMap, new: ExtentMap) -> list[ChangedRange]:
    """Return the ranges in which two maps of a disk differ.

    Reads only pack directories. Raises DamagedObject or ObjectMissing if a directory cannot be read.
    """
    changed: list[BlockRange] = []
    for each in changes(old, new):
        if each.before is not None and each.after is not None:
            changed += _unequal(repository, each.before, each.after)
        else:
            changed.append(BlockRange(each.first, each.stop - each.first, each.after is None))
    return _in_bytes(changed, new.size)


def _unequal(repository: Repository, before: Run, after: Run) -> t.Iterator[BlockRange]:
    one, two = repository.reader.directory(before.pack), repository.reader.directory(after.pack)
    for index in range(after.count):
        if one.digest(before.ordinal + index) != two.digest(after.ordinal + index):
            yield BlockRange(after.first + index, 1, False)


def changed_between(repository: Repository, target: str, old_id: str, new_id: str) -> list[ChangedRange]:
    """Return what changed on a disk from one restore point to another.

    Raises Refused if domain or incremental set differ: in the latter case, tracking was interrupted between them.
    """
    points = repository.points_of().points
    old, new = by_id(points, old_id), by_id(points, new_id)
    if old.uuid != new.uuid or old.incremental_set != new.incremental_set:
        raise Refused(
            f"{UNRELATED}: {old.id} belongs to the set of {old.incremental_set}, {new.id} to that of"
            f" {new.incremental_set}."
        )
    return compare(repository, repository.read_map(old, target), repository.read_map(new, target))


def _dirty_export(
    stack: contextlib.ExitStack, domain: Domain, facts: DomainFacts, wanted: backup_job.Wanted, scratch_dir: str
) -> Export:
    folder = stack.enter_context(scratch.scratch_folder(facts, scratch_dir))
    if facts.active:
        return stack.enter_context(backup_job.backup_job(domain, facts, wanted, folder))()[0]
    return stack.enter_context(offline_export.image_exports(facts, wanted, folder))[0]


def changed_until_now(
    session: Session, repository: Repository, target: str, old_id: str, scratch_dir: str = "/var/tmp"
) -> list[ChangedRange]:
    """Return what changed on a domain's disk since a restore point, from the bitmap.

    Reads only a few blocks of the disk, to check the bitmap. Raises Refused if the changes are not known for certain.
    """
    point = by_id(repository.points_of().points, old_id)
    domain = session.domain(point.uuid)
    with backup_job.domain_lock(domain.uuid, domain.name, session.wait):
        leftovers.end_paused_start(domain)
        leftovers.clear(domain, scratch_dir)
        found = situation.gather(domain, repository, OtherHosts(confirmed=True))
        disk = next((each for each in found.facts.disks if each.target == target), None)
        if disk is None:
            raise Refused(f"{domain.name} has no disk {target}.")
        require_files_here(found.facts, f"determine what changed on {domain.name} until now")
        cause = (
            why_not_base(disk, point, found) if point.checkpoint is not None else "it was taken without a checkpoint"
        )
        if cause is None and point.checkpoint not in found.checkpoints:
            cause = (
                f"libvirt does not know checkpoint {point.checkpoint}; reconcile it first (cbt_checkpoint with state:"
                " reconciled)"
            )
        if cause is not None:
            raise Refused(f"{UNRELATED}: the changes of {target} since {point.id} are not known, because {cause}.")
        with contextlib.ExitStack() as stack:
            export = _dirty_export(stack, domain, found.facts, {target: point.checkpoint}, scratch_dir)
            source = stack.enter_context(Source(export))
            base = repository.read_map(point, target)
            if spot_check.contradiction(source, base, ParentBlocks(base, repository.reader)) is not None:
                raise Refused(
                    f"{UNRELATED}: the tracked changes of {target} since {point.id} are wrong."
                    f" Back up {domain.name}, which reads the disk in full."
                )
            return _in_bytes(list(to_blocks(source.extents(), source.size)), source.size)
