"""Extents asked for over NBD: a server may answer short, overrun, and cut two contexts differently."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from _cbt.blocks import nbd
from _cbt.blocks.extents import BlockRange, Extent, to_blocks
from _cbt.errors import HypervisorError
from _cbt.grid import BLOCK_SIZE

SECTOR = 512


class Handle:
    """What libnbd is to a connection, answering status from a list of flags per sector, as unkindly as the protocol allows."""

    def __init__(self, flags: list[int], seed: int, most: int = 3) -> None:
        self._flags, self._random, self._most = flags, random.Random(seed), most
        self.requests: list[tuple[int, int]] = []

    def block_status(self, count: int, offset: int, callback: Callable[..., int]) -> None:
        """At least one extent; never more than ``most``; the last may reach beyond the request."""
        assert count > 0
        assert offset + count <= len(self._flags) * SECTOR, "asked beyond the end of the disk"
        self.requests.append((offset, count))
        at, entries = offset // SECTOR, []
        while len(entries) // 2 < self._random.randint(1, self._most) and at * SECTOR < offset + count:
            end = at + 1
            while end < len(self._flags) and self._flags[end] == self._flags[at] and self._random.random() < 0.9:
                end += 1
            entries += [(end - at) * SECTOR, self._flags[at]]
            at = end
        callback("context", offset, entries, None)


def connection(handle: Any, size: int) -> nbd.Connection:
    made = nbd.Connection.__new__(nbd.Connection)
    made._handle, made._name, made.size = handle, "vda", size
    return made


def source(dirty: list[int] | None, allocation: list[int], seed: int = 1, most: int = 3) -> nbd.Source:
    size = len(allocation) * SECTOR
    made = nbd.Source.__new__(nbd.Source)
    made.size = size
    made._allocation = connection(Handle(allocation, seed, most), size)
    made._dirty = connection(Handle(dirty, seed + 1, most), size) if dirty is not None else None
    return made


def flags_of(extents: list[Extent], sectors: int) -> list[bool | None]:
    seen: list[bool | None] = [None] * sectors
    for extent in extents:
        for sector in range(extent.offset // SECTOR, extent.end // SECTOR):
            assert seen[sector] is None, "told twice"
            seen[sector] = extent.zero
    return seen


RUNS = st.lists(st.tuples(st.integers(1, 150), st.integers(0, 3)), min_size=1, max_size=12)


def sectors_of(runs: list[tuple[int, int]], sectors: int | None = None) -> list[int]:
    flags = [flag for length, flag in runs for _sector in range(length)]
    return flags if sectors is None else (flags * (sectors // len(flags) + 1))[:sectors]


@given(RUNS, RUNS, st.integers(0, 999), st.sampled_from([7, 64, 129, 10**6]))
def test_unequal_replies_lose_no_dirty_sector(dirty_runs: Any, allocation_runs: Any, seed: int, step: int) -> None:
    """Z2, Z3: whatever the two contexts' replies look like, each dirty sector arrives once with its own allocation."""
    allocation = sectors_of(allocation_runs)
    dirty = [flag & 1 for flag in sectors_of(dirty_runs, len(allocation))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nbd, "STATUS_STEP", step * SECTOR)
        found = list(source(dirty, allocation, seed).extents())
    assert flags_of(found, len(allocation)) == [
        bool(zero & 2) if changed else None for changed, zero in zip(dirty, allocation)
    ]


@given(RUNS, st.integers(0, 999))
def test_every_sector_is_reported_without_tracking(runs: Any, seed: int) -> None:
    allocation = sectors_of(runs)
    found = list(source(None, allocation, seed).extents())
    assert flags_of(found, len(allocation)) == [bool(flag & 2) for flag in allocation]


@pytest.mark.parametrize(
    ("flags", "zero"), [(0, False), (1, False), (2, True), (3, True)], ids=["data", "hole", "zero", "hole and zero"]
)
def test_only_the_zero_bit_spares_a_read(flags: int, zero: bool) -> None:
    """Z7: a hole without zero may hold a backing file's data."""
    per_block = BLOCK_SIZE // SECTOR
    assert list(to_blocks(source(None, [flags] * per_block).extents(), BLOCK_SIZE)) == [BlockRange(0, 1, zero)]


def test_a_dirty_block_after_a_short_allocation_reply_is_not_lost() -> None:
    """Z2 by example: one extent per allocation reply, all dirty extents at once."""
    per_block = BLOCK_SIZE // SECTOR
    allocation = [0, 2] * per_block * 2
    dirty = [0] * (3 * per_block) + [1] * per_block
    assert list(to_blocks(source(dirty, allocation, most=1).extents(), 4 * BLOCK_SIZE)) == [BlockRange(3, 1, False)]


@given(RUNS, st.integers(0, 999), st.data())
def test_marked_returns_each_dirty_sector_between_two_offsets_once(runs: Any, seed: int, data: st.DataObject) -> None:
    dirty = [flag & 1 for flag in sectors_of(runs)]
    start = data.draw(st.integers(0, len(dirty) - 1))
    end = data.draw(st.integers(start + 1, len(dirty)))
    found = list(source(dirty, dirty, seed).marked(start * SECTOR, end * SECTOR))
    seen = flags_of(found, len(dirty))
    assert seen == [False if start <= sector < end and flag else None for sector, flag in enumerate(dirty)]
    assert all(one.end < two.offset for one, two in zip(found, found[1:])), "neighbours are joined"


def test_everything_is_marked_without_tracking() -> None:
    assert list(source(None, [0] * 200).marked(SECTOR, 9 * SECTOR)) == [Extent(SECTOR, 8 * SECTOR, False)]


class Fixed:
    """A connection of libnbd whose server gives the same answer to every request."""

    def __init__(self, entries: list[int]) -> None:
        self._entries = entries

    def block_status(self, _count: int, _offset: int, callback: Callable[..., int]) -> None:
        callback("context", 0, self._entries, None)


@pytest.mark.parametrize("entries", [[], [0, 1], [0, 1, 0, 0]], ids=["none", "empty", "all empty"])
def test_a_server_that_returns_no_extents_is_an_error_and_not_an_endless_loop(entries: list[int]) -> None:
    with pytest.raises(HypervisorError, match="returned no extents"):
        list(connection(Fixed(entries), 4096).status(0, 4096))


def test_the_last_extent_is_cut_at_the_end_and_extents_beyond_it_are_dropped() -> None:
    assert list(connection(Fixed([100, 1, 100, 0, 100, 1]), 500).status(50, 170)) == [(50, 100, 1), (150, 20, 0)]
    assert list(connection(Fixed([100, 1, 100, 0]), 500).status(0, 100)) == [(0, 100, 1)]


def test_a_short_reply_is_followed_by_another_request() -> None:
    assert list(connection(Fixed([10, 1]), 500).status(5, 30)) == [(5, 10, 1), (15, 10, 1), (25, 5, 1)]
