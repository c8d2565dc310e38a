# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compaction: copies the live blocks of sparse packs into new packs.

A block that is also stored in another pack is not copied, unless its point is deduplicated apart from the repository.
Every block is read and compared with its id before it is copied, or before the other one is named in its place. Restore
points are changed to name the new addresses one by one. The collector deletes the old packs. A damaged block stays in
its pack.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import secrets
import typing as t

from ...control import Control
from ...errors import DamagedObject, ObjectMissing
from ...grid import BLOCKS_AT_ONCE
from ...parallel import default_workers, ordered_results
from ...repository.dedup import dedup
from ...repository.format import names
from ...repository.format.manifests import Key, RestorePoint
from ...repository.format.maps import ExtentMap
from ...repository.format.packs import Encoded, PackRef
from ...repository.packs.writer import PackWriter
from ...repository.repository import Repository
from ...repository.sharing.leases import Lease
from ...repository.sharing.relocation import Move, joined, relocate
from . import merging
from .live_blocks import LiveBlocks, count, live_blocks, set_ranges, sparse_packs, without
from .merging import Merges

PACKS_AT_ONCE = 1 << 16  # packs whose live and recoverable blocks are held in memory, one bit each: about 50 MiB
EMPTIED_AT_ONCE = 256  # packs copied before restore points are changed, so that a killed run loses little work


@dataclasses.dataclass(frozen=True)
class Compacted:
    """The outcome of a compaction.

    ``packs`` is the number of packs of which no existing restore point needs a block any more. ``points`` is the number
    of changed restore points. ``copied_bytes`` is the size of the copied payloads.
    """

    packs: int = 0
    points: int = 0
    copied_bytes: int = 0


class _Chunk(t.NamedTuple):
    """Consecutive live blocks of a pack."""

    pack: PackRef
    ordinal: int
    count: int  # type: ignore[assignment]  # hides tuple's method


class _Copy(t.NamedTuple):
    """A copy of ``count`` blocks from one pack to another.

    The blocks start at ``ordinal`` in ``pack``, and at ``to_ordinal`` in the pack with the id ``to_pack``. ``size`` is
    in bytes.
    """

    pack: PackRef
    ordinal: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    to_pack: bytes
    to_ordinal: int
    size: int


def _chunks(packs: t.Iterable[PackRef], live: LiveBlocks) -> t.Iterator[_Chunk]:
    for ref in packs:
        for first, length in set_ranges(live[ref]):
            for start in range(first, first + length, BLOCKS_AT_ONCE):
                yield _Chunk(ref, start, min(BLOCKS_AT_ONCE, first + length - start))


def _copy(repository: Repository, writer: PackWriter, chunk: _Chunk) -> list[_Copy]:
    """Copy the sound blocks of a chunk; blocks that cannot be read stay where they are."""
    try:
        blocks = list(repository.reader.encoded(chunk.pack, chunk.ordinal, chunk.count))
    except (DamagedObject, ObjectMissing):
        return []
    copies = []
    for damaged, group in itertools.groupby(
        zip(itertools.count(chunk.ordinal), blocks), key=lambda each: isinstance(each[1], DamagedObject)
    ):
        if damaged:
            continue
        sound = list(group)
        row = t.cast(list[Encoded], [block for _ordinal, block in sound])
        to_pack, to_ordinal = writer.append(row)
        copies.append(
            _Copy(chunk.pack, sound[0][0], len(row), to_pack, to_ordinal, sum(len(block.payload) for block in row))
        )
    return copies


def _maps(repository: Repository, points: t.Iterable[RestorePoint], control: Control) -> t.Iterator[ExtentMap]:
    """Yield the readable maps of restore points.

    Blocks that only an unreadable map names count as dead. Their packs may be copied needlessly, but no block is lost.
    """
    for point in points:
        control.check()
        yield from (extents for _target, extents in repository.readable_maps(point))


@dataclasses.dataclass(frozen=True)
class _Compaction:
    """One run of the compaction."""

    lease: Lease
    workers: int
    control: Control

    @property
    def repository(self) -> Repository:
        """Return the repository of the lease."""
        return self.lease.repository

    def empty(self, packs: t.Sequence[PackRef], live: LiveBlocks) -> Compacted:
        """Copy the live blocks of packs, and make all restore points name the copies."""
        writer = self.repository.writer()
        try:
            copies = self._copied(packs, live, writer)
            written = writer.finish()
        except BaseException:
            writer.discard()
            raise
        moves: dict[bytes, list[Move]] = {}
        for pack, group in itertools.groupby(copies, key=lambda copy: copy.pack):
            moves[pack.id] = joined(
                Move(copy.ordinal, copy.count, written[copy.to_pack], copy.to_ordinal) for copy in group
            )
        # From here on, restore points may name the copies. They stay after any error; the collector deletes unused
        # ones.
        dedup.store_hooks(self.repository, dedup.of_compaction(), writer.hooks())
        changed = 0
        for point in self.repository.points_of().points if moves else ():
            self.control.check()
            changed += relocate(self.lease, point, moves)
        emptied = sum(sum(move.count for move in moves.get(ref.id, ())) == count(live[ref]) for ref in packs)
        return Compacted(emptied, changed, sum(copy.size for copy in copies))

    def _copied(self, packs: t.Sequence[PackRef], live: LiveBlocks, writer: PackWriter) -> list[_Copy]:
        @contextlib.contextmanager
        def worker() -> t.Iterator[t.Callable[[_Chunk], list[_Copy]]]:
            yield functools.partial(_copy, self.repository, writer)

        with ordered_results(_chunks(packs, live), worker, self.workers, self.control) as results:
            return [copy for copies in results for copy in copies]


