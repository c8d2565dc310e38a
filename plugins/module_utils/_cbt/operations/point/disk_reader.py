# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a disk into packs with several workers, and builds its map."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ...blocks.extents import BlockRange, joined, pieces, to_blocks, united
from ...blocks.source import DiskSource
from ...blocks.throttle import Throttle
from ...busy import BACKUP_NAMES, Busy, Watches
from ...control import Control, Progress, Value
from ...grid import BLOCK_SIZE, BLOCKS_AT_ONCE, byte_range
from ...parallel import ordered_results
from ...repository.format.maps import ExtentMap, MapBuilder, Run
from .audit import unmarked_in
from .parent_blocks import ParentBlocks
from .portion import KEPT, ZERO, BlockSink, Outcome, PortionReader, Statistics


@dataclasses.dataclass(frozen=True)
class ReadDisk:
    """The result of reading one disk: a builder of its map, to be finished when all packs are complete, and statistics.

    ``unmarked`` are the blocks that an audit found changed although tracking did not mark them.
    """

    builder: MapBuilder
    statistics: Statistics
    size: int
    busy: Busy
    unmarked: tuple[BlockRange, ...] = ()

    @property
    def unmarked_bytes(self) -> tuple[tuple[int, int], ...]:
        """The unmarked blocks as (offset, length) in bytes."""
        return tuple(byte_range(each.first, each.count, self.size) for each in self.unmarked)

    def summary(self) -> dict[str, Value]:
        """The statistics and the shares of the workers' time, for the log."""
        return {**dataclasses.asdict(self.statistics), **self.busy.summary(BACKUP_NAMES)}


def ranges_of(runs: t.Iterable[Run]) -> tuple[BlockRange, ...]:
    """Return the runs of a map as block ranges to read."""
    return tuple(BlockRange(run.first, run.count, False) for run in runs)


def _enter(builder: MapBuilder, each: Outcome) -> None:
    """Enter the outcome for consecutive blocks into the map."""
    if each.state == ZERO:
        builder.zero(each.first, each.count)
    elif each.state == KEPT:
        builder.keep(each.first, each.count)
    else:
        builder.put(each.first, each.count, each.pack, each.ordinal)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the disks of one run. ``sink`` stores new blocks; ``workers`` and ``throttle`` set the speed."""

    sink: BlockSink
    workers: int
    control: Control
    throttle: Throttle

    def read(
        self,
        source: DiskSource,
        target: str,
        base: ExtentMap | None,
        parent: ParentBlocks,
        audit: bool,
        again: t.Iterable[BlockRange],
    ) -> ReadDisk:
        """Read the extents of ``source`` and the ranges in ``again``.

        Compare each block with the parent's digest from ``parent``. Other blocks keep their map entry from ``base``.
        With ``audit``, cover the whole disk, and report blocks that changed although the bitmap does not mark them.
        """
        wanted = to_blocks(source.allocation() if audit else source.extents(), source.size)
        claims = tuple(to_blocks(source.extents(), source.size)) if audit else None
        return self.read_ranges(source, target, base, parent, united(wanted, again), claims)

    def read_ranges(
        self,
        source: DiskSource,
        target: str,
        base: ExtentMap | None,
        parent: ParentBlocks,
        wanted: t.Iterable[BlockRange],
        claims: t.Sequence[BlockRange] | None = None,
    ) -> ReadDisk:
        """Read only these ranges. All other blocks keep their map entry from ``base``.

        With ``claims``, the dirty ranges, report blocks outside of them that changed.
        """
        portions = pieces(wanted, BLOCKS_AT_ONCE)
        unmarked: list[BlockRange] = []
        builder = MapBuilder(source.size, base)
        statistics = Statistics()
        watches = Watches()

        @contextlib.contextmanager
        def worker() -> t.Iterator[t.Callable[[tuple[BlockRange, ...]], tuple[list[Outcome], Statistics]]]:
            dedup = self.sink.dedup
            finder = dedup.finder() if dedup is not None else contextlib.nullcontext()
            with source.connect() as connection, finder as find:
                watch = watches.new()
                yield PortionReader(connection, source.size, parent, self.sink, self.throttle, find, watch).read

        with ordered_results(portions, worker, self.workers, self.control) as results:
            for outcome, counted in results:
                for each in outcome:
                    _enter(builder, each)
                    if claims is not None:
                        unmarked += unmarked_in(each, claims, base, parent)
                statistics.add(counted)
                done = (outcome[-1].first + outcome[-1].count) * BLOCK_SIZE if outcome else 0
                self.control.progress(Progress("reading", target, min(done, source.size), source.size))
        return ReadDisk(builder, statistics, source.size, watches.busy(), tuple(joined(unmarked)))
