# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merges blocks that are stored more than once, as by writers that run at the same time.

Packs are read one after another. Recently read blocks are remembered, and hooks find other packs with the same content,
so memory is bounded. A block that is not found costs only space.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import typing as t

from ...control import Control
from ...errors import DamagedObject, UnreadableObject
from ...grid import BLOCKS_AT_ONCE
from ...parallel import default_workers, map_all, ordered_results
from ...repository.dedup import dedup
from ...repository.dedup.index import HookIndex
from ...repository.format import hooks
from ...repository.format.hooks import PackHooks
from ...repository.format.packs import Directory, PackRef
from ...repository.repository import Repository
from ...repository.sharing.leases import Lease
from ...repository.sharing.relocation import Move, joined, relocate_all
from .live_blocks import LiveBlocks, count, set_ranges

REMEMBERED = 1 << 18  # blocks; about 50 MiB
MERGED_AT_ONCE = 1 << 19  # blocks found twice, after which the rest is left to another run; about 100 MiB
_ORDINAL_BITS = 32

Merges = dict[PackRef, list[Move]]  # by pack, its blocks that are stored elsewhere too, and where


class EqualBlocks:
    """Which addresses hold the same block, as far as remembered.

    An address is the rank of a pack and an ordinal. Of equal blocks, the one at the lowest address is kept.
    """

    def __init__(self) -> None:
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}
        self._ranks: set[int] = set()  # ranks of the packs whose blocks are in _young
        self._ranks_before: set[int] = set()
        self._kept: dict[int, int] = {}  # spare address: the address to use instead

    def __len__(self) -> int:
        return len(self._kept)

    def remembers(self, rank: int) -> bool:
        """Return True if the blocks of this pack need not be noted again yet."""
        return rank in self._ranks or rank in self._ranks_before

    def note(self, rank: int, blocks: t.Iterable[tuple[int, bytes]]) -> None:
        """Note that the pack of this rank has these blocks, as (ordinal, id).

        A block may be noted more than once.
        """
        if len(self._young) >= REMEMBERED // 2:
            self._old, self._young = self._young, {}
            self._ranks_before, self._ranks = self._ranks, set()
        self._ranks.add(rank)
        for ordinal, block_id in blocks:
            address = (rank << _ORDINAL_BITS) + ordinal
            known = self._young.get(block_id, self._old.get(block_id))
            self._young[block_id] = address if known is None else self._join(known, address)

    def _join(self, one: int, other: int) -> int:
        kept, spare = sorted((self._first(one), self._first(other)))
        if kept != spare:
            self._kept[spare] = kept
        return kept

    def _first(self, address: int) -> int:
        while address in self._kept:
            address = self._kept[address]
        return address

    def merges(self, packs: t.Sequence[PackRef]) -> Merges:
        """Return the merges found; ``packs`` is in order of rank."""
        found: Merges = {}
        for spare in self._kept:
            rank, ordinal = divmod(self._first(spare), 1 << _ORDINAL_BITS)
            found.setdefault(packs[spare >> _ORDINAL_BITS], []).append(
                Move(spare & (1 << _ORDINAL_BITS) - 1, 1, packs[rank], ordinal)
            )
        return {ref: joined(moves) for ref, moves in found.items()}


def find_equal(repository: Repository, live: LiveBlocks, control: Control) -> Merges:
    """Find live blocks that are also live at another address, in the same or another pack.

    Of equal blocks, the one in the fullest pack is kept. Only directories are read; the blocks are not. Raises
    RepositoryError if the store fails.
    """
    packs = sorted(live, key=lambda ref: (-count(live[ref]), ref.id))
    ranks = {ref: rank for rank, ref in enumerate(packs)}
    equal = EqualBlocks()

    def note(ref: PackRef, directory: Directory | None) -> None:
        if directory is not None and not equal.remembers(ranks[ref]):
            equal.note(ranks[ref], _live_ids(directory, live[ref]))

    index = HookIndex(repository)
    index.refresh()
    with index.lookup() as lookup:
        few = itertools.takewhile(lambda _ref: len(equal) < MERGED_AT_ONCE, packs)
        for ref, directory in zip(packs, map_all(functools.partial(_directory, repository), few)):
            control.check()
            if directory is not None:
                wanted = (
                    block_id for _ordinal, block_id in _live_ids(directory, live[ref]) if hooks.may_be_hook(block_id)
                )
                for near in ranks.keys() & set(lookup(wanted)):
                    note(near, _directory(repository, near))
            note(ref, directory)
    return equal.merges(packs)


def _live_ids(directory: Directory, bits: int) -> t.Iterator[tuple[int, bytes]]:
    return (
        (ordinal, directory.digest(ordinal))
        for first, length in set_ranges(bits)
        for ordinal in range(first, first + length)
    )


def _directory(repository: Repository, ref: PackRef) -> Directory | None:
    try:
        return repository.reader.directory(ref)
    except UnreadableObject:
        return None  # such a pack stays as it is


def merge(lease: Lease, merges: Merges, control: Control) -> tuple[Merges, int]:
    """Make all restore points name one copy of equal blocks, if that copy is sound.

    Returns the merges made, and the number of changed points. Hooks of the kept copies are stored, so that later runs
    find them. Raises RepositoryError if the store fails; all points stay whole.
    """
    repository = lease.repository
    proven = _proven(repository, merges, control)
    kept = {move.to_pack for line in proven.values() for move in line}
    directories = ((ref, _directory(repository, ref)) for ref in sorted(kept, key=lambda ref: ref.id))
    named = [
        PackHooks(ref, hooks.choose(map(each.digest, range(len(each)))))
        for ref, each in directories
        if each is not None
    ]
    dedup.store_hooks(repository, dedup.of_compaction(), named)
    return proven, relocate_all(lease, {ref.id: line for ref, line in proven.items()}, control)


def _proven(repository: Repository, merges: Merges, control: Control) -> Merges:
    """Return the merges whose kept copy is sound."""
    proven: Merges = {}
    work = functools.partial(_sound, repository)
    pieces = ((ref, piece) for ref, line in merges.items() for move in line for piece in _pieces(move))
    with ordered_results(pieces, lambda: contextlib.nullcontext(work), default_workers(), control) as results:
        for ref, moves in results:
            proven.setdefault(ref, []).extend(moves)
    return {ref: joined(moves) for ref, moves in proven.items() if moves}


def _pieces(move: Move) -> t.Iterator[Move]:
    for index in range(0, move.count, BLOCKS_AT_ONCE):
        yield Move(move.ordinal + index, min(BLOCKS_AT_ONCE, move.count - index), move.to_pack, move.to_ordinal + index)


def _sound(repository: Repository, task: tuple[PackRef, Move]) -> tuple[PackRef, list[Move]]:
    """Return the parts of a move whose kept blocks match their ids in the directory."""
    ref, move = task
    try:
        blocks = list(repository.reader.blocks(move.to_pack, move.to_ordinal, move.count))
    except UnreadableObject:
        return ref, []
    sound = [index for index, block in enumerate(blocks) if not isinstance(block, DamagedObject)]
    return ref, [Move(move.ordinal + index, 1, move.to_pack, move.to_ordinal + index) for index in sound]
