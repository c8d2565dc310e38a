# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides how each disk is read, from which checkpoint, and why. Pure."""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from ...errors import Refused, size_text
from ...hypervisor.checkpoints import named, why_foreign, why_unsound
from ...hypervisor.domain import DomainFacts
from ...hypervisor.domain_xml.disks import Disk, Selection, parse_disks
from ...hypervisor.other_hosts import OtherHosts
from ...repository.format.manifests import RestorePoint
from ...repository.records.damage import Damages

AUTO = "auto"
FULL = "full"
INCREMENTAL = "incremental"
DIFFERENTIAL = "differential"
COPY = "copy"
SCAN = "scan"
SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True)
class Situation:
    """The facts from which a backup is planned.

    ``points`` are the domain's restore points in this repository, oldest first. ``checkpoints`` are the names known to
    libvirt. ``ours`` is the prefix of this repository's checkpoints. ``damaged`` gives the reason why a map cannot
    serve as the base, by (point id, target). ``damages`` contains the unreadable blocks of the repository. ``lost``
    gives the number of unreadable bytes, by (point id, target). ``plain`` is whether the repository is not encrypted.
    """

    facts: DomainFacts
    points: tuple[RestorePoint, ...]
    checkpoints: tuple[str, ...]
    ours: str
    damaged: t.Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    damages: Damages = dataclasses.field(default_factory=dict)
    lost: t.Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    plain: bool = False


@dataclasses.dataclass(frozen=True)
class DiskPlan:
    """How one disk is read.

    ``since`` is the checkpoint whose bitmap contains the changes. ``base`` is the restore point to compare with. If
    ``audit`` is true, the whole disk is read to check the bitmap.
    """

    target: str
    mode: str
    reason: str
    since: str | None = None
    base: str | None = None
    dirty_bytes: int | None = None
    audit: bool = False

    @property
    def read(self) -> bool:
        """True if the disk is part of the backup."""
        return self.mode != SKIPPED


@dataclasses.dataclass(frozen=True)
class BackupPlan:
    """All decisions of one backup.

    ``tracked`` are the targets that get a bitmap of the new checkpoint; ``superseded`` lists the checkpoints of this
    repository to remove after the restore point is published, including those of killed runs. ``redefined`` lists the
    checkpoints that libvirt does not know, with their disks. They are redefined before the backup starts. ``skipped``
    is the reason to do nothing, or None.
    """

    disks: tuple[DiskPlan, ...]
    tracked: tuple[str, ...]
    parent: str | None
    superseded: tuple[str, ...]
    warnings: tuple[str, ...]
    redefined: t.Mapping[str, tuple[str, ...]]
    skipped: str | None

    @property
    def targets(self) -> tuple[str, ...]:
        """The disks that are read."""
        return tuple(disk.target for disk in self.disks if disk.read)


def why_not_base(disk: Disk, point: RestorePoint, situation: Situation) -> str | None:
    """Return the reason why the changes of a disk since a restore point are not known, or None if they are known."""
    record = point.disk(disk.target)
    if record is None:
        return f"{disk.target} was not part of restore point {point.id}"
    broken = why_unsound(disk, point.checkpoint or "")
    if broken is not None:
        return broken
    if disk.virtual_size != record.size:
        return (
            f"{disk.target} had {size_text(record.size)} at restore point {point.id} and has"
            f" {size_text(disk.virtual_size or 0)} now"
        )
    if disk.source != record.source:  # at another path, a relative backing file may be another file
        return f"{disk.target} was {record.source} at restore point {point.id} and is {disk.source} now"
    if record.image.get("below") is not None and disk.below not in (None, record.image["below"]):
        return f"{disk.target} has other backing or data files than at restore point {point.id}"
    strange = why_foreign(disk, point.checkpoint or "")
    if strange is not None:
        return strange
    damage = situation.damaged.get((point.id, disk.target))
    if damage is not None:
        return f"restore point {point.id} cannot be built on: {damage}"
    return None


def usable_disks(point: RestorePoint, situation: Situation) -> tuple[str, ...]:
    """Return the disks whose changes since a point are known for certain."""
    if point.checkpoint is None:
        return ()
    return tuple(
        disk.target
        for disk in situation.facts.disks
        if disk.why_untrackable is None and why_not_base(disk, point, situation) is None
    )


def _comparable(disk: Disk, situation: Situation) -> str | None:
    """Return the id of the newest point with a readable map of the disk, to compare a full reading with."""
    for point in reversed(situation.points):
        if point.disk(disk.target) is not None and (point.id, disk.target) not in situation.damaged:
            return point.id
    return None


