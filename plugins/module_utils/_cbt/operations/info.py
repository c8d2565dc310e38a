# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describes the contents of a repository; changes nothing."""

from __future__ import annotations

import dataclasses
import typing as t

from ..errors import UnreadableObject
from ..repository.format import names
from ..repository.format.configuration import FORMAT
from ..repository.format.manifests import RestorePoint
from ..repository.records import damage, verified
from ..repository.records.damage import Damages
from ..repository.repository import Repository
from ..repository.selecting import LATEST, PointFilter, of_domain, select_points
from ..repository.sharing.leases import lease_holders

__all__ = ["PointFilter", "describe_points", "describe_repository", "healths", "lease_holders", "list_points"]


@dataclasses.dataclass(frozen=True)
class RepositoryFacts:
    """The identity of a repository, the number of its packs and their size in bytes."""

    id: str
    format: int
    encrypted: bool
    bytes_stored: int
    packs: int


def describe_repository(repository: Repository) -> RepositoryFacts:
    """Return the size and identity of a repository.

    Raises RepositoryError if it cannot be listed.
    """
    stored = packs = 0
    for entry in repository.entries(names.PACKS):
        stored += entry.size
        packs += 1
    return RepositoryFacts(repository.id, FORMAT, bool(repository.slots), stored, packs)


def list_points(repository: Repository, domain: str | None = None) -> tuple[list[RestorePoint], t.Mapping[str, str]]:
    """Return the restore points, oldest first, and damaged manifests with their cause.

    For an unknown domain, the list is empty.
    """
    listing = repository.points_of()
    found = list(listing.points)
    if domain is not None:
        found = of_domain(found, domain) if any(domain in (point.domain, point.uuid) for point in found) else []
    return found, listing.damaged


def describe_points(
    repository: Repository, domain: str | None, wanted: str | None, conditions: PointFilter
) -> tuple[list[tuple[RestorePoint, Health]], t.Mapping[str, str]]:
    """Return the restore points that fulfill conditions, each with its health, and damaged manifests with their cause.

    ``wanted`` is an id, or ``latest`` for the latest of each domain among them.
    """
    listed, unreadable = list_points(repository, domain)
    found = [point for point in listed if conditions.fits(point)]
    known: dict[tuple[str, str], Health] = {}
    if conditions.damaged is not None:
        known = {point.key: health for point, health in zip(found, healths(repository, found))}
        found = [point for point in found if known[point.key].damaged == conditions.damaged]
    if wanted == "latest":
        found = select_points(found, None, LATEST)
    elif wanted is not None:
        found = [point for point in found if point.id == wanted]
    shown = [known[point.key] for point in found] if known else healths(repository, found)
    return list(zip(found, shown)), unreadable


class Health(t.NamedTuple):
    """The known health of a restore point.

    ``verified`` describes the last verification, or is None; ``damaged`` is True if damage of the point is recorded.
    """

    verified: dict[str, t.Any] | None
    damaged: bool


def healths(repository: Repository, points: t.Iterable[RestorePoint]) -> list[Health]:
    """Return the health of each point. Maps are read only if damaged packs are recorded."""
    damages = damage.read_all(repository)
    found = []
    for point in points:
        last = verified.last(repository, point)
        hurt = (last is not None and last.own_damage is not None) or (
            bool(damages) and _names_damage(repository, point, damages)
        )
        shown = {key: getattr(last, key) for key in ("at", "level", "percent", "status")} if last is not None else None
        found.append(Health(shown, hurt))
    return found


def _names_damage(repository: Repository, point: RestorePoint, damages: Damages) -> bool:
    for disk in point.disks:
        try:
            extents = repository.read_map(point, disk.target)
        except UnreadableObject:
            return True
        if next(damage.damaged_runs(extents, damages), None) is not None:
            return True
    return False
