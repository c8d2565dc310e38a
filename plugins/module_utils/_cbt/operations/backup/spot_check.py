# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A few blocks of which tracking says that they did not change, held against the restore point.

QEMU marks nothing when a disk is shrunk and enlarged to the size it had, though its end is lost. And it knows nothing of
what others write into an image.
"""

from __future__ import annotations

import typing as t

from ...blocks.nbd import STATUS_STEP, Source
from ...grid import BLOCK_SIZE, block_count, block_length
from ...repository.format.maps import ExtentMap
from ..point.parent_blocks import ParentBlocks

_SAMPLES = 8


def _dirty(source: Source, first: int, stop: int) -> set[int]:
    """The blocks between two that are marked as changed."""
    extents = source.marked(first * BLOCK_SIZE, min(stop * BLOCK_SIZE, source.size))
    return {block for extent in extents for block in range(extent.offset // BLOCK_SIZE, block_count(extent.end))}


def _last_clean(source: Source, base: ExtentMap) -> list[int]:
    """The last block with data that is not marked, if there is one: a disk that lost its end lost this block."""
    step = STATUS_STEP // BLOCK_SIZE
    for first in reversed(range(0, block_count(base.size), step)):
        held = list(base.runs(first, min(first + step, block_count(base.size))))
        marked = _dirty(source, held[0].first, held[-1].stop) if held else set()
        for run in reversed(held):
            found = next((block for block in range(run.stop - 1, run.first - 1, -1) if block not in marked), None)
            if found is not None:
                return [found]
    return []


def _samples(base: ExtentMap) -> t.Iterator[int]:
    """Blocks of which the base holds data, and blocks of which it may not, from all over the disk."""
    runs = [base.run(index * len(base) // _SAMPLES) for index in range(_SAMPLES)] if len(base) else []
    yield from (run.first + run.count // 2 for run in runs)
    yield from (index * block_count(base.size) // _SAMPLES for index in range(_SAMPLES))


def contradiction(source: Source, base: ExtentMap, parent: ParentBlocks) -> int | None:
    """A block that is not marked as changed and yet is not as in ``base``; None if none was found.

    A disk that lost its end is found out for certain, other faults by chance.
    """
    candidates = sorted({*_samples(base), *_last_clean(source, base)})
    with source.connect() as connection:
        for block in candidates:
            if _dirty(source, block, block + 1):
                continue
            data = connection.read(block * BLOCK_SIZE, block_length(block, base.size))
            digest = parent.digests(block, 1)[0]
            if digest is None and next(base.runs(block, block + 1), None) is not None:
                continue  # what the repository holds of it cannot be read
            if (parent.block_id(data) != digest) if digest is not None else any(data):
                return block
    return None
