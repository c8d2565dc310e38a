# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a disk of a restore point like a disk of a domain."""

from __future__ import annotations

import contextlib
import typing as t

from ...blocks.extents import Extent
from ...errors import DamagedObject
from ...grid import BLOCK_SIZE, block_count, byte_range
from ...repository.format.map_changes import changes
from ...repository.format.maps import ExtentMap
from ...repository.repository import Repository


class PointSource:
    """A disk of a restore point. Several threads may read it.

    With ``base``, a map of the same size, ``extents`` yields only the blocks with another address in it.
    """

    def __init__(self, repository: Repository, extents: ExtentMap, base: ExtentMap | None) -> None:
        self._reader = repository.reader
        self._extents = extents
        self._base = base
        self.size = extents.size

    def connect(self) -> t.ContextManager[PointSource]:
        """Return what reads the disk, which is this object."""
        return contextlib.nullcontext(self)

    def read(self, offset: int, length: int) -> bytearray:
        """Return ``length`` verified bytes from ``offset``, the start of a block.

        Raises DamagedObject or ObjectMissing.
        """
        data = bytearray(length)
        for run in self._extents.runs(offset // BLOCK_SIZE, block_count(offset + length)):
            for index, block in enumerate(self._reader.disk_blocks(run, self.size)):
                if isinstance(block, DamagedObject):
                    raise block
                start = (run.first + index) * BLOCK_SIZE - offset
                data[start : start + len(block)] = block
        return data

    def allocation(self) -> t.Iterator[Extent]:
        """Yield extents of the whole disk in order."""
        end = 0
        for run in self._extents.runs():
            if end < run.first:
                yield self._extent(end, run.first, True)
            yield self._extent(run.first, run.stop, False)
            end = run.stop
        if end * BLOCK_SIZE < self.size:
            yield self._extent(end, block_count(self.size), True)

    def extents(self) -> t.Iterator[Extent]:
        """Yield the extents to read in order."""
        if self._base is None:
            return self.allocation()
        return (self._extent(each.first, each.stop, each.after is None) for each in changes(self._base, self._extents))

    def _extent(self, first: int, stop: int, zero: bool) -> Extent:
        return Extent(*byte_range(first, stop - first, self.size), zero)
