# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random access to one disk of a restore point.

Reading goes on while blocks are moved or repaired: if a block is not where the map says, the map is read again.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
import threading
import typing as t

from ...errors import CbtError, DamagedObject, UnreadableObject
from ...files import Buffer
from ...grid import BLOCK_SIZE
from ..format.manifests import RestorePoint
from ..format.maps import ExtentMap, Run, portions
from ..packs.reader import PackReader
from ..repository import Repository
from .block_cache import BlockCache
from .pack_cache import PackCache

_AHEAD = 16  # blocks that are decoded ahead: 1 MiB
_FETCHED_AHEAD = 256  # blocks of which the stored bytes are fetched ahead: 16 MiB
_STREAMS = 64  # that may read sequentially at the same time

Piece = tuple[int, t.Sequence[Buffer]]  # a number of bytes, and the bytes in buffers; none if they are all zero


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """The cache for a repository that is far away: a folder on a local disk, and the most bytes in it."""

    folder: str
    size: int


class Views:
    """What the views of one repository share: caches, and the right to decode, for as many as there are processors."""

    def __init__(self, repository: Repository, cache: CacheOptions | None = None) -> None:
        """Raises CbtError if the cache cannot be written."""
        processors = len(os.sched_getaffinity(0))
        self.repository = repository
        self.packs = PackCache(repository.store, cache.folder, cache.size) if cache is not None else None
        self.reader = PackReader(self.packs, repository.keys) if self.packs is not None else repository.reader
        self.ahead = concurrent.futures.ThreadPoolExecutor(processors, "ahead")
        self.blocks = BlockCache(self.ahead)
        self.decoding = threading.Semaphore(processors)
        self._numbers = itertools.count()

    def open(self, point: RestorePoint, target: str) -> DiskView:
        """Return a view of one disk. Raises as ``Repository.read_map`` does."""
        return DiskView(self, point, target, next(self._numbers))

    def close(self) -> None:
        """End the threads, and delete the cache."""
        self.ahead.shutdown()
        if self.packs is not None:
            self.packs.close()


