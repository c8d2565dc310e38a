# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Immutable files of hooks, sorted by key: the parts of this host's index.

An entry is a number of 64 bits: 40 bits of the key, and the number of a pack within the file. A wrong pack matches once
in 2^40; its directory is read before its blocks are used. Layout; head and packs are little-endian, entries and index
have the byte order of this host:

    head     magic (8), packs (4), pages (4), bytes of the sources (8), CRC-32 of all after the pages (4); one page
    pages    entries (8 each), ascending; the last page is padded with its last entry
    index    per page: its first entry (8 each), then its CRC-32 (4 each)
    packs    per pack: id (16), size (8), blocks (4), number of its source (4)
    sources  names, a line each
"""

from __future__ import annotations

import array
import bisect
import contextlib
import itertools
import os
import struct
import typing as t
import zlib

from ..format.hooks import PackHooks
from ..format.packs import PackRef

MAX_PACKS = 1 << 24
_NUMBER = MAX_PACKS - 1
_MAGIC = b"KVMCBTX1"
_HEAD = struct.Struct("<8sIIQI")
_PACK = struct.Struct("<16sQII")
_PAGE = 4096
_PER_PAGE = _PAGE // 8
_WINDOW = 16  # pages of each file that a merge reads at once
_PIECE = 1 << 20
_MOST_PAGES = 1 << 20
_MOST_SOURCES = 128 << 20  # bytes of their names

Gone = t.Container[int]


class Unusable(Exception):
    """The content of a file is not what was written."""


def _packed(key: int, number: int) -> int:
    """Return a hook as an entry. The first three bits of a key are always zero."""
    return key << 3 & ~_NUMBER | number


class Segment:
    """One file of hooks. Its methods raise Unusable if its content is wrong, or OSError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        head = os.pread(self._file, _HEAD.size, 0)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise Unusable(f"{self.path} holds no hooks")
        _magic, self.packs, self._pages, self._length, self._checksum = _HEAD.unpack(head)
        if self.packs > MAX_PACKS or self._pages > _MOST_PAGES or self._length > _MOST_SOURCES:
            raise Unusable(f"{self.path} is larger than any segment")
        self._index_at = (1 + self._pages) * _PAGE
        self._packs_at = self._index_at + self._pages * 12
        self._sources_at = self._packs_at + self.packs * _PACK.size
        if os.fstat(self._file).st_size != self._sources_at + self._length:
            raise Unusable(f"{self.path} is truncated")
        index = self._read(self._index_at, self._pages * 12)
        self._first, self._sums = array.array("Q", index[: self._pages * 8]), array.array("I", index[self._pages * 8 :])

    @property
    def entries(self) -> int:
        """The approximate number of entries."""
        return len(self._first) * _PER_PAGE

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def sources(self) -> list[str]:
        """Return the names of the objects with the hooks. Checks everything but the entries."""
        checksum, end = 0, self._sources_at + self._length
        for offset in range(self._index_at, end, _PIECE):
            checksum = zlib.crc32(self._read(offset, min(_PIECE, end - offset)), checksum)
        if checksum != self._checksum:
            raise Unusable(f"{self.path} was changed")
        return self._read(self._sources_at, self._length).decode().split("\n")[:-1]

    def refs(self) -> t.Iterator[tuple[PackRef, int]]:
        """Yield all packs in their order, each with the number of its source."""
        size = _PIECE // _PACK.size * _PACK.size
        for offset in range(self._packs_at, self._sources_at, size):
            for *ref, source in _PACK.iter_unpack(self._read(offset, min(size, self._sources_at - offset))):
                yield PackRef(*ref), source

    def near(self, key: int, gone: Gone) -> list[PackRef]:
        """Return the pack of a hook, and the next one if it is of the same source.

        A disk that is read in order continues in the next pack.

        Skips sources that are ``gone``.
        """
        last = _packed(key, _NUMBER)
        page = bisect.bisect_right(self._first, last) - 1
        if page < 0:
            return []
        entries = self.window(page, 1)
        for position in range(bisect.bisect_right(entries, last) - 1, -1, -1):
            entry = entries[position]
            if entry | _NUMBER != last:
                break
            found = self._beside(entry & _NUMBER, gone)
            if found:
                return found
        return []

    def _beside(self, number: int, gone: Gone) -> list[PackRef]:
        if number >= self.packs:
            raise Unusable(f"{self.path} names a pack that it does not know")
        found = list(
            _PACK.iter_unpack(
                self._read(self._packs_at + number * _PACK.size, min(2, self.packs - number) * _PACK.size)
            )
        )
        return [PackRef(*each[:3]) for each in found if each[3] == found[0][3] and each[3] not in gone]

    def window(self, first: int, count: int) -> t.Sequence[int]:
        """Return the entries of up to ``count`` pages, after checking their CRC-32."""
        data = memoryview(self._read((1 + first) * _PAGE, max(0, min(count, self._pages - first)) * _PAGE))
        for number, start in enumerate(range(0, len(data), _PAGE), first):
            if zlib.crc32(data[start : start + _PAGE]) != self._sums[number]:
                raise Unusable(f"{self.path} was changed")
        return data.cast("Q")

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file, length, offset)
        if len(data) != length:
            raise Unusable(f"{self.path} is truncated")
        return data


