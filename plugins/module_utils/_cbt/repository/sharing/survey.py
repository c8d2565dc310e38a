# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Surveys what existing, drafted, held and removed restore points need."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ...errors import DamagedObject, ObjectMissing, RepositoryError, UnreadableObject
from ..format import manifests, names
from ..format.manifests import Key, RestorePoint
from ..repository import Repository
from ..stores.base import MOST_LISTED, Entry
from . import condemned, holds
from .leases import ASTRAY, LAPSE
from .wholeness import maps_beside, needed


def _key(name: str) -> bytes | str:
    """Return the id of a pack, and the name of any other object."""
    taken = names.parsed(name)
    return taken.pack if taken is not None and taken.kind is names.PACK_KIND else name


@dataclasses.dataclass
class Survey:
    """Ids of the packs and names of the files that are needed.

    ``points`` is the number of existing and removed restore points; the grace period of ``expired`` of them is over.
    ``existing`` are the names of the existing manifests, ``held`` the keys of held points, whether they exist or not.
    """

    packs: set[bytes] = dataclasses.field(default_factory=set)
    files: set[str] = dataclasses.field(default_factory=set)
    points: int = 0
    expired: int = 0
    existing: set[str] = dataclasses.field(default_factory=set)
    held: set[Key] = dataclasses.field(default_factory=set)
    _maps: set[str] = dataclasses.field(default_factory=set)

    def needs(self, name: str) -> bool:
        """Return True if an object below packs or points is needed."""
        key = _key(name)
        return key in self.packs or key in self.files

    def holds(self, name: str) -> bool:
        """Return True if the restore point of an object is held."""
        taken = names.parsed(name)
        return taken is not None and taken.point in self.held

    def take(self, repository: Repository, point: RestorePoint) -> None:
        """Add what a restore point needs. Raises DamagedObject or ObjectMissing."""
        self.files.update(map(point.object_name, point.stored_files))
        for disk in point.disks:
            if disk.map.sha256 not in self._maps:
                self.packs.update(ref.id for ref in repository.read_packs(point, disk))
                self._maps.add(disk.map.sha256)
        if max(len(self.packs), len(self.files)) > MOST_LISTED:
            raise RepositoryError(
                f"Restore points name more than {MOST_LISTED} packs or files, which is more than a repository holds."
                " Verify it."
            )


def _stuck(error: RepositoryError, name: str, kind: names.Kind) -> RepositoryError:
    why = str(error).rstrip(".")
    what = "Verify the repository; if the restore point cannot be repaired, remove it."
    if kind is names.TRASH_KIND:
        what = "It is deleted once its grace period is over, or delete it manually."
    if kind is names.HOLD_KIND:
        what = holds.how_to_end(name)
    return RepositoryError(f"Space cannot be reclaimed, because it is not known what {name} needs: {why}. {what}")


def survey(
    repository: Repository,
    now: float,
    grace: float,
    without: t.Collection[Key] = (),
    back: t.Iterable[RestorePoint] = (),
) -> Survey:
    """Return what is needed ``now``, by the store's clock.

    ``without`` are points to regard as just removed, ``back`` as just brought back.

    Drafts come first, then manifests, then holds and the trash, so a point that moves from one to the next is met at
    least once. A draft counts for as long as its writer can rely on it, even if the clocks of the writer, the collector
    and the store differ. A hold is written while the manifest that it keeps stands. The trash keeps a held point for as
    long as it is held. Raises RepositoryError if anything cannot be listed or read: an object that may be needed must
    not count as unneeded.
    """
    found = Survey()
    for entry in repository.store.entries(names.DRAFTS):
        if now - entry.modified <= LAPSE + ASTRAY:
            _note(found, repository, entry.name, names.DRAFT_KIND)
    for name, taken in names.of_kind(repository.store.list(names.POINTS), names.MANIFEST_KIND):
        found.points += 1
        found.existing.add(name)
        if grace > 0 or taken.point not in without:
            _note(found, repository, name, names.MANIFEST_KIND)
    for name, taken in names.of_kind(repository.store.list(names.HOLDS), names.HOLD_KIND):
        found.held.add(taken.point)
        _note(found, repository, name, names.HOLD_KIND)
    for entry in repository.store.entries(names.TRASH):
        found.points += 1
        if expired(entry, now, grace) and not found.holds(entry.name):
            found.expired += 1
        else:
            _note(found, repository, entry.name, names.TRASH_KIND)
    for point in back:
        found.take(repository, point)
    return found


