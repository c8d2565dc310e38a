# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Computes which blocks of packs restore points name. Pure."""

from __future__ import annotations

import typing as t

from ...errors import RepositoryError
from ...repository.format.maps import ExtentMap
from ...repository.format.packs import PackRef
from ...repository.sharing.relocation import Move

MOST_PACKS = 1 << 18  # the most in memory; four times PACKS_AT_ONCE, because maps may also name deleted packs
LiveBlocks = dict[PackRef, int]  # for each pack, one bit for each block that is named


def live_blocks(maps: t.Iterable[ExtentMap], chosen: t.Callable[[PackRef], bool]) -> LiveBlocks:
    """Return which blocks of the chosen packs any of the maps names.

    Raises RepositoryError if the maps name more than MOST_PACKS of these packs.
    """
    live: LiveBlocks = {}
    for extents in maps:
        wanted = {ref for ref in extents.packs if chosen(ref)}
        if not wanted:
            continue
        for run in extents.runs():
            if len(live) > MOST_PACKS:
                raise RepositoryError(
                    f"Restore points name more than {MOST_PACKS} packs where fewer are listed. Verify the repository."
                )
            if run.pack in wanted:
                live[run.pack] = live.get(run.pack, 0) | _bit_range(run.ordinal, run.count)
    return live


def without(live: LiveBlocks, moves: t.Mapping[PackRef, t.Iterable[Move]]) -> LiveBlocks:
    """Return the live blocks left after these moves; a pack may have none left."""
    left = dict(live)
    for ref, line in moves.items():
        for move in line:
            left[ref] &= ~_bit_range(move.ordinal, move.count)
    return left


def sparse_packs(live: LiveBlocks, below: int, recoverable: LiveBlocks) -> list[PackRef]:
    """Return the packs with fewer than ``below`` percent of blocks live or recoverable."""
    return [ref for ref, bits in live.items() if count(bits | recoverable.get(ref, 0)) * 100 < below * ref.blocks]


def _bit_range(first: int, length: int) -> int:
    return ((1 << length) - 1) << first


def count(bits: int) -> int:
    """Return the number of bits that are set."""
    return bin(bits).count("1")


def set_ranges(bits: int) -> t.Iterator[tuple[int, int]]:
    """Yield (first, count) of each run of set bits."""
    first = 0
    while bits:
        skipped = (bits & -bits).bit_length() - 1
        first, bits = first + skipped, bits >> skipped
        length = (~bits & bits + 1).bit_length() - 1
        yield first, length
        first, bits = first + length, bits >> length
