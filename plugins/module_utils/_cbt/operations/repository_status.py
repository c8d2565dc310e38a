# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reports the size, growth, damage and use of a repository; reads no map or pack."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import typing as t

from ..repository.format import names
from ..repository.format.configuration import FORMAT
from ..repository.format.manifests import LARGEST_DISK, RestorePoint
from ..repository.records import damage, verified
from ..repository.repository import Listing, Repository
from ..repository.sharing import condemned, holds, leases
from ..repository.sharing.holds import Hold
from ..repository.sharing.leases import LeaseHolder

__all__ = ["Growth", "Hold", "Identity", "RepositoryStatus", "identity", "status"]

DAYS = 30  # days for which growth is counted


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of domains, restore points, points in the trash and packs, and sizes in bytes.

    ``metadata_bytes`` counts all objects of restore points.
    """

    domains: int
    restore_points: int
    removed_points: int
    packs: int
    pack_bytes: int
    condemned_packs: int
    condemned_bytes: int
    metadata_bytes: int


@dataclasses.dataclass(frozen=True)
class Added:
    """The bytes that existing restore points of some span of time added.

    ``new_bytes`` were new on the disks; ``stored_bytes`` is their size in packs.
    """

    restore_points: int
    new_bytes: int
    stored_bytes: int


@dataclasses.dataclass(frozen=True)
class Growth:
    """The growth by day, and within 7 and within 30 days before now.

    ``days`` has ISO 8601 dates in UTC, oldest first, and only days with a restore point.
    """

    days: t.Mapping[str, Added]
    last_7_days: Added
    last_30_days: Added


class Flaw(t.NamedTuple):
    """Recorded damage: the object or the folder of a point, and the cause.

    ``blocks`` is the number of damaged blocks, or None for the whole object.
    """

    object: str
    blocks: int | None
    cause: str


@dataclasses.dataclass(frozen=True)
class Identity:
    """What is known of a repository as soon as it is open."""

    id: str
    format: int
    encrypted: bool
    slots: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RepositoryStatus:
    """The state of a repository; ``foreign`` are warnings about files that are not objects."""

    sizes: Sizes
    growth: Growth
    damage: tuple[Flaw, ...]
    holds: tuple[Hold, ...]
    sessions: tuple[LeaseHolder, ...]
    foreign: tuple[str, ...]


def added(points: t.Collection[RestorePoint]) -> Added:
    """Return the sum of what restore points added, by their manifests. Pure."""
    disks = [disk.statistics for point in points for disk in point.disks]
    new, stored = (sum(_bytes(each.get(key, 0)) for each in disks) for key in ("new_bytes", "stored_bytes"))
    return Added(len(points), new, stored)


def _bytes(count: int) -> int:
    return max(0, min(count, LARGEST_DISK))  # a damaged manifest can contain any number


def growth(points: t.Iterable[RestorePoint], now: datetime.datetime) -> Growth:
    """Return the growth of the last days. Points dated after ``now`` do not count. Pure."""

    def since(days: int) -> list[RestorePoint]:
        return [point for created, point in dated if now - datetime.timedelta(days=days) < created <= now]

    def created(point: RestorePoint) -> datetime.datetime:
        return datetime.datetime.fromisoformat(point.created).astimezone(datetime.timezone.utc)

    dated = [(created(point), point) for point in points]
    recent = since(DAYS)
    days = itertools.groupby(sorted(recent, key=created), lambda point: created(point).date().isoformat())
    return Growth({day: added(list(each)) for day, each in days}, added(since(7)), added(recent))


def identity(repository: Repository) -> Identity:
    """Return the identity of an open repository. Nothing is listed or read."""
    return Identity(repository.id, FORMAT, bool(repository.slots), tuple(sorted(repository.slots)))


def status(repository: Repository, now: datetime.datetime) -> RepositoryStatus:
    """Return the state of a repository; changes nothing and reads no map or pack.

    Raises RepositoryError if the repository cannot be listed or read.
    """
    listing = repository.points_of()
    return RepositoryStatus(
        sizes=_sizes(repository, listing),
        growth=growth(listing.points, now),
        damage=tuple(_damage(repository, listing)),
        holds=tuple(holds.listed(repository)),
        sessions=tuple(leases.lease_holders(repository)),
        foreign=tuple(repository.foreign_words()),
    )


def _sizes(repository: Repository, listing: Listing) -> Sizes:
    pending = condemned.announced(repository)
    packs = pack_bytes = condemned_packs = condemned_bytes = 0
    for entry in repository.entries(names.PACKS):
        packs, pack_bytes = packs + 1, pack_bytes + entry.size
        if entry.name in pending:
            condemned_packs, condemned_bytes = condemned_packs + 1, condemned_bytes + entry.size
    existing = {point.key for point in listing.points}
    removed = {taken.point for _name, taken in repository.of_kind(names.TRASH_KIND, names.TRASH)} - existing
    metadata = sum(entry.size for entry in repository.entries(names.POINTS))
    domains = len({uuid for uuid, _point_id in existing})
    return Sizes(domains, len(existing), len(removed), packs, pack_bytes, condemned_packs, condemned_bytes, metadata)


def _damage(repository: Repository, listing: Listing) -> t.Iterator[Flaw]:
    """Yield unreadable manifests, and the recorded damage of packs and of points' own objects."""
    for name, cause in sorted(listing.damaged.items()):
        yield Flaw(name, None, cause)
    for pack_id, found in sorted(damage.read_all(repository).items()):
        yield Flaw(names.pack(pack_id), len(found.blocks) if found.blocks is not None else None, found.cause)
    looked_at = {taken.point for _name, taken in repository.of_kind(names.VERIFIED_KIND, names.VERIFIED)}
    for point in listing.points:
        last = verified.last(repository, point) if point.key in looked_at else None
        if last is not None and last.own_damage is not None:
            yield Flaw(point.folder, None, last.own_damage)
