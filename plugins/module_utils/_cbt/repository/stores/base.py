# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface between a repository and an object store.

An object has a name with slashes and immutable content. A store can put, get, get a range, return the size, list and
delete. It offers nothing that an object store such as S3 cannot do.
"""

from __future__ import annotations

import typing as t

from ...errors import DamagedObject, RepositoryError
from ...files import Buffer
from ..format import names
from .reserve import Reserve

MOST_LISTED = 1 << 21  # objects below one folder; that many packs hold 128 TiB
LATEST = 253_370_764_800.0  # seconds since 1970: the last year that a date can have
_MOST_FOREIGN = 20  # names kept for warnings

Listed = t.TypeVar("Listed")


class Upload(t.Protocol):
    """An object being written. Ranges may be written in any order and from several threads."""

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        """Write the buffers one after another at ``offset``."""

    def commit(self, replace: bool = True) -> bool:
        """Make the object visible under its name, complete and durable.

        Without ``replace``, return False and change nothing if an object of this name exists.
        """

    def abandon(self) -> None:
        """Discard the upload. After ``commit`` this does nothing."""


class Entry(t.NamedTuple):
    """An object in a listing: bytes, and modification time in seconds (store's clock)."""

    name: str
    size: int
    modified: float


class Foreign:
    """Files in a repository that are not objects. They are left alone; a few names are kept for warnings."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._names: dict[str, None] = {}
        self._more = False

    def add(self, name: str) -> None:
        """Add a foreign file. Files that NFS and FUSE keep while they are open do not count."""
        if name.rpartition("/")[2].startswith((".nfs", ".fuse_hidden")) or name in self._names:
            return
        if len(self._names) < _MOST_FOREIGN:
            self._names[name] = None
        else:
            self._more = True

    def words(self) -> list[str]:
        """Return warnings, one sentence for each name."""
        found = [
            f"{names.shown(name)} in {self._location} is not an object of a repository and was skipped. Remove it."
            for name in sorted(self._names)
        ]
        if self._more:
            found.append(f"{self._location} has more files that are not objects of a repository and were skipped.")
        return found


def counted(found: t.Iterable[Listed], prefix: str, location: str, before: int = 0) -> t.Iterator[Listed]:
    """Yield the entries of a listing, counting from ``before``. Raises RepositoryError above MOST_LISTED."""
    for number, each in enumerate(found, before):
        if number >= MOST_LISTED:
            raise RepositoryError(
                f"Cannot list {prefix} in {location}: more than {MOST_LISTED} objects are there. Use several"
                " repositories."
            )
        yield each


def check_size(where: str, name: str, size: int, most: int | None) -> int:
    """Return the size limit of an object: ``most``, or the maximum of its kind.

    Raises DamagedObject if ``size`` exceeds it.
    """
    limit = names.largest_stored(name) if most is None else most
    if size > limit:
        raise DamagedObject(f"{where} is damaged: it has {size} bytes and cannot have more than {limit}")
    return limit


def as_time(seconds: float) -> float:
    """Limit a time in seconds that a file system reports to what a date can represent."""
    return min(max(0.0, seconds), LATEST)


class Store(t.Protocol):
    """The operations a repository needs of an object store. All raise RepositoryError.

    A store accepts only names of the grammar in format/names.py and raises DamagedObject for any other. ``foreign``
    collects the other files that listings find.

    ``local_path`` is the directory whose file system holds the objects, None if they are elsewhere. ``open_uploads`` is
    the number of uploads that may be open at once without using too much memory, None if an upload needs none.
    """

    location: str
    local_path: str | None
    open_uploads: int | None
    foreign: Foreign
    reserve: Reserve

    def upload(self, name: str) -> Upload:
        """Begin an object whose content is written in pieces."""

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Store a small object durably, as ``Upload.commit`` does."""

    def swap(self, name: str, before: bytes, after: bytes) -> bool:
        """Replace an object if it has the bytes ``before``.

        Return False and change nothing if it has others or does not exist. A store without locks or conditions cannot
        exclude a concurrent request: read the object afterwards.
        """

    def get(self, name: str, most: int | None = None) -> bytes:
        """Return an object of at most ``most`` bytes (None: its kind's limit).

        Raises ObjectMissing or DamagedObject.
        """

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, fewer at the end of the object. Raises ObjectMissing."""

    def size(self, name: str) -> int:
        """Return the size of an object in bytes. Raises ObjectMissing."""

    def list(self, prefix: str) -> t.Iterator[str]:
        """Yield the names of the objects below a folder, unordered. Raises RepositoryError if one is not a file."""

    def entries(self, prefix: str) -> t.Iterator[Entry]:
        """Yield the objects below a folder with size and time, in no particular order."""

    def modified(self, name: str) -> float:
        """Return the modification time of an object, in seconds by the store's clock. Raises ObjectMissing."""

    def delete(self, name: str) -> None:
        """Delete an object; it need not exist. Raises ObjectLocked if the store retains it."""

    def locked_until(self, name: str) -> float | None:
        """Return the time when the object's lock ends, None if there is no lock. Raises ObjectMissing."""

    def protect(self, objects: t.Iterable[str], like: str) -> None:
        """Have the store retain objects at least as long as the object ``like``. Raises ObjectMissing."""

    def occupants(self) -> set[str]:
        """Return the first part of each name in the store.

        A repository may be created only where this is empty. Raises RepositoryError if objects cannot be kept there.
        """

    def check_creatable(self) -> None:
        """Raise Refused if a repository that is created now would later be hidden."""

    def try_out(self) -> t.Sequence[str]:
        """Try out what a repository relies on, before one is created. Returns warnings.

        Raises Refused if a repository cannot be kept there. Leaves nothing.
        """

    def addresses(self) -> t.Sequence[str]:
        """Return all addresses under which a host may know the location; the last one is for a new location."""

    def advice(self) -> str:
        """Return what to check if the expected repository is not in the store."""

    def sweep(self) -> None:
        """Remove unfinished objects of killed processes, as far as they are recognized."""
