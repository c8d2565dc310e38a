# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removes restore points by rules, brings removed ones back, and reclaims space."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import time
import typing as t

from ...control import Control
from ...errors import Held, ObjectMissing, Refused, RepositoryError, StorageFull, check_range
from ...repository.dedup import dedup
from ...repository.format import manifests, names
from ...repository.format.manifests import Key, RestorePoint
from ...repository.repository import Repository
from ...repository.selecting import of_domain
from ...repository.sharing import holds, leases, publishing, trash
from ...repository.sharing.collector import Collected, Collector
from ...repository.sharing.leases import ASTRAY, LAPSE, Lease
from ...repository.sharing.trash import Removed
from ...repository.stores import reserve
from . import compaction
from .compaction import Candidates, Compacted
from .retention_rules import Rules, Verdict, decide

__all__ = ["RestorePoint", "RetentionRequest", "RetentionResult", "retention"]

GRACE = 86400.0


@dataclasses.dataclass(frozen=True)
class RetentionRequest:
    """A request; module cbt_retention documents the options.

    If ``rules`` is None, nothing is removed. ``grace`` is in seconds. ``compact_below`` is in percent, or None for no
    compaction.
    """

    rules: Rules | None = None
    domain: str | None = None
    undelete: tuple[str, ...] = ()
    grace: float = GRACE
    allow_empty: bool = False
    collect: bool = True
    confirm_shrink: bool = False
    compact_below: int | None = None

    def __post_init__(self) -> None:
        check_range("grace", self.grace, "a number of seconds, or 0 for none", 0)
        check_range("compact_below", self.compact_below, "a percentage from 1 to 100", 1, 100)


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


def decide_all(
    found: t.Sequence[RestorePoint], request: RetentionRequest, now: datetime.datetime, back: t.Collection[Key] = ()
) -> list[Verdict]:
    """Return a verdict on each restore point, oldest first, by domain. Pure.

    ``back`` are points just brought back; they stay. Unless that is allowed, raises Refused if points would be removed
    and no rule is given, or no point of the domain is kept. A point kept only because it is dated in the future does
    not count.
    """
    if request.rules is None:
        return []
    verdicts: list[Verdict] = []
    for _uuid, group in itertools.groupby(sorted(found, key=lambda point: point.uuid), key=lambda point: point.uuid):
        decided = [
            Verdict(each.point, ("undelete",)) if each.point.key in back else each
            for each in decide(list(group), request.rules, now)
        ]
        goes = not all(verdict.kept for verdict in decided)
        stays = request.rules.given and any(verdict.kept and verdict.rules != ("future",) for verdict in decided)
        if goes and not stays and not request.allow_empty:
            name = decided[-1].point.domain
            raise Refused(
                f"The rules would keep no restore point of {name}. Add a rule, keep_last: 1 for one, or set allow_empty: true."
            )
        verdicts += decided
    return verdicts


def _wanted_back(removed: t.Sequence[Removed], existing: t.Collection[Key], wanted: t.Sequence[str]) -> list[Removed]:
    """Return the newest entry of each wanted point that does not exist.

    Raises Refused if a wanted point neither exists nor is in the trash.
    """
    latest = {each.point.key: each for each in removed}
    known = {point_id for _uuid, point_id in (*latest, *existing)}
    missing = [each for each in wanted if each not in known]
    if missing:
        raise Refused(
            f"Restore point {missing[0]} cannot be brought back: it is not in the trash. Its grace period is over, or it never existed;"
            f" the trash contains {', '.join(sorted(each for _uuid, each in latest)) or 'nothing'}."
        )
    return [each for key, each in latest.items() if each.point.id in wanted and key not in existing]


def _gone(removed: t.Iterable[Removed], existing: t.Iterable[RestorePoint]) -> list[Removed]:
    there = {point.key for point in existing}
    return [each for each in removed if each.point.key not in there]


def _too_late(point: RestorePoint) -> Refused:
    return Refused(
        f"Restore point {point.id} of {point.domain} cannot be brought back: its grace period is over and its space is being reclaimed."
    )


def _remove(lease: Lease, verdict: Verdict) -> Verdict:
    """Remove a restore point; returns the verdict. A point that is held stays.

    A hold that was written after the first check, but before the manifest was deleted, is found by a second check. The
    manifest is then put back.
    """
    repository, point = lease.repository, verdict.point
    try:
        trash.remove(repository, point)
    except Held as held:
        return Verdict(point, held.reasons)
    late = holds.of(repository, point.key)
    try:
        if late and _put_back(lease, next((each.point for each in late if each.point is not None), point)):
            return Verdict(point, holds.reasons(late))
    except StorageFull as error:
        raise _not_back(point, late) from error
    return verdict


