# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a new qcow2 v3 image whose content is known beforehand. Pure. Private to the collection.

QEMU's own writer allocates clusters as they come, through one thread. A restore knows all of them in advance: the tables can
be laid out at once and the data written in place, from several threads, at the speed of a plain file.
The format is QEMU's docs/interop/qcow2.txt: integers are big-endian; all clusters have a reference count of one.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import itertools
import struct
import sys
import typing as t

CLUSTER = 65536
_CLUSTER_BITS = 16
_TABLE_ENTRIES = CLUSTER // 8  # of an L1, L2 or refcount table, in one cluster
_REFCOUNTS = CLUSTER // 2  # of 16 bits, in one cluster
_COPIED = 1 << 63  # set in table entries whose cluster has a reference count of one
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_LENGTH = 104


class Run(t.NamedTuple):
    """``count`` clusters of the disk from ``first`` that hold data, lying in the file from cluster ``host`` on."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody misses
    host: int


def _clusters(amount: int, unit: int) -> int:
    return -(-amount // unit)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything lies in the image, in clusters: header, refcount table, refcount blocks, L1 table, L2 tables, data."""

    size: int
    runs: t.Tuple[Run, ...]
    l2_indexes: t.Tuple[int, ...]
    table: int
    blocks: int
    l1: int
    total: int

    @property
    def file_size(self) -> int:
        """Bytes of the finished file."""
        return self.total * CLUSTER

    @property
    def _l1_entries(self) -> int:
        return max(1, _clusters(_clusters(self.size, CLUSTER), _TABLE_ENTRIES))

    @property
    def _l1_first(self) -> int:
        return 1 + self.table + self.blocks

    @property
    def _l2_first(self) -> int:
        return self._l1_first + self.l1

    def place(self, offset: int) -> int:
        """Where in the file the data at an offset of the disk lies. Raises KeyError if none was planned for it."""
        cluster = offset // CLUSTER
        index = bisect.bisect_right(self.runs, (cluster, sys.maxsize, 0)) - 1
        run = self.runs[index] if index >= 0 else Run(0, 0, 0)
        if not run.first <= cluster < run.first + run.count:
            raise KeyError(offset)
        return (run.host + cluster - run.first) * CLUSTER + offset % CLUSTER

    def metadata(self) -> t.Iterator[t.Tuple[int, bytes]]:
        """(offset in the file, bytes) of all that is not data."""
        yield 0, self._header()
        yield CLUSTER, _big_endian("Q", ((1 + self.table + index) * CLUSTER for index in range(self.blocks)))
        for index in range(self.blocks):
            counted = min(_REFCOUNTS, self.total - index * _REFCOUNTS)
            yield (1 + self.table + index) * CLUSTER, b"\0\1" * counted
        level1 = array.array("Q", bytes(8 * self._l1_entries))
        for position, index in enumerate(self.l2_indexes):
            level1[index] = (self._l2_first + position) * CLUSTER | _COPIED
        yield self._l1_first * CLUSTER, _big_endian("Q", level1)
        yield from self._level2()

    def _level2(self) -> t.Iterator[t.Tuple[int, bytes]]:
        pieces = itertools.chain.from_iterable(_by_table(run) for run in self.runs)
        for position, (_index, group) in enumerate(itertools.groupby(pieces, key=lambda run: run.first // _TABLE_ENTRIES)):
            table = array.array("Q", bytes(CLUSTER))
            for run in group:
                start = run.first % _TABLE_ENTRIES
                first = run.host * CLUSTER | _COPIED
                table[start : start + run.count] = array.array("Q", range(first, first + run.count * CLUSTER, CLUSTER))
            yield (self._l2_first + position) * CLUSTER, _big_endian("Q", table)

    def _header(self) -> bytes:
        return _HEADER.pack(
            b"QFI\xfb",
            3,
            0,  # no backing file
            0,
            _CLUSTER_BITS,
            self.size,
            0,  # not encrypted
            self._l1_entries,
            self._l1_first * CLUSTER,
            CLUSTER,
            self.table,
            0,  # no snapshots
            0,
            0,  # no incompatible, compatible or autoclear features
            0,
            0,
            4,  # reference counts of 16 bits
            _HEADER_LENGTH,
        ) + bytes(8)  # the end of header extensions


def _big_endian(code: str, values: t.Iterable[int]) -> bytes:
    column = array.array(code, values)
    if sys.byteorder == "little":
        column.byteswap()
    return column.tobytes()


def _by_table(run: Run) -> t.Iterator[Run]:
    """A run cut where another L2 table begins."""
    first, left, host = run
    while left:
        count = min(left, _TABLE_ENTRIES - first % _TABLE_ENTRIES)
        yield Run(first, count, host)
        first, host, left = first + count, host + count, left - count


def _joined(ranges: t.Iterable[t.Tuple[int, int]]) -> t.Iterator[t.Tuple[int, int]]:
    last: t.Optional[t.Tuple[int, int]] = None
    for first, count in ranges:
        if last is not None and last[0] + last[1] == first:
            last = last[0], last[1] + count
            continue
        if last is not None:
            yield last
        last = first, count
    if last is not None:
        yield last


def plan(size: int, ranges: t.Iterable[t.Tuple[int, int]]) -> Layout:
    """The layout of an image for a disk of ``size`` bytes with data in the given (first cluster, count) ranges, in order."""
    data = list(_joined(ranges))
    needed = {index for first, count in data for index in range(first // _TABLE_ENTRIES, (first + count - 1) // _TABLE_ENTRIES + 1)}
    l1 = max(1, _clusters(_clusters(_clusters(size, CLUSTER), _TABLE_ENTRIES), _TABLE_ENTRIES))
    fixed = 1 + l1 + len(needed) + sum(count for _first, count in data)
    table = blocks = 1
    while True:  # the refcounts count the clusters they themselves lie in
        total = fixed + table + blocks
        wanted = _clusters(total, _REFCOUNTS), _clusters(_clusters(total, _REFCOUNTS), _TABLE_ENTRIES)
        if wanted == (blocks, table):
            break
        blocks, table = wanted
    runs, host = [], total - sum(count for _first, count in data)
    for first, count in data:
        runs.append(Run(first, count, host))
        host += count
    return Layout(size, tuple(runs), tuple(sorted(needed)), table, blocks, l1, total)
