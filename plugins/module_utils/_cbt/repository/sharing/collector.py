# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reclaims the space of objects that no restore point needs.

Writers and other collectors may run at the same time. The order of visible requests makes this safe
(docs/repository-format.md, Sharing a repository); the grace period and the lapse of leases are margins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing as t

from ...control import Control
from ...errors import ObjectLocked, ObjectMissing, Refused, StorageFull, UnreadableObject
from ...parallel import map_all
from ..format import envelope, names
from ..format.manifests import Key, RestorePoint
from ..repository import Repository
from ..stores import reserve
from ..stores.base import Entry
from . import condemned, leases, removals
from .leases import ASTRAY, LAPSE, Lease
from .survey import Survey, expired, survey, unneeded

KIND = "collected"
VERSION = 1
_SHAPE = {"points": int}
_FRESH = LAPSE / 2  # seconds for which a deletion list surely counts


@dataclasses.dataclass(frozen=True)
class Collected:
    """The result of a collection, or its prediction.

    ``condemned`` counts newly condemned objects, ``deleted`` and ``reclaimed_bytes`` those that were deleted.
    ``foreign`` are warnings about files that are not objects. ``unannounced`` objects could not be condemned because
    the store is full.
    """

    condemned: int = 0
    deleted: int = 0
    reclaimed_bytes: int = 0
    foreign: tuple[str, ...] = ()
    unannounced: int = 0

    def __add__(self, later: Collected) -> Collected:
        return Collected(
            self.condemned + later.condemned,
            self.deleted + later.deleted,
            self.reclaimed_bytes + later.reclaimed_bytes,
            later.foreign,
            later.unannounced,
        )


@dataclasses.dataclass(frozen=True)
class CollectionPlan:
    """Objects that nothing needs, and objects to reprieve, given what is ``needed``.

    ``fresh`` objects are not condemned yet. The grace period of ``due`` objects is over; their bytes are given.
    ``idle`` objects are condemned although they are needed again, gone, or possibly those of a running session.
    """

    needed: Survey
    fresh: tuple[str, ...]
    due: t.Mapping[str, int]
    idle: tuple[str, ...]


def make_plan(
    needed: Survey,
    objects: t.Iterable[Entry],
    announced: t.Mapping[str, float],
    spared_from: float,
    now: float,
    grace: float,
) -> CollectionPlan:
    """Sort ``objects`` that nothing needs. Pure.

    ``spared_from`` is the start of the longest-running session. An object stored since then may belong to it without
    being named yet. This holds for objects condemned while the lease seemed to have lapsed, too: they are reprieved.
    """
    sizes = {
        each.name: each.size for each in objects if names.is_collectable(each.name) and each.modified < spared_from
    }
    return CollectionPlan(
        needed,
        fresh=tuple(name for name in sizes if name not in announced),
        due={name: size for name, size in sizes.items() if now - announced.get(name, now) >= grace},
        idle=tuple(name for name in announced if name not in sizes),
    )


def is_locked(repository: Repository, now: float, name: str) -> bool:
    """Return True if the store does not yet permit the deletion of an object."""
    with contextlib.suppress(ObjectMissing):
        until = repository.store.locked_until(name)
        return until is not None and until > now
    return False


