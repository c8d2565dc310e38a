# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When each restore point was last verified, and which slice a sample reads next.

The objects are ``verified/<domain uuid>/<point id>`` and ``verified/<domain uuid>/turn-<selection>-<slices>``. Samples
of different sizes rotate independently, because with a common position one of them might always read the same slice.
The objects may be lost. Then the last verification is unknown, and a rotation starts over.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ...errors import UnreadableObject
from ..format import envelope, names
from ..format.manifests import RestorePoint
from ..repository import Repository

VERSION = 1
KIND = "verified"
TURN_KIND = "turn"
_TURN = {"next": int}


@dataclasses.dataclass(frozen=True)
class Verified:
    """The last verification of a restore point.

    ``at`` is its time (UTC, ISO 8601), ``level`` its level, ``percent`` the share of the blocks and ``status`` the
    result. ``own_damage`` describes damage of the point's own objects. Damage of packs is recorded per pack.
    """

    at: str
    level: str
    percent: int
    status: str
    own_damage: t.Optional[str] = None


def _body(repository: Repository, kind: str, name: str, shape: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
    try:
        return envelope.decode(kind, VERSION, repository.get_object(name), name, shape)
    except UnreadableObject:
        return None  # treated as if it had never been written


def record(repository: Repository, point: RestorePoint, verified: Verified) -> None:
    """Record the last verification of a restore point."""
    repository.put_object(
        names.verification(point.uuid, point.id), envelope.encode(KIND, VERSION, dataclasses.asdict(verified))
    )


def last(repository: Repository, point: RestorePoint) -> Verified | None:
    """Return the last verification of a restore point, or None."""
    shape = envelope.shape_of(Verified)
    body = _body(repository, KIND, names.verification(point.uuid, point.id), shape)
    return Verified(**{field: body[field] for field in shape if field in body}) if body is not None else None


def forget_gone(repository: Repository, manifests: t.Collection[str]) -> None:
    """Delete verifications of points whose manifest is not in ``manifests``, by name."""
    for name, taken in repository.of_kind(names.VERIFIED_KIND, names.VERIFIED):
        if names.manifest(*taken.point) not in manifests:
            repository.discard(name)


def next_slice(repository: Repository, uuid: str, selection: str, slices: int) -> int:
    """Return the slice that is due now, of ``slices`` and counted from 0."""
    body = _body(repository, TURN_KIND, names.turn(uuid, selection, slices), _TURN)
    return t.cast(int, body["next"]) % slices if body is not None else 0


def slice_done(repository: Repository, uuid: str, selection: str, slices: int, done: int) -> None:
    """Record that slice ``done`` of ``slices`` was read, so that the next is due."""
    repository.put_object(names.turn(uuid, selection, slices), envelope.encode(TURN_KIND, VERSION, {"next": done + 1}))
