# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fixed grid of blocks.

Blocks start at multiples of BLOCK_SIZE from offset 0 of a disk; the last one may be short.
The size equals the granularity of QEMU's dirty bitmaps, so a changed bit costs one block.
"""

from __future__ import annotations

import typing as t

BLOCK_SIZE = 65536
ZERO_BLOCK = bytes(BLOCK_SIZE)
BLOCKS_AT_ONCE = 16  # that one worker reads, stores or proves: 1 MiB. The recorded turns of samples depend on it

Item = t.TypeVar("Item")


def block_count(size: int) -> int:
    """Return the number of blocks of a disk of ``size`` bytes, with a short last one."""
    return -(-size // BLOCK_SIZE)


def block_length(block: int, size: int) -> int:
    """Return the length of ``block`` in bytes on a disk of ``size`` bytes."""
    return min(BLOCK_SIZE, size - block * BLOCK_SIZE)


def byte_range(first: int, count: int, size: int) -> tuple[int, int]:
    """Return offset and length in bytes of blocks of a disk of ``size`` bytes, the last of which may be short."""
    offset = first * BLOCK_SIZE
    return offset, min(count * BLOCK_SIZE, size - offset)


def coalesce(items: t.Iterable[Item], join: t.Callable[[Item, Item], Item | None]) -> t.Iterator[Item]:
    """Yield the items in order, with neighbours joined. ``join`` returns one for two, or None to keep both."""
    rest = iter(items)
    for last in rest:
        for each in rest:
            both = join(last, each)
            if both is None:
                yield last
            last = each if both is None else both
        yield last
