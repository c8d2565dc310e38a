# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishes restore points while collectors may run."""

from __future__ import annotations

import contextlib
import secrets
import typing as t

from ...errors import DamagedObject, Held, ObjectMissing, RepositoryError, UnreadableObject
from ..format import manifests, names
from ..format.manifests import Key, RestorePoint
from ..repository import Repository
from . import condemned, leases, removals
from .leases import LAPSE, STEADY, Lease, Moment
from .wholeness import is_given_back, needed, unsound, whole_point, with_whole_maps

# Seconds for which a draft surely counts, with as much again for the one request after the last look.
_FRESH = LAPSE / 2
_ATTEMPTS = 3  # to repair a restore point; an attempt that ended too late does not count

RestoreMissing = t.Callable[[set[str]], RestorePoint]


def resting_on(repository: Repository, point: RestorePoint) -> t.Iterator[str]:
    """Yield the names of all objects that a restore point refers to.

    The maps are read only when the iteration starts, because stores without object lock never iterate.
    """
    yield from needed(repository, point)


def missing(repository: Repository, point: RestorePoint, new: t.Collection[str] | None = None) -> set[str]:
    """Return the names of a point's objects that are missing, truncated or condemned.

    With ``new``, only the sizes of these objects are checked.
    """
    try:
        objects = needed(repository, point)
    except ObjectMissing:
        return set(map(point.object_name, point.stored_files))
    pending = objects.keys() & condemned.pending_deletion(repository)
    return pending | unsound(
        repository,
        {name: size for name, size in objects.items() if name not in pending and (new is None or name in new)},
    )


@contextlib.contextmanager
def _drafting(lease: Lease) -> t.Iterator[t.Callable[[RestorePoint], Moment]]:
    """Yield a function that stores a manifest as a draft and returns the time when it started.

    A collector keeps everything that a draft refers to. The drafts are deleted when the block ends.
    """
    drafts: list[str] = []

    def draft(point: RestorePoint) -> Moment:
        lease.renew()
        began = leases.moment()
        # A name of its own each time: a collector that is just about to remove an outdated draft must not hit this one.
        drafts.append(names.draft(lease.id, *point.key, secrets.token_hex(8)))
        lease.repository.put_object(drafts[-1], manifests.encode(point))
        return began

    try:
        yield draft
    finally:
        for name in drafts:
            with contextlib.suppress(RepositoryError):  # an old draft counts for nothing
                lease.repository.discard(name)


def _nothing() -> None:
    pass


def _exists(repository: Repository, point: RestorePoint) -> bool:
    try:
        return removals.exists(repository, point.key)
    except DamagedObject:
        return True


