# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Telling restore points that blocks lie elsewhere now.

Who moves a block has proven first that the same bytes, by their block id, are at the new address. A restore point is
changed by storing new maps under new names and then replacing its manifest, so at every moment it is whole. What it
named before stays until the collector finds that nothing names it.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import secrets
import typing as t

from ...errors import DamagedObject, ObjectMissing
from ...grid import coalesce
from ..format import names
from ..format.manifests import RestorePoint
from ..format.maps import ExtentMap, MapBuilder, Run
from ..format.packs import PackRef
from ..repository import Repository
from . import publishing, trash
from .leases import Lease


class Move(t.NamedTuple):
    """``count`` blocks of a pack from ``ordinal`` on lie in ``to_pack`` from ``to_ordinal`` on now."""

    ordinal: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    to_pack: PackRef
    to_ordinal: int

    @property
    def stop(self) -> int:
        """First ordinal after it."""
        return self.ordinal + self.count


Moves = t.Mapping[bytes, t.Sequence[Move]]  # by the id of the pack they lay in; in order, without overlap


def joined(moves: t.Iterable[Move]) -> list[Move]:
    """Moves out of one pack in order, neighbours that stay neighbours made one."""
    return list(coalesce(sorted(moves, key=lambda each: each.ordinal), _join))


def _join(last: Move, each: Move) -> Move | None:
    adjoin = (last.stop, last.to_pack, last.to_ordinal + last.count) == (each.ordinal, each.to_pack, each.to_ordinal)
    return last._replace(count=last.count + each.count) if adjoin else None


class _Line:
    """The moves out of one pack, found by ordinal."""

    def __init__(self, moves: t.Sequence[Move]) -> None:
        self._moves = moves
        self._stops = [move.stop for move in moves]

    def pieces(self, run: Run) -> t.Iterator[Run]:
        """A run of this pack cut at the edges of the moves, each piece where it lies now."""
        done, end = run.ordinal, run.ordinal + run.count
        index = bisect.bisect_right(self._stops, done)
        while index < len(self._moves) and self._moves[index].ordinal < end:
            move = self._moves[index]
            start, stop = max(done, move.ordinal), min(end, move.stop)
            if done < start:
                yield _part(run, done, start)
            yield _part(run, start, stop)._replace(pack=move.to_pack, ordinal=move.to_ordinal + start - move.ordinal)
            done, index = stop, index + 1
        if done < end:
            yield _part(run, done, end)


def _part(run: Run, start: int, stop: int) -> Run:
    """The piece of a run between two ordinals."""
    return run.part(run.first + start - run.ordinal, run.first + stop - run.ordinal)


def relocated(extents: ExtentMap, moves: Moves) -> ExtentMap | None:
    """The map with every moved block at its new address; None if it names none of them. Pure."""
    lines = {ref.id: _Line(moves[ref.id]) for ref in extents.packs if ref.id in moves}
    if not lines:
        return None
    builder, touched = MapBuilder(extents.size), False
    refs: dict[bytes, PackRef] = {}
    for run in extents.runs():
        for piece in lines[run.pack.id].pieces(run) if run.pack.id in lines else (run,):
            touched = touched or (piece.pack, piece.ordinal - piece.first) != (run.pack, run.ordinal - run.first)
            refs[piece.pack.id] = piece.pack
            builder.put(piece.first, piece.count, piece.pack.id, piece.ordinal)
    return builder.finish(refs) if touched else None


def _maps_of(repository: Repository, point: RestorePoint, moves: Moves) -> dict[str, ExtentMap]:
    """The new maps of the disks that name moved blocks. A disk whose map cannot be read stays as it is."""
    found = ((target, relocated(extents, moves)) for target, extents in repository.readable_maps(point))
    return {target: extents for target, extents in found if extents is not None}


def _stored(repository: Repository, point: RestorePoint, maps: t.Mapping[str, ExtentMap]) -> RestorePoint:
    """The restore point with these maps, which are stored; all it rests on is locked as they are, if the store does that."""
    suffix = secrets.token_hex(4)
    own = {target: names.map_file(target, suffix) for target in maps}
    files = repository.put_files(point.folder, {own[target]: extents.encode() for target, extents in maps.items()})
    disks = (
        dataclasses.replace(disk, map=files[own[disk.target]]) if disk.target in own else disk for disk in point.disks
    )
    made = dataclasses.replace(point, disks=tuple(disks))
    # What is gone or damaged is found before the manifest is replaced.
    with contextlib.suppress(DamagedObject, ObjectMissing):
        repository.store.protect(
            publishing.resting_on(repository, made), like=point.object_name(next(iter(files.values())))
        )
    return made


def _new_names(point: RestorePoint, maps: t.Mapping[str, ExtentMap], moves: Moves) -> set[str]:
    """The new maps of a point, and the packs that blocks were moved to among those they name."""
    targets = {move.to_pack for line in moves.values() for move in line}
    named = {ref.name for extents in maps.values() for ref in extents.packs if ref in targets}
    return named.union(point.object_name(disk.map) for disk in point.disks if disk.target in maps)


def relocate(lease: Lease, point: RestorePoint, moves: Moves) -> bool:
    """Have a restore point name moved blocks at their new addresses; True if it does now, False if it named none, or is gone.

    Safe beside everything else: the manifest is replaced only once it is certain that all it names will stay, and a point that
    is removed meanwhile stays removed. Raises RepositoryError if the store fails; the point is whole all the same.
    """
    repository = lease.repository
    while True:
        try:
            current = repository.point(point.uuid, point.id)
        except (DamagedObject, ObjectMissing):
            return False
        maps = _maps_of(repository, current, moves)
        if not maps or trash.contains(repository, point):
            return False
        replaced = _stored(repository, current, maps)
        if publishing.replace(lease, current, replaced, _new_names(replaced, maps, moves)):
            return True
        if publishing.stands(repository, current):
            return False  # what is new was lost: this costs work, and another run does it again
