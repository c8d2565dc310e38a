# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of removed restore points that the trash no longer contains.

With it, a host that returns after a long time can distinguish a restore point that was removed from one that a rollback
lost. The collector writes the record before it deletes entries of the trash, so a removed point is always found in one
of the two.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import secrets
import typing as t

from ...errors import UnreadableObject
from ...parallel import map_all
from ..format import envelope, manifests, names
from ..format.manifests import Budget, Key
from ..repository import Repository

KIND = "removed"
VERSION = 1
MOST = 4096  # ids in one object
_SHAPE = {"points": list[str]}
_SMALL = 1 << 15  # bytes; larger objects are not merged
_MANY = 16  # small objects of a domain are merged from this number on


def record(repository: Repository, keys: t.Iterable[Key]) -> None:
    """Record restore points as removed."""
    by_domain: dict[str, set[str]] = collections.defaultdict(set)
    for uuid, point_id in keys:
        by_domain[uuid].add(point_id)
    small: dict[str, list[str]] = collections.defaultdict(list)
    for entry in repository.store.entries(names.REMOVED) if by_domain else ():
        taken = names.parsed(entry.name)
        if entry.size < _SMALL and taken is not None:
            small[taken.parts["uuid"]].append(entry.name)
    for _done in map_all(lambda uuid: _record(repository, uuid, by_domain[uuid], small[uuid]), by_domain):
        pass


def _record(repository: Repository, uuid: str, ids: set[str], small: t.Sequence[str]) -> None:
    """Record removed points of a domain. Merges its ``small`` objects if there are many."""
    taken = {}
    for name in small if len(small) >= _MANY else ():
        with contextlib.suppress(UnreadableObject):
            taken[name] = _ids(repository, name)
    left = iter(sorted(ids.union(*taken.values())))
    for chunk in iter(lambda: list(itertools.islice(left, MOST)), []):
        body = {"points": chunk}
        repository.put_object(names.removals(uuid, secrets.token_hex(8)), envelope.encode(KIND, VERSION, body))
    for name in taken:  # the new objects contain their ids
        repository.discard(name)


def _ids(repository: Repository, name: str) -> set[str]:
    return set(envelope.decode(KIND, VERSION, repository.get_object(name), name, _SHAPE)["points"])


def vanished(repository: Repository, key: Key) -> bool:
    """Return True if a restore point that once existed is gone without a removal.

    Such a point is neither stored, nor in the trash, nor recorded as removed. The checks follow the order in which a
    removed point moves. The first is repeated, because a point that is being brought back moves the other way.
    """
    return not (
        exists(repository, key) or _in_trash(repository, key) or recorded(repository, key) or exists(repository, key)
    )


def exists(repository: Repository, key: Key) -> bool:
    """Return True if the manifest of a restore point exists."""
    return repository.exists(names.manifest(*key))


def _in_trash(repository: Repository, key: Key) -> bool:
    """Return True if an entry of the trash proves that the point was removed.

    An entry that cannot be read proves nothing.
    """
    for name in repository.store.list(names.trash_folder(*key)):
        with contextlib.suppress(UnreadableObject):
            data = Budget().take(repository.get_object(name))
            return manifests.decode(data, names.manifest_kept_by(name)).key == key
    return False


def objects(repository: Repository, uuid: str) -> set[str]:
    """Return the names of the objects that record removed points of a domain."""
    return set(repository.store.list(names.removals_folder(uuid)))


def recorded(repository: Repository, key: Key, but: t.Collection[str] = ()) -> bool:
    """Return True if an object that is not in ``but`` records the point as removed.

    Searches again until there are no new objects, because a collector may merge objects at the same time.
    """
    seen = set(but)
    while True:
        found = objects(repository, key[0]) - seen
        for name in found:
            with contextlib.suppress(UnreadableObject):
                if key[1] in _ids(repository, name):
                    return True
        if not found:
            return False
        seen |= found