def _choices(packs: int) -> t.Iterator[t.Callable[[PackRef], bool]]:
    """Yield tests that divide so many packs, by their ids, into parts.

    One part at a time fits in memory. Each run divides the packs differently.
    """
    parts = packs // PACKS_AT_ONCE + 1
    byte = secrets.randbelow(12)
    for part in range(parts):
        yield lambda ref, part=part: int.from_bytes(ref.id[byte : byte + 4], "big") % parts == part  # type: ignore[misc]


class CompactionStep(t.NamedTuple):
    """The ``packs`` to empty, their live blocks, and which of these are stored elsewhere too."""

    packs: t.Sequence[PackRef]
    live: LiveBlocks
    merges: Merges


def choose(
    live: LiveBlocks, merges: Merges, below: int, recoverable: LiveBlocks, kept: t.Collection[PackRef] = ()
) -> CompactionStep:
    """Choose the packs that are sparse once ``merges`` are made, except those ``kept``. Pure.

    Blocks in ``recoverable`` count as stored. Merges of other packs are dropped.
    """
    packs = [ref for ref in sparse_packs(without(live, merges), below, recoverable) if ref not in kept]
    return CompactionStep(
        packs, {ref: live[ref] for ref in packs}, {ref: merges[ref] for ref in packs if ref in merges}
    )


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The packs in which less than ``below`` percent of the blocks are live.

    Blocks that points in the trash name count as live but are not moved. The points in ``without`` are treated as
    removed, those in ``back`` as brought back. Packs that ``held`` points name are not emptied, because none of their
    blocks can be deleted.
    """

    below: int
    trashed: t.Sequence[RestorePoint] = ()
    without: t.Collection[Key] = ()
    held: t.Sequence[RestorePoint] = ()
    back: t.Sequence[RestorePoint] = ()

    def find(self, repository: Repository, control: Control) -> t.Iterator[CompactionStep]:
        """Yield the candidates, one part of the packs at a time. Raises RepositoryError."""
        for chosen in _choices(sum(1 for _name in repository.store.list(names.PACKS))):
            points = [each for each in (*repository.points_of().points, *self.back) if each.key not in self.without]
            live = live_blocks(_maps(repository, points, control), chosen)
            recoverable = live_blocks(_maps(repository, self.trashed, control), live.__contains__)
            apart = {
                ref
                for extents in _maps(repository, (each for each in points if each.dedup != dedup.REPOSITORY), control)
                for ref in extents.packs
            }
            kept = {ref for extents in _maps(repository, self.held, control) for ref in extents.packs if ref in live}
            equal = merging.find_equal(
                repository, {ref: bits for ref, bits in live.items() if ref not in apart}, control
            )
            yield choose(live, equal, self.below, recoverable, kept)


def predict(repository: Repository, candidates: Candidates) -> Compacted:
    """Return an estimate of what ``compact`` would do.

    The bytes to copy are estimated from the average block size of each pack. Raises RepositoryError.
    """
    found = [
        (ref, bits)
        for each in candidates.find(repository, Control())
        for ref, bits in without(each.live, each.merges).items()
    ]
    return Compacted(len(found), 0, sum(ref.size * count(bits) // ref.blocks for ref, bits in found))


def compact(
    lease: Lease, candidates: Candidates, workers: int | None = None, control: Control | None = None
) -> Compacted:
    """Empty the sparse packs.

    Raises RepositoryError if the store fails; all restore points stay whole.
    """
    run = _Compaction(lease, workers or default_workers(), control or Control())
    total = Compacted()
    for found in candidates.find(lease.repository, run.control):
        merged, changed = merging.merge(lease, found.merges, run.workers, run.control)
        left = without(found.live, merged)
        total = dataclasses.replace(total, points=total.points + changed)
        for start in range(0, len(found.packs), EMPTIED_AT_ONCE):
            done = run.empty(found.packs[start : start + EMPTIED_AT_ONCE], left)
            total = Compacted(
                total.packs + done.packs, total.points + done.points, total.copied_bytes + done.copied_bytes
            )
    return total
