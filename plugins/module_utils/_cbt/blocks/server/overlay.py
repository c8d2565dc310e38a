# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Private writes to a disk that is served. They are discarded when the last process that has the overlay ends."""

from __future__ import annotations

import mmap
import os
import re
import tempfile
import threading
import typing as t

from ...errors import CbtError
from ...files import Buffer
from ...grid import BLOCK_SIZE, BLOCKS_AT_ONCE, ZERO_BLOCK, block_count, block_length
from .disk import Disk, Piece

_BASE, _WRITTEN, _ZERO = 0, 1, 2  # where the content of a block is
_ALIKE = re.compile(rb"\x00+|\x01+|\x02+")
_STEP = BLOCK_SIZE * BLOCKS_AT_ONCE


class Storage:
    """A file without a name for what is written, and a byte for each block. Processes that fork share both."""

    def __init__(self, folder: str, size: int) -> None:
        """``size`` is that of the disk. Raises CbtError if there can be no file in ``folder``."""
        try:
            self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            self.states = mmap.mmap(-1, max(1, block_count(size)))
        except OSError as error:
            raise CbtError(
                f"Cannot keep private writes in {folder}: {error.strerror}. Set another overlay_dir."
            ) from error


class Overlay:
    """A writable disk on top of one that is only read. Thread-safe."""

    def __init__(self, base: Disk, storage: Storage) -> None:
        self._base, self._file, self._states = base, storage.file, storage.states
        self._writing = threading.Lock()
        self.size = base.size

    def extents(self, offset: int, length: int) -> t.Iterator[tuple[int, bool]]:
        """Yield length in bytes and whether it may hold data, of the parts of a range. The rest is zero."""
        for state, start, end in self._parts(offset, length):
            if state == _BASE:
                yield from self._base.extents(start, end - start)
            else:
                yield end - start, state == _WRITTEN

    def read(self, offset: int, length: int) -> t.Iterator[Piece]:
        """Yield the bytes of a range. Raises CbtError or OSError at the first byte that cannot be read."""
        for state, start, end in self._parts(offset, length):
            if state == _BASE:
                yield from self._base.read(start, end - start)
            elif state == _ZERO:
                yield end - start, ()
            else:
                for at in range(start, end, _STEP):
                    yield min(_STEP, end - at), [os.pread(self._file.fileno(), min(_STEP, end - at), at)]

    def _parts(self, offset: int, length: int) -> t.Iterator[tuple[int, int, int]]:
        """Yield the parts of a range: where the content is, and where the part begins and ends."""
        first, end = offset // BLOCK_SIZE, offset + length
        for match in _ALIKE.finditer(self._states[first : block_count(end)]):
            start, stop = ((first + block) * BLOCK_SIZE for block in match.span())
            yield match.group()[0], max(offset, start), min(end, stop)

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes. Raises CbtError or OSError."""
        end = offset + len(data)
        with self._writing:
            for block in {offset // BLOCK_SIZE, (end - 1) // BLOCK_SIZE} if data else ():
                if offset > block * BLOCK_SIZE or end < min(self.size, (block + 1) * BLOCK_SIZE):
                    self._bring_up(block)
            self._put(offset, data)
            self._mark(offset // BLOCK_SIZE, block_count(end), _WRITTEN)

    def zero(self, offset: int, length: int) -> None:
        """Write zeroes. Raises CbtError or OSError."""
        end = offset + length
        first = block_count(offset)
        stop = block_count(self.size) if end == self.size else end // BLOCK_SIZE
        if first >= stop:
            for start in range(offset, end, BLOCK_SIZE):
                self.write(start, ZERO_BLOCK[: min(BLOCK_SIZE, end - start)])
            return
        self.write(offset, ZERO_BLOCK[: first * BLOCK_SIZE - offset])
        self.write(stop * BLOCK_SIZE, ZERO_BLOCK[: max(0, end - stop * BLOCK_SIZE)])
        with self._writing:
            self._mark(first, stop, _ZERO)

    def _bring_up(self, block: int) -> None:
        """Copy a block of which only a part is written."""
        if self._states[block] != _WRITTEN:
            start, length = block * BLOCK_SIZE, block_length(block, self.size)
            for size, buffers in list(self.read(start, length)):
                for each in buffers or [ZERO_BLOCK[:size]]:
                    self._put(start, each)
                    start += len(each)

    def _put(self, offset: int, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, offset)
            offset, rest = offset + written, rest[written:]

    def _mark(self, first: int, stop: int, state: int) -> None:
        self._states[first:stop] = bytes([state]) * (stop - first)
