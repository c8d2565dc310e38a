# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes restore points refer to the new addresses of moved blocks.

The caller has proven by block id that the same bytes are at the new address. New maps are stored under new names before
the manifest is replaced, so a restore point is whole at every moment. The objects that it named before stay until the
collector finds that nothing names them.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import secrets
import typing as t

from ...control import Control
from ...errors import UnreadableObject
from ...grid import coalesce
from ..format import names
from ..format.manifests import RestorePoint
from ..format.maps import ExtentMap, MapBuilder, Run
from ..format.packs import PackRef
from ..repository import Repository
from . import publishing, trash
from .leases import Lease


class Move(t.NamedTuple):
    """``count`` blocks of a pack from ``ordinal`` on, and their new pack and ordinal."""

    ordinal: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    to_pack: PackRef
    to_ordinal: int

    @property
    def stop(self) -> int:
        """Return the ordinal after the last block."""
        return self.ordinal + self.count


Moves = t.Mapping[bytes, t.Sequence[Move]]  # by id of the old pack; in order, without overlap


def joined(moves: t.Iterable[Move]) -> list[Move]:
    """Return moves out of one pack in order, adjacent ones joined."""
    return list(coalesce(sorted(moves, key=lambda each: each.ordinal), _join))


def _join(last: Move, each: Move) -> Move | None:
    adjoin = (last.stop, last.to_pack, last.to_ordinal + last.count) == (each.ordinal, each.to_pack, each.to_ordinal)
    return last._replace(count=last.count + each.count) if adjoin else None


def _pieces(run: Run, moves: t.Sequence[Move]) -> t.Iterator[Run]:
    """Yield the pieces of a run, cut at the edges of the moves out of its pack, at their new addresses."""
    done, end = run.ordinal, run.ordinal + run.count
    before = bisect.bisect_right(moves, (done,))  # the last move before the run may reach into it
    for move in itertools.islice(moves, max(0, before - 1), None):
        start, stop = max(done, move.ordinal), min(end, move.stop)
        if move.ordinal >= end:
            break
        if start >= stop:
            continue
        if done < start:
            yield _part(run, done, start)
        yield _part(run, start, stop)._replace(pack=move.to_pack, ordinal=move.to_ordinal + start - move.ordinal)
        done = stop
    if done < end:
        yield _part(run, done, end)


def _part(run: Run, start: int, stop: int) -> Run:
    """Return the piece of a run between two ordinals."""
    return run.part(run.first + start - run.ordinal, run.first + stop - run.ordinal)


def relocated(extents: ExtentMap, moves: Moves) -> ExtentMap | None:
    """Return the map with moved blocks at new addresses; None if it has none. Pure."""
    if not any(ref.id in moves for ref in extents.packs):
        return None
    builder, touched = MapBuilder(extents.size), False
    refs: dict[bytes, PackRef] = {}
    for run in extents.runs():
        for piece in _pieces(run, moves.get(run.pack.id, ())):
            touched = touched or (piece.pack, piece.ordinal - piece.first) != (run.pack, run.ordinal - run.first)
            refs[piece.pack.id] = piece.pack
            builder.put(piece.first, piece.count, piece.pack.id, piece.ordinal)
    return builder.finish(refs) if touched else None


def readable_maps(
    repository: Repository, points: t.Iterable[RestorePoint], control: Control
) -> t.Iterator[tuple[str, ExtentMap]]:
    """Yield target and extent map of each disk of restore points whose map can be read."""
    for point in points:
        control.check()
        yield from repository.readable_maps(point)


def _maps_of(repository: Repository, point: RestorePoint, moves: Moves) -> dict[str, ExtentMap]:
    """Return the new maps of the disks that refer to moved blocks, by target.

    A disk whose map cannot be read is left as it is.
    """
    found = ((target, relocated(extents, moves)) for target, extents in repository.readable_maps(point))
    return {target: extents for target, extents in found if extents is not None}


def _stored(repository: Repository, point: RestorePoint, maps: t.Mapping[str, ExtentMap]) -> RestorePoint:
    """Store the maps and return the restore point that refers to them.

    If the store locks objects, all objects of the point are locked as long as its new maps.
    """
    suffix = secrets.token_hex(4)
    own = {target: names.map_file(target, suffix) for target in maps}
    files = repository.put_files(point.folder, {own[target]: extents.encode() for target, extents in maps.items()})
    disks = (
        dataclasses.replace(disk, map=files[own[disk.target]]) if disk.target in own else disk for disk in point.disks
    )
    made = dataclasses.replace(point, disks=tuple(disks))
    # Missing or damaged objects are found before the manifest is replaced.
    with contextlib.suppress(UnreadableObject):
        repository.store.protect(
            publishing.resting_on(repository, made), like=point.object_name(next(iter(files.values())))
        )
    return made


def _new_names(point: RestorePoint, maps: t.Mapping[str, ExtentMap], moves: Moves) -> set[str]:
    """Return the names of the new maps, and of the packs in them with moved blocks."""
    targets = {move.to_pack for line in moves.values() for move in line}
    named = {ref.name for extents in maps.values() for ref in extents.packs if ref in targets}
    return named.union(point.object_name(disk.map) for disk in point.disks if disk.target in maps)


def relocate(lease: Lease, point: RestorePoint, moves: Moves) -> bool:
    """Make a restore point refer to moved blocks at their new addresses.

    Returns True if it does now, and False if it refers to none of them, is gone or in the trash, or if a new object was
    lost. The manifest is replaced only when it is certain that all objects it names will stay. A point that is removed
    at the same time stays removed. Raises RepositoryError if the store fails; the point is whole all the same.
    """
    repository = lease.repository
    while True:
        try:
            current = repository.point(*point.key)
        except UnreadableObject:
            return False
        maps = _maps_of(repository, current, moves)
        if not maps or trash.contains(repository, point):
            return False
        replaced = _stored(repository, current, maps)
        if publishing.replace(lease, current, replaced, _new_names(replaced, maps, moves)):
            return True
        if publishing.stands(repository, current):
            return False  # a new object was lost: another run does the work again


def relocate_all(lease: Lease, moves: Moves, control: Control) -> int:
    """Do as ``relocate`` does for all restore points; returns how many refer to moved blocks now."""
    changed = 0
    for point in lease.repository.points_of().points if moves else ():
        control.check()
        changed += relocate(lease, point, moves)
    return changed
