# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides which restore points of one domain are kept, and by which rules. Pure.

The rules are those of restic's ``forget``. Points are counted from the newest. Every rule has its own counter. A point
is kept if any rule takes it. The oldest point is kept by every rule that has counts left.

retention_plan.py adds the reasons other than rules: holds, locks of the store, and points to bring back.
"""

from __future__ import annotations

import bisect
import calendar
import dataclasses
import datetime
import re
import typing as t
import zoneinfo

from ...errors import Refused, check_range
from ...repository.format.manifests import RestorePoint
from ...repository.selecting import is_tagged

_DURATION = re.compile(r"(?:(\d{1,4})y)?(?:(\d{1,5})m)?(?:(\d{1,6})d)?(?:(\d{1,7})h)?")
_Bucket = t.Callable[[int, datetime.datetime], tuple[int, ...]]
# A rule takes one point of each bucket. The first argument is the number of the point, so that keep_last takes each
# point.
_BUCKETS: dict[str, _Bucket] = {
    "last": lambda number, _at: (number,),
    "hourly": lambda _number, at: (at.year, at.month, at.day, at.hour, at.fold),
    "daily": lambda _number, at: (at.year, at.month, at.day),
    "weekly": lambda _number, at: tuple(at.isocalendar())[:2],
    "monthly": lambda _number, at: (at.year, at.month),
    "yearly": lambda _number, at: (at.year,),
}


@dataclasses.dataclass(frozen=True)
class Duration:
    """A calendar duration. Months have their own length; the day is cut to the last one."""

    months: int = 0
    days: int = 0
    hours: int = 0

    def before(self, moment: datetime.datetime) -> datetime.datetime:
        """Return the moment this long before another.

        If that is before the first year of the calendar, return the earliest moment.
        """
        year, month = divmod(moment.year * 12 + moment.month - 1 - self.months, 12)
        earliest = datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)
        if year < 1:
            return earliest
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        try:
            there = moment.replace(year=year, month=month + 1, day=day) - datetime.timedelta(days=self.days)
            return there.astimezone(datetime.timezone.utc) - datetime.timedelta(hours=self.hours)
        except OverflowError:
            return earliest


def parse_duration(text: str) -> Duration:
    """Return the duration for a text such as ``2y5m7d3h``.

    Years, months, days and hours, in this order. Raises Refused if the text is invalid.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not match.group():
        raise Refused(
            f"Cannot read the duration {text}. Write it like 30d or 1y6m: years (y), months (m), days (d) and hours"
            " (h), in this order."
        )
    years, months, days, hours = (int(group or 0) for group in match.groups())
    return Duration(years * 12 + months, days, hours)


def parse_zone(name: str) -> datetime.tzinfo:
    """Return the time zone of a name such as ``Europe/Berlin``.

    Raises Refused if this host does not know it.
    """
    if name == "UTC":
        return datetime.timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Refused(
            f"The time zone {name} is not known here. Write it like Europe/Berlin, or install tzdata."
        ) from error


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules. A count of 0 is no rule, -1 has no limit.

    ``within`` counts back from the newest point that is neither pinned nor dated in the future. ``tags`` are names, or
    names and values as ``name=value``. Calendar periods are in ``zone``.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: Duration | None = None
    tags: tuple[str, ...] = ()
    zone: datetime.tzinfo = datetime.timezone.utc

    def __post_init__(self) -> None:
        for name in _BUCKETS:
            check_range(f"keep_{name}", getattr(self, name), "a count, 0 for no such rule or -1 for all", -1)

    @property
    def given(self) -> bool:
        """Return True if any rule is set."""
        return self != Rules(zone=self.zone)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A restore point, and the rules and other reasons, such as a hold, that keep it; none if it is removed."""

    point: RestorePoint
    rules: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Return True if a rule keeps the point."""
        return bool(self.rules)


def _believed(moments: t.Sequence[datetime.datetime]) -> set[int]:
    """Return the indexes of the moments that are trusted.

    They are the longest subsequence that never goes back in time; of several, the one that ends first.
    """
    ends: list[datetime.datetime] = []  # for each length of a subsequence, the earliest moment that ends one
    last: list[int] = []
    before: list[int] = []
    for index, moment in enumerate(moments):
        length = bisect.bisect_right(ends, moment)
        before.append(last[length - 1] if length else -1)
        ends[length : length + 1], last[length : length + 1] = [moment], [index]
    found = set()
    index = last[-1] if last else -1
    while index >= 0:
        found.add(index)
        index = before[index]
    return found


def _dated(
    points: t.Sequence[RestorePoint], now: datetime.datetime
) -> tuple[list[tuple[RestorePoint, datetime.datetime]], list[RestorePoint]]:
    """Return the points that rules count, newest first, and those dated in the future.

    A point taken while the clock was wrong counts as taken at the time of the trusted point before it, or else of the
    first one. Otherwise it would fill a calendar period of its own, or hide later points. Pinned points are left out.
    """
    moments = [datetime.datetime.fromisoformat(point.created) for point in points]
    future = [point for point, created in zip(points, moments) if created > now]
    past = [(point, created) for point, created in zip(points, moments) if created <= now]
    believed = _believed([created for _point, created in past])
    at = past[min(believed)][1] if past else now
    dated = []
    for number, (point, created) in enumerate(past):
        at = created if number in believed else at
        if not point.pinned:
            dated.append((point, at))
    return dated[::-1], future


def _taken(
    name: str, count: int, dated: t.Sequence[tuple[RestorePoint, datetime.datetime]], zone: datetime.tzinfo
) -> t.Iterator[RestorePoint]:
    """Yield the points that one counting rule takes."""
    before: tuple[int, ...] | None = None
    for number, (point, at) in enumerate(dated):
        if count == 0:
            return
        bucket = _BUCKETS[name](number, at.astimezone(zone))
        if bucket != before or number == len(dated) - 1:
            yield point
            count -= 1
            before = bucket


def decide(points: t.Sequence[RestorePoint], rules: Rules, now: datetime.datetime) -> list[Verdict]:
    """Return a verdict on each restore point of one domain; points are oldest first.

    A pinned point and a point dated after ``now`` are kept and count for no rule.
    """
    dated, future = _dated(points, now)
    takers: dict[str, list[str]] = {point.id: [] for point in points}
    for name in _BUCKETS:
        for point in _taken(name, getattr(rules, name), dated, rules.zone):
            takers[point.id].append(name)
    since = rules.within.before(dated[0][1].astimezone(rules.zone)) if rules.within is not None and dated else None
    for point, at in dated:
        if since is not None and at > since:
            takers[point.id].append("within")
    for point in points:
        if is_tagged(point, rules.tags):
            takers[point.id].append("tags")
        if point.pinned:
            takers[point.id].append("pinned")
    for point in future:
        takers[point.id].append("future")
    return [Verdict(point, tuple(takers[point.id])) for point in points]
