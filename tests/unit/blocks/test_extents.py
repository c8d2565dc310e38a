"""Extents: the rules by name, with the cases that cost others data."""

from __future__ import annotations

import pytest

from _cbt.blocks.extents import BlockRange, Extent, intersect, joined, pieces, to_blocks
from _cbt.grid import BLOCK_SIZE, block_count, block_length

KIB = 1024
BLOCK = BLOCK_SIZE


def test_a_dirty_extent_that_reads_as_zero_becomes_an_explicit_zero_range() -> None:
    """Z1: the guest zeroed what an earlier backup stored; leaving it out would bring the old bytes back."""
    dirty = [Extent(4 * BLOCK, 2 * BLOCK, False)]
    allocation = [Extent(0, 4 * BLOCK, False), Extent(4 * BLOCK, 4 * BLOCK, True)]
    parts = list(intersect(dirty, allocation))
    assert parts == [Extent(4 * BLOCK, 2 * BLOCK, True)]
    assert list(to_blocks(parts, 8 * BLOCK)) == [BlockRange(4, 2, True)]


def test_a_hole_inside_a_dirty_extent_is_zero_and_its_neighbours_are_read() -> None:
    dirty = [Extent(0, 4 * BLOCK, False)]
    allocation = [Extent(0, BLOCK, False), Extent(BLOCK, 2 * BLOCK, True), Extent(3 * BLOCK, BLOCK, False)]
    assert list(to_blocks(intersect(dirty, allocation), 4 * BLOCK)) == [
        BlockRange(0, 1, False),
        BlockRange(1, 2, True),
        BlockRange(3, 1, False),
    ]


def test_joined_keeps_neighbours_of_different_state_and_gaps_apart() -> None:
    given = [Extent(0, 5, True), Extent(5, 5, True), Extent(10, 5, False), Extent(20, 5, False)]
    assert list(joined(given)) == [Extent(0, 10, True), Extent(10, 5, False), Extent(20, 5, False)]


@pytest.mark.parametrize(
    "allocation", [[], [Extent(0, 50, False)], [Extent(60, 100, False)]], ids=["none", "ends early", "begins late"]
)
def test_a_dirty_byte_of_unknown_allocation_is_an_error_and_never_dropped(allocation: list[Extent]) -> None:
    with pytest.raises(ValueError, match="unknown at offset"):
        list(intersect([Extent(0, 100, False)], allocation))


def test_a_block_partly_zero_and_partly_clean_is_read() -> None:
    """Only the dirty part is known to be zero; the clean rest still holds data."""
    assert list(to_blocks([Extent(512, BLOCK - 512, True)], 4 * BLOCK)) == [BlockRange(0, 1, False)]


def test_two_zero_extents_that_meet_inside_a_block_make_it_zero() -> None:
    assert list(to_blocks([Extent(0, 512, True), Extent(512, BLOCK - 512, True)], 4 * BLOCK)) == [
        BlockRange(0, 1, True)
    ]


def test_two_zero_extents_with_a_gap_inside_a_block_leave_it_to_be_read() -> None:
    assert list(to_blocks([Extent(0, 512, True), Extent(1024, BLOCK - 1024, True)], 4 * BLOCK)) == [
        BlockRange(0, 1, False)
    ]


def test_a_short_last_block_is_zero_if_zero_reaches_the_end_of_the_disk() -> None:
    size = 2 * BLOCK + 512
    assert list(to_blocks([Extent(2 * BLOCK, 512, True)], size)) == [BlockRange(2, 1, True)]


def test_a_short_last_block_is_read_if_zero_stops_before_the_end_of_the_disk() -> None:
    size = 2 * BLOCK + 1024
    assert list(to_blocks([Extent(2 * BLOCK, 512, True)], size)) == [BlockRange(2, 1, False)]


def test_an_extent_overrunning_the_disk_gives_no_block_beyond_it() -> None:
    assert list(to_blocks([Extent(0, 10 * BLOCK, False)], 3 * BLOCK + 512)) == [BlockRange(0, 4, False)]


def test_nothing_is_inspected_when_nothing_is_dirty() -> None:
    assert list(to_blocks(intersect([], [Extent(0, BLOCK, False)]), BLOCK)) == []


def test_a_large_zero_range_is_one_piece_and_takes_no_space() -> None:
    ranges = [BlockRange(0, 1000, True), BlockRange(1000, 5, False)]
    assert list(pieces(ranges, 4)) == [
        (BlockRange(0, 1000, True), BlockRange(1000, 4, False)),
        (BlockRange(1004, 1, False),),
    ]


@pytest.mark.parametrize(
    ("size", "blocks", "last"),
    [
        (1, 1, 1),
        (BLOCK - 1, 1, BLOCK - 1),
        (BLOCK, 1, BLOCK),
        (BLOCK + 512, 2, 512),
        (3 * BLOCK, 3, BLOCK),
        (64 * KIB * 16 + 1, 17, 1),
    ],
)
def test_the_last_block_of_a_disk_may_be_short(size: int, blocks: int, last: int) -> None:
    assert block_count(size) == blocks
    assert block_length(blocks - 1, size) == last


def test_a_disk_of_no_bytes_has_no_blocks() -> None:
    assert block_count(0) == 0
