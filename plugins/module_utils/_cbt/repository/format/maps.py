# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extent maps: which pack holds each block of one disk at one restore point. Pure.

A map is a sorted list of runs: blocks that are consecutive on the disk and in one pack. Other blocks are zero. It is
kept in columns, because a large disk with scattered changes has millions of runs. Layout, integers little-endian:

    magic (8), version (2), zero (2), block size (4), disk size (8), number of packs (4), zero (4), number of runs (8),
    SHA-256 of these 40 bytes and the columns as they are before compression (32), then zlib of the columns:
    per pack: id (16), size (8), blocks (4)
    gaps (8 each: blocks between the end of the run before and this one's first), counts (4 each),
    packs (4 each: index into the packs above), ordinals (4 each: of the first block in that pack)
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import hashlib
import struct
import sys
import typing as t
import zlib

from ...errors import DamagedObject, RepositoryError
from ...files import Buffer
from ...grid import BLOCK_SIZE, BLOCKS_AT_ONCE, block_count
from . import codecs
from .packs import PackRef, check_ref

VERSION = 1
MAGIC = b"KVMCBTMP"
MOST_RUNS = 1 << 23  # of one map, which then takes 160 MiB; half a TiB in single blocks that are not neighbours
MOST_PACKS = 1 << 20  # of one map: 64 TiB
HEADER = struct.Struct("<8sHHIQIIQ")
PACK = struct.Struct("<16sQI")
_RUN_BYTES = 8 + 4 + 4 + 4  # C's int is 4 bytes wherever QEMU runs
_MAX_COUNT = (1 << 32) - 1


class Run(t.NamedTuple):
    """``count`` consecutive blocks of the disk, starting at block ``first``.

    ``pack`` stores them, starting at its block number ``ordinal``.
    """

    first: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    pack: PackRef
    ordinal: int

    @property
    def stop(self) -> int:
        """Return the first block after it."""
        return self.first + self.count

    def part(self, first: int, stop: int) -> Run:
        """Return its piece between two blocks within it."""
        return Run(first, stop - first, self.pack, self.ordinal + first - self.first)


@dataclasses.dataclass(frozen=True)
class ExtentMap:
    """The map of a disk of ``size`` bytes. Make one with MapBuilder or ``decode``."""

    size: int
    packs: tuple[PackRef, ...]
    _firsts: array.array[int]
    _counts: array.array[int]
    _packs: array.array[int]
    _ordinals: array.array[int]

    def __len__(self) -> int:
        return len(self._firsts)

    def run(self, index: int) -> Run:
        """Return the run at a position."""
        return Run(self._firsts[index], self._counts[index], self.packs[self._packs[index]], self._ordinals[index])

    def runs(self, first: int = 0, stop: int | None = None) -> t.Iterator[Run]:
        """Yield the runs between two blocks, cut to that range, in order."""
        stop = block_count(self.size) if stop is None else stop
        index = max(0, bisect.bisect_right(self._firsts, first) - 1)
        while index < len(self) and self._firsts[index] < stop:
            run = self.run(index)
            if run.stop > first < stop:
                yield run.part(max(run.first, first), min(run.stop, stop))
            index += 1

    @property
    def stored_blocks(self) -> int:
        """Return the number of blocks that are not zero."""
        return sum(self._counts)

    def encode(self) -> bytes:
        """Return the object of the map. Raises RepositoryError if it has too many runs or packs."""
        if len(self) > MOST_RUNS or len(self.packs) > MOST_PACKS:
            raise RepositoryError(
                f"A disk is stored in {len(self)} pieces of {len(self.packs)} packs; the maximum is {MOST_RUNS} and"
                f" {MOST_PACKS}. Defragment it, or split it into several disks."
            )
        gaps, end = array.array("Q"), 0
        for first, count in zip(self._firsts, self._counts):
            gaps.append(first - end)
            end = first + count
        table = b"".join(PACK.pack(*ref) for ref in self.packs)
        head = HEADER.pack(MAGIC, VERSION, 0, BLOCK_SIZE, self.size, len(self.packs), 0, len(self))
        columns: list[Buffer] = [
            table,
            *(memoryview(_little(each)) for each in (gaps, self._counts, self._packs, self._ordinals)),
        ]
        # One after another and without copies: columns of millions of runs take as much memory as all the rest of a
        # backup.
        proof, engine, stored = hashlib.sha256(head), zlib.compressobj(6), []
        for column in columns:
            proof.update(column)
            stored.append(engine.compress(column))
        return b"".join((head, proof.digest(), *stored, engine.flush()))


def _little(column: array.array[int]) -> array.array[int]:
    if sys.byteorder == "little":
        return column
    swapped = array.array(column.typecode, column)
    swapped.byteswap()
    return swapped


def decode(data: bytes, size: int | None = None) -> ExtentMap:
    """Decode a map from the bytes of its object.

    If ``size`` is given, the map must belong to a disk of that size.

    Raises DamagedObject if the bytes are not those that were written. Raises RepositoryError if this version of kvm.cbt
    does not know the format version.
    """
    head = _header(data, size)
    columns = [array.array(code, [0]) * head.runs for code in "QIII"]
    table = bytearray(head.packs * PACK.size)
    _fill(data, head, [memoryview(table), *(memoryview(column).cast("B") for column in columns if column)])
    if sys.byteorder != "little":
        for column in columns:
            column.byteswap()
    return _checked(head.size, _refs(table), columns)


def decode_packs(data: bytes, size: int | None = None) -> tuple[PackRef, ...]:
    """Return only the packs that a map names; raises as ``decode`` does."""
    head = _header(data, size)
    table = bytearray(head.packs * PACK.size)
    _fill(data, head, [memoryview(table)])
    return _refs(table)


class _Header(t.NamedTuple):
    """The header of a map. ``columns`` is the uncompressed size in bytes of pack table and columns."""

    size: int
    packs: int
    runs: int
    columns: int


def _header(data: bytes, wanted: int | None) -> _Header:
    """Read the header of a map.

    Check each value against the limits that follow from the disk size before memory is allocated for it.
    """
    if len(data) < HEADER.size + 32 or data[:8] != MAGIC:
        raise DamagedObject("it is not an extent map")
    _magic, version, _zero, block_size, size, packs, _zero2, runs = HEADER.unpack_from(data)
    if version != VERSION:
        raise RepositoryError(
            f"An extent map has format {version}; this version of kvm.cbt reads format {VERSION}. Update it."
        )
    if wanted is not None and size != wanted:
        raise DamagedObject("it is of a disk of another size")
    if block_size != BLOCK_SIZE or runs > min(block_count(size), MOST_RUNS) or packs > min(runs, MOST_PACKS):
        raise DamagedObject("its header was changed")
    # zlib expands its input at most about 1032 times, so a false header costs no more memory than that.
    expected = packs * PACK.size + runs * _RUN_BYTES
    if expected > len(data) * 1100:
        raise DamagedObject("its header was changed")
    return _Header(size, packs, runs, expected)


def _fill(data: bytes, head: _Header, sections: list[memoryview]) -> None:
    """Decompress the columns into the given buffers, one after another.

    Data that follows the last buffer counts for the checksum and is then discarded.
    """
    proof = hashlib.sha256(data[: HEADER.size])
    number = filled = 0
    for piece in codecs.inflated(memoryview(data)[HEADER.size + 32 :], head.columns):
        proof.update(piece)
        rest = memoryview(piece)
        while rest and number < len(sections):
            taken = min(len(rest), len(sections[number]) - filled)
            sections[number][filled : filled + taken] = rest[:taken]
            rest, filled = rest[taken:], filled + taken
            if filled == len(sections[number]):
                number, filled = number + 1, 0
    if proof.digest() != data[HEADER.size : HEADER.size + 32]:
        raise DamagedObject("its checksum does not match")


def _refs(table: bytearray) -> tuple[PackRef, ...]:
    refs = tuple(map(PackRef._make, PACK.iter_unpack(table)))
    for ref in refs:
        check_ref(ref)
    return refs


def _checked(size: int, refs: tuple[PackRef, ...], columns: list[array.array[int]]) -> ExtentMap:
    """Check the columns and return the map.

    The first column contains gaps. Replace each gap with the first block of its run.
    """
    end, limit = 0, block_count(size)
    for index, (gap, count, pack, ordinal) in enumerate(zip(*columns)):
        first = end + gap
        end = first + count
        if not count or end > limit or pack >= len(refs) or ordinal + count > refs[pack].blocks:
            raise DamagedObject("its runs do not fit the disk or the packs")
        columns[0][index] = first
    return ExtentMap(size, refs, *columns)


class MapBuilder:
    """Builds the map of a disk of ``size`` bytes from ranges of blocks, in order.

    Blocks that no call mentions keep their entry from ``parent``. Without a parent, they are zero.
    """

    def __init__(self, size: int, parent: ExtentMap | None = None) -> None:
        self._size = size
        self._parent = parent
        self._packs: dict[bytes, int] = {}
        self._refs: dict[bytes, PackRef] = {}
        self._firsts, self._counts = array.array("Q"), array.array("I")
        self._indexes, self._ordinals = array.array("I"), array.array("I")
        self._spoken = 0  # blocks before this one are settled

    def zero(self, first: int, count: int) -> None:
        """Record that these blocks are zero now."""
        self._settle(first, count)

    def keep(self, first: int, count: int) -> None:
        """Record that these blocks are as in the parent."""
        self._settle(first, 0)
        self._inherit(first + count)

    def put(self, first: int, count: int, pack: bytes, ordinal: int) -> None:
        """Record that these blocks are in the pack with this id, from ``ordinal`` on."""
        self._settle(first, count)
        self._append(first, count, pack, ordinal)

    def finish(self, written: t.Mapping[bytes, PackRef]) -> ExtentMap:
        """Return the map.

        ``written`` contains the size and the block count of each pack that ``put`` named by id and the parent does not
        name. Do not call other methods afterwards.
        """
        self._inherit(block_count(self._size))
        self._parent = None  # as large as the map itself
        refs = tuple(self._refs.get(pack) or written[pack] for pack in self._packs)
        return ExtentMap(self._size, refs, self._firsts, self._counts, self._indexes, self._ordinals)

    def _settle(self, first: int, count: int) -> None:
        if first < self._spoken:
            raise ValueError(f"block {first} was already spoken of")
        self._inherit(first)
        self._spoken = first + count

    def _inherit(self, stop: int) -> None:
        if self._parent is not None and self._spoken < stop:
            for run in self._parent.runs(self._spoken, stop):
                self._refs[run.pack.id] = run.pack
                self._append(run.first, run.count, run.pack.id, run.ordinal)
        self._spoken = max(self._spoken, stop)

    def _append(self, first: int, count: int, pack: bytes, ordinal: int) -> None:
        index = self._packs.setdefault(pack, len(self._packs))
        if self._continues(first, count, index, ordinal):
            self._counts[-1] += count
            return
        self._firsts.append(first)
        self._counts.append(count)
        self._indexes.append(index)
        self._ordinals.append(ordinal)

    def _continues(self, first: int, count: int, index: int, ordinal: int) -> bool:
        if not self._counts or self._firsts[-1] + self._counts[-1] != first or self._indexes[-1] != index:
            return False
        return self._ordinals[-1] + self._counts[-1] == ordinal and self._counts[-1] + count <= _MAX_COUNT


def portions(runs: t.Iterable[Run]) -> t.Iterator[Run]:
    """Yield the runs, cut to what a worker takes at once."""
    for run in runs:
        for first in range(run.first, run.stop, BLOCKS_AT_ONCE):
            yield run.part(first, min(first + BLOCKS_AT_ONCE, run.stop))
