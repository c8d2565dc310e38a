# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads one portion of a disk into packs: each block is zero, unchanged, already stored, or new."""

from __future__ import annotations

import dataclasses
import typing as t

from ...blocks.extents import BlockRange
from ...blocks.source import DiskConnection
from ...blocks.throttle import Throttle
from ...busy import COMPRESSING, HASHING, READING, SEARCHING, THROTTLED, Stopwatch
from ...grid import BLOCK_SIZE, ZERO_BLOCK, byte_range, coalesce
from ...repository.dedup.dedup import Deduplicator, Lookup
from ...repository.format.codecs import Encoder
from ...repository.format.packs import Encoded
from ...repository.packs.writer import BlockAddress, PackWriter
from .parent_blocks import ParentBlocks

ZERO = "zero"
KEPT = "kept"
ELSEWHERE = "elsewhere"
NEW = "new"

_NO_ADDRESS = BlockAddress(b"", 0)
_Examined = tuple[int, int, str, bytes]  # first block, count, state, id of the block that was read


class Outcome(t.NamedTuple):
    """Consecutive blocks with the same state.

    If the state is ELSEWHERE or NEW, ``pack`` stores them, starting at its block number ``ordinal``.
    """

    first: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    state: str
    pack: bytes = b""
    ordinal: int = 0


@dataclasses.dataclass
class Statistics:
    """Bytes of one disk by outcome.

    ``dirty_bytes`` had to be examined. Of these, ``read_bytes`` were read (the rest was known to be zero),
    ``zero_bytes`` are zero, ``unchanged_bytes`` equal the parent, ``deduplicated_bytes`` were stored elsewhere already,
    and ``new_bytes`` were stored and take ``stored_bytes`` in packs.
    """

    dirty_bytes: int = 0
    read_bytes: int = 0
    zero_bytes: int = 0
    unchanged_bytes: int = 0
    deduplicated_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0

    def add(self, other: Statistics) -> None:
        """Add the counts of another portion."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def count(self, state: str, length: int) -> None:
        """Count the bytes of blocks with a state."""
        self.dirty_bytes += length
        self.zero_bytes += length if state == ZERO else 0
        self.unchanged_bytes += length if state == KEPT else 0
        self.deduplicated_bytes += length if state == ELSEWHERE else 0
        self.new_bytes += length if state == NEW else 0


@dataclasses.dataclass(frozen=True)
class BlockSink:
    """Stores new blocks.

    ``encode`` compresses a block and ``writer`` appends it to a pack. ``dedup``, if set, remembers the block for the
    rest of this run.
    """

    writer: PackWriter
    encode: Encoder
    dedup: Deduplicator | None = None

    def store(
        self, blocks: t.Sequence[tuple[bytes, memoryview]], watch: Stopwatch
    ) -> tuple[dict[bytes, BlockAddress], int]:
        """Store new blocks. Return their addresses by block id, and the number of bytes stored.

        ``watch`` measures the worker that stores them.
        """
        if not blocks:
            return {}, 0
        encoded = [Encoded(block_id, *self.encode(data), len(data)) for block_id, data in blocks]
        watch.lap(COMPRESSING)
        pack, first = address = self.writer.append(encoded, watch)
        block_ids = [block_id for block_id, _data in blocks]
        if self.dedup is not None:
            self.dedup.stored(address, block_ids)
        addresses = {block_id: BlockAddress(pack, ordinal) for ordinal, block_id in enumerate(block_ids, first)}
        return addresses, sum(len(each.payload) for each in encoded)


@dataclasses.dataclass(frozen=True)
class PortionReader:
    """Reads portions of one disk of ``size`` bytes, in one worker's thread.

    ``find`` looks up blocks that a pack already stores. It is None if deduplication is off.
    """

    connection: DiskConnection
    size: int
    parent: ParentBlocks
    sink: BlockSink
    throttle: Throttle
    find: Lookup | None
    watch: Stopwatch

    def read(self, portion: tuple[BlockRange, ...]) -> tuple[list[Outcome], Statistics]:
        """Read, hash, compare, look up, compress and store."""
        statistics, watch = Statistics(), self.watch
        watch.start()
        examined: list[_Examined] = []
        fresh: dict[bytes, memoryview] = {}
        for wanted in portion:
            if wanted.zero:
                examined.append((wanted.first, wanted.count, ZERO, b""))
                continue
            offset, length = byte_range(wanted.first, wanted.count, self.size)
            self.throttle.take(length)
            watch.lap(THROTTLED)
            data = self.connection.read(offset, length)
            watch.lap(READING)
            statistics.read_bytes += length
            examined += _examine(data, wanted, self.parent, fresh)
            watch.lap(HASHING)
        elsewhere = self.find(fresh) if self.find is not None and fresh else {}
        watch.lap(SEARCHING)
        new = [each for each in fresh.items() if each[0] not in elsewhere]
        stored, statistics.stored_bytes = self.sink.store(new, watch)
        found = list(coalesce(_located(examined, elsewhere, stored), _join))
        for each in found:
            statistics.count(each.state, byte_range(each.first, each.count, self.size)[1])
        return found, statistics


def _examine(
    data: bytearray, wanted: BlockRange, parent: ParentBlocks, fresh: dict[bytes, memoryview]
) -> t.Iterator[_Examined]:
    """Yield the state of each block in ``data``.

    Add each block that is neither zero nor equal to the parent's block to ``fresh``, once per block id.
    """
    view = memoryview(data)
    before = parent.digests(wanted.first, wanted.count)
    for index in range(wanted.count):
        offset = index * BLOCK_SIZE
        block = view[offset : offset + BLOCK_SIZE]
        # Comparing in place costs no copy and ends at the first byte that is not zero.
        if data.startswith(ZERO_BLOCK[: len(block)], offset):
            yield wanted.first + index, 1, ZERO, b""
            continue
        block_id = parent.block_id(block)
        if block_id == before[index]:
            yield wanted.first + index, 1, KEPT, b""
            continue
        yield wanted.first + index, 1, ELSEWHERE if block_id in fresh else NEW, block_id
        fresh[block_id] = block


def _located(
    examined: t.Iterable[_Examined], elsewhere: t.Mapping[bytes, BlockAddress], stored: t.Mapping[bytes, BlockAddress]
) -> t.Iterator[Outcome]:
    """Add the pack and the block number to each examined block that a pack stores."""
    for block, number, state, block_id in examined:
        if block_id in elsewhere:
            yield Outcome(block, number, ELSEWHERE, *elsewhere[block_id])
        else:
            yield Outcome(block, number, state, *stored.get(block_id, _NO_ADDRESS))


def _join(last: Outcome, each: Outcome) -> Outcome | None:
    """Join outcomes with consecutive blocks and addresses; None if they are not consecutive."""
    if (last.first + last.count, last.state, last.pack) != (each.first, each.state, each.pack):
        return None
    adjoin = not last.pack or last.ordinal + last.count == each.ordinal
    return last._replace(count=last.count + each.count) if adjoin else None