class Collector:
    """One collection at ``now`` by the store's clock, with ``grace`` in seconds."""

    def __init__(self, repository: Repository, now: float, grace: float, control: Control | None = None) -> None:
        self._repository, self._store = repository, repository.store
        self._now, self._grace, self._control = now, grace, control or Control()

    def plan(
        self, confirm_shrink: bool = False, without: t.Collection[Key] = (), back: t.Collection[RestorePoint] = ()
    ) -> CollectionPlan:
        """Decide what to condemn, delete and reprieve. Changes nothing.

        ``without`` are points to regard as just removed, ``back`` as just brought back. Raises Refused if at most half
        as many restore points are found as the last time, unless ``confirm_shrink``; RepositoryError if anything cannot
        be listed or read.
        """
        needed = survey(self._repository, self._now, self._grace, without, back)
        self._refuse_shrunk(needed, confirm_shrink)
        alive = [holder.since for holder in leases.lease_holders(self._repository) if not holder.lapsed(self._now)]
        listed = (entry for folder in (names.PACKS, names.POINTS) for entry in self._store.entries(folder))
        objects = unneeded(needed, self._repository, listed)
        announced = condemned.announced(self._repository)
        return make_plan(needed, objects, announced, min([*alive, self._now]), self._now, self._grace)

    def printed(self, plan: CollectionPlan) -> Collected:
        """Return a plan as a result. Objects that the store locks are not deleted."""
        locked = map_all(functools.partial(is_locked, self._repository, self._now), plan.due)
        due = [size for size, stays in zip(plan.due.values(), locked) if not stays]
        return self._result(len(plan.fresh), due)

    def _result(self, condemned: int, deleted: t.Collection[int], unannounced: int = 0) -> Collected:
        foreign = tuple(self._repository.foreign_words())
        return Collected(condemned, len(deleted), sum(deleted), foreign, unannounced)

    def collect(self, lease: Lease, confirm_shrink: bool = False) -> Collected:
        """Condemn unneeded objects, and delete those that were condemned long enough ago.

        Raises Refused and RepositoryError as ``plan`` does. Then nothing needed was deleted, and the next run
        continues. If the store is full, as much is condemned and deleted as there is room for.
        """
        with self._control.phase("collecting") as result:
            self._store.reserve.spare = reserve.FOR_DELETING
            plan = self.plan(confirm_shrink)
            left = self._announce(plan.fresh)
            plan = dataclasses.replace(plan, due={name: size for name, size in plan.due.items() if name not in left})
            self._store.reserve.spare = 0
            deleted = self._delete(plan, lease) if plan.fresh or plan.due else []
            self._reprieve(plan.idle)
            self._record(plan.needed)
            self._tidy(plan.needed)
            collected = self._result(len(plan.fresh) - len(left), deleted, len(left))
            result.update({key: value for key, value in dataclasses.asdict(collected).items() if key != "foreign"})
        return collected

    def _reprieve(self, objects: t.Iterable[str]) -> None:
        for _done in map_all(functools.partial(condemned.reprieve, self._repository), objects):
            pass

    def _announce(self, fresh: t.Sequence[str]) -> set[str]:
        """Condemn objects. Returns those for whose entries there is no room."""

        def condemn(name: str) -> bool:
            try:
                condemned.condemn(self._repository, name)
            except StorageFull:
                return False
            self._control.detail("condemned", object=name)
            return True

        left = [name for name, done in zip(fresh, map_all(condemn, fresh)) if not done]
        # One by one they need less room than several that are written at once.
        return {name for name in left if not condemn(name)}

    def _delete(self, plan: CollectionPlan, lease: Lease) -> list[int]:
        """Delete due objects unless a second survey needs them. Returns their sizes.

        The survey sees every writer that did not see the deletion list. Objects that a point names again are reprieved.
        """
        began = leases.moment()
        lists = condemned.list_for_deletion(self._repository, lease.id, list(plan.due))
        listed = [name for some in lists.values() for name in some]
        again = survey(self._repository, self._now, self._grace)

        def delete(name: str) -> bool:
            if again.needs(name) or began.elapsed() >= _FRESH:
                return False
            try:
                self._store.delete(name)
            except ObjectLocked:
                return False  # a run after the lock ends deletes it
            condemned.reprieve(self._repository, name)
            self._control.detail("deleted", object=name, bytes=plan.due[name])
            return True

        gone = [plan.due[name] for name, done in zip(listed, map_all(delete, listed)) if done]
        named = [name for name in {*plan.fresh, *plan.due} if again.needs(name)]
        for name in named:
            self._control.note("pardoned", object=name, reason="a restore point names it again")
        self._reprieve(named)
        for each in lists:
            self._repository.discard(each)
        return gone

    def _refuse_shrunk(self, found: Survey, confirmed: bool) -> None:
        before = 0
        with contextlib.suppress(UnreadableObject):  # nothing to compare with
            before = envelope.decode(KIND, VERSION, self._repository.get_object(names.RECORD), names.RECORD, _SHAPE)[
                "points"
            ]
        if 0 < before >= found.points * 2 and not confirmed:
            raise Refused(
                f"Space was not reclaimed: {found.points} restore points are listed where there were {before} the last"
                " time, those removed but still recoverable included. Check that the whole repository is there; if it"
                " is, set confirm_shrink: true."
            )

    def _record(self, found: Survey) -> None:
        self._repository.put_object(
            names.RECORD, envelope.encode(KIND, VERSION, {"points": found.points - found.expired})
        )

    def _tidy(self, needed: Survey) -> None:
        """Delete outdated trash entries, drafts, lists, leases and records of damage.

        Drafts and deletion lists are those of dead sessions, leases lapsed long ago, and the damaged packs are gone. A
        restore point that leaves the trash is recorded as removed first.
        """
        old = self._over(needed)
        kept_for = {names.DRAFTS: LAPSE + ASTRAY, names.DOOMED: LAPSE + ASTRAY, names.LEASES: LAPSE + self._grace}
        for folder, seconds in kept_for.items():
            old += [entry.name for entry in self._store.entries(folder) if self._now - entry.modified > seconds]
        for name, taken in self._repository.of_kind(names.DAMAGED_KIND, names.DAMAGED):
            pack = names.pack(taken.pack)
            if not needed.needs(pack) and not self._repository.exists(pack):
                old.append(name)
        for _done in map_all(self._repository.discard, old):
            pass

    def _over(self, needed: Survey) -> list[str]:
        """Return the trash entries whose time is over.

        Records their points as removed, except those that exist again.
        """
        over: list[str] = []
        gone: set[Key] = set()
        entries = [entry for entry in self._store.entries(names.TRASH) if expired(entry, self._now, self._grace)]
        for entry, locked in zip(
            entries, map_all(lambda entry: is_locked(self._repository, self._now, entry.name), entries)
        ):
            taken = names.parsed(entry.name)
            exists = taken is not None and names.manifest(*taken.point) in needed.existing
            if (
                taken is None
                or locked
                or taken.point in needed.held
                or (exists and self._now - entry.modified <= LAPSE)
            ):
                continue  # a young entry may belong to a removal that has not deleted the manifest yet
            over.append(entry.name)
            if not exists:
                gone.add(taken.point)
        removals.record(self._repository, gone)
        return over
