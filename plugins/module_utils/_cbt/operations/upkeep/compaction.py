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
from ...errors import DamagedObject, UnreadableObject
from ...parallel import default_workers, ordered_results
from ...repository.dedup import dedup
from ...repository.format import names
from ...repository.format.manifests import RestorePoint
from ...repository.format.maps import Run, portions
from ...repository.format.packs import Encoded, PackRef
from ...repository.packs.writer import PackWriter
from ...repository.repository import Repository
from ...repository.sharing.leases import Lease
from ...repository.sharing.relocation import Move, joined, readable_maps, relocate_all
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

    def __add__(self, other: Compacted) -> Compacted:
        return Compacted(self.packs + other.packs, self.points + other.points, self.copied_bytes + other.copied_bytes)


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


def _copy(repository: Repository, writer: PackWriter, run: Run) -> list[_Copy]:
    """Copy the sound blocks of a run; blocks that cannot be read stay where they are."""
    try:
        blocks = list(repository.reader.encoded(run.pack, run.ordinal, run.count))
    except UnreadableObject:
        return []
    copies = []
    for damaged, group in itertools.groupby(
        zip(itertools.count(run.ordinal), blocks), key=lambda each: isinstance(each[1], DamagedObject)
    ):
        if damaged:
            continue
        sound = list(group)
        row = t.cast(list[Encoded], [block for _ordinal, block in sound])
        to_pack, to_ordinal = writer.append(row)
        copies.append(
            _Copy(run.pack, sound[0][0], len(row), to_pack, to_ordinal, sum(len(block.payload) for block in row))
        )
    return copies


def _copied(repository: Repository, live: LiveBlocks, writer: PackWriter, control: Control) -> list[_Copy]:
    # Each pack is read like a disk whose blocks it stores in order.
    runs = (Run(first, length, ref, first) for ref, bits in live.items() for first, length in set_ranges(bits))
    work = functools.partial(_copy, repository, writer)
    with ordered_results(portions(runs), lambda: contextlib.nullcontext(work), default_workers(), control) as results:
        return [copy for copies in results for copy in copies]


def _empty(lease: Lease, live: LiveBlocks, control: Control) -> Compacted:
    """Copy the live blocks of packs, and make all restore points name the copies."""
    repository = lease.repository
    writer = repository.writer()
    try:
        copies = _copied(repository, live, writer, control)
        written = writer.finish()
    except BaseException:
        writer.discard()
        raise
    moves: dict[bytes, list[Move]] = {}
    for pack, group in itertools.groupby(copies, key=lambda copy: copy.pack):
        moves[pack.id] = joined(
            Move(copy.ordinal, copy.count, written[copy.to_pack], copy.to_ordinal) for copy in group
        )
    # From here on, restore points may name the copies. They stay after any error; the collector deletes unused ones.
    dedup.store_hooks(repository, dedup.of_compaction(), writer.hooks())
    changed = relocate_all(lease, moves, control)
    emptied = sum(sum(move.count for move in moves.get(ref.id, ())) == count(bits) for ref, bits in live.items())
    return Compacted(emptied, changed, sum(copy.size for copy in copies))


def _choices(packs: int) -> t.Iterator[t.Callable[[PackRef], bool]]:
    """Yield tests that divide so many packs, by their ids, into parts.

    One part at a time fits in memory. Each run divides the packs differently.
    """
    parts = packs // PACKS_AT_ONCE + 1
    byte = secrets.randbelow(12)
    for part in range(parts):
        yield lambda ref, part=part: int.from_bytes(ref.id[byte : byte + 4], "big") % parts == part  # type: ignore[misc]


class CompactionPlan(t.NamedTuple):
    """How to empty sparse packs.

    ``live`` are the packs with their live blocks. ``merges`` are those blocks that are stored elsewhere too; the others
    are copied. The collector deletes the packs once nothing names them.
    """

    live: LiveBlocks
    merges: Merges

    @property
    def printed(self) -> Compacted:
        """Return the plan as a result, if no block is damaged.

        The bytes to copy are estimated from the average block size of each pack. Changed points are not counted.
        """
        copied = without(self.live, self.merges).items()
        return Compacted(len(copied), 0, sum(ref.size * count(bits) // ref.blocks for ref, bits in copied))

    def carry_out(self, lease: Lease, control: Control) -> Compacted:
        """Merge, then copy the blocks that are left, some packs at a time."""
        merged, changed = merging.merge(lease, self.merges, control)
        done = Compacted(0, changed)
        left = list(without(self.live, merged).items())
        for start in range(0, len(left), EMPTIED_AT_ONCE):
            done += _empty(lease, dict(left[start : start + EMPTIED_AT_ONCE]), control)
        return done


def make_plan(
    live: LiveBlocks, merges: Merges, below: int, recoverable: LiveBlocks, kept: t.Collection[PackRef]
) -> CompactionPlan:
    """Choose the packs that are sparse once ``merges`` are made, except those ``kept``. Pure.

    Blocks in ``recoverable`` count as stored. Merges of other packs are dropped.
    """
    packs = [ref for ref in sparse_packs(without(live, merges), below, recoverable) if ref not in kept]
    return CompactionPlan({ref: live[ref] for ref in packs}, {ref: merges[ref] for ref in packs if ref in merges})


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The packs in which less than ``below`` percent of the blocks are live.

    Live blocks are those that ``points`` name. Blocks that ``trashed`` points name count as live but are not moved.
    Packs that ``held`` points name are not emptied, because none of their blocks can be deleted.
    """

    below: int
    points: t.Sequence[RestorePoint]
    trashed: t.Sequence[RestorePoint] = ()
    held: t.Sequence[RestorePoint] = ()

    def plans(self, repository: Repository, control: Control) -> t.Iterator[CompactionPlan]:
        """Yield a plan for each part of the packs. Raises RepositoryError.

        Blocks that only an unreadable map names count as dead. Their packs may be copied needlessly, but no block is
        lost.
        """

        def named(points: t.Iterable[RestorePoint], chosen: t.Callable[[PackRef], bool]) -> LiveBlocks:
            return live_blocks((extents for _target, extents in readable_maps(repository, points, control)), chosen)

        for chosen in _choices(sum(1 for _entry in repository.entries(names.PACKS))):
            live = named(self.points, chosen)
            apart = named((each for each in self.points if each.dedup != dedup.REPOSITORY), live.__contains__)
            equal = merging.find_equal(repository, {ref: live[ref] for ref in live.keys() - apart.keys()}, control)
            recoverable, kept = named(self.trashed, live.__contains__), named(self.held, live.__contains__)
            yield make_plan(live, equal, self.below, recoverable, kept)


def predict(repository: Repository, candidates: Candidates, control: Control) -> Compacted:
    """Return what ``compact`` would do. Raises RepositoryError."""
    return sum((plan.printed for plan in candidates.plans(repository, control)), Compacted())


def compact(lease: Lease, candidates: Candidates, control: Control) -> Compacted:
    """Empty the sparse packs.

    Raises RepositoryError if the store fails; all restore points stay whole.
    """
    plans = candidates.plans(lease.repository, control)
    return sum((plan.carry_out(lease, control) for plan in plans), Compacted())
