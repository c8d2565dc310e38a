# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks in memory, backed up as a run does it, and read back from the repository block by block."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator, Sequence

from samples import run_of, uuid_of

from _cbt.blocks.extents import Extent
from _cbt.blocks.throttle import Throttle
from _cbt.control import Control
from _cbt.errors import DamagedObject
from _cbt.grid import BLOCK_SIZE, block_length
from _cbt.operations.point.disk_reader import Reader
from _cbt.operations.point.parent_blocks import ParentBlocks
from _cbt.operations.point.portion import BlockSink, Statistics
from _cbt.repository.dedup import dedup
from _cbt.repository.format import codecs
from _cbt.repository.format.maps import ExtentMap
from _cbt.repository.records import damage
from _cbt.repository.repository import Repository


@functools.lru_cache(maxsize=4096)
def block(kind: int) -> bytes:
    """The content of a kind of block; 0 is zeroes."""
    return random.Random(kind).randbytes(BLOCK_SIZE) if kind else bytes(BLOCK_SIZE)


class MemoryDisk:
    """A disk made of kinds of blocks, all of it dirty; it is its own connection. The last block may be short."""

    def __init__(self, kinds: Sequence[int], short: int = 0) -> None:
        self.kinds = list(kinds)
        self.size = len(kinds) * BLOCK_SIZE - short

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size, False)

    @contextlib.contextmanager
    def connect(self) -> Iterator[MemoryDisk]:
        yield self

    def read(self, offset: int, length: int) -> bytearray:
        return bytearray(self.content(offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)))

    def content(self, first: int, stop: int) -> bytes:
        """The bytes of some blocks."""
        return b"".join(block(self.kinds[each])[: block_length(each, self.size)] for each in range(first, stop))


def back_up(
    repository: Repository,
    disk: MemoryDisk,
    session: str,
    base: ExtentMap | None = None,
    scope: str = dedup.REPOSITORY,
    domain: str = "domain",
) -> tuple[ExtentMap, Statistics]:
    """Store a disk and leave hooks, as a run does."""
    damages = damage.read_all(repository)
    finding = dedup.deduplicator(repository, scope, uuid_of(domain), damages)
    writer = repository.writer()
    reader = Reader(BlockSink(writer, codecs.encoder("none"), finding), 2, Control(), Throttle(None, lambda: None))
    read = reader.read(disk, "vda", base, ParentBlocks(base, repository.reader, damages), False, ())  # type: ignore[arg-type]
    written = {**(finding.packs if finding else {}), **writer.finish()}
    if finding is not None:
        dedup.store_hooks(repository, dedup.of_backup(uuid_of(domain), run_of(session)), writer.hooks())
    return read.builder.finish(written), read.statistics


def restored(repository: Repository, extents: ExtentMap) -> bytes:
    """The bytes of a disk as the repository gives them."""
    image = bytearray(extents.size)
    for run in extents.runs():
        for index, data in enumerate(repository.reader.blocks(run.pack, run.ordinal, run.count)):
            if isinstance(data, DamagedObject):
                raise data
            start = (run.first + index) * BLOCK_SIZE
            assert len(data) == block_length(run.first + index, extents.size)
            image[start : start + len(data)] = data
    return bytes(image)
