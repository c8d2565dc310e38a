# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tracking calls unchanged is held against the restore point in a few blocks; the last one with data is always among them."""

from __future__ import annotations

import contextlib
import hashlib
import typing as t

import pytest

from _cbt.blocks.extents import Extent
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.backup.spot_check import contradiction
from _cbt.repository.format.maps import ExtentMap, MapBuilder
from _cbt.repository.format.packs import PackRef

BLOCKS = 1000
SIZE = BLOCKS * BLOCK_SIZE - 512 * 100  # the last block is short
PACK = bytes(16)


class Disk:
    """A disk that holds one byte per block, 0 for zeroes, and marks some of them; it is its own connection."""

    def __init__(self, content: t.Sequence[int], marked: t.Collection[int] = ()) -> None:
        self.size = SIZE
        self.content, self._marked = content, marked

    def marked(self, start: int, end: int) -> list[Extent]:
        touched = range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE))
        return [
            Extent(block * BLOCK_SIZE, min(BLOCK_SIZE, SIZE - block * BLOCK_SIZE), False)
            for block in touched
            if block in self._marked
        ]

    @contextlib.contextmanager
    def connect(self) -> t.Iterator[Disk]:
        yield self

    def read(self, offset: int, length: int) -> bytes:
        return bytes([self.content[offset // BLOCK_SIZE]]) * length


class Content:
    """Digests of what a disk held."""

    def __init__(self, content: t.Sequence[int]) -> None:
        self._disk = Disk(content)

    def block_id(self, data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    def digests(self, first: int, _count: int) -> list[bytes | None]:
        length = min(BLOCK_SIZE, SIZE - first * BLOCK_SIZE)
        held = self._disk.content[first]
        return [hashlib.sha256(self._disk.read(first * BLOCK_SIZE, length)).digest() if held else None]


def _map(content: t.Sequence[int]) -> ExtentMap:
    builder = MapBuilder(SIZE)
    for block, held in enumerate(content):
        if held:
            builder.put(block, 1, PACK, block)
    return builder.finish({PACK: PackRef(PACK, 1, BLOCKS)})


def _found(base: t.Sequence[int], now: t.Sequence[int], marked: t.Collection[int] = ()) -> int | None:
    return contradiction(t.cast(t.Any, Disk(now, marked)), _map(base), t.cast(t.Any, Content(base)))


FULL = [1 + block % 255 for block in range(BLOCKS)]


@pytest.mark.parametrize(
    "base", [FULL, [0] * BLOCKS, [0] * 400 + FULL[400:700] + [0] * 300], ids=["full", "empty", "half"]
)
def test_unchanged_blocks_contradict_nothing(base: list[int]) -> None:
    assert _found(base, base) is None
    assert _found(base, [7] * BLOCKS, range(BLOCKS)) is None


@pytest.mark.parametrize("kept", [0, 1, 500, 990, 996])
@pytest.mark.parametrize(
    "marked", [(), range(100), range(991, 997), range(1, 997)], ids=["nothing", "begin", "end", "middle"]
)
def test_a_lost_tail_is_detected_at_any_length_and_after_any_later_writes(kept: int, marked: t.Collection[int]) -> None:
    base = FULL[:997] + [0] * 3
    written = [9 if block in marked else held for block, held in enumerate(base)]
    lost = written[:kept] + [9 if block in marked else 0 for block in range(kept, BLOCKS)]
    assert _found(base, written, marked) is None
    # If anything was lost that is not marked, it is found.
    assert (_found(base, lost, marked) is not None) == (lost != written)
    scattered = [held if block % 83 == 0 else 0 for block, held in enumerate(base)]  # 996 is 12 times 83
    assert _found(scattered, scattered[:kept] + [0] * (BLOCKS - kept), ()) is not None


def test_another_disk_in_its_place_is_found() -> None:
    assert _found(FULL, FULL[1:] + FULL[:1]) is not None
    assert _found([0] * BLOCKS, FULL) is not None
    assert _found(FULL, [0] * BLOCKS) is not None
