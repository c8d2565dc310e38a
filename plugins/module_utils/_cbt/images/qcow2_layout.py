# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Computes the layout of a new qcow2 v3 image whose content is known. Pure.

QEMU's own writer allocates clusters in the order of the writes, in one thread. A restore knows all of them in advance:
it writes the tables at once and the data in place, from several threads, at the speed of a plain file.

The format is QEMU's docs/interop/qcow2.txt: integers are big-endian. All clusters have a reference count of one.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import itertools
import struct
import sys
import typing as t

from ..grid import BLOCK_SIZE, coalesce

_COPIED = 1 << 63  # set in table entries whose cluster has a reference count of one
_ALLOCATED = 0xFFFFFFFF  # all subclusters of an extended L2 entry hold data
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_HEADER_LENGTH = 112
_ZSTD, _EXTENDED_L2 = 1 << 3, 1 << 4  # incompatible features
_LAZY_REFCOUNTS = 1  # a compatible feature
_LARGEST_L1 = 32 << 20  # bytes, QEMU's limit
_CLUSTERS = tuple(1 << bits for bits in range(9, 22))  # bytes; the sizes that QEMU reads
_SMALLEST_EXTENDED = 1 << 14  # bytes of a cluster with 32 subclusters


class Features(t.NamedTuple):
    """Features that may differ from QEMU's defaults; ``cluster`` in bytes.

    The image is always qcow2 v3 with refcounts of 16 bits.
    """

    cluster: int = 65536
    extended_l2: bool = False
    lazy_refcounts: bool = False
    zstd: bool = False

    @property
    def entry_words(self) -> int:
        """Number of 64-bit words of an L2 entry."""
        return 2 if self.extended_l2 else 1

    @property
    def l2_entries(self) -> int:
        """Number of entries of an L2 table, which is one cluster."""
        return self.cluster // (8 * self.entry_words)

    def l1_entries(self, size: int) -> int:
        """Return the number of entries of the L1 table of a disk of ``size`` bytes."""
        return max(1, _clusters(_clusters(size, self.cluster), self.l2_entries))


DEFAULT = Features()


def features_like(image: t.Mapping[str, t.Any]) -> Features:
    """Return the features that ``qemu-img info`` shows. Raises ValueError if invalid."""
    cluster, compression = image.get("cluster-size", DEFAULT.cluster), image.get("compression-type", "zlib")
    extended, lazy = image.get("extended-l2", False), image.get("lazy-refcounts", False)
    if not isinstance(cluster, int) or cluster not in _CLUSTERS:
        raise ValueError("qcow2 does not support clusters of that size")
    if not (isinstance(extended, bool) and isinstance(lazy, bool)) or compression not in ("zlib", "zstd"):
        raise ValueError("qcow2 has no such features")
    if extended and cluster < _SMALLEST_EXTENDED:
        raise ValueError("qcow2 supports extended L2 entries only with larger clusters")
    return Features(cluster, extended, lazy, compression == "zstd")


class ClusterRun(t.NamedTuple):
    """``count`` clusters of the disk from ``first``, at ``host`` in the file."""

    first: int
    count: int  # type: ignore[assignment]  # shadows tuple.count
    host: int