def unneeded(found: Survey, repository: Repository, objects: t.Iterable[Entry]) -> list[Entry]:
    """Return the entries of objects that nothing needs.

    ``objects`` are all entries below packs and points. If a manifest names a map or a pack that is not among them, or
    that a collector may be about to delete, all maps of its restore point are needed as well: a session whose manifest
    appeared too late gives the point one of them back, and may be delayed before it does.
    """
    absent: set[bytes | str] = {*found.packs, *found.files}
    going: set[str] = set()
    with contextlib.suppress(DamagedObject):  # a damaged list is deleted once it is old
        going = condemned.listed_for_deletion(repository)  # before the objects: a list is deleted after them
    left = []
    for each in objects:
        key = _key(each.name)
        if key not in absent:
            left.append(each)
        elif each.name not in going:
            absent.discard(key)
    maps = names.of_kind((each.name for each in left if absent), names.MAP_KIND)
    for point_key in sorted({taken.point for _name, taken in maps}):
        _take_maps_beside(found, repository, point_key, absent)
    return [each for each in left if not found.needs(each.name)]


def _take_maps_beside(found: Survey, repository: Repository, key: Key, absent: t.Collection[bytes | str]) -> None:
    """Add all maps of a restore point that needs something absent."""
    with contextlib.suppress(UnreadableObject):  # removed since it was listed
        point = repository.point(*key)
        if not _needs_any(repository, point, absent):
            return
        for disk in point.disks:
            for file in maps_beside(repository, point, disk):
                other = dataclasses.replace(point, disks=(dataclasses.replace(disk, map=file),))
                with contextlib.suppress(UnreadableObject):  # a map that cannot be read is not given back
                    found.take(repository, other)


def _needs_any(repository: Repository, point: RestorePoint, absent: t.Collection[bytes | str]) -> bool:
    try:
        return any(_key(name) in absent for name in needed(repository, point))
    except UnreadableObject:  # its map cannot be read
        return True


def expired(entry: Entry, now: float, grace: float) -> bool:
    """Return True if the grace period of a trash entry is over."""
    return now - entry.modified >= grace


def _manifest_in(repository: Repository, name: str, kind: names.Kind) -> tuple[RestorePoint, bool]:
    """Return the point that an object keeps, and whether the point was whole then.

    The object is a manifest, a draft, a hold or an entry of the trash. Raises as ``decode`` does.
    """
    data = repository.get_object(name)
    if kind is names.HOLD_KIND:
        hold, point = holds.decode(data, name)
        return point, hold.since is not None
    return manifests.decode(data, names.manifest_kept_by(name)), kind is not names.DRAFT_KIND


def _note(found: Survey, repository: Repository, name: str, kind: names.Kind) -> None:
    """Add what a manifest, a draft, a hold or an entry of the trash needs.

    An object that is replaced while it is read is read again. If it is gone, its point has been met elsewhere, or will
    be. A draft whose map is missing cannot be published as it is, and a process that takes a hold withdraws it in that
    case, so neither keeps anything.
    """
    before: RestorePoint | None = None
    while True:
        try:
            point, was_whole = _manifest_in(repository, name, kind)
        except ObjectMissing:
            return
        except DamagedObject as error:
            raise _stuck(error, name, kind) from error
        try:
            found.take(repository, point)
            return
        except UnreadableObject as error:
            if not was_whole and isinstance(error, ObjectMissing):
                return
            if point == before:
                raise _stuck(error, name, kind) from error
            before = point
