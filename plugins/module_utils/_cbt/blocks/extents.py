# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arithmetic of extents. Pure.

An extent is a byte range of a disk with one state. QEMU reports two kinds of state, each in an NBD
metadata context of its own: dirty or not, and reading as zero or not.
"""

from __future__ import annotations

import typing as t

from ..grid import BLOCK_SIZE, block_count


class Extent(t.NamedTuple):
    """``length`` bytes from ``offset`` with one state: dirty in a dirty context, zero in an allocation context."""

    offset: int
    length: int
    flag: bool

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + self.length


class BlockRange(t.NamedTuple):
    """``count`` whole blocks from ``first``; ``zero`` if all of them are known to read as zero."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    zero: bool


def clip(entries: t.Iterable[tuple[int, bool]], offset: int, end: int) -> t.Iterator[Extent]:
    """Extents from the (length, flag) entries of one NBD block status reply that began at ``offset``.

    The last entry may overrun what was asked for and is cut at ``end``; entries beyond are dropped.
    """
    for length, flag in entries:
        length = min(length, end - offset)
        if length <= 0:
            return
        yield Extent(offset, length, flag)
        offset += length


def joined(extents: t.Iterable[Extent]) -> t.Iterator[Extent]:
    """Neighbours of the same state made one. The extents must be ordered and not overlap."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.end == extent.offset and last.flag == extent.flag:
            last = Extent(last.offset, last.length + extent.length, last.flag)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def intersect(dirty: t.Iterable[Extent], allocation: t.Iterable[Extent]) -> t.Iterator[Extent]:
    """The dirty parts, flagged by whether they read as zero.

    Both must be ordered; ``allocation`` must cover every dirty byte. The two contexts need not be cut
    at the same places, so each step goes to the nearer end of both. A dirty part that reads as zero is kept:
    leaving it out would bring the old bytes back on restore.

    Raises ValueError if a dirty byte is not covered.
    """
    states = iter(allocation)
    state: Extent | None = None
    for extent in dirty:
        if not extent.flag:
            continue
        offset = extent.offset
        while offset < extent.end:
            while state is None or state.end <= offset:
                state = next(states, None)
                if state is None:
                    raise ValueError(f"allocation is unknown at offset {offset}")
            if state.offset > offset:
                raise ValueError(f"allocation is unknown at offset {offset}")
            end = min(extent.end, state.end)
            yield Extent(offset, end - offset, state.flag)
            offset = end


def to_blocks(extents: t.Iterable[Extent], size: int) -> t.Iterator[BlockRange]:
    """Blocks to look at on a disk of ``size`` bytes, from ordered extents flagged zero or not.

    Every block touched is covered once, in order. A block counts as zero only if zero extents cover
    all of it; where they cover a part, or something dirty leaves the rest unknown, it is to be read.
    """
    total = block_count(size)
    done = 0  # blocks before this one are settled
    pending: BlockRange | None = None

    def settled(first: int, stop: int, zero: bool) -> t.Iterator[BlockRange]:
        nonlocal done, pending
        first = max(first, done)
        if stop <= first:
            return
        done = stop
        if pending is not None and pending.first + pending.count == first and pending.zero == zero:
            pending = BlockRange(pending.first, pending.count + stop - first, zero)
            return
        if pending is not None:
            yield pending
        pending = BlockRange(first, stop - first, zero)

    for extent in joined(extents):
        first, stop = extent.offset // BLOCK_SIZE, min(block_count(extent.end), total)
        if not extent.flag:
            yield from settled(first, stop, False)
            continue
        inner_first = block_count(extent.offset)
        inner_stop = stop if extent.end >= size else extent.end // BLOCK_SIZE
        if inner_first >= inner_stop:
            yield from settled(first, stop, False)
            continue
        yield from settled(first, inner_first, False)
        yield from settled(inner_first, inner_stop, True)
        yield from settled(inner_stop, stop, False)
    if pending is not None:
        yield pending


def joined_ranges(ranges: t.Iterable[BlockRange]) -> t.Iterator[BlockRange]:
    """Neighbouring ranges of the same kind made one. They must be ordered and not overlap."""
    last: BlockRange | None = None
    for each in ranges:
        if last is not None and last.first + last.count == each.first and last.zero == each.zero:
            last = BlockRange(last.first, last.count + each.count, last.zero)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def united(ranges: t.Iterable[BlockRange], others: t.Iterable[BlockRange]) -> t.Iterator[BlockRange]:
    """The ranges, and of the others what they do not cover, in order. Either must be ordered and not overlap."""
    rest = iter(others)
    other = next(rest, None)
    for each in ranges:
        while other is not None and other.first < each.first:
            stop = min(other.first + other.count, each.first)
            yield other._replace(count=stop - other.first)
            other = _beyond(other, stop) or next(rest, None)
        yield each
        while other is not None and other.first < each.first + each.count:
            other = _beyond(other, each.first + each.count) or next(rest, None)
    if other is not None:
        yield other
        yield from rest


def _beyond(each: BlockRange, block: int) -> BlockRange | None:
    """What of a range lies from a block on."""
    first = max(each.first, block)
    count = each.first + each.count - first
    return each._replace(first=first, count=count) if count > 0 else None


def pieces(ranges: t.Iterable[BlockRange], limit: int) -> t.Iterator[tuple[BlockRange, ...]]:
    """Ranges dealt out in portions with at most ``limit`` blocks to read each; order is kept.

    Zero ranges cost nothing to read and are never cut, but a portion holds at most ``limit`` ranges.
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
