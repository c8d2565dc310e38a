# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a verification found of restore points."""

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
    """A range of a disk that cannot be restored, and why; the disk is empty and the range 0 where the whole point is concerned.

    ``missing`` is True if an object is gone rather than changed. ``own`` is True if that object is the point's own, not a
    pack; ``ordinal`` is the block of its pack, None where that is not what is damaged.
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
    """What was found of one restore point; ``point`` is None if its manifest cannot be read. ``busy`` is of its disks."""

    name: str
    point: RestorePoint | None
    damage: tuple[Damage, ...]
    checked_bytes: int
    busy: tuple[Busy, ...] = ()

    @property
    def status(self) -> str:
        """ok, damaged (something changed) or incomplete (something is gone)."""
        if not self.damage:
            return OK
        return INCOMPLETE if all(each.missing for each in self.damage) else DAMAGED

    def summary(self) -> dict[str, Value]:
        """The verdict for the log."""
        cause: dict[str, Value] = {"damage": len(self.damage), "cause": self.damage[0].cause} if self.damage else {}
        return {"status": self.status, "checked_bytes": self.checked_bytes, **cause}


def limit_of(verdicts: t.Iterable[PointVerdict]) -> str | None:
    """One sentence that says what limited the verification, None if no block was read."""
    return limited_by((busy for verdict in verdicts for busy in verdict.busy), VERIFY_NAMES)


def joined(damage: t.Iterable[Damage]) -> tuple[Damage, ...]:
    """Neighbouring ranges with the same cause made one."""
    return tuple(coalesce(damage, _join))


def _join(last: Damage, each: Damage) -> Damage | None:
    adjoin = (last.disk, last.offset + last.length, last.cause) == (each.disk, each.offset, each.cause)
    return dataclasses.replace(last, length=last.length + each.length) if adjoin else None
