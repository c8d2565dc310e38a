# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes restore points by rules, brings removed ones back, and reclaims space."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t

from ...control import Control
from ...errors import Held, Refused, RepositoryError, StorageFull
from ...repository.dedup import dedup
from ...repository.format import names
from ...repository.format.manifests import Key, RestorePoint
from ...repository.repository import Repository
from ...repository.sharing import holds, leases, publishing, trash
from ...repository.sharing.collector import Collected, Collector, is_locked
from ...repository.sharing.leases import ASTRAY, LAPSE, Lease
from ...repository.sharing.trash import Removed
from .retention_plan import RetentionFacts, RetentionPlan, RetentionRequest, make_plan
from .retention_rules import Verdict

if t.TYPE_CHECKING:
    from .compaction import Candidates, Compacted

__all__ = ["RestorePoint", "RetentionRequest", "RetentionResult", "retention"]


@dataclasses.dataclass(frozen=True)
class RetentionResult:
    """The outcome of a retention, or its prediction.

    ``trash`` are the points that can be brought back afterwards. ``damaged`` gives the cause by unreadable manifest or
    hold. ``full`` is True if the store was full and the reserve was used.
    """

    verdicts: tuple[Verdict, ...]
    undeleted: tuple[RestorePoint, ...]
    compacted: Compacted | None
    collected: Collected | None
    trash: tuple[Removed, ...]
    damaged: t.Mapping[str, str]
    full: bool = False

    @property
    def kept(self) -> list[Verdict]:
        """Return the points that stay, with the rules that keep them."""
        return [verdict for verdict in self.verdicts if verdict.kept]

    @property
    def removed(self) -> list[RestorePoint]:
        """Return the points that are removed."""
        return [verdict.point for verdict in self.verdicts if not verdict.kept]

    @property
    def changed(self) -> bool:
        """Return True if a point was removed or brought back, or space was reclaimed."""
        collected = self.collected is not None and (self.collected.condemned or self.collected.deleted)
        compacted = self.compacted is not None and (self.compacted.packs or self.compacted.points)
        return bool(self.removed or self.undeleted or compacted or collected)


def _too_late(point: RestorePoint) -> Refused:
    return Refused(
        f"Restore point {point.id} of {point.domain} cannot be brought back: its grace period is over and its space is"
        " being reclaimed."
    )


def remove_point(lease: Lease, point: RestorePoint) -> tuple[str, ...]:
    """Remove a restore point; returns the reasons why it stays. A point that is held stays.

    A hold that was written after the first check, but before the manifest was deleted, is found by a second check. The
    manifest is then put back.
    """
    try:
        trash.remove(lease.repository, point)
    except Held as held:
        return held.reasons
    late = holds.of(lease.repository, point.key)
    with contextlib.suppress(Refused):  # an object that it needs is gone
        if late:
            _put_back(lease, point, late)
            return holds.reasons(late)
    return ()


def _put_back(lease: Lease, point: RestorePoint, late: t.Sequence[holds.Hold]) -> None:
    """Publish a removed point again, as one of its holds keeps it.

    Raises Refused if an object that it needs is gone.
    """
    try:
        _publish_again(lease, next((each.point for each in late if each.point is not None), point))
    except StorageFull as error:
        raise RepositoryError(
            f"Restore point {point.id} of {point.domain} is {'; '.join(holds.reasons(late))}, and was removed at the"
            " same time. It is in the trash as long as it is held, for the store is full. Free a MiB there, and bring"
            f" it back with undelete: {point.id}."
        ) from error


def _publish_again(lease: Lease, point: RestorePoint) -> None:
    """Publish a removed restore point again.

    Raises Refused if an object that it needs is gone.
    """
    repository = lease.repository

    def lost(_names: set[str]) -> RestorePoint:
        raise _too_late(point)

    publishing.publish(lease, point, lost, yields=True)
    # The new manifest may be locked for longer than the other objects of the point.
    repository.protect(publishing.resting_on(repository, point), like=names.manifest(point.uuid, point.id))


def _bring_back(lease: Lease, point: RestorePoint, all_removed: t.Sequence[Removed]) -> None:
    _publish_again(lease, point)
    now = lease.now()
    for each in all_removed:
        # The removal that made a young entry may still delete the manifest. The entry is then the only trace of the
        # point.
        if each.point.key == point.key and now - each.at > LAPSE + ASTRAY:
            lease.repository.discard(each.entry)


def _report(plan: RetentionPlan, control: Control) -> None:
    """Report what was decided, and why."""
    for each in plan.verdicts:
        control.note(
            "keep" if each.kept else "remove",
            point=each.point.id,
            domain=each.point.domain,
            reason=", ".join(each.rules) or "no rule keeps it",
        )


