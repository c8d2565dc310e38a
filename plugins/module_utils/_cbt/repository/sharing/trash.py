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

_FRESH = LAPSE / 2  # seconds for which an entry surely outlives a run that brings its point back


@dataclasses.dataclass(frozen=True)
class Removed:
    """A removed restore point, its trash entry, and the time of its removal.

    ``at`` is in seconds by the store's clock.
    """

    point: RestorePoint
    entry: str
    at: float


def remove(repository: Repository, point: RestorePoint) -> None:
    """Remove a restore point: write an entry of the trash, then delete the manifest.

    So the objects of the point are named at every moment. Each removal has an entry of its own: a run that brings a
    point back deletes the old entries that it saw, and no later one. So the manifest is deleted only while the entry is
    young. If any of this took long, the trash is checked again.

    Raises Held, and changes nothing, if the point is held. Holds are checked after the entry is written: a process that
    takes a hold later sees the entry, or that the manifest is gone.
    """
    name = names.manifest(*point.key)
    first, manifest, entries = leases.moment(), b"", []
    with contextlib.suppress(ObjectMissing):  # another run removed it
        while True:
            began = leases.moment()
            manifest = repository.get_object(name)
            entries.append(_keep(repository, point, manifest))
            _check_free(repository, point, entries)
            _withdraw(repository, entries[:-1])  # an earlier manifest may differ, and its objects may be gone
            del entries[:-1]
            if began.elapsed() < _FRESH:
                break
        repository.store.delete(name)
    if entries and first.elapsed() >= _FRESH:
        _settle(repository, point, manifests.decode(manifest, name), entries)


def _check_free(repository: Repository, point: RestorePoint, entries: t.Sequence[str]) -> None:
    """Withdraw the entries and raise Held if a point is held."""
    try:
        holds.check_free(repository, point.key)
    except Held:
        _withdraw(repository, entries)
        raise


def _withdraw(repository: Repository, entries: t.Sequence[str]) -> None:
    for entry in entries:
        repository.discard(entry)


def _settle(repository: Repository, point: RestorePoint, removed: RestorePoint, entries: t.Sequence[str]) -> None:
    """Keep a removed point for a grace period from now on if it is whole.

    Otherwise, withdraw its entries, which were written after some of its objects were deleted. The point is then
    recorded as removed unless it exists: a collector that met an old entry beside the manifest regarded the point as
    brought back. The new entry is written before the last check, as the draft of a writer is: either the collector sees
    the entry, or this run sees the list of the collector.
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
    entry = names.trash_entry(*point.key, secrets.token_hex(8))
    repository.put_object(entry, manifest)
    return entry


def contains(repository: Repository, point: RestorePoint) -> bool:
    """Return True if a removal of the point is in progress or done."""
    return any(True for _name in repository.store.list(names.trash_folder(*point.key)))


def read(repository: Repository, entry: Entry, budget: manifests.Budget) -> Removed:
    """Return the point that an entry keeps. Raises ObjectMissing or DamagedObject."""
    try:
        point = manifests.decode(budget.take(repository.get_object(entry.name)), names.manifest_kept_by(entry.name))
    except DamagedObject as error:
        raise DamagedObject(
            f"{entry.name} in the trash cannot be read ({error}). It is deleted once its grace period is over, or"
            " delete it manually."
        ) from error
    return Removed(point, entry.name, entry.modified)


def removed(repository: Repository, since: float = 0.0) -> list[Removed]:
    """Return the points that came to the trash after ``since``, in order of removal.

    ``since`` is in seconds by the store's clock. Raises DamagedObject if one of these entries cannot be read.
    """
    found = []
    budget = manifests.Budget()
    for entry in repository.store.entries(names.TRASH):
        if entry.modified > since:
            with contextlib.suppress(ObjectMissing):  # brought back or expired since it was listed
                found.append(read(repository, entry, budget))
    return sorted(found, key=lambda each: (each.at, each.entry))