def _clusters(amount: int, unit: int) -> int:
    return -(-amount // unit)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of an image, in clusters.

    The order is header, refcount table, refcount blocks, L1 table, L2 tables, data. ``table``, ``blocks`` and ``l1``
    count the clusters of these parts, ``total`` those of the file.
    """

    features: Features
    size: int
    runs: tuple[ClusterRun, ...]
    l2_indexes: tuple[int, ...]
    table: int
    blocks: int
    l1: int
    total: int

    @property
    def file_size(self) -> int:
        """Size of the finished file in bytes."""
        return self.total * self.features.cluster

    @property
    def full_size(self) -> int:
        """Size in bytes that the file can grow to: all of the disk, and the bitmaps of two checkpoints."""
        cluster = self.features.cluster
        bits = _clusters(_clusters(self.size, BLOCK_SIZE), 8 * cluster)
        tables = _clusters(8 * bits, cluster)
        # Each checkpoint also has an empty bitmap. QEMU writes all bitmaps anew before it releases the old ones.
        bitmaps = 2 * (2 * (bits + 2 * tables) + 1)
        return plan(self.size, [(0, self.size + bitmaps * cluster)], self.features).file_size

    @property
    def metadata_size(self) -> int:
        """Size of the metadata in bytes."""
        return (self._l2_first + len(self.l2_indexes)) * self.features.cluster

    @property
    def _l1_first(self) -> int:
        return 1 + self.table + self.blocks

    @property
    def _l2_first(self) -> int:
        return self._l1_first + self.l1

    def file_offset(self, offset: int) -> int:
        """Return the file offset of a disk offset. Raises KeyError if it has no data."""
        cluster = offset // self.features.cluster
        index = bisect.bisect_right(self.runs, (cluster, sys.maxsize, 0)) - 1
        run = self.runs[index] if index >= 0 else ClusterRun(0, 0, 0)
        if not run.first <= cluster < run.first + run.count:
            raise KeyError(offset)
        return (run.host + cluster - run.first) * self.features.cluster + offset % self.features.cluster

    def metadata(self) -> t.Iterator[tuple[int, bytes]]:
        """Yield (offset in the file, bytes) of the metadata, beginning with the header."""
        size = self.features.cluster
        yield 0, self._header()
        yield size, _big_endian("Q", ((1 + self.table + index) * size for index in range(self.blocks)))
        for index in range(self.blocks):
            counted = min(size // 2, self.total - index * (size // 2))
            yield (1 + self.table + index) * size, b"\0\1" * counted
        level1 = array.array("Q", bytes(8 * self.features.l1_entries(self.size)))
        for position, index in enumerate(self.l2_indexes):
            level1[index] = (self._l2_first + position) * size | _COPIED
        yield self._l1_first * size, _big_endian("Q", level1)
        yield from self._level2()

    def _level2(self) -> t.Iterator[tuple[int, bytes]]:
        size, words, entries = self.features.cluster, self.features.entry_words, self.features.l2_entries
        pieces = itertools.chain.from_iterable(_by_table(run, entries) for run in self.runs)
        for position, (_index, group) in enumerate(itertools.groupby(pieces, key=lambda run: run.first // entries)):
            table = array.array("Q", bytes(size))
            for run in group:
                start, stop = run.first % entries * words, (run.first % entries + run.count) * words
                first = run.host * size | _COPIED
                table[start:stop:words] = array.array("Q", range(first, first + run.count * size, size))
                if words == 2:
                    table[start + 1 : stop : words] = array.array("Q", [_ALLOCATED]) * run.count
            yield (self._l2_first + position) * size, _big_endian("Q", table)

    def _header(self) -> bytes:
        features, size = self.features, self.features.cluster
        return _HEADER.pack(
            b"QFI\xfb",
            3,
            0,  # no backing file
            0,
            size.bit_length() - 1,
            self.size,
            0,  # not encrypted
            features.l1_entries(self.size),
            self._l1_first * size,
            size,
            self.table,
            0,  # no snapshots
            0,
            features.zstd * _ZSTD | features.extended_l2 * _EXTENDED_L2,
            features.lazy_refcounts * _LAZY_REFCOUNTS,
            0,  # no autoclear features
            4,  # reference counts of 16 bits
            _HEADER_LENGTH,
            features.zstd,  # compression type
        ) + bytes(8)  # the end of header extensions


def _big_endian(code: str, values: t.Iterable[int]) -> bytes:
    column = array.array(code, values)
    if sys.byteorder == "little":
        column.byteswap()
    return column.tobytes()


def _by_table(run: ClusterRun, entries: int) -> t.Iterator[ClusterRun]:
    """Split a run at the boundaries of L2 tables."""
    first, left, host = run
    while left:
        count = min(left, entries - first % entries)
        yield ClusterRun(first, count, host)
        first, host, left = first + count, host + count, left - count


def _in_clusters(ranges: t.Iterable[tuple[int, int]], cluster: int) -> t.Iterator[tuple[int, int]]:
    """Yield (first, count) clusters that ordered (offset, length) byte ranges touch."""
    touched = ((offset // cluster, _clusters(offset + length, cluster)) for offset, length in ranges)
    for first, stop in coalesce(touched, _join):
        yield first, stop - first


def _join(last: tuple[int, int], each: tuple[int, int]) -> tuple[int, int] | None:
    return (last[0], max(last[1], each[1])) if each[0] <= last[1] else None


def plan(size: int, ranges: t.Iterable[tuple[int, int]], features: Features = DEFAULT) -> Layout:
    """Return the layout of an image for a disk of ``size`` bytes.

    ``ranges`` are the (offset, length) of the data in bytes, in order. Raises ValueError if ``size`` is too large for
    the features.
    """
    data = list(_in_clusters(ranges, features.cluster))
    entries, counts, l1_size = features.l2_entries, features.cluster // 2, 8 * features.l1_entries(size)
    if l1_size > _LARGEST_L1:
        raise ValueError(f"clusters of {features.cluster} bytes are too small for it")
    needed = {index for first, count in data for index in range(first // entries, (first + count - 1) // entries + 1)}
    l1, stored = _clusters(l1_size, features.cluster), sum(count for _first, count in data)
    fixed = 1 + l1 + len(needed) + stored
    table = blocks = 1
    while True:  # the refcounts also count their own clusters
        total = fixed + table + blocks
        wanted = _clusters(total, counts), _clusters(8 * _clusters(total, counts), features.cluster)
        if wanted == (blocks, table):
            break
        blocks, table = wanted
    runs, host = [], total - stored
    for first, count in data:
        runs.append(ClusterRun(first, count, host))
        host += count
    return Layout(features, size, tuple(runs), tuple(sorted(needed)), table, blocks, l1, total)
