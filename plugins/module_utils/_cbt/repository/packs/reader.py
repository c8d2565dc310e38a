# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads blocks and directories of packs, with a bounded cache."""

from __future__ import annotations

import collections
import threading
import typing as t

from ...busy import PROVING, READING, Stopwatch
from ...errors import DamagedObject
from ...files import Buffer
from ...grid import BLOCK_SIZE, block_length
from ..crypto.keys import TAG_SIZE, Keys
from ..format import packs
from ..format.maps import Run
from ..format.packs import Directory, Encoded, PackRef

CACHED_BLOCKS = 1 << 18  # directory entries kept; about 16 MiB


class PackSource(t.Protocol):
    """The operations of a store that reading packs takes."""

    def size(self, name: str) -> int:
        """Return the size of an object in bytes. Raises ObjectMissing."""

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, fewer at the end of the object. Raises ObjectMissing."""


class PackReader:
    """Returns checked directories and blocks. Thread-safe."""

    def __init__(self, store: PackSource, keys: Keys) -> None:
        self._store = store
        self.keys = keys
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[bytes, Directory] = collections.OrderedDict()
        self._cached = 0

    def directory(self, ref: PackRef) -> Directory:
        """Return the directory of a pack.

        Raises ObjectMissing if there is no such pack, and DamagedObject if it is not as it was written.
        """
        with self._lock:
            known = self._cache.get(ref.id)
            if known is not None:
                self._cache.move_to_end(ref.id)
                return known
        packs.check_ref(ref)
        size = self._store.size(ref.name)
        if size != ref.size:
            raise DamagedObject(f"Pack {ref.id.hex()} is damaged: it has {size} bytes instead of {ref.size}")
        head = self._store.get_range(ref.name, 0, packs.HEADER.size)
        rest = self._store.get_range(ref.name, ref.directory_offset, ref.size - ref.directory_offset)
        directory = packs.parse_directory(ref, head, rest, self.keys.pack(ref.id))
        with self._lock:
            if ref.id not in self._cache:
                self._cache[ref.id] = directory
                self._cached += len(directory)
            while self._cached > CACHED_BLOCKS and len(self._cache) > 1:
                self._cached -= len(self._cache.popitem(last=False)[1])
        return directory

    def blocks(
        self, ref: PackRef, first: int, count: int, watch: Stopwatch | None = None
    ) -> t.Iterator[Buffer | DamagedObject]:
        """Yield ``count`` consecutive blocks of one request.

        Yields the error in place of a damaged block. Raises as ``directory`` does, and RepositoryError of the store.
        """
        for each in self._each(ref, first, count, watch or Stopwatch()):
            yield each if isinstance(each, DamagedObject) else each[1]

    def disk_blocks(self, run: Run, size: int, watch: Stopwatch | None = None) -> t.Iterator[Buffer | DamagedObject]:
        """Like ``blocks``, for a run of a disk of ``size`` bytes. A block of another length is damaged."""
        for index, block in enumerate(self.blocks(run.pack, run.ordinal, run.count, watch)):
            if isinstance(block, DamagedObject) or len(block) == block_length(run.first + index, size):
                yield block
            else:
                yield DamagedObject(
                    f"block {run.ordinal + index} of pack {run.pack.id.hex()} is of another length than the disk's"
                )

    def encoded(self, ref: PackRef, first: int, count: int) -> t.Iterator[Encoded | DamagedObject]:
        """Like ``blocks``, with the same checks, but yields blocks ready to be stored elsewhere."""
        for each in self._each(ref, first, count, Stopwatch()):
            yield each if isinstance(each, DamagedObject) else each[0]

    def _each(
        self, ref: PackRef, first: int, count: int, watch: Stopwatch
    ) -> t.Iterator[tuple[Encoded, Buffer] | DamagedObject]:
        directory = self.directory(ref)
        if first + count > len(directory):
            raise DamagedObject(
                f"Pack {ref.id.hex()} holds {len(directory)} blocks, not the {first + count} its map asks for"
            )
        start, length = directory.span(first, count)
        if length > count * (BLOCK_SIZE + TAG_SIZE):
            # The directory claims an impossible length: only the blocks that have another one are read.
            if count == 1:
                yield DamagedObject(
                    f"block {first} of pack {ref.id.hex()}: its stored length is more than any block takes"
                )
                return
            for ordinal in range(first, first + count):
                yield from self._each(ref, ordinal, 1, watch)
            return
        payloads = memoryview(self._store.get_range(ref.name, start, length))
        watch.lap(READING)
        for ordinal in range(first, first + count):
            entry = directory.entry(ordinal)
            offset = entry.offset - start
            try:
                yield packs.decode(entry, ordinal, payloads[offset : offset + entry.stored], directory.keys, self.keys)
            except DamagedObject as error:
                yield DamagedObject(f"block {ordinal} of pack {ref.id.hex()}: {error}")
        watch.lap(PROVING)
