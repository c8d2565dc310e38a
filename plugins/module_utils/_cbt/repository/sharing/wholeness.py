# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that the objects of restore points exist and have the right sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t

from ...errors import UnreadableObject
from ...parallel import map_all
from ..format import names
from ..format.manifests import DiskRecord, Key, RestorePoint, StoredFile
from ..repository import Repository

Sizes = dict[str, int]  # by name of an object, in bytes


def needed(repository: Repository, point: RestorePoint) -> Sizes:
    """Return names and sizes in bytes of all objects that a restore point refers to.

    Raises DamagedObject or ObjectMissing if one of its maps cannot be read.
    """
    found = _files(repository, point)
    for disk in point.disks:
        found.update((ref.name, ref.size) for ref in repository.read_packs(point, disk))
    return found


def _files(repository: Repository, point: RestorePoint) -> Sizes:
    return {point.object_name(file): file.size + repository.keys.seal_size for file in point.stored_files}


def unsound(repository: Repository, objects: t.Mapping[str, int]) -> set[str]:
    """Return the names of objects that are missing, not files, or of another size.

    A truncated pack is as useless as a missing one.
    """

    def wrong(name: str) -> bool:
        try:
            return repository.store.size(name) != objects[name]
        except UnreadableObject:
            return True

    ordered = sorted(objects)
    return {name for name, is_wrong in zip(ordered, map_all(wrong, ordered)) if is_wrong}


def is_whole(repository: Repository, point: RestorePoint, going: t.AbstractSet[str] = frozenset()) -> bool:
    """Return True if all objects of a restore point exist and none is in ``going``."""
    try:
        objects = needed(repository, point)
    except UnreadableObject:
        return False
    return going.isdisjoint(objects) and not unsound(repository, objects)


def whole_point(repository: Repository, uuid: str, point_id: str) -> RestorePoint | None:
    """Return the restore point as it is now.

    Returns None if it does not exist, cannot be read, or lacks an object.
    """
    try:
        point = repository.point(uuid, point_id)
    except UnreadableObject:
        return None
    return point if is_whole(repository, point) else None


def whole_among(repository: Repository, points: t.Collection[RestorePoint]) -> set[Key]:
    """Return the keys of the restore points that are whole.

    Two listings serve all points, and each readable map is read once.
    """
    folders = (names.POINTS, names.PACKS) if points else ()
    sizes = {entry.name: entry.size for folder in folders for entry in repository.store.entries(folder)}
    maps: dict[str, bool] = {}  # whether all packs of a map exist, by the map's SHA-256
    return {point.key for point in points if _is_listed(repository, point, sizes, maps)}


def _is_listed(repository: Repository, point: RestorePoint, sizes: Sizes, maps: dict[str, bool]) -> bool:
    if any(sizes.get(name) != size for name, size in _files(repository, point).items()):
        return False
    for disk in point.disks:
        if disk.map.sha256 not in maps:
            try:
                maps[disk.map.sha256] = all(
                    sizes.get(ref.name) == ref.size for ref in repository.read_packs(point, disk)
                )
            except UnreadableObject:
                return False
    return all(maps[disk.map.sha256] for disk in point.disks)


def with_whole_maps(
    repository: Repository, point: RestorePoint, going: t.AbstractSet[str] = frozenset()
) -> RestorePoint | None:
    """Return the restore point with maps whose packs all exist, none of them in ``going``.

    Prefers the disk's own map. Returns None if a disk has no such map, or if a file is missing. Other maps of a disk in
    the folder hold the same content: runs that move blocks store them.
    """
    if not is_whole(repository, dataclasses.replace(point, disks=())):
        return None
    disks: list[DiskRecord] = []
    for disk in point.disks:
        choices = (dataclasses.replace(disk, map=file) for file in (disk.map, *maps_beside(repository, point, disk)))
        of_disk = (dataclasses.replace(point, disks=(each,), files={}) for each in choices)
        found = next((each for each in of_disk if is_whole(repository, each, going)), None)
        if found is None:
            return None
        disks += found.disks
    return dataclasses.replace(point, disks=tuple(disks))


def is_given_back(repository: Repository, before: RestorePoint, after: RestorePoint) -> bool:
    """Return True if ``after`` would lack objects that whole maps beside it do not need.

    Then ``before`` appeared too late, and the session that stored it gives the point such a map back.
    """
    known = {each.object_name(disk.map) for each in (before, after) for disk in each.disks}
    maps = names.of_kind(repository.store.list(after.folder), names.MAP_KIND)
    return any(name not in known for name, _taken in maps) and with_whole_maps(repository, after) not in (None, after)


def maps_beside(repository: Repository, point: RestorePoint, disk: DiskRecord) -> t.Iterator[StoredFile]:
    """Yield all readable maps of a disk in the folder of its restore point.

    The map that the manifest names is among them.
    """
    others = [each.target for each in point.disks if each.target != disk.target]
    for name in sorted(repository.store.list(point.folder)):
        file = name.rpartition("/")[2]
        if names.is_map_name(file, disk.target) and not any(names.is_map_name(file, target) for target in others):
            try:
                data = repository.get_object(name)
            except UnreadableObject:
                continue
            yield StoredFile(file, len(data), hashlib.sha256(data).hexdigest())
