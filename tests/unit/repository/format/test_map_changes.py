# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two maps are told apart by the places they name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format.map_changes import changes
from _cbt.repository.format.maps import ExtentMap, MapBuilder
from _cbt.repository.format.packs import PackRef

PACKS = [PackRef(bytes([number]) * 16, 1 << 20, 1000) for number in (1, 2)]
Place = tuple[int, int] | None

places = st.one_of(st.none(), st.tuples(st.integers(0, 1), st.integers(0, 30)))
disks = st.lists(places, min_size=1, max_size=40)


def map_of(disk: list[Place]) -> ExtentMap:
    """The map of a disk whose blocks lie at (pack, ordinal), or are zero."""
    builder = MapBuilder(len(disk) * BLOCK_SIZE)
    for block, place in enumerate(disk):
        if place is not None:
            builder.put(block, 1, PACKS[place[0]].id, place[1])
    return builder.finish({ref.id: ref for ref in PACKS})


@given(disks, disks)
def test_a_block_is_reported_if_and_only_if_its_place_differs(old: list[Place], new: list[Place]) -> None:
    length = max(len(old), len(new))
    before, after = old + [None] * (length - len(old)), new + [None] * (length - len(new))
    told: dict[int, tuple[Place, Place]] = {}
    end = 0
    for each in changes(map_of(old), map_of(new)):
        assert end <= each.first < each.stop <= length
        end = each.stop
        for block in range(each.first, each.stop):
            runs = [run.part(block, block + 1) if run is not None else None for run in (each.before, each.after)]
            found = [(PACKS.index(run.pack), run.ordinal) if run is not None else None for run in runs]
            told[block] = (found[0], found[1])
    assert told == {block: (before[block], after[block]) for block in range(length) if before[block] != after[block]}


def test_a_map_does_not_differ_from_itself() -> None:
    extents = map_of([(0, 0), (0, 1), None, (1, 7)])
    assert list(changes(extents, extents)) == []


def test_consecutive_blocks_are_reported_as_one() -> None:
    old, new = map_of([None] * 10), map_of([(0, ordinal) for ordinal in range(10)])
    (only,) = changes(old, new)
    assert (only.first, only.stop, only.before) == (0, 10, None)
    assert only.after is not None
    assert (only.after.ordinal, only.after.count) == (0, 10)
