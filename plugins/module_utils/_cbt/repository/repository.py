# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository: opened or created, its restore points listed, read and published."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import typing as t

from ..errors import DamagedObject, ObjectLocked, ObjectMissing, Refused, RepositoryError
from ..parallel import map_all
from .crypto.keys import Keys, PlainKeys
from .format import configuration, manifests, maps, names
from .format.configuration import Configuration
from .format.manifests import DiskRecord, RestorePoint, StoredFile
from .format.packs import PackRef
from .location import RepositoryLocation, as_location, open_store
from .packs.reader import PackReader
from .packs.writer import PackWriter
from .stores import mounts
from .stores.base import Store


@dataclasses.dataclass(frozen=True)
class Listing:
    """Restore points found, oldest first, and the damaged manifests among them by object name."""

    points: tuple[RestorePoint, ...]
    damaged: t.Mapping[str, str]


class Watch(t.Protocol):
    """What compares a repository with what is known of it. All raise Refused if it is another one, or went back."""

    def check_identity(self, found: Configuration | None) -> None:
        """Look at the configuration found, None for none."""

    def check_last(self, repository: Repository) -> None:
        """Look for the restore point that was written or seen last."""

    def listed(self, repository: Repository, found: t.Sequence[RestorePoint], uuid: str | None) -> None:
        """Look at a list of all restore points, or of those of one domain."""

    def published(self, point: RestorePoint) -> None:
        """Note a restore point that this run made exist."""


Watching = t.Callable[[Store], Watch]


class Repository:
    """Packs and restore points of many domains. Make one with ``open_repository``."""

    def __init__(
        self,
        store: Store,
        repository_id: str,
        keys: Keys | None = None,
        slots: tuple[str, ...] = (),
        watch: Watch | None = None,
    ) -> None:
        """``slots`` are the names of the key slots, if it is encrypted; ``watch`` compares what it holds with what is known of it."""
        self.store = store
        self.watch = watch
        self.id = repository_id
        self.slots = slots
        self.keys: Keys = keys or PlainKeys()
        self.reader = PackReader(store, self.keys)

    def check_there(self) -> None:
        """Raise RepositoryError if the repository itself is gone, such as unmounted, and not only one of its objects."""
        self.store.size(configuration.NAME)

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name. Raises DamagedObject if something that is no file has it."""
        try:
            self.store.size(name)
        except ObjectMissing:
            return False
        return True

    def foreign_words(self) -> list[str]:
        """Warnings about the files met so far that are not objects."""
        return list(self.store.foreign.words())

    def writer(self) -> PackWriter:
        """Something to store blocks with."""
        return PackWriter(self.store, self.keys)

    def put_object(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Store a small object, sealed. Everything but packs and the repository's configuration goes this way.

        What could not be read again for its size is not stored: that raises RepositoryError.
        """
        if len(data) > names.largest(name):
            raise RepositoryError(
                f"Cannot store {name}: it has {len(data)} bytes; the maximum is {names.largest(name)}."
            )
        return self.store.put(name, self.keys.seal(name, data), replace)

    def get_object(self, name: str, most: int | None = None) -> bytes:
        """A small object as it was given to ``put_object``, of at most so many bytes. Raises ObjectMissing or DamagedObject."""
        return self.keys.unseal(name, self.store.get(name, most + names.SEAL if most is not None else None))

    def discard(self, name: str) -> None:
        """Delete a small object that has had its time. One that the store locks stays until a later run, and does no harm."""
        with contextlib.suppress(ObjectLocked):
            self.store.delete(name)

    def points_of(self, uuid: str | None = None) -> Listing:
        """The restore points of a domain, or of all. Raises RepositoryError if listing fails, Refused if a point that is known vanished."""
        found, damaged, budget = [], {}, manifests.Budget()
        folder = f"{names.POINTS}/{uuid}" if uuid else names.POINTS
        for name, _taken in names.of_kind(self.store.list(folder), names.MANIFEST_KIND):
            try:
                found.append(manifests.decode(budget.take(self.get_object(name)), name))
            except ObjectMissing:
                continue  # removed since it was listed
            except DamagedObject as error:
                budget.take(b"")
                damaged[name] = str(error)
        listing = Listing(tuple(manifests.ordered(found)), damaged)
        if self.watch is not None:
            self.watch.listed(self, listing.points, uuid)
        return listing

    def points_with(self, domain: str) -> t.Sequence[RestorePoint]:
        """Restore points, oldest first, with all of a domain given by name or UUID. By UUID no manifest of another domain is read."""
        found = self.points_of(domain).points if names.is_uuid(domain) else ()
        return found or self.points_of().points

    def point(self, uuid: str, point_id: str) -> RestorePoint:
        """A restore point as it is now. Raises ObjectMissing if there is none, or DamagedObject."""
        name = names.manifest(uuid, point_id)
        return manifests.decode(self.get_object(name), name)

    def put_files(self, folder: str, files: t.Mapping[str, bytes]) -> dict[str, StoredFile]:
        """Store the objects of a restore point that is not published yet, side by side: each waits for the disk, not for the others."""
        for _done in map_all(lambda name: self.put_object(f"{folder}/{name}", files[name]), files):
            pass
        return {name: StoredFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}

    def get_file(self, point: RestorePoint, file: StoredFile) -> bytes:
        """An object of a restore point, proven. Raises DamagedObject or ObjectMissing."""
        name = point.object_name(file)
        data = self.get_object(name, file.size)
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise DamagedObject(f"{name} is damaged: it does not match its restore point")
        return data

    def read_map(self, point: RestorePoint, target: str) -> maps.ExtentMap:
        """The extent map of a disk at a restore point, proven. Raises DamagedObject or ObjectMissing."""
        disk = point.disk(target)
        if disk is None:
            raise Refused(f"Restore point {point.id} of {point.domain} holds no disk {target}.")
        data = self.get_file(point, disk.map)
        try:
            return maps.decode(data, disk.size)
        except DamagedObject as error:
            raise DamagedObject(f"{point.object_name(disk.map)} is damaged: {error}") from error

    def readable_maps(self, point: RestorePoint) -> t.Iterator[tuple[str, maps.ExtentMap]]:
        """The extent maps of a restore point's disks that can be read, by target."""
        for disk in point.disks:
            with contextlib.suppress(DamagedObject, ObjectMissing):
                yield disk.target, self.read_map(point, disk.target)

    def read_packs(self, point: RestorePoint, disk: DiskRecord) -> tuple[PackRef, ...]:
        """The packs that hold a disk at a restore point. Raises DamagedObject or ObjectMissing."""
        data = self.get_file(point, disk.map)
        try:
            return maps.decode_packs(data, disk.size)
        except DamagedObject as error:
            raise DamagedObject(f"{point.object_name(disk.map)} is damaged: {error}") from error

    def publish(self, point: RestorePoint, replace: bool = True) -> bool:
        """Make a restore point exist; use ``publishing.publish``, which proves first that nothing it names is about to be deleted.

        Without ``replace``, False is returned and nothing changed if it exists.
        """
        return self.put_object(names.manifest(point.uuid, point.id), manifests.encode(point), replace)


