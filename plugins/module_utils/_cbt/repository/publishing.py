# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a restore point exist beside collectors. Private to the collection."""

from __future__ import annotations

import contextlib
import secrets
import typing as t

from ..errors import ObjectMissing, RepositoryError
from ..side_by_side import side_by_side
from . import condemned, points
from .leases import LAPSE, Lease
from .points import RestorePoint
from .repository import Repository

FOLDER = "drafts"
_FRESH = LAPSE / 2  # seconds for which a draft surely counts, with as much again for the one request after the last look

Again = t.Callable[[t.Set[str]], RestorePoint]


def needed(repository: Repository, point: RestorePoint) -> t.Set[str]:
    """Names of all objects a restore point rests on. Raises DamagedObject or ObjectMissing if one of its maps cannot be read."""
    names = {f"{point.folder}/{file.name}" for file in point.stored_files}
    for disk in point.disks:
        names.update(ref.name for ref in repository.read_packs(point, disk))
    return names


def _missing(repository: Repository, name: str) -> bool:
    try:
        repository.store.size(name)
    except ObjectMissing:
        return True
    return False


def lost(repository: Repository, point: RestorePoint) -> t.Set[str]:
    """Names of the objects a restore point rests on which are gone or on their way out."""
    try:
        names = needed(repository, point)
    except ObjectMissing:
        return {f"{point.folder}/{file.name}" for file in point.stored_files}
    leaving = names & condemned.on_their_way_out(repository)
    staying = sorted(names - leaving)
    gone = {name for name, missing in zip(staying, side_by_side(lambda name: _missing(repository, name), staying)) if missing}
    return leaving | gone


def publish(repository: Repository, lease: Lease, point: RestorePoint, again: Again) -> RestorePoint:
    """Make a restore point exist, or replace its manifest; all it names must be stored.

    Its manifest is put as a draft, which collectors heed, and only then is asked what is on its way out: whichever of the
    two acted first, one of them sees the other. What is lost is given to ``again``, which stores it anew under other names
    and returns the point that names them. So a point that exists is complete at every moment.
    """
    drafts: t.List[str] = []
    try:
        while True:
            lease.renew()
            began = lease.clock()
            # A name of its own each time: a collector that is just about to remove an outdated draft must not hit this one.
            drafts.append(f"{FOLDER}/{lease.id}/{point.uuid}/{point.id}/{secrets.token_hex(8)}")
            repository.put_object(drafts[-1], points.encode(point))
            missed = lost(repository, point)
            if missed:
                point = again(missed)
            elif lease.clock() - began < _FRESH:
                repository.publish(point)
                return point
    finally:
        with contextlib.suppress(RepositoryError):  # they count for nothing once they are old
            for name in drafts:
                repository.store.delete(name)