def _not_back(point: RestorePoint, late: t.Sequence[holds.Hold]) -> RepositoryError:
    """Return the error that says what to do if there is no space to put a held point back."""
    return RepositoryError(
        f"Restore point {point.id} of {point.domain} is {'; '.join(holds.reasons(late))}, and was removed at the same time. It is in the trash as"
        f" long as it is held, for the store is full. Free a MiB there, and bring it back with undelete: {point.id}."
    )


def _put_back(lease: Lease, point: RestorePoint) -> bool:
    """Publish a removed point again; returns False if an object that it needs is gone."""
    with contextlib.suppress(Refused):
        _publish_again(lease, point)
        return True
    return False


def _publish_again(lease: Lease, point: RestorePoint) -> None:
    """Publish a removed restore point again.

    Raises Refused if an object that it needs is gone.
    """
    repository = lease.repository

    def lost(_names: set[str]) -> RestorePoint:
        raise _too_late(point)

    publishing.publish(lease, point, lost, yields=True)
    # The new manifest may be locked for longer than the other objects of the point.
    repository.store.protect(publishing.resting_on(repository, point), like=names.manifest(point.uuid, point.id))


def _bring_back(
    repository: Repository, lease: Lease, removed: Removed, all_removed: t.Sequence[Removed]
) -> RestorePoint:
    point = removed.point
    _publish_again(lease, point)
    now = lease.now()
    for each in all_removed:
        # The removal that made a young entry may still delete the manifest. The entry is then the only trace of the
        # point.
        if each.point.key == point.key and now - each.at > LAPSE + ASTRAY:
            repository.discard(each.entry)
    return point


