"""Extents against a naive model: one flag per sector of a small disk."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from _cbt.blocks.extents import BlockRange, Extent, intersect, joined, pieces, to_blocks
from _cbt.grid import BLOCK_SIZE, block_count

SECTOR = 512
PER_BLOCK = BLOCK_SIZE // SECTOR

# Sectors of a disk: a few blocks, the last one often short.
SECTORS = st.integers(1, 5 * PER_BLOCK) | st.integers(1, 5).map(lambda blocks: blocks * PER_BLOCK)


@st.composite
def reply(draw: st.DrawFn, sectors: int) -> list[tuple[int, bool]]:
    """One context's (bytes, flag) entries over a disk, cut anywhere; neighbours may have the same flag. The last may overrun."""
    near_edges = st.builds(lambda block, delta: block * PER_BLOCK + delta, st.integers(0, 5), st.integers(-2, 2))
    cuts = draw(st.sets(st.integers(1, sectors) | near_edges, max_size=12))
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < sectors), sectors]
    flags = draw(st.lists(st.booleans(), min_size=len(edges) - 1, max_size=len(edges) - 1))
    entries = [((end - start) * SECTOR, flag) for start, end, flag in zip(edges, edges[1:], flags)]
    overrun = draw(st.integers(0, 3)) * SECTOR
    entries[-1] = entries[-1][0] + overrun, entries[-1][1]
    return entries


def sector_flags(entries: list[tuple[int, bool]], sectors: int) -> list[bool]:
    """The model: the flag of each sector of the disk."""
    flags = [flag for length, flag in entries for _sector in range(length // SECTOR)]
    return flags[:sectors]


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[tuple[int, bool]], list[tuple[int, bool]]]:
    """Sectors of a disk with the entries of its dirty and its allocation context, cut at different places."""
    sectors = draw(SECTORS)
    return sectors, draw(reply(sectors)), draw(reply(sectors))


def extents_of(entries: list[tuple[int, bool]], sectors: int) -> list[Extent]:
    """The extents of an allocation context."""
    found, offset = [], 0
    for length, zero in entries:
        found.append(Extent(offset, min(length, sectors * SECTOR - offset), zero))
        offset += length
    return found


def dirty_of(entries: list[tuple[int, bool]], sectors: int) -> list[Extent]:
    """The extents that a dirty context marks."""
    return [each._replace(zero=False) for each in extents_of(entries, sectors) if each.zero]


@given(disks())
def test_joined_changes_no_sector_and_leaves_nothing_to_join(case: Any) -> None:
    sectors, entries, _other = case
    result = list(joined(extents_of(entries, sectors)))
    assert [flag for each in result for flag in [each.zero] * (each.length // SECTOR)] == sector_flags(entries, sectors)
    assert all(one.zero != two.zero for one, two in zip(result, result[1:]))


@given(disks(), st.booleans())
def test_intersect_covers_exactly_the_dirty_sectors_with_their_allocation(case: Any, join: bool) -> None:
    sectors, dirty_entries, allocation_entries = case
    dirty, allocation = dirty_of(dirty_entries, sectors), extents_of(allocation_entries, sectors)
    parts = list(intersect(joined(dirty) if join else dirty, allocation))
    assert all(one.end <= two.offset for one, two in zip(parts, parts[1:])), "ordered and without overlap"
    seen: list[bool | None] = [None] * sectors
    for part in parts:
        for sector in range(part.offset // SECTOR, part.end // SECTOR):
            seen[sector] = part.zero
    is_dirty, is_zero = sector_flags(dirty_entries, sectors), sector_flags(allocation_entries, sectors)
    assert seen == [zero if changed else None for changed, zero in zip(is_dirty, is_zero)]


@given(disks())
def test_blocks_cover_every_dirty_byte_and_are_zero_only_if_all_of_them_is(case: Any) -> None:
    sectors, dirty_entries, allocation_entries = case
    size = sectors * SECTOR
    parts = intersect(dirty_of(dirty_entries, sectors), extents_of(allocation_entries, sectors))
    found = list(to_blocks(parts, size))

    is_dirty, is_zero = sector_flags(dirty_entries, sectors), sector_flags(allocation_entries, sectors)
    expected: dict[int, bool] = {}
    for block in range(block_count(size)):
        inside = range(block * PER_BLOCK, min((block + 1) * PER_BLOCK, sectors))
        if any(is_dirty[sector] for sector in inside):
            expected[block] = all(is_dirty[sector] and is_zero[sector] for sector in inside)
    assert {each.first + index: each.zero for each in found for index in range(each.count)} == expected

    assert all(each.count > 0 for each in found)
    assert all(one.first + one.count <= two.first for one, two in zip(found, found[1:])), "ordered and without overlap"
    assert not found or found[-1].first + found[-1].count <= block_count(size), "nothing beyond the disk"


@st.composite
def ranges(draw: st.DrawFn) -> list[BlockRange]:
    """Ordered block ranges with gaps, zero or to be read."""
    result, block = [], 0
    for gap, count, zero in draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.booleans()), max_size=20)
    ):
        result.append(BlockRange(block + gap, count, zero))
        block += gap + count
    return result


@given(ranges(), st.integers(1, 17))
def test_pieces_keep_every_block_in_order_and_obey_the_limit(given_ranges: list[BlockRange], limit: int) -> None:
    portions = list(pieces(given_ranges, limit))
    assert all(portions), "no empty portion"
    assert all(sum(each.count for each in portion if not each.zero) <= limit for portion in portions)
    assert all(len(portion) <= limit for portion in portions)
    dealt = [
        (block, each.zero)
        for portion in portions
        for each in portion
        for block in range(each.first, each.first + each.count)
    ]
    assert dealt == [
        (block, each.zero) for each in given_ranges for block in range(each.first, each.first + each.count)
    ]


@given(ranges(), st.integers(1, 17))
def test_pieces_never_cut_a_zero_range(given_ranges: list[BlockRange], limit: int) -> None:
    zero = [each for portion in pieces(given_ranges, limit) for each in portion if each.zero]
    assert zero == [each for each in given_ranges if each.zero]
