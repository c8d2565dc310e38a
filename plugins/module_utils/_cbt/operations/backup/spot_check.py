# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a few blocks that tracking reports as unchanged with the restore point.

QEMU marks no block if a disk is shrunk and enlarged to its former size, although the content of its end is lost. QEMU
also does not see writes of other programs to an image.
"""

from __future__ import annotations

import typing as t

from ...blocks.nbd import STATUS_STEP, Source
from ...grid import BLOCK_SIZE, block_count, block_length
from ...repository.format.maps import ExtentMap
from ..point.parent_blocks import ParentBlocks

_SAMPLES = 8


def _dirty(source: Source, first: int, stop: int) -> set[int]:
    """Return the blocks from ``first`` up to ``stop`` that are marked as changed."""
    extents = source.marked(first * BLOCK_SIZE, min(stop * BLOCK_SIZE, source.size))
    return {block for extent in extents for block in range(extent.offset // BLOCK_SIZE, block_count(extent.end))}


def _last_clean(source: Source, base: ExtentMap) -> list[int]:
    """Return the last unmarked block with data, if any: a disk that lost its end lost it."""
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
    """Yield blocks with data in the base, and evenly spaced blocks of the whole disk."""
    runs = [base.run(index * len(base) // _SAMPLES) for index in range(_SAMPLES)] if len(base) else []
    yield from (run.first + run.count // 2 for run in runs)
    yield from (index * block_count(base.size) // _SAMPLES for index in range(_SAMPLES))


def contradiction(source: Source, base: ExtentMap, parent: ParentBlocks) -> int | None:
    """Return a block that is not marked as changed but differs from ``base``, or None.

    A disk that lost its end is detected, if the repository can read the last unmarked block with data. Other faults are
    found by chance.
    """
    candidates = sorted({*_samples(base), *_last_clean(source, base)})
    with source.connect() as connection:
        for block in candidates:
            if _dirty(source, block, block + 1):
                continue
            data = connection.read(block * BLOCK_SIZE, block_length(block, base.size))
            digest = parent.digests(block, 1)[0]
            if digest is None and next(base.runs(block, block + 1), None) is not None:
                continue  # the repository cannot read this block
            if (parent.block_id(data) != digest) if digest is not None else any(data):
                return block
    return None