@contextlib.contextmanager
def _unpublishing(repository: Repository, put: t.Sequence[RestorePoint]) -> t.Iterator[None]:
    """If the block fails, delete the manifest that was stored last.

    It stays if another run has replaced it. Objects that this manifest refers to are lost.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(RepositoryError):  # the error says more
            if put and stands(repository, put[-1]):
                withdraw(repository, put[-1].key)
        raise


def publish(
    lease: Lease,
    point: RestorePoint,
    restore_missing: RestoreMissing,
    before_visible: t.Callable[[], None] = _nothing,
    yields: bool = False,
) -> RestorePoint:
    """Make a restore point exist, or replace its manifest. All objects that it names must be stored already.

    Returns the point that exists afterwards.

    ``before_visible`` is called just before others may see the point. With ``yields``, a whole point of this id that
    another run published is kept and returned; one that is not whole is replaced.

    The writer stores a draft and then looks for condemned objects. The collector lists what it will delete and then
    looks for drafts. So at least one of them sees the other. ``restore_missing`` receives the names of the lost
    objects. It stores their content under new names and returns a restore point that refers to those. So a point that
    exists is complete at every moment.
    """
    repository = lease.repository
    put: list[RestorePoint] = []
    with _drafting(lease) as draft:
        while True:
            began = draft(point)
            gone = missing(repository, point)
            looked = leases.moment()
            if gone:
                with _unpublishing(repository, put):
                    point = restore_missing(gone)
                continue
            other = whole_point(repository, *point.key) if yields else None
            if other is not None and other not in put:
                return other
            replaces = not yields or bool(put) or _exists(repository, point)
            if began.elapsed() >= _FRESH:
                continue  # the lookups took too long: look at the draft again
            before_visible()
            put.append(point)
            if repository.publish(point, replaces) and looked.elapsed() < STEADY:
                if repository.watch is not None:
                    repository.watch.published(point)
                return point
            # Another run has just published it, or the draft may have counted for nothing before the put ended.


def replace(lease: Lease, before: RestorePoint, after: RestorePoint, new: t.Collection[str]) -> bool:
    """Replace the manifest of a restore point by one that names ``new`` objects.

    The other objects are among those it named before. Works like ``publish``, but for objects that the point already
    refers to, one request checks whether any of them is condemned. Return False and change nothing if an object is
    condemned, a new object is missing, another session is about to give the point other maps back, or the stored point
    differs from ``before``. If the manifest appeared so late that the draft may have counted for nothing, its objects
    are checked again: see ``_settled``. A point that is removed at the same time stays removed.
    """
    repository = lease.repository
    records = removals.objects(repository, before.uuid)
    with _drafting(lease) as draft:
        began = draft(after)
        # In this order: if the manifest still stands after the check for condemned objects, nothing was lost before it.
        lost = _lacks(repository, after, new) or is_given_back(repository, before, after)
        if lost or not stands(repository, before):
            return False
        looked = leases.moment()
        if began.elapsed() >= _FRESH:
            return False
        repository.publish(after)
        return not _removed_again(repository, after, records) and (
            looked.elapsed() < STEADY or _settled(repository, before, after, records)
        )


def _lacks(repository: Repository, point: RestorePoint, new: t.Collection[str] | None = None) -> bool:
    try:
        return bool(missing(repository, point, new))
    except DamagedObject:
        return True  # a map is damaged, so the objects it names are not known


def _removed_again(repository: Repository, point: RestorePoint, records: t.Collection[str]) -> bool:
    """Remove a point whose removal began since ``records`` were listed; return True.

    It may have deleted the manifest before that was replaced. Return False if there is none, or if the point is held.
    """
    from . import holds, trash  # loaded only when a manifest is replaced

    if not (trash.contains(repository, point) or removals.recorded(repository, point.key, records)):
        return False
    if stands(repository, point):
        try:
            if _lacks(repository, point):
                holds.check_free(repository, point.key)
                withdraw(repository, point.key)  # no entry of the trash may name lost objects
            else:
                # It gets an entry of its own: a run that brings the point back now deletes the entries it saw.
                trash.remove(repository, point)
        except Held:  # a point that was taken into use since then stays
            return False
    return True


def withdraw(repository: Repository, key: Key) -> None:
    """Delete the manifest of a point. Record the removal first, because other hosts may have seen the point."""
    removals.record(repository, [key])
    repository.store.delete(names.manifest(*key))


def _settled(repository: Repository, before: RestorePoint, after: RestorePoint, records: t.Collection[str]) -> bool:
    """Repair a restore point whose manifest was stored too late to be safe.

    Objects that it refers to may be deleted. Return True if the manifest can stay.

    The point gets back the maps it named before, or maps that another run stored for it, if possible maps that no
    collector is about to delete. It is removed if none of these are whole. A manifest that stands needs no draft: a
    collector sees the manifest, or this run sees the list of the collector.
    """
    put, attempts = after, _ATTEMPTS
    while attempts:
        if not stands(repository, put) or _removed_again(repository, put, records):
            return False
        if not _lacks(repository, put):
            return put == after
        looked = leases.moment()
        going = condemned.pending_deletion(repository)  # a collector may not have seen the manifest that stands
        other = with_whole_maps(repository, before, going) or with_whole_maps(repository, before)
        if other is None:
            withdraw(repository, put.key)
            return False
        repository.publish(other)
        put = other
        attempts -= looked.elapsed() < STEADY  # a manifest that appeared late needs another look
    return False  # its objects exist but are condemned; a collector that sees the manifest reprieves them


def stands(repository: Repository, point: RestorePoint) -> bool:
    """Return True if the stored manifest equals ``point``."""
    try:
        return repository.point(*point.key) == point
    except UnreadableObject:
        return False
