# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compaction: the live blocks of sparse packs are copied into new ones.

What lies in another pack as well lives there alone: it is not copied, unless it was to be stored apart. Every block is proven before
it is copied or another one named in its place, and by its block id stays what it was. Restore points are made to name the new addresses one by
one; the old packs are left to the collector. A block that is damaged is not moved, nor is its pack emptied.
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

PACKS_AT_ONCE = 1 << 16  # packs whose live and recoverable blocks are held in memory, by a bit each: about 50 MiB
EMPTIED_AT_ONCE = 256  # packs copied before restore points are told, so that a run that is killed loses no more work


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What came of it: ``packs`` that nothing names any more, ``points`` that were changed, and the bytes of the payloads that were copied."""

    packs: int = 0
    points: int = 0
    copied_bytes: int = 0


class _Chunk(t.NamedTuple):
    """Consecutive live blocks of a pack."""

    pack: PackRef
    ordinal: int
    count: int  # type: ignore[assignment]  # hides tuple's method


class _Copy(t.NamedTuple):
    """``count`` blocks that were in ``pack`` from ``ordinal`` on were stored in the pack with the id ``to_pack`` from ``to_ordinal`` on, in ``size`` bytes."""

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
    """Store the sound blocks of a chunk anew. What cannot be read is left where it is."""
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
    """The maps of restore points; what one that cannot be read names counts as dead, which costs a copy and no block."""
    for point in points:
        control.check()
        yield from (extents for _target, extents in repository.readable_maps(point))


@dataclasses.dataclass(frozen=True)
class _Compaction:
    """One run."""

    lease: Lease
    workers: int
    control: Control

    @property
    def repository(self) -> Repository:
        """Where it runs."""
        return self.lease.repository

    def empty(self, packs: t.Sequence[PackRef], live: LiveBlocks) -> Compacted:
        """Copy what lives in packs, and have all restore points name the copies."""
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
        # From here on the copies may be named: whatever happens, they stay, and the collector takes those that are not.
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
    """Tests that divide so many packs, by their ids, into parts of which one at a time is looked at. Each run divides them in another way."""
    parts = packs // PACKS_AT_ONCE + 1
    byte = secrets.randbelow(12)
    for part in range(parts):
        yield lambda ref, part=part: int.from_bytes(ref.id[byte : byte + 4], "big") % parts == part  # type: ignore[misc]


class CompactionStep(t.NamedTuple):
    """``packs`` to be emptied, what lives in them, and what of that lies elsewhere as well."""

    packs: t.Sequence[PackRef]
    live: LiveBlocks
    merges: Merges


def choose(
    live: LiveBlocks, merges: Merges, below: int, recoverable: LiveBlocks, kept: t.Collection[PackRef] = ()
) -> CompactionStep:
    """The packs of which little but ``recoverable`` needs to stay if ``merges`` are made, but none of those ``kept``. Pure.

    Merges out of other packs are left.
    """
    packs = [ref for ref in sparse_packs(without(live, merges), below, recoverable) if ref not in kept]
    return CompactionStep(
        packs, {ref: live[ref] for ref in packs}, {ref: merges[ref] for ref in packs if ref in merges}
    )


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Packs of which less than ``below`` percent of the blocks live there. What ``trashed`` points name lives, but is not moved: they keep their packs.

    ``without`` are points regarded as just removed. Packs that ``held`` points name are not emptied at all, because nothing of them can go.
    """

    below: int
    trashed: t.Sequence[RestorePoint] = ()
    without: t.Collection[Key] = ()
    held: t.Sequence[RestorePoint] = ()

    def find(self, repository: Repository, control: Control) -> t.Iterator[CompactionStep]:
        """Some of the packs at a time. Raises RepositoryError."""
        for chosen in _choices(sum(1 for _name in repository.store.list(names.PACKS))):
            points = [each for each in repository.points_of().points if each.key not in self.without]
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
    """About what ``compact`` would do: the packs, and by their average the bytes of what is to be copied of them. Raises RepositoryError."""
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

    Raises RepositoryError if the store fails; every restore point is whole all the same.
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
