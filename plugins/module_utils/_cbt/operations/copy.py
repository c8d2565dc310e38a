# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies restore points into another repository; only missing blocks are written."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
import typing as t

from ..busy import COPY_NAMES, Busy, limited_by
from ..control import Control
from ..errors import DamagedObject, ObjectMissing, Refused, UnreadableObject
from ..repository.format.manifests import DiskRecord, Key, RestorePoint
from ..repository.format.maps import ExtentMap
from ..repository.records import damage
from ..repository.records.damage import Damages
from ..repository.repository import Repository
from ..repository.selecting import ALL, PointSelection, select_points
from ..repository.sharing import leases
from ..repository.sharing.leases import Lease
from ..repository.sharing.wholeness import whole_among, whole_point
from .point.disk_reader import ranges_of
from .point.new_point import Files, NewPoint, StoringOptions, check
from .point.point_source import PointSource
from .point.portion import Statistics

__all__ = ["CopiedPoint", "CopyRequest", "CopyResult", "PointSelection", "StoringOptions", "copy"]

# The most runs of a map that a point is compared with: larger maps, together, need more memory than a run may use.
_COMPARED = 1 << 21


@dataclasses.dataclass(frozen=True)
class CopyRequest:
    """The restore points to copy, of one domain or of all, and how they are stored."""

    domain: str | None = None
    wanted: PointSelection = ALL
    options: StoringOptions = StoringOptions()


@dataclasses.dataclass(frozen=True)
class CopiedPoint:
    """A copied restore point; ``statistics`` is None if nothing was copied.

    That is so in a plan, and if another run copied the point.
    """

    point: RestorePoint
    statistics: Statistics | None = None
    busy: tuple[Busy, ...] = ()


@dataclasses.dataclass(frozen=True)
class CopyResult:
    """The outcome of a copy, or its plan.

    ``present`` are the points that were whole in the destination already. ``failed`` gives the cause by the id of each
    point that could not be copied. ``duration`` is in seconds.
    """

    copied: tuple[CopiedPoint, ...]
    present: tuple[RestorePoint, ...]
    failed: t.Mapping[str, str]
    warnings: tuple[str, ...] = ()
    duration: float = 0.0

    @property
    def limited_by(self) -> str | None:
        """Return a sentence that says what limited the copy; None if no disk was read."""
        return limited_by((busy for point in self.copied for busy in point.busy), COPY_NAMES)


Bases = tuple[RestorePoint, RestorePoint]  # one restore point as stored in the source and in the destination


def nearest(
    point: RestorePoint, disk: DiskRecord, there: t.Sequence[RestorePoint], here: t.Sequence[RestorePoint]
) -> Bases | None:
    """Return the nearest restore point that both sides hold, or None. Pure.

    It has a disk of the same target and size. ``there`` are the source's points in order, ``here`` the destination's.
    The nearest earlier point is preferred to later ones.
    """
    copies = {each.id: each for each in here if each.uuid == point.uuid and _fits(each, disk)}
    line = [each for each in there if each.uuid == point.uuid]
    position = next(index for index, each in enumerate(line) if each.id == point.id)
    for each in (*reversed(line[:position]), *line[position + 1 :]):
        if each.id in copies and _fits(each, disk):
            return each, copies[each.id]
    return None


def _fits(point: RestorePoint, disk: DiskRecord) -> bool:
    record = point.disk(disk.target)
    return record is not None and record.size == disk.size


@dataclasses.dataclass(frozen=True)
class _Copier:
    """Copies points from ``source`` to the repository of ``lease``."""

    source: Repository
    lease: Lease
    options: StoringOptions
    damages: Damages
    control: Control
    warnings: list[str] = dataclasses.field(default_factory=list)

    def copy(self, point: RestorePoint, there: t.Sequence[RestorePoint], here: t.Sequence[RestorePoint]) -> CopiedPoint:
        """Copy one point; returns it as it exists in the destination.

        Its ``statistics`` are None if another run copied it. Raises a CbtError; then the point is not published. If the
        source is whole, the packs written so far stay, and the next attempt finds them.
        """
        present = whole_point(self.lease.repository, *point.key)
        if present is not None:
            return CopiedPoint(present)
        new = NewPoint(self.lease, point.key, self.options, self.damages, self.control)
        try:
            sources = {
                disk.target: self._read(new, point, disk, nearest(point, disk, there, here)) for disk in point.disks
            }
            get_file = functools.partial(self.source.get_file, point)
            files = {name: functools.partial(get_file, file) for name, file in point.files.items()}
            described: list[RestorePoint] = []

            def describe(maps: Files, stored: Files) -> RestorePoint:
                disks = tuple(dataclasses.replace(disk, map=maps[disk.target]) for disk in point.disks)
                described.append(
                    dataclasses.replace(
                        point,
                        repository=self.lease.repository.id,
                        disks=disks,
                        files=stored,
                        dedup=self.options.dedup,
                    )
                )
                return described[-1]

            published = new.publish(
                files, describe, lambda target: contextlib.nullcontext(sources[target]), yields=True
            )
        except UnreadableObject:
            new.withdraw()
            raise
        except BaseException:
            new.leave()
            raise
        if published not in described:
            new.withdraw()
            return CopiedPoint(published)
        new.record_hooks()
        self.warnings.extend(new.warnings)
        return CopiedPoint(published, _total(new), tuple(disk.busy for disk in new.disks.values()))

    def _read(self, new: NewPoint, point: RestorePoint, disk: DiskRecord, bases: Bases | None) -> PointSource:
        before, held = self._maps(disk, bases)
        again = ranges_of(damage.damaged_runs(held, self.damages)) if held is not None else ()
        source = PointSource(self.source, self.source.read_map(point, disk.target), before)
        new.read(source, disk.target, held, again=again)
        return source

    def _maps(self, disk: DiskRecord, bases: Bases | None) -> tuple[ExtentMap | None, ExtentMap | None]:
        if bases is None:
            return None, None
        try:
            before = self.source.read_map(bases[0], disk.target)
            held = self.lease.repository.read_map(bases[1], disk.target) if len(before) <= _COMPARED else None
        except UnreadableObject:
            held = None
        if held is None or len(held) > _COMPARED:
            return None, None  # then the whole disk is read, and known blocks are found by their ids
        return before, held


