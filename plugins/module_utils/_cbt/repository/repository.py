# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A repository: open it; list, read and publish its restore points."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import typing as t

from ..errors import DamagedObject, ObjectLocked, ObjectMissing, Refused, RepositoryError, UnreadableObject
from ..parallel import map_all
from .crypto.keys import Keys, PlainKeys
from .format import configuration, manifests, maps, names
from .format.configuration import Configuration
from .format.manifests import DiskRecord, RestorePoint, StoredFile
from .format.names import Kind, Name
from .format.packs import PackRef
from .location import RepositoryLocation, as_location, open_store
from .packs.reader import PackReader
from .packs.writer import PackWriter
from .stores.base import Entry, Store


@dataclasses.dataclass(frozen=True)
class Listing:
    """Restore points, oldest first, and why manifests are damaged, by object name."""

    points: tuple[RestorePoint, ...]
    damaged: t.Mapping[str, str]


class Watch(t.Protocol):
    """Compares a repository with known facts. All raise Refused if it is another one or was rolled back."""

    def check_identity(self, found: Configuration | None) -> None:
        """Check the configuration found, None if there is none."""

    def check_last(self, repository: Repository) -> None:
        """Check that the restore point that was written or seen last still exists."""

    def listed(self, repository: Repository, found: t.Sequence[RestorePoint], uuid: str | None) -> None:
        """Check a list of all restore points, or of those of the domain ``uuid``."""

    def warn(self, text: str) -> None:
        """Report what the user must know of the store."""

    def published(self, point: RestorePoint) -> None:
        """Remember a restore point that this run published."""


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
        """``slots`` names the key slots, if encrypted. ``watch`` compares the repository with what is known."""
        self.store = store
        self.location, self.local_path, self.reserve = store.location, store.local_path, store.reserve
        self.watch = watch
        self.id = repository_id
        self.slots = slots
        self.keys: Keys = keys or PlainKeys()
        self.reader = PackReader(store, self.keys)

    def check_there(self) -> None:
        """Raise RepositoryError if the whole repository is gone, for example unmounted."""
        self.store.size(configuration.NAME)

    def exists(self, name: str) -> bool:
        """Whether an object exists. Raises DamagedObject if something other than a file has its name."""
        try:
            self.store.size(name)
        except ObjectMissing:
            return False
        return True

    def foreign_words(self) -> list[str]:
        """Return warnings about the files found so far that are not objects."""
        return self.store.foreign.words()

    def entries(self, folder: str) -> t.Iterator[Entry]:
        """Yield the objects below a folder with size and time, in no particular order."""
        return self.store.entries(folder)

    def of_kind(self, kind: Kind, folder: str) -> t.Iterator[tuple[str, Name]]:
        """Yield the names of the objects of one kind below a folder, each with its parts."""
        return names.of_kind(self.store.list(folder), kind)

    def protect(self, objects: t.Iterable[str], like: str) -> None:
        """Have the store retain objects at least as long as the object ``like``. Raises ObjectMissing."""
        self.store.protect(objects, like)

    def sweep(self) -> None:
        """Remove unfinished objects of killed processes, as far as they are recognized."""
        self.store.sweep()

    def writer(self) -> PackWriter:
        """Return a writer that stores blocks."""
        return PackWriter(self.store, self.keys)

    def put_object(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Store any object but packs and configuration, encrypted if the repository is.

        Raises RepositoryError if the object is larger than a reader accepts.
        """
        if len(data) > names.largest(name):
            raise RepositoryError(
                f"Cannot store {name}: it has {len(data)} bytes; the maximum is {names.largest(name)}."
            )
        return self.store.put(name, self.keys.seal(name, data), replace)

    def get_object(self, name: str, most: int | None = None) -> bytes:
        """Return what ``put_object`` stored, of at most ``most`` bytes. Raises ObjectMissing or DamagedObject."""
        return self.keys.unseal(name, self.store.get(name, most + names.SEAL if most is not None else None))

    def discard(self, name: str) -> None:
        """Delete a small object that is no longer needed. A locked one stays until a later run and does no harm."""
        with contextlib.suppress(ObjectLocked):
            self.store.delete(name)

    def points_of(self, uuid: str | None = None) -> Listing:
        """Return the points of a domain, or of all. Raises RepositoryError, or Refused if a known one vanished."""
        found, damaged, budget = [], {}, manifests.Budget()
        folder = f"{names.POINTS}/{uuid}" if uuid else names.POINTS
        for name, _taken in self.of_kind(names.MANIFEST_KIND, folder):
            try:
                found.append(manifests.decode(budget.take(self.get_object(name)), name))
            except ObjectMissing:
                continue  # removed since the listing
            except DamagedObject as error:
                budget.take(b"")
                damaged[name] = str(error)
        listing = Listing(tuple(manifests.ordered(found)), damaged)
        if self.watch is not None:
            self.watch.listed(self, listing.points, uuid)
        return listing

    def points_with(self, domain: str) -> t.Sequence[RestorePoint]:
        """Return points, oldest first, with all of a domain (name or UUID). A UUID that has points reads only these."""
        found = self.points_of(domain).points if names.is_uuid(domain) else ()
        return found or self.points_of().points

    def point(self, uuid: str, point_id: str) -> RestorePoint:
        """Read a restore point again. Raises ObjectMissing or DamagedObject."""
        name = names.manifest(uuid, point_id)
        return manifests.decode(self.get_object(name), name)

    def put_files(self, folder: str, files: t.Mapping[str, bytes]) -> dict[str, StoredFile]:
        """Store an unpublished restore point's objects. In parallel, because each waits for the disk."""
        for _done in map_all(lambda name: self.put_object(f"{folder}/{name}", files[name]), files):
            pass
        return {name: StoredFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}

    def get_file(self, point: RestorePoint, file: StoredFile) -> bytes:
        """Return an object of a restore point, checked against its hash. Raises DamagedObject or ObjectMissing."""
        name = point.object_name(file)
        data = self.get_object(name, file.size)
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise DamagedObject(f"{name} is damaged: it does not match its restore point")
        return data

    def read_map(self, point: RestorePoint, target: str) -> maps.ExtentMap:
        """Return a disk's extent map, checked. Raises DamagedObject, ObjectMissing or Refused."""
        disk = point.disk(target)
        if disk is None:
            raise Refused(f"Restore point {point.id} of {point.domain} holds no disk {target}.")
        data = self.get_file(point, disk.map)
        try:
            return maps.decode(data, disk.size)
        except DamagedObject as error:
            raise DamagedObject(f"{point.object_name(disk.map)} is damaged: {error}") from error

    def readable_maps(self, point: RestorePoint) -> t.Iterator[tuple[str, maps.ExtentMap]]:
        """Yield target and extent map of each disk whose map can be read."""
        for disk in point.disks:
            with contextlib.suppress(UnreadableObject):
                yield disk.target, self.read_map(point, disk.target)

    def read_packs(self, point: RestorePoint, disk: DiskRecord) -> tuple[PackRef, ...]:
        """Return the packs that hold a disk at a restore point. Raises DamagedObject or ObjectMissing."""
        data = self.get_file(point, disk.map)
        try:
            return maps.decode_packs(data, disk.size)
        except DamagedObject as error:
            raise DamagedObject(f"{point.object_name(disk.map)} is damaged: {error}") from error

    def publish(self, point: RestorePoint, replace: bool = True) -> bool:
        """Store a manifest; ``publishing.publish`` checks first what it refers to.

        Without ``replace``, return False and change nothing if it exists.
        """
        return self.put_object(names.manifest(point.uuid, point.id), manifests.encode(point), replace)


def configuration_in(store: Store) -> Configuration | None:
    """Return the configuration in a store, None if there is none. Raises as ``open_repository`` does."""
    try:
        return configuration.decode(store.get(configuration.NAME), store.location)
    except ObjectMissing:
        there = store.occupants()
    if there and configuration.NAME not in there:  # a configuration there was just created by another host
        raise RepositoryError(
            f"{store.location} is not a repository: it has files but no {configuration.NAME}. {store.advice()}"
            " Otherwise use an empty or a new location; if that file was lost, put a copy of it back, or recreate it"
            " with cbt_repository and rebuild: true."
        )
    return None


def _missing(store: Store) -> RepositoryError:
    return RepositoryError(
        f"There is no repository in {store.location}: it is empty or does not exist. {store.advice()}"
        " To create a repository there, run cbt_repository (the role prepare does), or set create_repository: true."
    )


def open_repository(where: str | RepositoryLocation, watching: Watching | None = None) -> Repository:
    """Open the repository at a location.

    With ``watching``, compare it with what is known of it. Raises RepositoryError if there is none, or if it is damaged
    or of a newer format. Raises PassphraseRefused if its passphrase is missing or wrong. Raises Refused if it is not
    the repository known there, or if it was rolled back.
    """
    where = as_location(where)
    repository = find_repository(where, watching)
    if repository is None:
        raise _missing(open_store(where))
    return repository


def find_repository(where: RepositoryLocation, watching: Watching | None = None) -> Repository | None:
    """Open the repository at a location. Return None if there is none. Otherwise raises as ``open_repository`` does."""
    store = open_store(where)
    watch = watching(store) if watching is not None else None
    found = configuration_in(store)
    if watch is not None:
        watch.check_identity(found)
    if found is None:
        return None
    keys = configuration.keys_of(found, where.passphrase, store.location)
    repository = Repository(store, found.id, keys, tuple(found.slots), watch)
    if watch is not None:
        watch.check_last(repository)
    return repository
