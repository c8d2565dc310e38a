# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a parent's map knows of a disk's content, for comparing while reading. Private to the collection."""

from __future__ import annotations

import typing as t

from ..errors import DamagedObject, ObjectMissing
from .maps import ExtentMap
from .pack_reader import PackReader
from .packs import PackRef
from .stores import Store


class Known:
    """SHA-256 of the blocks of one disk at its parent restore point. May be asked from several threads.

    A block in a pack that is missing or damaged counts as unknown: it is stored again and so healed.
    """

    def __init__(self, parent: t.Optional[ExtentMap], reader: PackReader) -> None:
        self._parent = parent
        self._reader = reader
        self.block_id = reader.keys.block_id
        self.unreadable: t.Set[bytes] = set()

    def digests(self, first: int, count: int) -> t.List[t.Optional[bytes]]:
        """The digest of each block from ``first``, None where the parent has zeroes or nothing readable."""
        found: t.List[t.Optional[bytes]] = [None] * count
        if self._parent is None:
            return found
        for run in self._parent.runs(first, first + count):
            if run.pack.id in self.unreadable:
                continue
            try:
                directory = self._reader.directory(run.pack)
            except (DamagedObject, ObjectMissing):
                self.unreadable.add(run.pack.id)
                continue
            for index in range(run.count):
                found[run.first - first + index] = directory.digest(run.ordinal + index)
        return found


def unsound_packs(extents: ExtentMap, store: Store) -> t.List[PackRef]:
    """The packs a map names that are missing or have another size than when they were written."""
    unsound = []
    for ref in extents.packs:
        try:
            if store.size(ref.name) != ref.size:
                unsound.append(ref)
        except ObjectMissing:
            unsound.append(ref)
    return unsound
