# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides whether a repository can be the one that a host knows at a location. Pure."""

from __future__ import annotations

import dataclasses
import typing as t

from ...errors import DamagedObject
from ..format import envelope, manifests, names
from ..format.manifests import Key, RestorePoint

KIND = "known"
VERSION = 1
_SHAPE = {"location": str, "id": str, "encrypted": bool, "newest": t.Mapping[str, str], "last": t.Optional[str]}


@dataclasses.dataclass(frozen=True)
class KnownRepository:
    """A repository as a host knows it, with the points that show whether it went back.

    ``newest`` is the id of the newest point of each domain, by UUID; ``last`` the point that this host wrote or saw
    last.
    """

    id: str
    encrypted: bool
    newest: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    last: Key | None = None

    def without_points(self) -> KnownRepository:
        """Return the same repository without known points."""
        return KnownRepository(self.id, self.encrypted)


def encode(known: KnownRepository, location: str) -> bytes:
    """Return the bytes to keep. ``location`` is for people who read the file."""
    body = {"location": location, "id": known.id, "encrypted": known.encrypted, "newest": dict(known.newest)}
    return envelope.encode(KIND, VERSION, {**body, "last": "/".join(known.last) if known.last else None})


def decode(data: bytes | None, name: str) -> KnownRepository | None:
    """Decode the kept bytes; None if there are none. Raises as ``envelope.decode`` does."""
    if data is None:
        return None
    body = envelope.decode(KIND, VERSION, data, name, _SHAPE)
    last = body["last"] and _key(body["last"], name)
    for uuid, point_id in body["newest"].items():
        _key(f"{uuid}/{point_id}", name)
    return KnownRepository(body["id"], body["encrypted"], body["newest"], last)


def _key(text: str, name: str) -> Key:
    """Return the UUID and the id of a point from a text.

    Both become parts of object names, so other text raises DamagedObject.
    """
    uuid, _slash, point_id = text.partition("/")
    try:
        return names.check_uuid(uuid), names.check_point_id(point_id)
    except DamagedObject as error:
        raise DamagedObject(f"{name} is damaged: {error}") from error


def objection(known: KnownRepository | None, found: KnownRepository | None, location: str) -> str | None:
    """Return why the repository found cannot be the known one.

    Returns None if it can be, or if none is known.
    """
    if known is None or (found is not None and (found.id, found.encrypted) == (known.id, known.encrypted)):
        return None
    if found is None:
        return f"The repository {known.id} that this host knows in {location} is missing."
    now, before = (_kind(each.encrypted) for each in (found, known))
    if found.id == known.id:
        return (
            f"The repository in {location} is {now}, but this host knows it as {before}, which cannot change: its"
            " configuration was replaced."
        )
    kind = f", which is {now}; the one before was {before}" if now != before else ""
    return (
        f"The repository in {location} is not the one that this host knows there: it is {found.id} in place of"
        f" {known.id}{kind}."
    )


def _kind(encrypted: bool) -> str:
    return "encrypted" if encrypted else "not encrypted"


def went_back(key: Key, location: str) -> str:
    """Return the message that a repository without a known restore point went back."""
    return (
        f"The repository in {location} went back: restore point {key[1]} of domain {key[0]}, which this host knows, is"
        " neither there, nor in the trash, nor recorded as removed. An older copy of the repository was put in its"
        " place, or the point was deleted by other means."
    )


def absent(known: KnownRepository, found: t.Sequence[RestorePoint], uuid: str | None = None) -> list[Key]:
    """Return the newest known points that are missing in ``found``.

    ``found`` lists all restore points, or those of the domain ``uuid``.
    """
    expected = {(domain, point_id) for domain, point_id in known.newest.items() if uuid in (None, domain)}
    return sorted(expected - {point.key for point in found})


def after_listing(known: KnownRepository, found: t.Sequence[RestorePoint], uuid: str | None = None) -> KnownRepository:
    """Return the new state after a list of all points, or of one domain's.

    The list is in order, oldest first.
    """
    others = {domain: point_id for domain, point_id in known.newest.items() if uuid not in (None, domain)}
    newest = {**others, **{point.uuid: point.id for point in found}}
    if uuid is None:
        return dataclasses.replace(known, newest=newest, last=found[-1].key if found else None)
    there = {point.key for point in found}
    gone = known.last is not None and known.last[0] == uuid and known.last not in there
    return dataclasses.replace(known, newest=newest, last=None if gone else known.last)


def after_publishing(
    known: KnownRepository, point: RestorePoint, newest: RestorePoint | None = None
) -> KnownRepository:
    """Return the new state after a restore point was published.

    ``newest`` is the newest point of its domain, as far as a list showed it.
    """
    latest = manifests.ordered([newest, point])[-1] if newest is not None else point
    return dataclasses.replace(known, newest={**known.newest, point.uuid: latest.id}, last=point.key)


def merged(kept: KnownRepository | None, before: KnownRepository | None, after: KnownRepository) -> KnownRepository:
    """Return the state to keep after a run from ``before`` to ``after``.

    Changes of other runs on this host stay: a point that the run learned of replaces only the one that it knew before.
    """
    if kept is None or kept == before:
        return after
    if kept.id != after.id:
        return kept  # another run took a new repository for the known one
    known = before.newest if before is not None else {}
    newest = dict(kept.newest)
    for domain in {*after.newest, *known}:
        if kept.newest.get(domain) == known.get(domain):
            newest.pop(domain, None)
            if domain in after.newest:
                newest[domain] = after.newest[domain]
    last = after.last if kept.last == (before.last if before is not None else None) else kept.last
    return dataclasses.replace(after, newest=newest, last=last)
