# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pins, labels and removes restore points by id."""

from __future__ import annotations

import dataclasses
import typing as t

from ...control import Control
from ...errors import DamagedObject, Refused, RepositoryError
from ...repository.format import names
from ...repository.format.manifests import RestorePoint
from ...repository.repository import Repository
from ...repository.selecting import PointSelection, select_points
from ...repository.sharing import holds, leases, publishing
from ...repository.sharing.leases import Lease
from .retention import remove_point

__all__ = ["PointRequest", "PointResult", "RestorePoint", "change_points"]

LONGEST_NOTE = 4096  # characters


@dataclasses.dataclass(frozen=True)
class PointRequest:
    """A request; module cbt_restore_point documents the options. None leaves a value as it is.

    With ``remove``, the points are removed. A pinned point must be unpinned in the same request.
    """

    ids: tuple[str, ...]
    domain: str | None = None
    remove: bool = False
    pinned: bool | None = None
    tags: t.Mapping[str, str] | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        for each in self.ids:
            try:
                names.check_point_id(each)
            except DamagedObject as error:
                raise Refused(f"{error}. cbt_backup_info lists the ids of the restore points.") from error
        if len(self.note or "") > LONGEST_NOTE:
            raise Refused(f"The note has {len(self.note or '')} characters; the limit is {LONGEST_NOTE}.")
        if self.remove and (self.tags is not None or self.note is not None or self.pinned):
            raise Refused(
                "A restore point that is removed cannot be pinned or labelled."
                " Set pinned, tags or note only with state: present."
            )

    def changed(self, point: RestorePoint) -> RestorePoint:
        """Return the point with the new values. Pure."""
        return dataclasses.replace(
            point,
            pinned=point.pinned if self.pinned is None else self.pinned,
            tags=point.tags if self.tags is None else self.tags,
            note=point.note if self.note is None else self.note,
        )


class PointResult(t.NamedTuple):
    """The points of a request that existed, before and after it. A removed point is only in ``before``."""

    before: list[RestorePoint]
    after: list[RestorePoint]


def _selected(repository: Repository, request: PointRequest) -> list[RestorePoint]:
    """Return the points that the request names, those to be removed only if they exist.

    Raises Refused if a point to be changed does not exist, or if the manifest of one cannot be read.
    """
    listing = repository.points_of()
    for name, cause in listing.damaged.items():
        if any(each in name for each in request.ids):
            raise Refused(f"{name} cannot be read, so its restore point is neither changed nor removed: {cause}")
    known = {point.id for point in listing.points if request.domain in (None, point.domain, point.uuid)}
    ids = [each for each in request.ids if not request.remove or each in known]
    domain = request.domain if ids else None
    return select_points(listing.points, domain, PointSelection("chosen", tuple(dict.fromkeys(ids))))


def _check_removable(repository: Repository, point: RestorePoint, request: PointRequest) -> None:
    """Raise Refused if a point is pinned, Held if it is in use."""
    if point.pinned and request.pinned is None:
        raise Refused(
            f"Restore point {point.id} of {point.domain} is pinned, so nothing was removed."
            " Set pinned: false to remove it."
        )
    holds.check_free(repository, point.key)


def _remove(lease: Lease, point: RestorePoint) -> None:
    reasons = remove_point(lease, point)
    if reasons:  # since the first check
        raise Refused(f"Restore point {point.id} of {point.domain} was not removed: it is {'; '.join(reasons)}.")


def _change(lease: Lease, point: RestorePoint, request: PointRequest) -> None:
    """Replace the manifest of a point. Other runs may replace it at the same time, so look at it again afterwards."""
    repository = lease.repository
    while True:
        current = repository.point(*point.key)
        new = request.changed(current)
        if new == current:
            break
        if not publishing.replace(lease, current, new, ()) and publishing.stands(repository, current):
            raise RepositoryError(
                f"Restore point {point.id} of {point.domain} was not changed: an object that it needs is missing."
                " cbt_verify lists the damage."
            )
    # In a store that locks objects, the new manifest may be locked for longer than what it names.
    repository.protect(publishing.resting_on(repository, new), like=names.manifest(*point.key))


def change_points(
    repository: Repository, request: PointRequest, control: Control, check_only: bool = False
) -> PointResult:
    """Pin, label or remove restore points. With ``check_only``, nothing is changed, and the result is the prediction.

    All points are checked before the first one is changed. Raises Refused, or RepositoryError.
    """
    before = _selected(repository, request)
    for point in before if request.remove else ():
        _check_removable(repository, point, request)
    after = [request.changed(point) for point in before]
    todo = [old for old, new in zip(before, after) if request.remove or old != new]
    if todo and not check_only:
        with repository.reserve.in_use(), leases.held(repository, "change of restore points") as lease:
            for point in todo:
                control.check()
                if request.remove:
                    _remove(lease, point)
                else:
                    _change(lease, point, request)
    return PointResult(before, [] if request.remove else after)