class _Writer:
    """Writes a file: first the entries, in ascending order."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(bytes(_PAGE))
        self._left: list[int] = []
        self._first, self._sums = array.array("Q"), array.array("I")

    def add(self, entries: t.Sequence[int]) -> None:
        self._left += entries
        whole = len(self._left) // _PER_PAGE * _PER_PAGE
        for start in range(0, whole, _PER_PAGE):
            self._page(self._left[start : start + _PER_PAGE])
        del self._left[:whole]

    def _page(self, entries: t.Sequence[int]) -> None:
        data = array.array("Q", entries).tobytes()
        self._first.append(entries[0])
        self._sums.append(zlib.crc32(data))
        self._file.write(data)

    def finish(self, packs: t.Iterable[bytes], sources: t.Iterable[str]) -> None:
        """Write everything that follows the entries, then the head."""
        if self._left:
            self._page(self._left + self._left[-1:] * (_PER_PAGE - len(self._left)))
        checksum, number, length = 0, 0, 0
        for data in (self._first.tobytes(), self._sums.tobytes()):
            checksum = self._more(data, checksum)
        for data in packs:
            checksum, number = self._more(data, checksum), number + 1
        for name in sources:
            checksum, length = self._more(f"{name}\n".encode(), checksum), length + len(name.encode()) + 1
        self._file.seek(0)
        self._file.write(_HEAD.pack(_MAGIC, number, len(self._first), length, checksum))

    def _more(self, data: bytes, checksum: int) -> int:
        self._file.write(data)
        return zlib.crc32(data, checksum)

    def close(self) -> None:
        self._file.close()


class Gathered:
    """Hooks of some objects, to write as one file. Takes about 40 bytes of memory a hook."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.entries: list[int] = []
        self._packs: list[bytes] = []

    def add(self, name: str, found: t.Sequence[PackHooks]) -> None:
        """Add the hooks of an object, which may have none."""
        source = len(self.sources)
        self.sources.append(name)
        for number, each in enumerate(found, len(self._packs)):
            self.entries += [_packed(key, number) for key in each.keys]
        self._packs += [_PACK.pack(*each.ref, source) for each in found]

    def write(self, path: str) -> None:
        """Write the file. Raises OSError."""
        self.entries.sort()
        with contextlib.closing(_Writer(path)) as writer:
            writer.add(self.entries)
            writer.finish(self._packs, self.sources)


def _distinct(entries: t.Sequence[int]) -> list[int]:
    """Keep only the last of several entries of one key."""
    return [
        entry
        for entry, after in itertools.zip_longest(entries, entries[1:], fillvalue=0)
        if entry ^ after > _NUMBER or not after
    ]


class _Part(t.NamedTuple):
    """A file to merge, and the new numbers of its packs, MAX_PACKS for a dropped one."""

    segment: Segment
    numbers: array.array[int]


def merge(segments: t.Sequence[Segment], is_live: t.Callable[[str], bool], path: str) -> None:
    """Merge files, the latest last, without sources that are deleted or repeated.

    Takes a few bytes of memory a pack, and a window of each file. Raises Unusable or OSError.
    """
    sources: dict[str, int] = {}
    parts: list[_Part] = []
    packs: list[t.Iterator[bytes]] = []
    count = 0
    for segment in segments:
        names = segment.sources()
        new = {
            name: number
            for number, name in enumerate(
                (each for each in names if is_live(each) and each not in sources), len(sources)
            )
        }
        sources.update(new)
        positions = [new.get(name) for name in names]
        numbers = array.array("I")
        for _ref, source in segment.refs():
            goes = positions[source] is None
            numbers.append(MAX_PACKS if goes else count)
            count += not goes
        parts.append(_Part(segment, numbers))
        packs.append(_moved(segment, positions))
    with contextlib.closing(_Writer(path)) as writer:
        for entries in _windows(parts):
            writer.add(entries)
        writer.finish(itertools.chain.from_iterable(packs), sources)


def _moved(segment: Segment, positions: t.Sequence[int | None]) -> t.Iterator[bytes]:
    """Yield the packs of a file whose sources have new ``positions``."""
    for ref, source in segment.refs():
        position = positions[source]
        if position is not None:
            yield _PACK.pack(*ref, position)


def _windows(parts: t.Sequence[_Part]) -> t.Iterator[list[int]]:
    """Yield the entries of all files in ascending order, in portions."""
    left = [each for each in ((part, 0, part.segment.window(0, _WINDOW)) for part in parts) if each[2]]
    while left:
        # All files have been read up to the smallest last entry of the windows.
        bound = min(window[-1] for _part, _page, window in left) | _NUMBER
        merged: list[int] = []
        following = []
        for part, page, window in left:
            count = bisect.bisect_right(window, bound)
            numbers = part.numbers
            known = ((entry, numbers[entry & _NUMBER]) for entry in window[:count])
            merged += [entry & ~_NUMBER | number for entry, number in known if number != MAX_PACKS]
            window = window[count:]
            if not window:
                page += _WINDOW
                window = part.segment.window(page, _WINDOW)
            if window:
                following.append((part, page, window))
        merged.sort()
        yield _distinct(merged)
        left = following