def _since(disk: Disk, mode: str, point: RestorePoint, lost: int) -> DiskPlan:
    """Plan to read the changes since a point, and the ``lost`` bytes that the repository cannot read."""
    bitmap = disk.bitmap(point.checkpoint or "")
    dirty = bitmap.dirty_bytes if bitmap is not None else None
    reason = f"Changes since restore point {point.id} are known from checkpoint {point.checkpoint}."
    if lost:
        reason += f" {size_text(lost)} of it are damaged in the repository and are read again."
    how = DIFFERENTIAL if mode == DIFFERENTIAL else INCREMENTAL
    return DiskPlan(disk.target, how, reason, point.checkpoint, point.id, dirty + lost if dirty is not None else None)


def _tracked_plan(disk: Disk, mode: str, whole: t.Callable[[str, str], DiskPlan], situation: Situation) -> DiskPlan:
    """Plan to read the changes since the newest possible point, or otherwise the ``whole`` disk."""
    causes = []
    for point in reversed(situation.points):
        if point.checkpoint is not None:
            cause = why_not_base(disk, point, situation)
            if cause is None:
                return _since(disk, mode, point, situation.lost.get((point.id, disk.target), 0))
            causes.append(f"Read in full: {cause}.")
    causes.append(f"This repository has no restore point of {situation.facts.name} with a checkpoint yet.")
    return whole(FULL, causes[0])


def _disk_plan(disk: Disk, policy: BackupPolicy, situation: Situation) -> DiskPlan:
    why_excluded = policy.selection.why_excluded(disk.target) or disk.why_unreadable
    if why_excluded is not None:
        return DiskPlan(disk.target, SKIPPED, why_excluded)
    why_untrackable = disk.why_untrackable
    if why_untrackable is not None and not policy.scan_untracked:
        return DiskPlan(disk.target, SKIPPED, f"{why_untrackable} It was left out because scan_untracked is false.")
    base = _comparable(disk, situation)
    whole = functools.partial(DiskPlan, disk.target, base=base, dirty_bytes=disk.virtual_size)
    if policy.mode == COPY:
        return whole(COPY, "The mode is copy; tracking is not changed.")
    if why_untrackable is not None:
        return whole(SCAN, why_untrackable)
    if policy.mode == FULL:
        return whole(FULL, "The mode is full.")
    return _tracked_plan(disk, policy.mode, whole, situation)


def _refuse_gaps(plans: t.Sequence[DiskPlan], name: str) -> None:
    """Raise Refused if a trackable disk would be read in full, or if no disk is tracked."""
    gaps = [plan for plan in plans if plan.mode == FULL and not plan.audit]
    if gaps:
        causes = " ".join(f"{plan.target}: {plan.reason}" for plan in gaps)
        raise Refused(f"Cannot back up {name} incrementally. {causes} Use mode auto to read these disks in full.")
    if not any(plan.since is not None for plan in plans):
        causes = " ".join(plan.reason for plan in plans)
        raise Refused(f"Cannot back up {name} incrementally: none of its disks is tracked. {causes}")


def our_checkpoints(situation: Situation) -> list[str]:
    """Return the names of this repository's checkpoints in libvirt, or left as bitmaps in the disks."""
    return named(situation.ours, situation.checkpoints, situation.facts.disks)


@dataclasses.dataclass(frozen=True)
class BackupPolicy:
    """The options of a backup that the decision depends on.

    ``mode`` is auto, full, incremental, differential or copy. ``threshold`` is in bytes, or None. ``offline`` is read
    or skip, for a domain that is shut off; start_paused is carried out before the decision. ``others`` is what is known
    of other hosts that may run the domain.
    """

    mode: str = AUTO
    selection: Selection = Selection()
    scan_untracked: bool = True
    threshold: int | None = None
    audit: bool = False
    offline: str = "read"
    others: OtherHosts = OtherHosts()


def _audited(plan: DiskPlan) -> DiskPlan:
    reason = f"Audited: the whole disk is read and compared with what tracking recorded. {plan.reason}"
    return dataclasses.replace(plan, mode=FULL, reason=reason, audit=True)


def _skip(taken: t.Sequence[DiskPlan], policy: BackupPolicy, facts: DomainFacts) -> str | None:
    """Return the reason to skip the backup, or None."""
    if not facts.active and policy.offline == "skip":
        return f"{facts.name} is {facts.state}, and offline is set to skip."
    if not taken:
        return next(disk.withheld for disk in facts.disks if disk.withheld)
    if policy.threshold is None or not all(plan.mode in (INCREMENTAL, DIFFERENTIAL) for plan in taken):
        return None
    sizes = [plan.dirty_bytes for plan in taken if plan.dirty_bytes is not None]
    if len(sizes) < len(taken) or sum(sizes) >= policy.threshold:
        return None
    return (
        f"{size_text(sum(sizes))} have changed on {facts.name}, which is less than the threshold of"
        f" {size_text(policy.threshold)}."
    )