def configuration_in(store: Store) -> Configuration | None:
    """The configuration of the repository in a store, None if there is none. Raises as ``open_repository`` does."""
    try:
        return configuration.decode(store.get(configuration.NAME), store.location)
    except ObjectMissing:
        check_vacant(store)
        return None


def check_vacant(store: Store) -> None:
    """Raise RepositoryError if something else than a repository is there."""
    there = store.occupants()
    if there and configuration.NAME not in there:  # with a configuration, another host was faster
        raise RepositoryError(
            f"{store.location} is not a repository: it has files but no {configuration.NAME}. {mounts.advice(store.local_path)} Otherwise use"
            " an empty or a new location; if that file was lost, put a copy of it back, or recreate it with cbt_repository and rebuild: true."
        )


def check_creatable(store: Store) -> None:
    """Raise Refused if a repository would be created on this host's own disk where a share is to be mounted."""
    point = mounts.missing_mount(store.local_path)
    if point is not None:
        raise Refused(
            f"Cannot create a repository in {store.location}: {point} is in /etc/fstab but not mounted. Mount it, or use another path."
        )


def _opened(store: Store, passphrase: str | None, watch: Watch | None) -> Repository | None:
    """The repository in a store, None if there is none."""
    found = configuration_in(store)
    if watch is not None:
        watch.check_identity(found)
    if found is None:
        return None
    keys = configuration.keys_of(found, passphrase, store.location)
    repository = Repository(store, found.id, keys, tuple(found.slots), watch)
    if watch is not None:
        watch.check_last(repository)
    return repository


def _missing(store: Store) -> RepositoryError:
    return RepositoryError(
        f"There is no repository in {store.location}{_emptiness(store.local_path)}. {mounts.advice(store.local_path)}"
        " To create a repository there, run cbt_repository (the role prepare does), or set create_repository: true."
    )


def _emptiness(path: str | None) -> str:
    """How a directory has no repository."""
    if path is None:
        return ""
    return ": the directory is empty" if os.path.isdir(path) else ": the directory does not exist"


def open_repository(where: str | RepositoryLocation, watching: Watching | None = None) -> Repository:
    """Open the repository at a location. With ``watching``, it is compared with what is known of it.

    Raises RepositoryError if there is none, or if it is damaged or of a newer format, PassphraseRefused if its passphrase
    is missing or wrong, Refused if it is not the repository known there, or if that went back.
    """
    where = as_location(where)
    store = open_store(where)
    repository = _opened(store, where.passphrase, _watch(store, watching))
    if repository is None:
        raise _missing(store)
    return repository


def open_or_create(
    where: str | RepositoryLocation, check_only: bool = False, watching: Watching | None = None
) -> Repository | None:
    """Open the repository at a location, or create it where there is nothing yet, encrypted if the location has a passphrase.

    With ``check_only`` None is returned in place of creating it. Raises as ``open_repository`` does, and if
    something else is there, or a share that is to be mounted is not.
    """
    where = as_location(where)
    store = open_store(where)
    watch = _watch(store, watching)
    repository = _opened(store, where.passphrase, watch)
    if repository is not None:
        return repository
    check_creatable(store)
    created, keys = configuration.create(where.passphrase)
    if check_only:
        return None
    if not store.put(configuration.NAME, created.encode(), replace=False):
        return open_repository(where, watching)  # where two create it at once, the first one's counts
    store.keep_reserve()
    if watch is not None:
        watch.check_identity(created)
    return Repository(store, created.id, keys, tuple(created.slots), watch)


def find_repository(where: RepositoryLocation, watching: Watching | None = None) -> Repository | None:
    """Open the repository at a location, None if there is none. Raises as ``open_repository`` does otherwise."""
    store = open_store(where)
    return _opened(store, where.passphrase, _watch(store, watching))


def _watch(store: Store, watching: Watching | None) -> Watch | None:
    return watching(store) if watching is not None else None