class _Retention:
    """One run: makes the plan, then carries it out or prints it."""

    def __init__(
        self, repository: Repository, request: RetentionRequest, control: Control, clock: t.Callable[[], float]
    ) -> None:
        self._repository, self._request, self._control = repository, request, control
        found = RetentionFacts(
            repository.points_of(),
            holds.listed(repository),
            trash.removed(repository) if request.undelete else (),
            clock(),
        )
        # Each question to the store is a request, so it concerns only points that no rule or hold keeps.
        going = [each.key for each in make_plan(found, request).going]
        locked = {key for key in going if is_locked(repository, found.now, names.manifest(*key))}
        self._facts, self._plan = found, make_plan(found, request, locked)
        self._stayed: dict[Key, tuple[str, ...]] = {}
        _report(self._plan, control)

    def printed(self) -> RetentionResult:
        """Return the plan as a result. Raises Refused and RepositoryError as ``carry_out`` does."""
        plan, now = self._plan, self._facts.now
        for point in plan.back:
            if publishing.missing(self._repository, point):
                raise _too_late(point)
        gone = {point.key for point in plan.going}
        compacted = collected = None
        if plan.collects:
            collector = Collector(self._repository, now, self._request.grace, self._control)
            collected = collector.printed(collector.plan(self._request.confirm_shrink, gone, plan.back))
        points = [*self._facts.listing.points, *plan.back]
        left = self._recoverable(now, points)
        if self._request.grace > 0 or not plan.collects:
            left += [Removed(point, "", now) for point in plan.going]
        if plan.compacts:
            from . import compaction  # loaded only with compact_below

            candidates = self._candidates([point for point in points if point.key not in gone], left)
            compacted = compaction.predict(self._repository, candidates, self._control)
        return self._result(compacted, collected, left)

    def carry_out(self, lease: Lease) -> RetentionResult:
        """Bring back, remove, and reclaim, in this order."""
        for point in self._plan.back:
            _bring_back(lease, point, self._facts.removed)
            self._control.note("brought_back", point=point.id, domain=point.domain)
        left = self._remove(lease, self._plan.going)
        # Compact before collecting, so that emptied packs are condemned immediately.
        compacted = self._compact(lease) if self._plan.compacts else None
        collected = self._collect(lease, left)
        return self._result(compacted, collected, self._recoverable(lease.now(), self._repository.points_of().points))

    def _recoverable(self, now: float, existing: t.Sequence[RestorePoint]) -> list[Removed]:
        """Return the removed points that can be brought back at a time by the clock of the store.

        Entries that are locked stay in the trash after their grace period; these are not among them.
        """
        there = {point.key for point in existing}
        since = now - self._request.grace if self._plan.collects else 0.0
        return [each for each in trash.removed(self._repository, since) if each.point.key not in there]

    def _remove(self, lease: Lease, going: t.Sequence[RestorePoint]) -> t.Sequence[RestorePoint]:
        """Remove restore points; returns those left because the store has no space.

        Points that are held stay.
        """
        self._repository.reserve.spare_for_collecting()
        for number, point in enumerate(going):
            self._control.check()
            try:
                self._stayed[point.key] = reasons = remove_point(lease, point)
                why = {"reason": ", ".join(reasons)} if reasons else {}
                self._control.note("stayed" if reasons else "removed", point=point.id, **why)
            except StorageFull:
                return going[number:]
        return ()

    def _compact(self, lease: Lease) -> Compacted:
        """Compact; if the store has no space for new packs, leave it to a later run."""
        from . import compaction  # loaded only with compact_below

        points = self._repository.points_of().points
        candidates = self._candidates(points, self._recoverable(lease.now(), points))
        compacted = compaction.Compacted()
        with contextlib.suppress(StorageFull), self._control.phase("compacting") as result:
            compacted = compaction.compact(lease, candidates, self._control)
            result.update(dataclasses.asdict(compacted))
        return compacted

    def _collect(self, lease: Lease, left: t.Sequence[RestorePoint]) -> Collected | None:
        """Reclaim space, in rounds if the store is full.

        The space that a round frees is used to remove the points that are ``left``, and to condemn further objects.
        """
        collected = Collected() if self._plan.collects else None
        while collected is not None:
            collector = Collector(self._repository, lease.now(), self._request.grace, self._control)
            done = collector.collect(lease, self._request.confirm_shrink)
            collected += done
            if not done.deleted or not (left or done.unannounced):
                break
            self._repository.reserve.keep()
            left = self._remove(lease, left)
        if left:
            raise self._stuck(len(left))
        if collected is not None:
            with contextlib.suppress(StorageFull):  # missing hooks cost space, and a later run makes them
                dedup.tidy(self._repository, self._repository.points_of().points)
        return collected

    def _stuck(self, count: int) -> StorageFull:
        """Return the error that says what to do if there is no space to remove points."""
        how = (
            "Set grace: 0, so that the space of removed restore points is reclaimed immediately"
            if self._request.grace > 0
            else "Free a MiB there by other means"
        )
        return StorageFull(
            f"{count} restore points were not removed: {self._repository.location} is full. {how}, and run this again."
        )

    def _candidates(self, points: t.Sequence[RestorePoint], recoverable: t.Sequence[Removed]) -> Candidates:
        """Return the candidates for compaction, given the existing points and those that can be brought back."""
        from .compaction import Candidates  # loaded only with compact_below

        held = [each.point for each in self._facts.holds if each.point is not None]
        return Candidates(self._request.compact_below or 0, points, [each.point for each in recoverable], held)

    def _result(
        self, compacted: Compacted | None, collected: Collected | None, left: t.Sequence[Removed]
    ) -> RetentionResult:
        plan = self._plan
        return RetentionResult(
            tuple(Verdict(each.point, self._stayed.get(each.point.key, each.rules)) for each in plan.verdicts),
            plan.back,
            compacted,
            collected,
            tuple(left),
            plan.unreadable,
            self._repository.reserve.was_used,
        )


def retention(
    repository: Repository, request: RetentionRequest, check_only: bool = False, control: Control | None = None
) -> RetentionResult:
    """Bring restore points back, remove others by rules, and reclaim space.

    With ``check_only``, nothing is changed, and the result is the prediction. Damaged manifests and held points are
    never removed. While a manifest or a hold is damaged, no space is reclaimed. Raises Refused if the rules would leave
    nothing of a domain, or if a point cannot be brought back; RepositoryError if the repository cannot be read or
    written.
    """
    control = control or Control()
    if check_only:
        # The clock of the store can only be read by writing.
        return _Retention(repository, request, control, time.time).printed()
    with repository.reserve.in_use(), leases.held(repository, "retention") as lease:
        return _Retention(repository, request, control, lease.now).carry_out(lease)