class DiskView:
    """Reads any range of one disk of a restore point. Thread-safe."""

    def __init__(self, views: Views, point: RestorePoint, target: str, number: int) -> None:
        self._views, self._key, self._target, self._number = views, point.key, target, number
        self._map = views.repository.read_map(point, target)
        self._record = point.disk(target)
        self._lock = threading.Lock()
        self._expected: collections.OrderedDict[int, None] = collections.OrderedDict()  # by sequential readers
        self._fetching = threading.Semaphore(_STREAMS // 16)  # bounds the work that waits
        self.size = self._map.size

    def extents(self, offset: int, length: int) -> t.Iterator[tuple[int, bool]]:
        """Yield length in bytes and whether it is stored, of the parts of a range. The other parts are zero."""
        for run, start, end in _parts(self._map, offset, length):
            yield end - start, run is not None

    def read(self, offset: int, length: int) -> t.Iterator[Piece]:
        """Yield the bytes of a range. Raises RepositoryError at the first byte that cannot be read."""
        small = length < BLOCK_SIZE
        self._follow(offset, length, small)
        for run, start, end in _parts(self._map, offset, length):
            if run is None:
                yield end - start, ()
            elif small:
                yield from self._cached(run, start, end)
            else:
                yield from self._direct(run, start, end)

    def _cached(self, run: Run, start: int, end: int) -> t.Iterator[Piece]:
        """Read from the decoded blocks: the neighbours of a small request are likely to be asked for next."""
        for block in range(run.first, run.stop):
            data = self._views.blocks.get((self._number, block), self._load(run.part(block, block + 1)))
            yield from _cut(block, [data], start, end)

    def _direct(self, run: Run, start: int, end: int) -> t.Iterator[Piece]:
        """Read past the decoded blocks, which a long read would only replace."""
        for portion in portions([run]):
            yield from _cut(portion.first, self._decoded(portion), start, end)

    def _load(self, run: Run) -> t.Callable[[], Buffer]:
        return lambda: self._decoded(run)[0]

    def _decoded(self, run: Run) -> list[Buffer]:
        """Return the blocks of a run. If one is not there, look for all of them where the newest map says."""
        try:
            return self._proven(run)
        except UnreadableObject:
            moved = self._newest(run)
            if moved == [run]:
                raise
            return [block for part in moved for block in self._proven(part)]

    def _proven(self, run: Run) -> list[Buffer]:
        if self._views.packs is not None:  # wait for the store before taking a processor
            self._views.packs.wait(run.pack.name, *self._span(run))
        found: list[Buffer] = []
        with self._views.decoding:
            for block in self._views.reader.disk_blocks(run, self.size):
                if isinstance(block, DamagedObject):
                    raise block
                found.append(block)
        return found

    def _span(self, run: Run) -> tuple[int, int]:
        """Return where a run is in its pack: offset and length in bytes."""
        directory = self._views.reader.directory(run.pack)
        if run.ordinal + run.count > len(directory):
            raise DamagedObject(f"Pack {run.pack.id.hex()} holds {len(directory)} blocks, fewer than its map asks for")
        return directory.span(run.ordinal, run.count)

    def _newest(self, run: Run) -> list[Run]:
        """Return where the blocks of a run are stored now. The map is read again if the restore point has another."""
        with self._lock:
            now = list(self._map.runs(run.first, run.stop))
            if now == [run]:
                with contextlib.suppress(CbtError):  # the first error says more
                    self._reread()
                now = list(self._map.runs(run.first, run.stop))
        return now if sum(part.count for part in now) == run.count else [run]

    def _reread(self) -> None:
        point = self._views.repository.point(*self._key)
        record = point.disk(self._target)
        if record is not None and record != self._record:
            self._map, self._record = self._views.repository.read_map(point, self._target), record

    def _follow(self, offset: int, length: int, small: bool) -> None:
        """Prepare what comes next if this range continues an earlier one."""
        last = (offset + length - 1) // BLOCK_SIZE
        with self._lock:
            if last + 1 in self._expected:
                return  # in the same block as before
            sequential = offset // BLOCK_SIZE in self._expected
            self._expected.pop(offset // BLOCK_SIZE, None)
            self._expected[last + 1] = None
            if len(self._expected) > _STREAMS:
                self._expected.popitem(last=False)
        if not sequential:
            return
        if small:
            for run in self._map.runs(last + 1, last + 1 + _AHEAD):
                for block in range(run.first, run.stop):
                    self._views.blocks.ahead((self._number, block), self._load(run.part(block, block + 1)))
        if self._views.packs is not None and self._fetching.acquire(blocking=False):
            self._views.ahead.submit(self._fetch_ahead, self._views.packs, last + 1)

    def _fetch_ahead(self, packs: PackCache, block: int) -> None:
        try:
            for run in self._map.runs(block, block + _FETCHED_AHEAD):
                packs.fetch(run.pack.name, *self._span(run))
        except CbtError:
            pass  # a request for that part gets the error
        finally:
            self._fetching.release()


def _parts(extents: ExtentMap, offset: int, length: int) -> t.Iterator[tuple[Run | None, int, int]]:
    """Yield the parts of a range of bytes: the run that stores one or None, and where it begins and ends."""
    end = offset + length
    for run in extents.runs(offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)):
        start = max(offset, run.first * BLOCK_SIZE)
        if start > offset:
            yield None, offset, start
        offset = min(end, run.stop * BLOCK_SIZE)
        yield run, start, offset
    if end > offset:
        yield None, offset, end


def _cut(block: int, buffers: t.Sequence[Buffer], start: int, end: int) -> t.Iterator[Piece]:
    """Yield the bytes between two offsets of the disk, of buffers that begin at a block."""
    kept = [memoryview(each) for each in buffers]
    before = start - block * BLOCK_SIZE
    if before > 0:
        kept[0] = kept[0][before:]
    beyond = sum(map(len, kept)) + max(block * BLOCK_SIZE, start) - end
    if beyond > 0:
        kept[-1] = kept[-1][:-beyond]
    yield sum(map(len, kept)), kept
