# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removed restore points, which can be brought back until their grace period ends."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import typing as t

from ...errors import DamagedObject, Held, ObjectMissing
from ..format import manifests, names
from ..format.manifests import RestorePoint
from ..repository import Repository
from ..stores.base import Entry
from . import condemned, holds, leases, removals
from .leases import LAPSE
from .wholeness import is_whole

_FRESH = LAPSE / 2  # seconds for which an entry surely outlives whoever brings its point back


@dataclasses.dataclass(frozen=True)
class Removed:
    """A removed restore point: its entry's name, and when it was removed, in seconds by the store's clock."""

    point: RestorePoint
    entry: str
    at: float


def remove(repository: Repository, point: RestorePoint) -> None:
    """Remove a restore point. Its entry in the trash comes first, so that what it needs is named at every moment.

    Each removal has an entry of its own: bringing a point back takes away old entries it saw, and no later one. So the manifest is
    deleted only while the entry is young. If any of this took long, the trash is looked at again.

    Raises Held, and changes nothing, if the point is held. Holds are looked for after the entry is there: a process
    that takes one later sees the entry, or that the manifest is gone.
    """
    name = names.manifest(point.uuid, point.id)
    first, manifest, entries = leases.moment(), b"", []
    with contextlib.suppress(ObjectMissing):  # another run removed it
        while True:
            began = leases.moment()
            manifest = repository.get_object(name)
            entries.append(_keep(repository, point, manifest))
            _check_free(repository, point, entries)
            _withdraw(repository, entries[:-1])  # the manifest may have been another one then, of which some is gone
            del entries[:-1]
            if began.elapsed() < _FRESH:
                break
        repository.store.delete(name)
    if entries and first.elapsed() >= _FRESH:
        _settle(repository, point, manifests.decode(manifest, name), entries)


def _check_free(repository: Repository, point: RestorePoint, entries: t.Sequence[str]) -> None:
    """Raise Held if a point is held, once the entries are withdrawn."""
    try:
        holds.check_free(repository, point.key)
    except Held:
        _withdraw(repository, entries)
        raise


def _withdraw(repository: Repository, entries: t.Sequence[str]) -> None:
    for entry in entries:
        repository.discard(entry)


def _settle(repository: Repository, point: RestorePoint, removed: RestorePoint, entries: t.Sequence[str]) -> None:
    """Keep what was removed for a grace period from now on if it is whole; else take the entries away, which came after all it needs was deleted.

    The point is recorded as removed then: a collector that met an old entry beside the manifest took the point for one that was brought
    back. The entry comes before the last look, as a writer's draft does: of it and a collector, one sees the other.
    """
    if is_whole(repository, removed):
        entries = [*entries, _keep(repository, point, manifests.encode(removed))]
        going = condemned.listed_for_deletion(repository)
        if is_whole(repository, removed, going):
            return
    if not removals.exists(repository, point.key):
        removals.record(repository, [point.key])
    _withdraw(repository, entries)


def _keep(repository: Repository, point: RestorePoint, manifest: bytes) -> str:
    entry = names.trash_entry(point.uuid, point.id, secrets.token_hex(8))
    repository.put_object(entry, manifest)
    return entry


def contains(repository: Repository, point: RestorePoint) -> bool:
    """True if a removal of the point is under way or done."""
    return any(True for _name in repository.store.list(names.trash_folder(point.uuid, point.id)))


def read(repository: Repository, entry: Entry, budget: manifests.Budget) -> Removed:
    """What an entry keeps. Raises ObjectMissing or DamagedObject."""
    try:
        point = manifests.decode(budget.take(repository.get_object(entry.name)), names.manifest_kept_by(entry.name))
    except DamagedObject as error:
        raise DamagedObject(
            f"{entry.name} in the trash cannot be read ({error}). It is deleted once its grace period is over, or delete it manually."
        ) from error
    return Removed(point, entry.name, entry.modified)


def removed(repository: Repository, since: float = 0.0) -> list[Removed]:
    """All that came to the trash after ``since``, in seconds by the store's clock, in the order of removal.

    Raises DamagedObject if one of these entries cannot be read.
    """
    found = []
    budget = manifests.Budget()
    for entry in repository.store.entries(names.TRASH):
        if entry.modified > since:
            with contextlib.suppress(ObjectMissing):  # brought back, or over, since it was listed
                found.append(read(repository, entry, budget))
    return sorted(found, key=lambda each: (each.at, each.entry))