class _Retention:
    """One run; check mode and a real run share the decision."""

    def __init__(self, repository: Repository, request: RetentionRequest, control: Control) -> None:
        self._repository, self._request, self._control = repository, request, control
        self._listing = repository.points_of()
        self._holds = holds.listed(repository)
        self._held: dict[Key, list[holds.Hold]] = {}
        for each in self._holds:
            self._held.setdefault(each.key, []).append(each)
        self._stayed: dict[Key, Verdict] = {}
        self._removed = (
            [each for each in trash.removed(repository) if self._meant(each.point)] if request.undelete else []
        )
        self._back = _wanted_back(
            self._removed, {point.key for point in self._listing.points if self._meant(point)}, request.undelete
        )

    def _meant(self, point: RestorePoint) -> bool:
        return self._request.domain in (None, point.uuid, point.domain)

    def decide(self, now: float) -> list[Verdict]:
        """Return a verdict for each point, including those brought back.

        Points that are held or locked are kept regardless of the rules.
        """
        found = manifests.ordered([*self._listing.points, *(each.point for each in self._back)])
        if self._request.domain is not None:
            found = of_domain(found, self._request.domain)
        moment = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
        decided = decide_all(
            found, self._request, moment, [point.key for point in found if point.id in self._request.undelete]
        )
        verdicts = [self._kept_anyway(verdict, now) for verdict in decided]
        for each in verdicts:
            self._control.note(
                "keep" if each.kept else "remove",
                point=each.point.id,
                domain=each.point.domain,
                reason=", ".join(each.rules) or "no rule keeps it",
            )
        return verdicts

    def _kept_anyway(self, verdict: Verdict, now: float) -> Verdict:
        reasons = (*verdict.rules, *holds.reasons(self._held.get(verdict.point.key, ())))
        return Verdict(verdict.point, reasons or (("locked",) if self._locked(verdict.point, now) else ()))

    def _locked(self, point: RestorePoint, now: float) -> bool:
        """Return True if the store does not yet permit the removal of a point."""
        try:
            until = self._repository.store.locked_until(names.manifest(point.uuid, point.id))
        except ObjectMissing:
            return False  # it will be brought back, or another run has just removed it
        return until is not None and until > now

    def predict(self) -> RetentionResult:
        """Return what ``carry_out`` would do. Raises Refused and RepositoryError as it does."""
        now = time.time()  # the clock of the store can only be read by writing
        verdicts = self.decide(now)
        gone = [verdict.point for verdict in verdicts if not verdict.kept]
        back = [each.point for each in self._back]
        for point in back:
            if publishing.missing(self._repository, point):
                raise _too_late(point)
        collector = Collector(self._repository, now, self._request.grace, self._control)
        collected = (
            collector.predict(self._request.confirm_shrink, {point.key for point in gone}, back)
            if self._collects
            else None
        )
        since = now - self._request.grace if self._collects else 0.0
        left = _gone(trash.removed(self._repository, since), [*self._listing.points, *back])
        after = [*left, *(Removed(point, "", now) for point in gone)]
        compacted = (
            compaction.predict(self._repository, self._candidates(after, now, {point.key for point in gone}))
            if self._compacts
            else None
        )
        return self._result(
            verdicts,
            compacted,
            collected,
            [each for each in after if collected is None or now - each.at < self._request.grace],
        )

    def carry_out(self, lease: Lease) -> RetentionResult:
        """Bring back, remove, and reclaim, in this order."""
        now = lease.now()
        verdicts = self.decide(now)
        for each in self._back:
            _bring_back(self._repository, lease, each, self._removed)
            self._control.note("brought_back", point=each.point.id, domain=each.point.domain)
        left = self._remove(lease, [verdict for verdict in verdicts if not verdict.kept])
        # Compact before collecting, so that emptied packs are condemned immediately.
        compacted = self._compact(lease) if self._compacts else None
        collected = self._collect(lease, left)
        # Entries that are locked stay in the trash after their grace period; these are not reported.
        since = lease.now() - self._request.grace if collected is not None else 0.0
        trashed = _gone(trash.removed(self._repository, since), self._repository.points_of().points)
        return self._result(
            [self._stayed.get(verdict.point.key, verdict) for verdict in verdicts], compacted, collected, trashed
        )

    def _remove(self, lease: Lease, going: t.Sequence[Verdict]) -> t.Sequence[Verdict]:
        """Remove restore points; returns those left because the store has no space.

        Points that are held stay.
        """
        self._repository.store.spare = reserve.FOR_COLLECTING
        for number, verdict in enumerate(going):
            try:
                self._stayed[verdict.point.key] = became = _remove(lease, verdict)
                reason = {"reason": ", ".join(became.rules)} if became.kept else {}
                self._control.note("stayed" if became.kept else "removed", point=became.point.id, **reason)
            except StorageFull:
                return going[number:]
        return ()

    def _compact(self, lease: Lease) -> Compacted:
        """Compact; if the store has no space for new packs, leave it to a later run."""
        now = lease.now()
        candidates = self._candidates(trash.removed(self._repository, now - self._request.grace), now)
        with contextlib.suppress(StorageFull), self._control.phase("compacting") as result:
            compacted = compaction.compact(lease, candidates, control=self._control)
            result.update(dataclasses.asdict(compacted))
            return compacted
        return Compacted()

    def _collect(self, lease: Lease, left: t.Sequence[Verdict]) -> Collected | None:
        """Reclaim space, in rounds if the store is full.

        The space that a round frees is used to remove the points that are ``left``, and to condemn further objects.
        """
        collected: Collected | None = None
        while self._collects:
            collector = Collector(self._repository, lease.now(), self._request.grace, self._control)
            done = collector.collect(lease, self._request.confirm_shrink)
            collected = done.after(collected)
            if not done.deleted or not (left or done.unannounced):
                break
            self._repository.store.keep_reserve()
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
            f"{count} restore points were not removed: {self._repository.store.location} is full. {how}, and run this again."
        )

    @property
    def _collects(self) -> bool:
        return self._request.collect and not self._unreadable

    @property
    def _unreadable(self) -> t.Mapping[str, str]:
        """Return unreadable manifests and holds, with the cause.

        While there are any, the objects that restore points need are not known.
        """
        return {
            **self._listing.damaged,
            **{each.name: each.why_unreadable for each in self._holds if each.why_unreadable is not None},
        }

    @property
    def _compacts(self) -> bool:
        return self._request.compact_below is not None and self._collects

    def _candidates(self, removed: t.Iterable[Removed], now: float, without: t.Collection[Key] = ()) -> Candidates:
        """Return the candidates for compaction, given the contents of the trash."""
        recoverable = [each.point for each in removed if now - each.at < self._request.grace]
        held = [each.point for each in self._holds if each.point is not None]
        return Candidates(self._request.compact_below or 0, recoverable, without, held)

    def _result(
        self,
        verdicts: t.Sequence[Verdict],
        compacted: Compacted | None,
        collected: Collected | None,
        left: t.Sequence[Removed],
    ) -> RetentionResult:
        back = tuple(each.point for each in self._back)
        return RetentionResult(
            tuple(verdicts), back, compacted, collected, tuple(left), self._unreadable, self._repository.store.was_full
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
        return _Retention(repository, request, control).predict()
    store = repository.store
    store.spare = 0
    try:
        with leases.held(repository, "retention") as lease:
            return _Retention(repository, request, control).carry_out(lease)
    finally:
        store.spare = None
        store.keep_reserve()
