# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of packs on a local disk, for a repository that is far away.

The cache is one file without a name, so it never outgrows its size, and nothing of it is left when the process ends. It
keeps the stored bytes, which are encrypted if the repository is. The reader proves each block as always.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import tempfile
import threading
import typing as t
from concurrent.futures import Future

from ...errors import CbtError
from ..packs.reader import PackSource

SEGMENT = 1 << 20  # bytes that are fetched at once
FETCHES = 8  # requests at once
_MOST_AHEAD = 32  # segments that wait to be fetched ahead

Key = tuple[str, int]  # the pack, and the number of its segment


class _Slot(t.NamedTuple):
    """A place in the file, and the number of bytes there."""

    number: int
    length: int


class PackCache:
    """A source of packs that keeps the segments that were used last, ``size`` bytes at most, in ``folder``."""

    def __init__(self, source: PackSource, folder: str, size: int) -> None:
        """Raises CbtError if there is no space for the cache, or if it cannot be written."""
        self._source = source
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[Key, _Slot] = collections.OrderedDict()
        self._fetched: dict[Key, Future[bytes]] = {}
        self._free = list(range(max(1, size // SEGMENT)))
        self._pool = concurrent.futures.ThreadPoolExecutor(FETCHES, "fetch")
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise CbtError(f"Cannot write the cache in {folder}: {error.strerror}. Set another cache_dir.") from error

    def size(self, name: str) -> int:
        """Return the size of an object in bytes. Raises ObjectMissing."""
        return self._source.size(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, fewer at the end of the object. Raises ObjectMissing."""
        parts = [((name, number), start, end) for number, start, end in _segments(offset, length)]
        found = [self._find(*part) for part in parts]  # all requests begin before one of them is awaited
        return b"".join(
            each if isinstance(each, bytes) else each.result()[start:end]
            for each, (_key, start, end) in zip(found, parts)
        )

    def wait(self, name: str, offset: int, length: int) -> None:
        """Fetch a range, as ``get_range`` does."""
        with self._lock:
            keys = [(name, number) for number, _start, _end in _segments(offset, length)]
            missing = [self._begin(key) for key in keys if key not in self._kept]
        for future in missing:
            future.result()

    def fetch(self, name: str, offset: int, length: int) -> None:
        """Begin to fetch a range that may be asked for soon."""
        with self._lock:
            for number, _start, _end in _segments(offset, length):
                if (name, number) not in self._kept and len(self._fetched) < _MOST_AHEAD:
                    self._begin((name, number))

    def _find(self, key: Key, start: int, end: int) -> bytes | Future[bytes]:
        """Return a part of a segment, or the future of a segment that is being fetched."""
        while True:
            with self._lock:
                slot = self._kept.get(key)
                if slot is None:
                    return self._begin(key)
                self._kept.move_to_end(key)
            data = self._read(slot, start, min(end, slot.length))
            with self._lock:
                if self._kept.get(key) is slot:
                    if data is not None:
                        return data
                    self._free.append(self._kept.pop(key).number)
            # The slot was given to another segment in between, or the disk failed.

    def _read(self, slot: _Slot, start: int, end: int) -> bytes | None:
        with contextlib.suppress(OSError):
            data = os.pread(self._file.fileno(), max(0, end - start), slot.number * SEGMENT + start)
            if len(data) == max(0, end - start):
                return data
        return None

    def _begin(self, key: Key) -> Future[bytes]:
        """Return the future of a segment. Called under the lock."""
        future = self._fetched.get(key)
        if future is None:
            future = self._fetched[key] = Future()
            self._pool.submit(self._fetch, key, future)
        return future

    def _fetch(self, key: Key, future: Future[bytes]) -> None:
        try:
            data = self._source.get_range(key[0], key[1] * SEGMENT, SEGMENT)
            slot = self._write(data)
        except BaseException as error:
            self._finish(key, None)  # first, so that another attempt makes a new request
            future.set_exception(error)
        else:
            self._finish(key, slot)
            future.set_result(data)

    def _finish(self, key: Key, slot: _Slot | None) -> None:
        with self._lock:
            del self._fetched[key]
            if slot is not None:
                self._kept[key] = slot

    def _write(self, data: bytes) -> _Slot | None:
        """Write a segment to a free slot, or to that of the segment that was not used for longest."""
        with self._lock:
            if not self._free and not self._kept:
                return None  # others are writing to all slots
            number = self._free.pop() if self._free else self._kept.popitem(last=False)[1].number
        try:
            if os.pwrite(self._file.fileno(), data, number * SEGMENT) == len(data):
                return _Slot(number, len(data))
        except OSError:  # the file system is full, for example: the cache does not grow any more
            pass
        with self._lock:
            self._free.append(number)
        return None

    def close(self) -> None:
        """End the threads, and delete the cache."""
        self._pool.shutdown()
        self._file.close()


def _segments(offset: int, length: int) -> t.Iterator[tuple[int, int, int]]:
    """Yield the number of each segment of a range, and where the range begins and ends in it."""
    for number in range(offset // SEGMENT, -(-(offset + length) // SEGMENT)):
        yield number, max(0, offset - number * SEGMENT), min(SEGMENT, offset + length - number * SEGMENT)
