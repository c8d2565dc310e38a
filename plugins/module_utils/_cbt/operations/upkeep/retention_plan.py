# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides which restore points are kept, removed and brought back: rules, holds, locks and undelete. Pure."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import operator
import typing as t

from ...errors import Refused, check_range
from ...repository.format import manifests
from ...repository.format.manifests import Key, RestorePoint
from ...repository.repository import Listing
from ...repository.selecting import ALL, select_points
from ...repository.sharing import holds
from ...repository.sharing.trash import Removed
from .retention_rules import Rules, Verdict, decide

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
class RetentionFacts:
    """The facts a decision rests on, at the time ``now`` by the store's clock.

    ``removed`` are the entries of the trash; they are read only for a request that brings points back.
    """

    listing: Listing
    holds: t.Sequence[holds.Hold]
    removed: t.Sequence[Removed]
    now: float


@dataclasses.dataclass(frozen=True)
class RetentionPlan:
    """All decisions of one run.

    ``verdicts`` cover all points, including those brought ``back``.
    ``unreadable`` contains the manifests and holds that cannot be read, each with the cause. While there is one, it is
    not known what restore points need, so no space is reclaimed.
    """

    verdicts: tuple[Verdict, ...]
    back: tuple[RestorePoint, ...]
    unreadable: t.Mapping[str, str]
    collects: bool
    compacts: bool

    @property
    def going(self) -> list[RestorePoint]:
        """Return the points to remove."""
        return [verdict.point for verdict in self.verdicts if not verdict.kept]


def decide_all(found: t.Sequence[RestorePoint], request: RetentionRequest, now: datetime.datetime) -> list[Verdict]:
    """Return a verdict on each restore point, oldest first, by domain. Pure.

    Points to be brought back stay. Unless that is allowed, raises Refused if points would be removed and no rule is
    given, or no point of the domain is kept. A point kept only because it is dated in the future does not count.
    """
    if request.rules is None:
        return []
    verdicts: list[Verdict] = []
    domain = operator.attrgetter("uuid")
    for _uuid, group in itertools.groupby(sorted(found, key=domain), key=domain):
        decided = [
            Verdict(each.point, ("undelete",)) if each.point.id in request.undelete else each
            for each in decide(list(group), request.rules, now)
        ]
        goes = not all(verdict.kept for verdict in decided)
        stays = request.rules.given and any(verdict.kept and verdict.rules != ("future",) for verdict in decided)
        if goes and not stays and not request.allow_empty:
            name = decided[-1].point.domain
            raise Refused(
                f"The rules would keep no restore point of {name}. Add a rule, keep_last: 1 for one, or set"
                " allow_empty: true."
            )
        verdicts += decided
    return verdicts


def _wanted_back(
    removed: t.Sequence[Removed], existing: t.Collection[Key], wanted: t.Sequence[str]
) -> list[RestorePoint]:
    """Return each wanted point that does not exist, as its newest entry keeps it.

    Raises Refused if a wanted point neither exists nor is in the trash.
    """
    latest = {each.point.key: each.point for each in removed}
    known = {point_id for _uuid, point_id in (*latest, *existing)}
    missing = [each for each in wanted if each not in known]
    if missing:
        raise Refused(
            f"Restore point {missing[0]} cannot be brought back: it is not in the trash. Its grace period is over, or"
            f" it never existed; the trash contains {', '.join(sorted(each for _uuid, each in latest)) or 'nothing'}."
        )
    return [point for key, point in latest.items() if point.id in wanted and key not in existing]


def make_plan(facts: RetentionFacts, request: RetentionRequest, locked: t.Collection[Key] = ()) -> RetentionPlan:
    """Decide on each restore point, including those that are brought back.

    Points that are held, or ``locked`` by the store, are kept regardless of the rules.

    Raises Refused if the rules would leave nothing of a domain, or if a point cannot be brought back.
    """
    points = facts.listing.points

    def meant(point: RestorePoint) -> bool:
        return request.domain in (None, point.uuid, point.domain)

    back = _wanted_back(
        [each for each in facts.removed if meant(each.point)],
        {point.key for point in points if meant(point)},
        request.undelete,
    )
    found = select_points(manifests.ordered([*points, *back]), request.domain, ALL)
    moment = datetime.datetime.fromtimestamp(facts.now, datetime.timezone.utc)
    held: dict[Key, list[holds.Hold]] = {}
    for each in facts.holds:
        held.setdefault(each.key, []).append(each)

    def kept_anyway(point: RestorePoint, rules: tuple[str, ...]) -> Verdict:
        reasons = (*rules, *holds.reasons(held.get(point.key, ())))
        return Verdict(point, reasons or (("locked",) if point.key in locked else ()))

    unreadable = {
        **facts.listing.damaged,
        **{each.name: each.why_unreadable for each in facts.holds if each.why_unreadable is not None},
    }
    verdicts = tuple(kept_anyway(each.point, each.rules) for each in decide_all(found, request, moment))
    collects = request.collect and not unreadable
    return RetentionPlan(verdicts, tuple(back), unreadable, collects, collects and request.compact_below is not None)