def _redefined(taken: t.Sequence[DiskPlan], situation: Situation) -> dict[str, tuple[str, ...]]:
    unknown = sorted(
        {plan.since for plan in taken if plan.since is not None and plan.since not in situation.checkpoints}
    )
    return {name: tuple(plan.target for plan in taken if plan.since == name) for name in unknown}


def _warnings(plans: t.Sequence[DiskPlan], situation: Situation, policy: BackupPolicy) -> t.Iterator[str]:
    """Yield what the user must know: disks left out that the user did not exclude, and costly or doubtful reads."""
    falls_back = policy.mode in (AUTO, DIFFERENTIAL) and situation.points
    facts = situation.facts
    for disk, plan in zip(facts.disks, plans):
        unasked = plan.reason == disk.why_unreadable and not disk.removable
        if unasked or plan.mode == SCAN or (falls_back and plan.mode == FULL and not plan.audit):
            yield plan.reason
        if plan.read and disk.shareable:
            yield (
                f"{disk.target} is shareable: writes of other domains during the backup are not held back. Shut those"
                " domains down for the backup."
            )
        if plan.read and situation.plain and "encryption" in disk.layers:
            yield (
                f"{disk.target} is encrypted and the repository is not: its content is stored in plain text. Use an"
                " encrypted repository."
            )
    here = {disk.target for disk in facts.disks}
    for disk in parse_disks(facts.inactive_xml):
        if not (disk.target in here or disk.removable or policy.selection.why_excluded(disk.target)):
            yield (
                f"{disk.target} is in the definition of {facts.name} but not in the running domain, so it is left out."
                " Restart the domain."
            )


def make_plan(situation: Situation, policy: BackupPolicy) -> BackupPlan:
    """Decide how each disk of a domain is read.

    Raises Refused if the selection names an unknown disk, if nothing is left to back up, or if mode is incremental
    and a disk's changes are not known.
    """
    facts = situation.facts
    policy.selection.check([disk.target for disk in facts.disks], facts.name)
    withheld = [disk.withheld for disk in facts.disks if disk.withheld]
    if withheld:  # a new checkpoint would replace the one that is in the disks that are left out
        policy = dataclasses.replace(policy, mode=COPY if policy.mode in (FULL, COPY) else DIFFERENTIAL)
    plans = tuple(_disk_plan(disk, policy, situation) for disk in facts.disks)
    if policy.audit:
        plans = tuple(_audited(plan) if plan.since is not None else plan for plan in plans)
    taken = [plan for plan in plans if plan.read]
    if not taken and not withheld:
        reasons = " ".join(plan.reason for plan in plans)
        raise Refused(f"There is nothing to back up on {facts.name}. {reasons}".strip())
    if policy.mode == INCREMENTAL:
        _refuse_gaps(taken, facts.name)
    moves_on = policy.mode in (AUTO, FULL, INCREMENTAL)
    tracked = tuple(plan.target for plan in taken if plan.mode in (FULL, INCREMENTAL)) if moves_on else ()
    bases = {plan.base for plan in taken}
    return BackupPlan(
        disks=plans,
        tracked=tracked,
        parent=next((point.id for point in reversed(situation.points) if point.id in bases), None),
        superseded=tuple(our_checkpoints(situation)) if tracked else (),
        warnings=tuple(dict.fromkeys(_warnings(plans, situation, policy))),
        redefined=_redefined(taken, situation),
        skipped=_skip(taken, policy, facts),
    )


def untracked(plan: BackupPlan, reasons: t.Mapping[str, str]) -> BackupPlan:
    """Return the plan if bitmaps cannot be added to some disks: these are read in full. ``reasons`` are by target."""
    disks = tuple(
        dataclasses.replace(disk, mode=FULL, reason=f"Read in full: {reasons[disk.target]}", since=None, audit=False)
        if disk.target in reasons
        else disk
        for disk in plan.disks
    )
    tracked = tuple(target for target in plan.tracked if target not in reasons)
    warnings = (*plan.warnings, *(disk.reason for disk in disks if disk.target in reasons))
    return dataclasses.replace(
        plan, disks=disks, tracked=tracked, superseded=plan.superseded if tracked else (), warnings=warnings
    )
