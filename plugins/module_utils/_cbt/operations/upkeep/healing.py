# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Heals restore points whose stored blocks are damaged.

A backup or a copy reads the damaged blocks of its base again. If the content is unchanged, the map of the new point has
a sound copy at the same offset of the same disk. The block id in the directory of the damaged pack proves that the
content is the same. All points that name the damaged block are then changed to name the copy. No other state is needed
to continue after a killed run. A block whose pack is missing, or whose pack's directory is damaged, has no id to prove
it by and is not healed.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from ...control import Control
from ...errors import CbtError, DamagedObject, UnreadableObject
from ...repository.format.manifests import RestorePoint
from ...repository.format.maps import ExtentMap, Run
from ...repository.format.packs import PackRef
from ...repository.records import damage
from ...repository.records.damage import Damages
from ...repository.repository import Repository
from ...repository.sharing.leases import Lease
from ...repository.sharing.relocation import Move, joined, readable_maps, relocate_all

Address = tuple[PackRef, int]  # pack and ordinal


@dataclasses.dataclass(frozen=True)
class Healed:
    """The outcome of healing.

    ``blocks`` counts healed blocks by target. ``points`` is the number of restore points healed, of any domain.
    ``left`` counts damaged blocks without a sound copy, in packs that are damaged only in parts.
    """

    blocks: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    points: int = 0
    left: int = 0

    def words(self, domain: str) -> list[str]:
        """Return sentences for the user."""
        told = []
        if self.points:
            blocks = sum(self.blocks.values())
            told.append(
                f"{blocks} damaged blocks were stored again, and {self.points} earlier restore points were healed by"
                " them."
            )
        if self.left:
            told.append(
                f"{self.left} blocks of earlier restore points of {domain} stay damaged: their content no longer exists"
                " anywhere."
            )
        return told


class _Search:
    """The damaged blocks that points of one domain name, and sound copies of them."""

    def __init__(self, repository: Repository, damages: Damages) -> None:
        self._repository, self._damages = repository, damages
        self._wanted: dict[str, dict[int, set[Address]]] = collections.defaultdict(lambda: collections.defaultdict(set))
        self.damaged: set[Address] = set()
        self.found: dict[Address, Address] = {}

    def want(self, target: str, extents: ExtentMap) -> None:
        """Note which damaged blocks a map names, and where on the disk."""
        for run in damage.damaged_runs(extents, self._damages):
            for index in range(run.count):
                address = (run.pack, run.ordinal + index)
                self.damaged.add(address)
                if self._digest(address) is not None:
                    self._wanted[target][run.first + index].add(address)

    def look(self, target: str, extents: ExtentMap) -> int:
        """Find copies in a map of the disk; returns the number of blocks found."""
        before = len(self.found)
        for block, addresses in self._wanted[target].items():
            for run in extents.runs(block, block + 1):
                self.found.update(
                    (address, (run.pack, run.ordinal))
                    for address in addresses - self.found.keys()
                    if self._is_copy(run, address)
                )
        return len(self.found) - before

    def _is_copy(self, run: Run, address: Address) -> bool:
        recorded = self._damages.get(run.pack.id)
        if recorded is not None and recorded.covers(run.ordinal):
            return False
        return self._digest((run.pack, run.ordinal)) == self._digest(address) and self._sound(run)

    def _sound(self, run: Run) -> bool:
        """Return True if the block can be read and matches its id in the pack's directory."""
        try:
            return not any(
                isinstance(block, DamagedObject) for block in self._repository.reader.blocks(run.pack, run.ordinal, 1)
            )
        except UnreadableObject:
            return False

    def _digest(self, address: Address) -> bytes | None:
        """Return a block's id from its pack's directory; None if that cannot be read."""
        try:
            return self._repository.reader.directory(address[0]).digest(address[1])
        except UnreadableObject:
            return None

    def moves(self) -> dict[bytes, list[Move]]:
        """Return the copies found, as moves by pack id."""
        by_pack: dict[bytes, list[Move]] = collections.defaultdict(list)
        for (ref, ordinal), (pack, to_ordinal) in self.found.items():
            by_pack[ref.id].append(Move(ordinal, 1, pack, to_ordinal))
        return {pack: joined(moves) for pack, moves in by_pack.items()}


def heal(lease: Lease, uuid: str, damages: Damages, control: Control | None = None) -> Healed:
    """Find sound copies of a domain's damaged blocks, and make all points name them.

    The points are those of the whole repository. Raises RepositoryError if the store fails; all points stay whole, and
    the next run continues.
    """
    repository, control = lease.repository, control or Control()
    # The block ids in other damaged packs cannot be read.
    provable = {pack: each for pack, each in damages.items() if each.blocks is not None}
    if not provable:
        return Healed()
    points = repository.points_of(uuid).points
    search = _Search(repository, provable)
    for target, extents in readable_maps(repository, points, control):
        search.want(target, extents)
    counts: dict[str, int] = collections.Counter()
    # Copies are likeliest in the newest point.
    for target, extents in readable_maps(repository, reversed(points), control):
        counts[target] += search.look(target, extents)
    healed = relocate_all(lease, search.moves(), control)
    return Healed(counts, healed, len(search.damaged) - len(search.found))


def heal_others(
    lease: Lease, point: RestorePoint, damages: Damages, control: Control, warnings: list[str]
) -> t.Mapping[str, int]:
    """Heal other points with the blocks of a point just published, and add warnings about them.

    Returns the number of healed blocks by target.
    """
    try:
        healed = heal(lease, point.uuid, damages, control)
    except CbtError as error:
        # The point is complete. The next backup or copy heals the remaining damage.
        warnings.append(f"Damaged blocks of earlier restore points of {point.domain} were not healed: {error}")
        return {}
    warnings += healed.words(point.domain)
    return healed.blocks
