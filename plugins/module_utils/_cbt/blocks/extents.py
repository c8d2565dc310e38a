# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arithmetic of extents. Pure.

An extent is a byte range of a disk. QEMU reports two things about it, each in its own NBD metadata context: whether it
is dirty, and whether it reads as zero.
"""

from __future__ import annotations

import typing as t

from ..grid import BLOCK_SIZE, block_count, coalesce


class Extent(t.NamedTuple):
    """``length`` bytes from ``offset``; ``zero`` if all of them are known to read as zero."""

    offset: int
    length: int
    zero: bool

    @property
    def end(self) -> int:
        """Offset of the first byte after the extent."""
        return self.offset + self.length


class BlockRange(t.NamedTuple):
    """``count`` whole blocks from ``first``; ``zero`` if all of them are known to read as zero."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    zero: bool

    @property
    def stop(self) -> int:
        """The first block after the range."""
        return self.first + self.count


Range = t.TypeVar("Range", Extent, BlockRange)


def joined(ranges: t.Iterable[Range]) -> t.Iterator[Range]:
    """Join neighbours that are equally zero. They must be ordered and must not overlap."""
    return coalesce(ranges, _join)


def _join(last: Range, each: Range) -> Range | None:
    (start, length, zero), (first, count, other) = last, each
    return type(last)(start, length + count, zero) if start + length == first and zero == other else None


def intersect(dirty: t.Iterable[Extent], allocation: t.Iterable[Extent]) -> t.Iterator[Extent]:
    """Return the dirty extents, divided by whether ``allocation`` reads as zero.

    Both sequences must be ordered. ``allocation`` must cover every dirty byte, else ValueError is raised. The
    boundaries of the two contexts may differ, so each step advances to the nearer one. The result includes dirty parts
    that read as zero: without them, a restore would write the old bytes.
    """
    states = iter(allocation)
    state: Extent | None = Extent(0, 0, False)
    for extent in dirty:
        offset = extent.offset
        while offset < extent.end:
            while state is not None and state.end <= offset:
                state = next(states, None)
            if state is None or state.offset > offset:
                raise ValueError(f"allocation is unknown at offset {offset}")
            end = min(extent.end, state.end)
            yield Extent(offset, end - offset, state.zero)
            offset = end


def to_blocks(extents: t.Iterable[Extent], size: int) -> t.Iterator[BlockRange]:
    """Return the blocks to process on a disk of ``size`` bytes, in order.

    ``extents`` must be ordered. Every block that an extent touches occurs once. A block counts as zero only if zero
    extents cover all of it. Any other block is read.
    """
    return joined(_blocks(joined(extents), size))


def _blocks(extents: t.Iterable[Extent], size: int) -> t.Iterator[BlockRange]:
    total = block_count(size)
    done = 0  # blocks before this one are already returned
    for extent in extents:
        first, stop = extent.offset // BLOCK_SIZE, min(block_count(extent.end), total)
        inner_first = block_count(extent.offset)
        inner_stop = stop if extent.end >= size else extent.end // BLOCK_SIZE
        if not extent.zero or inner_first >= inner_stop:
            inner_first = inner_stop = stop
        for start, end, zero in (
            (first, inner_first, False),
            (inner_first, inner_stop, True),
            (inner_stop, stop, False),
        ):
            start = max(start, done)
            if start < end:
                yield BlockRange(start, end - start, zero)
                done = end


def united(ranges: t.Iterable[BlockRange], others: t.Iterable[BlockRange]) -> t.Iterator[BlockRange]:
    """Merge two sequences of ranges, in order.

    Where both cover a block, ``ranges`` wins. Each sequence must be sorted and free of overlaps.
    """
    rest = iter(others)
    other = next(rest, None)
    for each in ranges:
        while other is not None and other.first < each.first:
            stop = min(other.stop, each.first)
            yield other._replace(count=stop - other.first)
            other = _beyond(other, stop) or next(rest, None)
        yield each
        while other is not None and other.first < each.stop:
            other = _beyond(other, each.stop) or next(rest, None)
    if other is not None:
        yield other
        yield from rest


def _beyond(each: BlockRange, block: int) -> BlockRange | None:
    """Return the part of a range from ``block`` on, None if it is empty."""
    first = max(each.first, block)
    return each._replace(first=first, count=each.stop - first) if first < each.stop else None


def pieces(ranges: t.Iterable[BlockRange], limit: int) -> t.Iterator[tuple[BlockRange, ...]]:
    """Divide ranges into portions, in order.

    A portion has at most ``limit`` blocks to read and at most ``limit`` ranges. A zero range needs no reading and is
    not split.
    """
    portion: list[BlockRange] = []
    room = limit
    for current in ranges:
        first, left = current.first, current.count
        while left:
            count = left if current.zero else min(left, room)
            portion.append(BlockRange(first, count, current.zero))
            first, left = first + count, left - count
            room -= 0 if current.zero else count
            if room == 0 or len(portion) >= limit:
                yield tuple(portion)
                portion, room = [], limit
    if portion:
        yield tuple(portion)
