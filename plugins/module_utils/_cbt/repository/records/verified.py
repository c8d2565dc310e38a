# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When restore points were last verified, and which slice is due where only a sample is.

``verified/<domain uuid>/<point id>`` and ``verified/<domain uuid>/turn-<selection>-<slices>``: rotations of samples of different
sizes do not know of each other, or one might meet the same slice for ever. All of it may be lost: then less is told, and
a rotation begins anew.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ...errors import DamagedObject, ObjectMissing
from ..format import envelope, names
from ..format.manifests import RestorePoint
from ..repository import Repository

VERSION = 1
KIND = "verified"
TURN_KIND = "turn"
_TURN = {"next": int}


@dataclasses.dataclass(frozen=True)
class Verified:
    """The last verification of a restore point: when (UTC, ISO 8601), at which level, how many percent of the blocks, and what was found.

    ``own_damage`` is what of the point's own objects is damaged; that of packs is recorded with these.
    """

    at: str
    level: str
    percent: int
    status: str
    own_damage: t.Optional[str] = None


def _body(repository: Repository, kind: str, name: str, shape: t.Mapping[str, t.Any]) -> t.Optional[dict[str, t.Any]]:
    try:
        return envelope.decode(kind, VERSION, repository.get_object(name), name, shape)
    except (DamagedObject, ObjectMissing):
        return None  # as if it had never been written


def record(repository: Repository, point: RestorePoint, verified: Verified) -> None:
    """Remember a verification."""
    repository.put_object(
        names.verification(point.uuid, point.id), envelope.encode(KIND, VERSION, dataclasses.asdict(verified))
    )


def last(repository: Repository, point: RestorePoint) -> t.Optional[Verified]:
    """The last verification of a restore point; None if there was none."""
    shape = envelope.shape_of(Verified)
    body = _body(repository, KIND, names.verification(point.uuid, point.id), shape)
    return Verified(**{field: body[field] for field in shape if field in body}) if body is not None else None


def forget_gone(repository: Repository, manifests: t.Collection[str]) -> None:
    """Delete what is remembered of restore points that are no more; ``manifests`` are the names of those that there are."""
    for name, taken in names.of_kind(repository.store.list(names.VERIFIED), names.VERIFIED_KIND):
        if names.manifest(*taken.point) not in manifests:
            repository.discard(name)


def next_slice(repository: Repository, uuid: str, selection: str, slices: int) -> int:
    """The slice, of ``slices`` and counted from 0, that is due now."""
    body = _body(repository, TURN_KIND, names.turn(uuid, selection, slices), _TURN)
    return t.cast(int, body["next"]) % slices if body is not None else 0


def slice_done(repository: Repository, uuid: str, selection: str, slices: int, done: int) -> None:
    """Remember that this of ``slices`` slices was read, so that the next one is read next time."""
    repository.put_object(names.turn(uuid, selection, slices), envelope.encode(TURN_KIND, VERSION, {"next": done + 1}))
