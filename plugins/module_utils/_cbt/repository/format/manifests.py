# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore points and their manifests. Pure."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import secrets
import typing as t

from ...errors import DamagedObject, RepositoryError
from . import envelope, names

VERSION = 1
KIND = "manifest"
LARGEST_DISK = 1 << 50  # bytes
MOST_DISKS = 4096
MOST_FILES = 8192
_LEAST_MEMORY = 320 << 20  # bytes for manifests; about 30,000 manifests of one disk take half of it
_MEMORY_SHARE = 64  # manifests may take this part of a host's memory where that is more
_SHA256 = re.compile("[0-9a-f]{64}")


def most_manifests(memory: int) -> int:
    """Return the limit in bytes of manifests kept at once, by a host's ``memory``."""
    return max(_LEAST_MEMORY, memory // _MEMORY_SHARE)


MOST_MANIFESTS = most_manifests(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

Key = tuple[str, str]  # domain UUID and id of a restore point


class Budget:
    """Estimates the memory of the manifests that are kept at one time, and limits it."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self, manifest: bytes) -> bytes:
        """Count and return a manifest (empty if only named). Raises RepositoryError above the limit."""
        self._taken += 1024 + len(manifest) * (1 if manifest.isascii() else 4) + 64 * envelope.values_in(manifest)
        if self._taken > MOST_MANIFESTS:
            raise RepositoryError(
                f"The manifests of the restore points take more than {MOST_MANIFESTS >> 20} MiB of memory. Restore a"
                " machine by its UUID, which reads no other manifests. For everything else, use a host with more than"
                f" {MOST_MANIFESTS * _MEMORY_SHARE >> 30} GiB of memory, have cbt_retention keep fewer restore points"
                " there, and back up to several repositories."
            )
        return manifest


def new_id(now: datetime.datetime) -> str:
    """Return a new restore point id: UTC time and a random suffix. Ids sort by time."""
    return f"{now.astimezone(datetime.timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A map or file of a restore point: name in its folder, bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class DiskRecord:
    """One disk of a restore point. All sizes in bytes.

    ``mode`` is how it was read (full, incremental, differential, copy, scan) and ``reason`` why; ``source`` is where
    its image was. ``image`` contains the properties of the original image, ``statistics`` the counts of the run.
    """

    target: str
    size: int
    mode: str
    reason: str
    map: StoredFile
    source: t.Optional[str]
    image: t.Mapping[str, t.Any]
    statistics: t.Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class RestorePoint:
    """One consistent image of all protected disks of a domain, and its configuration.

    ``parent`` is the point it was compared with. ``checkpoint`` is the libvirt checkpoint of the same instant (None for
    a copy or where nothing can be tracked). ``incremental_set`` is the id of the point that began its history,
    ``repository`` the id of its repository. ``created`` is UTC in ISO 8601. ``files`` are the configuration files by
    name. ``dedup`` is where equal blocks were looked for (repository, domain, none).
    """

    id: str
    repository: str
    domain: str
    uuid: str
    created: str
    parent: t.Optional[str]
    checkpoint: t.Optional[str]
    checkpoint_xml: t.Optional[str]
    incremental_set: str
    consistency: str
    disks: tuple[DiskRecord, ...]
    files: t.Mapping[str, StoredFile]
    autostart: bool
    tags: t.Mapping[str, str]
    pinned: bool
    host: str
    versions: t.Mapping[str, str]
    dedup: str = "repository"
    note: str = ""

    @property
    def key(self) -> Key:
        """Return the pair that identifies it in its repository."""
        return self.uuid, self.id

    @property
    def folder(self) -> str:
        """Return the folder of its objects."""
        return names.point_folder(self.uuid, self.id)

    def object_name(self, file: StoredFile) -> str:
        """Return the name of one of its objects."""
        return names.point_file(self.uuid, self.id, file.name)

    @property
    def stored_files(self) -> tuple[StoredFile, ...]:
        """Return all its objects but the manifest: maps and configuration."""
        return (*(disk.map for disk in self.disks), *self.files.values())

    def disk(self, target: str) -> DiskRecord | None:
        """Return the disk with this target, or None."""
        return next((disk for disk in self.disks if disk.target == target), None)


def ordered(found: t.Iterable[RestorePoint]) -> list[RestorePoint]:
    """Return restore points oldest first: by time, but never before their parents.

    So a clock that was set back does not make an older point the latest.
    """
    known = {point.key: point for point in found}
    keys: dict[Key, tuple[str, int]] = {}
    for start in known:
        line: dict[Key, RestorePoint] = {}  # from this point to the oldest whose position is not known yet
        key = start
        while key in known and key not in keys and key not in line:
            line[key] = known[key]
            key = (key[0], line[key].parent or "")
        for key, each in reversed(list(line.items())):
            before = keys.get((each.uuid, each.parent or ""), ("", 0))
            keys[key] = (each.created, 0) if each.created > before[0] else (before[0], before[1] + 1)
    return sorted(known.values(), key=lambda point: (keys[point.key], point.id, point.uuid))


_ADDED = ("dedup", "note")  # fields that manifests may lack


def encode(point: RestorePoint) -> bytes:
    """Return the manifest of a restore point."""
    body = dataclasses.asdict(point)
    for field in _ADDED:  # older manifests lack them; ``decode`` reads them with these values
        if body[field] == getattr(RestorePoint, field):
            del body[field]
    return envelope.encode(KIND, VERSION, body)


def decode(data: bytes, name: str) -> RestorePoint:
    """Return the restore point of a manifest. Raises as ``envelope.decode`` does."""
    shape = {**envelope.shape_of(RestorePoint), **dict.fromkeys(_ADDED, t.Optional[str])}
    body = envelope.decode(KIND, VERSION, data, name, shape)
    try:
        disks = tuple(DiskRecord(**{**disk, "map": StoredFile(**disk["map"])}) for disk in body["disks"])
        files = {key: StoredFile(**file) for key, file in body["files"].items()}
        point = RestorePoint(**{**body, "disks": disks, "files": files})
        created = datetime.datetime.fromisoformat(point.created)
        # The year stays possible when the time is moved to another zone or by a span.
        if created.tzinfo is None or not 1970 <= created.year < 9999:
            raise ValueError("its time has no time zone or is not a possible time")
    except (TypeError, ValueError) as error:
        raise DamagedObject(f"{name} is damaged: it lacks a required field of a manifest ({error})") from error
    try:
        check(point)
    except DamagedObject as error:
        raise DamagedObject(f"{name} is damaged: {error}") from error
    if name != names.manifest(point.uuid, point.id):
        raise DamagedObject(f"{name} is damaged: it is the manifest of {point.id} of {point.uuid}")
    return point


def check(point: RestorePoint) -> None:
    """Raise DamagedObject if a name, size or checksum is invalid or a name repeated."""
    names.check_uuid(point.uuid)
    names.check_point_id(point.id)
    names.check_point_id(point.incremental_set)
    names.check_repository_id(point.repository)
    names.check_domain_name(point.domain)
    if point.parent is not None:
        names.check_point_id(point.parent)
    if len(point.disks) > MOST_DISKS or len(point.files) > MOST_FILES:
        raise DamagedObject(
            f"it has {len(point.disks)} disks and {len(point.files)} files; the maximum is {MOST_DISKS} and"
            f" {MOST_FILES}"
        )
    for disk in point.disks:
        names.check_map_name(disk.map.name, names.check_target(disk.target))
        if not 0 <= disk.size <= LARGEST_DISK:
            raise DamagedObject(f"disk {disk.target} cannot have {disk.size} bytes")
    for file in (*point.files, *(each.name for each in point.files.values())):
        names.check_file_name(file)
    for stored in point.stored_files:
        if not 0 <= stored.size <= names.largest(point.object_name(stored)) or not _SHA256.fullmatch(stored.sha256):
            raise DamagedObject(
                f"{stored.name} cannot have {stored.size} bytes and the SHA-256 {names.shown(stored.sha256)}"
            )
    _check_unique("disk", [disk.target for disk in point.disks])
    _check_unique("object", [stored.name for stored in point.stored_files])


def _check_unique(what: str, found: t.Sequence[str]) -> None:
    if len(set(found)) < len(found):
        raise DamagedObject(f"it names {what} {next(each for each in found if found.count(each) > 1)} twice")
