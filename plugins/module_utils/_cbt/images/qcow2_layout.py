# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a new qcow2 v3 image whose content is known beforehand. Pure.

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

from ..grid import coalesce

_COPIED = 1 << 63  # set in table entries whose cluster has a reference count of one
_ALLOCATED = 0xFFFFFFFF  # all subclusters of an extended L2 entry hold data
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_HEADER_LENGTH = 112
_ZSTD, _EXTENDED_L2 = 1 << 3, 1 << 4  # incompatible features
_LAZY_REFCOUNTS = 1  # a compatible feature
_LARGEST_L1 = 32 << 20  # bytes, QEMU's limit
_CLUSTERS = tuple(1 << bits for bits in range(9, 22))  # bytes, what QEMU reads
_SMALLEST_EXTENDED = 1 << 14  # bytes of a cluster with 32 subclusters


class Features(t.NamedTuple):
    """What an image may have otherwise than QEMU's default; ``cluster`` in bytes. It is always qcow2 v3 with refcounts of 16 bits."""

    cluster: int = 65536
    extended_l2: bool = False
    lazy_refcounts: bool = False
    zstd: bool = False

    @property
    def entry_words(self) -> int:
        """64-bit words of an L2 entry."""
        return 2 if self.extended_l2 else 1

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table, which is one cluster."""
        return self.cluster // (8 * self.entry_words)


DEFAULT = Features()


def features_like(image: t.Mapping[str, t.Any]) -> Features:
    """The features of an image that ``qemu-img info`` described. Raises ValueError if qcow2 has no such features."""
    cluster = image.get("cluster-size", DEFAULT.cluster)
    if cluster not in _CLUSTERS or isinstance(cluster, bool):
        raise ValueError("qcow2 does not support clusters of that size")
    flags = {key: image.get(key, False) for key in ("extended-l2", "lazy-refcounts")}
    if not all(isinstance(flag, bool) for flag in flags.values()) or image.get("compression-type", "zlib") not in (
        "zlib",
        "zstd",
    ):
        raise ValueError("qcow2 has no such features")
    if flags["extended-l2"] and cluster < _SMALLEST_EXTENDED:
        raise ValueError("qcow2 supports extended L2 entries only with larger clusters")
    return Features(cluster, flags["extended-l2"], flags["lazy-refcounts"], image.get("compression-type") == "zstd")


class ClusterRun(t.NamedTuple):
    """``count`` clusters of the disk from ``first`` that hold data, lying in the file from cluster ``host`` on."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody misses
    host: int


def _clusters(amount: int, unit: int) -> int:
    return -(-amount // unit)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything lies in the image, in clusters: header, refcount table, refcount blocks, L1 table, L2 tables, data."""

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
        """Bytes of the finished file."""
        return self.total * self.features.cluster

    @property
    def metadata_size(self) -> int:
        """Bytes of the file that are not data."""
        return self.file_size - sum(run.count for run in self.runs) * self.features.cluster

    @property
    def _l1_first(self) -> int:
        return 1 + self.table + self.blocks

    @property
    def _l2_first(self) -> int:
        return self._l1_first + self.l1

    def file_offset(self, offset: int) -> int:
        """Where in the file the data at an offset of the disk lies. Raises KeyError if none was planned for it."""
        cluster = offset // self.features.cluster
        index = bisect.bisect_right(self.runs, (cluster, sys.maxsize, 0)) - 1
        run = self.runs[index] if index >= 0 else ClusterRun(0, 0, 0)
        if not run.first <= cluster < run.first + run.count:
            raise KeyError(offset)
        return (run.host + cluster - run.first) * self.features.cluster + offset % self.features.cluster

    def metadata(self) -> t.Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes) of all that is not data; the header comes first."""
        size = self.features.cluster
        yield 0, self._header()
        yield size, _big_endian("Q", ((1 + self.table + index) * size for index in range(self.blocks)))
        for index in range(self.blocks):
            counted = min(size // 2, self.total - index * (size // 2))
            yield (1 + self.table + index) * size, b"\0\1" * counted
        level1 = array.array("Q", bytes(8 * self._l1_entries))
        for position, index in enumerate(self.l2_indexes):
            level1[index] = (self._l2_first + position) * size | _COPIED
        yield self._l1_first * size, _big_endian("Q", level1)
        yield from self._level2()

    @property
    def _l1_entries(self) -> int:
        return _l1_entries(self.size, self.features)

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
            self._l1_entries,
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


def _l1_entries(size: int, features: Features) -> int:
    return max(1, _clusters(_clusters(size, features.cluster), features.l2_entries))


def _by_table(run: ClusterRun, entries: int) -> t.Iterator[ClusterRun]:
    """A run cut where another L2 table begins."""
    first, left, host = run
    while left:
        count = min(left, entries - first % entries)
        yield ClusterRun(first, count, host)
        first, host, left = first + count, host + count, left - count


def _in_clusters(ranges: t.Iterable[tuple[int, int]], cluster: int) -> t.Iterator[tuple[int, int]]:
    """(first, count) clusters that ranges of (offset, length) in bytes touch, neighbours joined; the ranges are in order."""
    touched = ((offset // cluster, _clusters(offset + length, cluster)) for offset, length in ranges)
    for first, stop in coalesce(touched, _join):
        yield first, stop - first


def _join(last: tuple[int, int], each: tuple[int, int]) -> tuple[int, int] | None:
    return (last[0], max(last[1], each[1])) if each[0] <= last[1] else None


def plan(size: int, ranges: t.Iterable[tuple[int, int]], features: Features = DEFAULT) -> Layout:
    """The layout of an image for a disk of ``size`` bytes with data in the given ranges of (offset, length) in bytes, in order.

    Raises ValueError if an image with these features cannot be as large.
    """
    data = list(_in_clusters(ranges, features.cluster))
    entries, counts = features.l2_entries, features.cluster // 2
    if 8 * _l1_entries(size, features) > _LARGEST_L1:
        raise ValueError(f"clusters of {features.cluster} bytes are too small for it")
    needed = {index for first, count in data for index in range(first // entries, (first + count - 1) // entries + 1)}
    l1 = _clusters(8 * _l1_entries(size, features), features.cluster)
    fixed = 1 + l1 + len(needed) + sum(count for _first, count in data)
    table = blocks = 1
    while True:  # the refcounts count the clusters they themselves lie in
        total = fixed + table + blocks
        wanted = _clusters(total, counts), _clusters(8 * _clusters(total, counts), features.cluster)
        if wanted == (blocks, table):
            break
        blocks, table = wanted
    runs, host = [], total - sum(count for _first, count in data)
    for first, count in data:
        runs.append(ClusterRun(first, count, host))
        host += count
    return Layout(features, size, tuple(runs), tuple(sorted(needed)), table, blocks, l1, total)
