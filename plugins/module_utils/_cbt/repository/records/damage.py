# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of damaged packs, so that no new restore point builds on them.

``damaged/<pack id>`` is written after a pack was read twice and found damaged both times. A later run uses
it to heal the pack. If a record is lost, the damage is found again.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

from ...errors import DamagedObject, ObjectMissing
from ...parallel import map_all
from ..format import envelope, names
from ..format.maps import ExtentMap, Run
from ..format.packs import PackRef
from ..repository import Repository

VERSION = 1
KIND = "damage"
_SHAPE = {"blocks": t.Optional[list[int]], "cause": str}


@dataclasses.dataclass(frozen=True)
class PackDamage:
    """The blocks of a pack that cannot be read, by ordinal; None for all of them. ``cause`` is the first finding."""

    blocks: frozenset[int] | None
    cause: str

    def covers(self, ordinal: int) -> bool:
        """Return True if this block cannot be read."""
        return self.blocks is None or ordinal in self.blocks


Damages = t.Mapping[bytes, PackDamage]  # by pack id


def encode(damage: PackDamage) -> bytes:
    """Return the object that records a damage."""
    blocks = None if damage.blocks is None else sorted(damage.blocks)
    return envelope.encode(KIND, VERSION, {"blocks": blocks, "cause": damage.cause})


def read(repository: Repository, pack_id: bytes) -> PackDamage | None:
    """Return the recorded damage of a pack, or None. A damaged record counts for the whole pack."""
    name = names.damage_of(pack_id)
    try:
        body = envelope.decode(KIND, VERSION, repository.get_object(name), name, _SHAPE)
    except ObjectMissing:
        return None
    except DamagedObject as error:
        return PackDamage(None, str(error))
    blocks = body.get("blocks")
    return PackDamage(None if blocks is None else frozenset(blocks), body["cause"])


def read_all(repository: Repository) -> dict[bytes, PackDamage]:
    """Return all recorded damages by pack id. Raises RepositoryError if the store fails."""
    found = {}
    for _name, taken in repository.of_kind(names.DAMAGED_KIND, names.DAMAGED):
        recorded = read(repository, taken.pack)
        if recorded is not None:
            found[taken.pack] = recorded
    return found


def unsound_packs(repository: Repository, refs: t.Collection[PackRef]) -> dict[bytes, PackDamage]:
    """Return the packs that are missing or have another size than their reference.

    Requests the size of each pack, several at once, and reads none. A listing would return all packs of the repository,
    page by page, and most maps refer to few of them.
    """

    def fault(ref: PackRef) -> str | None:
        try:
            size = repository.store.size(ref.name)
        except ObjectMissing:
            return f"pack {ref.id.hex()} is missing"
        except DamagedObject as error:
            return str(error)
        return f"pack {ref.id.hex()} has {size} bytes instead of {ref.size}" if size != ref.size else None

    faults = zip(refs, map_all(fault, refs))
    return {ref.id: PackDamage(None, cause) for ref, cause in faults if cause is not None}


def damaged_runs(extents: ExtentMap, damages: Damages) -> t.Iterator[Run]:
    """Yield the pieces of a map whose blocks are damaged, in order. Pure."""
    concerned = {ref.id: damages[ref.id] for ref in extents.packs if ref.id in damages}
    if not concerned:
        return
    for run in extents.runs():
        damage = concerned.get(run.pack.id)
        if damage is not None:
            yield from _pieces(run, damage)


def _pieces(run: Run, damage: PackDamage) -> t.Iterator[Run]:
    if damage.blocks is None:
        yield run
        return
    for covered, blocks in itertools.groupby(
        range(run.first, run.stop), lambda block: damage.covers(run.ordinal + block - run.first)
    ):
        if covered:
            found = list(blocks)
            yield run.part(found[0], found[-1] + 1)
