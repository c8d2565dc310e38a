"""Neighbours are made one wherever two in a row can be, and only there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from _cbt.grid import BLOCK_SIZE, BLOCKS_AT_ONCE, block_count, byte_range, coalesce


def join(last: tuple[int, int], each: tuple[int, int]) -> tuple[int, int] | None:
    """Half-open ranges that touch."""
    return (last[0], each[1]) if last[1] == each[0] else None


@given(st.sets(st.integers(0, 60)))
def test_single_numbers_become_the_ranges_they_form(numbers: set[int]) -> None:
    found = list(coalesce(((each, each + 1) for each in sorted(numbers)), join))
    assert {number for first, stop in found for number in range(first, stop)} == numbers
    assert all(first < stop and stop not in numbers and first - 1 not in numbers for first, stop in found)


@given(st.integers(1, 9 * BLOCK_SIZE), st.data())
def test_the_bytes_of_blocks_end_with_the_disk(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, block_count(size) - 1))
    count = data.draw(st.integers(1, block_count(size) - first))
    of_disk = range(size)
    of_blocks = of_disk[first * BLOCK_SIZE : (first + count) * BLOCK_SIZE]
    assert byte_range(first, count, size) == (of_blocks.start, len(of_blocks))


def test_the_grain_of_work_stays_because_recorded_turns_of_samples_depend_on_it() -> None:
    assert BLOCKS_AT_ONCE == 16
