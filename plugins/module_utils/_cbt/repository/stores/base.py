# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a repository needs of an object store.

An object has a name with slashes and immutable content. A store can put, get, get a range, tell the size,
list and delete, and does nothing that an object store such as S3 could not do.
"""

from __future__ import annotations

import typing as t

from ...errors import DamagedObject, RepositoryError
from ...files import Buffer
from ..format import names

MOST_LISTED = 1 << 21  # objects below one folder; that many packs hold 128 TiB
LATEST = 253_370_764_800.0  # seconds since 1970: the last year that a date can have
_MOST_FOREIGN = 20  # names that are kept

Listed = t.TypeVar("Listed")


class Upload(t.Protocol):
    """An object in the making. Ranges may be written in any order and from several threads."""

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        """Write the buffers one after another at ``offset``."""

    def commit(self, replace: bool = True) -> bool:
        """Make the object appear under its name, whole and durable.

        Without ``replace``, False is returned and nothing changed if there is an object of this name.
        """

    def abandon(self) -> None:
        """Forget it. After ``commit`` this does nothing."""


class Entry(t.NamedTuple):
    """An object as a listing shows it: its bytes, and when it appeared, in seconds by the store's own clock."""

    name: str
    size: int
    modified: float


class Foreign:
    """What is met in a repository and is none of its objects. It is left alone; of the first few the names are kept."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._names: dict[str, None] = {}
        self._more = False

    def note(self, name: str) -> None:
        """Something of this name was met. What an NFS client keeps of a file that is still open somewhere is nothing foreign."""
        if name.rpartition("/")[2].startswith(".nfs") or name in self._names:
            return
        if len(self._names) < _MOST_FOREIGN:
            self._names[name] = None
        else:
            self._more = True

    def words(self) -> list[str]:
        """Warnings, one sentence for each name."""
        told = [
            f"{names.shown(name)} in {self._location} is not an object of a repository and was skipped. Remove it."
            for name in sorted(self._names)
        ]
        return (
            [*told, f"{self._location} has more files that are not objects of a repository and were skipped."]
            if self._more
            else told
        )


def counted(found: t.Iterable[Listed], prefix: str, location: str, before: int = 0) -> t.Iterator[Listed]:
    """What a listing found after ``before`` others, as long as it is not more than any repository holds. Raises RepositoryError."""
    for number, each in enumerate(found, before):
        if number >= MOST_LISTED:
            raise RepositoryError(
                f"Cannot list {prefix} in {location}: more than {MOST_LISTED} objects are there. Use several repositories."
            )
        yield each


def check_size(where: str, name: str, size: int, most: int | None) -> int:
    """How many bytes an object may have: ``most``, or as many as any of its kind. Raises DamagedObject if it has more."""
    limit = names.largest_stored(name) if most is None else most
    if size > limit:
        raise DamagedObject(f"{where} is damaged: it has {size} bytes and cannot have more than {limit}")
    return limit


def as_time(seconds: float) -> float:
    """The time of an object as a date can have it, whatever a file system says."""
    return min(max(0.0, seconds), LATEST)


class Store(t.Protocol):
    """The operations a repository needs of an object store. All raise RepositoryError.

    A store takes only names of the grammar in format/names.py, and raises DamagedObject for any other. ``foreign`` is what else
    listings met.

    ``local_path`` is a directory whose file system holds the objects, None if they are elsewhere. ``open_uploads`` is how
    many uploads there may be at once without taking too much memory, None if an upload takes none
    (but an open file, perhaps).

    While ``spare`` is not None, ``put`` makes room by what ``keep_reserve`` kept, as long as more than this share of it is left, and
    sets ``was_full``.
    """

    location: str
    local_path: str | None
    open_uploads: int | None
    foreign: Foreign
    spare: float | None
    was_full: bool

    def upload(self, name: str) -> Upload:
        """Begin an object whose content comes in pieces."""

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Store a small object durably, as ``Upload.commit`` does."""

    def swap(self, name: str, before: bytes, after: bytes) -> bool:
        """Replace an object that has these bytes; False, and nothing is changed, if it has others, or does not exist.

        Where the store has neither locks nor conditions, another request may come in between: read the object afterwards.
        """

    def get(self, name: str, most: int | None = None) -> bytes:
        """A small object, of at most so many bytes, or as many as any of its kind. Raises ObjectMissing, or DamagedObject if it has more."""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, fewer at the end of the object. Raises ObjectMissing."""

    def size(self, name: str) -> int:
        """Bytes of an object. Raises ObjectMissing."""

    def list(self, prefix: str) -> t.Iterator[str]:
        """Names of the objects below a folder, in no particular order. Raises RepositoryError if anything but an object has the name of one."""

    def entries(self, prefix: str) -> t.Iterator[Entry]:
        """The objects below a folder with size and time, in no particular order."""

    def modified(self, name: str) -> float:
        """When an object appeared, in seconds by the store's own clock. Raises ObjectMissing."""

    def delete(self, name: str) -> None:
        """Delete an object; one that does not exist is no fault. Raises ObjectLocked if the store keeps it for a time."""

    def locked_until(self, name: str) -> float | None:
        """Seconds since 1970 until which the store lets nobody delete an object, None if it may go. Raises ObjectMissing."""

    def protect(self, objects: t.Iterable[str], like: str) -> None:
        """Have the store keep objects at least as long as it keeps the object ``like``. Raises ObjectMissing."""

    def occupants(self) -> set[str]:
        """First parts of the names of what is there, whoever put it: empty where a repository may be created.

        Raises RepositoryError if objects cannot be kept there.
        """

    def keep_reserve(self) -> None:
        """Keep some space to begin with where the store is full, as far as there is room. A store without such a limit keeps none."""

    def sweep(self) -> None:
        """Remove what killed processes of this host left of objects in the making, as far as that can be told."""
