# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block ids of a parent restore point, for comparing while reading."""

from __future__ import annotations

from ...errors import UnreadableObject
from ...repository.format.maps import ExtentMap, Run
from ...repository.packs.reader import PackReader
from ...repository.records.damage import Damages


class ParentBlocks:
    """Block ids of one disk at its parent restore point. Several threads may use it.

    A block that is damaged, or in a pack that is missing or damaged, counts as unknown: it is stored again and healed.
    """

    def __init__(self, parent: ExtentMap | None, reader: PackReader, damages: Damages | None = None) -> None:
        self._parent = parent
        self._reader = reader
        self._damages = damages or {}
        self._unreadable: set[bytes] = set()
        self.block_id = reader.keys.block_id

    def digests(self, first: int, count: int) -> list[bytes | None]:
        """Return the id of each block from ``first``, None where the parent has zeroes or nothing readable."""
        found: list[bytes | None] = [None] * count
        if self._parent is None:
            return found
        for run in self._parent.runs(first, first + count):
            if run.pack.id in self._unreadable:
                continue
            try:
                directory = self._reader.directory(run.pack)
            except UnreadableObject:
                self._unreadable.add(run.pack.id)
                continue
            for index in range(run.count):
                if not self.is_unreadable(run, run.first + index):
                    found[run.first - first + index] = directory.digest(run.ordinal + index)
        return found

    def is_unreadable(self, run: Run, block: int) -> bool:
        """Whether the parent's block in ``run`` is unreadable. Valid once ``digests`` has read the run's pack."""
        damage = self._damages.get(run.pack.id)
        return run.pack.id in self._unreadable or (
            damage is not None and damage.covers(run.ordinal + block - run.first)
        )
