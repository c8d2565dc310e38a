# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of a verification for each restore point."""

from __future__ import annotations

import dataclasses
import typing as t

from ...busy import VERIFY_NAMES, Busy, limited_by
from ...control import Value
from ...grid import coalesce
from ...repository.format.manifests import RestorePoint

OK = "ok"
DAMAGED = "damaged"
INCOMPLETE = "incomplete"


@dataclasses.dataclass(frozen=True)
class Damage:
    """A range of a disk that cannot be restored, and the cause.

    If the damage concerns the whole point, the disk is empty and the range is 0. ``missing`` is True if an object is
    gone rather than changed. ``own`` is True if the object belongs to the point alone and is not a pack. ``ordinal`` is
    the number of the damaged block in its pack, or None if the damage is not in a single block.
    """

    disk: str
    offset: int
    length: int
    cause: str
    missing: bool = False
    own: bool = False
    ordinal: int | None = None


@dataclasses.dataclass(frozen=True)
class PointVerdict:
    """The result for one restore point.

    ``point`` is None if its manifest cannot be read. ``busy`` has one entry for each disk that was read.
    """

    name: str
    point: RestorePoint | None
    damage: tuple[Damage, ...]
    checked_bytes: int
    busy: tuple[Busy, ...] = ()

    @property
    def status(self) -> str:
        """Return ok, incomplete if all damage is missing objects, or else damaged."""
        if not self.damage:
            return OK
        return INCOMPLETE if all(each.missing for each in self.damage) else DAMAGED

    def summary(self) -> dict[str, Value]:
        """Return the verdict for the log."""
        cause: dict[str, Value] = {"damage": len(self.damage), "cause": self.damage[0].cause} if self.damage else {}
        return {"status": self.status, "checked_bytes": self.checked_bytes, **cause}


def limit_of(verdicts: t.Iterable[PointVerdict]) -> str | None:
    """Return a sentence that says what limited the verification; None if no block was read."""
    return limited_by((busy for verdict in verdicts for busy in verdict.busy), VERIFY_NAMES)


def joined(damage: t.Iterable[Damage]) -> tuple[Damage, ...]:
    """Return the damage with adjacent ranges of the same cause merged."""
    return tuple(coalesce(damage, _join))


def _join(last: Damage, each: Damage) -> Damage | None:
    adjoin = (last.disk, last.offset + last.length, last.cause) == (each.disk, each.offset, each.cause)
    return dataclasses.replace(last, length=last.length + each.length) if adjoin else None