def _total(new: NewPoint) -> Statistics:
    total = Statistics()
    for disk in new.disks.values():
        total.add(disk.statistics)
    return total


def _now(source: Repository, point: RestorePoint) -> RestorePoint | None:
    """Return a restore point as it is now; None if it was removed since it was listed.

    Raises RepositoryError if the repository is gone.
    """
    source.check_there()
    try:
        return source.point(point.uuid, point.id)
    except ObjectMissing:
        return None
    except DamagedObject:
        return point


@dataclasses.dataclass
class _Task:
    """The work and progress of a copy.

    ``there`` and ``here`` are the points of source and destination. ``held`` are the wanted points that are whole in
    the destination.
    """

    wanted: t.Sequence[RestorePoint]
    there: t.Sequence[RestorePoint]
    here: list[RestorePoint]
    held: set[Key]
    copied: list[CopiedPoint] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def present(self) -> tuple[RestorePoint, ...]:
        """Return the wanted points that were in the destination already."""
        return tuple(point for point in self.wanted if point.key in self.held)

    @property
    def missing(self) -> list[RestorePoint]:
        """Return the points that are not whole in the destination."""
        return [point for point in self.wanted if point.key not in self.held]

    def carry_out(self, copier: _Copier) -> None:
        """Copy the missing points, oldest first, and heal damaged blocks with the copies."""
        waiting = collections.deque(self.missing)
        number = len(waiting)

        def reached() -> None:
            copied = f"{len(self.copied)} of {number} restore points were copied, and these are complete."
            copier.control.reached(f"{copied} Run it again for the others.")

        reached()
        while waiting:
            point = waiting.popleft()
            try:
                with copier.control.phase("copying", point=point.id, domain=point.domain) as result:
                    taken = copier.copy(point, self.there, self.here)
                    result["copied"] = taken.statistics is not None
            except UnreadableObject as error:
                now = _now(copier.source, point)
                if now == point:
                    self.failed[point.id] = str(error)
                elif now is not None:
                    waiting.appendleft(now)  # its blocks were moved or healed during the copy
                continue
            self.here = [*(each for each in self.here if each.key != taken.point.key), taken.point]
            if taken.statistics is None:
                self.held.add(taken.point.key)
            else:
                self.copied.append(taken)
            reached()
        if copier.damages:
            from .upkeep.healing import heal_others  # loaded only when packs are damaged

            for each in {each.point.uuid: each.point for each in self.copied}.values():
                heal_others(copier.lease, each, copier.damages, copier.control, copier.warnings)


def copy(
    source: Repository,
    dest: Repository | None,
    request: CopyRequest = CopyRequest(),  # noqa: B008  # frozen
    control: Control | None = None,
    check_only: bool = False,
) -> CopyResult:
    """Copy restore points, oldest first, or with ``check_only`` plan the copy.

    A point is published whole or not at all, so an interrupted copy can be run again. A point that is damaged in
    ``source`` does not stop the others. ``dest`` may be None with ``check_only``, if it does not exist yet. Raises a
    CbtError.
    """
    started = time.monotonic()
    check(request.options)
    if dest is not None and dest.id == source.id:
        raise Refused(
            f"Cannot copy from {source.location} to {dest.location}: they are the same repository."
            " Name another destination."
        )
    listing = source.points_of()
    warnings = [
        f"The restore point of {name} is not copied, because its manifest cannot be read: {cause}"
        for name, cause in sorted(listing.damaged.items())
    ]
    wanted = select_points(listing.points, request.domain, request.wanted)
    here = list(dest.points_of().points) if dest is not None else []
    keys = {point.key for point in wanted}
    held = whole_among(dest, [point for point in here if point.key in keys]) if dest is not None else set()
    task = _Task(wanted, listing.points, here, held)
    if check_only or dest is None or not task.missing:
        return CopyResult(tuple(CopiedPoint(point) for point in task.missing), task.present, {}, tuple(warnings))
    with leases.held(dest, "copy") as lease:
        copier = _Copier(source, lease, request.options, damage.read_all(dest), control or Control())
        task.carry_out(copier)
    warnings += [*copier.warnings, *source.foreign_words(), *dest.foreign_words()]
    duration = round(time.monotonic() - started, 3)
    return CopyResult(tuple(task.copied), task.present, task.failed, tuple(dict.fromkeys(warnings)), duration)
