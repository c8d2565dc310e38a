# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Select restore points by domain, id and time. Pure."""

from __future__ import annotations

import dataclasses
import datetime
import re
import typing as t

from ..errors import Refused
from .format.manifests import RestorePoint

# Python accepts more forms, depending on its version, and reads 2026-11-22+01:00 as one o'clock.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)


def parse_time(text: str, end: bool = True) -> datetime.datetime:
    """Parse an ISO 8601 time; without a time zone it is UTC.

    For example ``2026-11-22``, ``2026-11-22 14:30`` or ``2026-11-22T14:30:00+01:00``. A date alone means the ``end`` of
    that day, so that ``until`` includes it, or its start. Raises Refused if the text is not a time.
    """
    match = _TIME.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError(text)
        moment = datetime.datetime.fromisoformat(match.group().replace("Z", "+00:00"))
    except ValueError as error:
        raise Refused(
            f"Cannot read the date {text}. Write it like 2026-11-22 14:30 or 2026-11-22T14:30:00+01:00."
        ) from error
    if match.group(1) is None and end:
        moment += datetime.timedelta(days=1, microseconds=-1)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.timezone.utc)


def is_tagged(point: RestorePoint, tags: t.Iterable[str]) -> bool:
    """Return whether a restore point has one of the tags, given as ``name`` or ``name=value``."""
    known = {*point.tags, *(f"{name}={value}" for name, value in point.tags.items())}
    return not known.isdisjoint(tags)


@dataclasses.dataclass(frozen=True)
class PointFilter:
    """Conditions that restore points are listed by, all of which must hold. The default is none."""

    tags: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None
    host: str | None = None
    pinned: bool | None = None
    damaged: bool | None = None

    def fits(self, point: RestorePoint) -> bool:
        """Return whether all conditions but ``damaged`` hold, which is not known from the point."""
        created = datetime.datetime.fromisoformat(point.created)
        return (
            (not self.tags or is_tagged(point, self.tags))
            and (self.since is None or created >= parse_time(self.since, end=False))
            and (self.until is None or created <= parse_time(self.until))
            and self.host in (None, point.host)
            and self.pinned in (None, point.pinned)
        )


@dataclasses.dataclass(frozen=True)
class PointSelection:
    """Selected restore points: ``all``, ``latest`` of each domain, or ids ``chosen``."""

    kind: str
    ids: tuple[str, ...] = ()

    @classmethod
    def parse(cls, words: t.Sequence[str]) -> PointSelection:
        """Parse ids, or one of the words all and latest. Raises Refused if such a word is not alone."""
        word = next((each for each in words if each in ("all", "latest")), None)
        if word is None:
            return cls("chosen", tuple(words))
        if len(words) > 1:
            raise Refused(f"{word} cannot be combined with others in {', '.join(words)}. Give all, latest, or ids.")
        return cls(word)


ALL = PointSelection("all")
LATEST = PointSelection("latest")


def of_domain(found: t.Sequence[RestorePoint], domain: str) -> list[RestorePoint]:
    """Return the restore points of a domain given by name or UUID, oldest first.

    Raises Refused if there are none, or if several machines have this name.
    """
    mine = [point for point in found if domain in (point.uuid, point.domain)]
    if not mine:
        known = sorted({point.domain for point in found})
        raise Refused(
            f"The repository holds no restore point of {domain}; it holds points of {', '.join(known) or 'no domain'}."
        )
    uuids = {point.uuid: point for point in mine}
    if len(uuids) > 1:
        lines = "; ".join(f"{uuid} (last point {point.id})" for uuid, point in sorted(uuids.items()))
        raise Refused(
            f"The repository holds restore points of {len(uuids)} machines called {domain}: {lines}. Give the UUID"
            " instead of the name."
        )
    return mine


def by_id(found: t.Sequence[RestorePoint], wanted: str) -> RestorePoint:
    """Return the restore point with this id. Raises Refused if there is none."""
    for point in found:
        if point.id == wanted:
            return point
    raise Refused(f"The repository holds no restore point {wanted}.")


def select_points(found: t.Sequence[RestorePoint], domain: str | None, wanted: PointSelection) -> list[RestorePoint]:
    """Return the selected restore points of a domain, or of all. Raises Refused if one does not exist."""
    mine = of_domain(found, domain) if domain is not None else list(found)
    if wanted == ALL:
        return mine
    if wanted == LATEST:
        return list({point.uuid: point for point in mine}.values())
    chosen = []
    for each in wanted.ids:
        matches = [point for point in mine if point.id == each]
        if not matches:
            raise Refused(f"The repository holds no restore point {each}{f' of {domain}' if domain else ''}.")
        chosen += matches
    return chosen


def select_point(
    found: t.Sequence[RestorePoint], domain: str, wanted: str = "latest", until: str | None = None
) -> RestorePoint:
    """Return a restore point: by id, the latest, or the latest not after ``until``.

    Raises Refused if there is none.
    """
    mine = of_domain(found, domain)
    if until is not None:
        limit = parse_time(until)
        before = [point for point in mine if datetime.datetime.fromisoformat(point.created) <= limit]
        if not before:
            raise Refused(f"There is no restore point of {domain} until {until}; the oldest is {mine[0].id}.")
        return before[-1]
    if wanted == "latest":
        return mine[-1]
    for point in mine:
        if point.id == wanted:
            return point
    raise Refused(
        f"There is no restore point {wanted} of {domain}; the latest is {mine[-1].id}, the oldest {mine[0].id}."
    )
