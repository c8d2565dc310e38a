# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects that are about to be deleted.

An object that nothing names is condemned: ``condemned/<pack id>`` for a pack, ``condemned/<domain uuid>/<point
id>/<file>`` for a file of a restore point. After the grace period, a collector lists the objects that it will delete in
``doomed/<lease id>/<number>``, surveys once more what is named, and only then deletes. Any run may reprieve an object.
A list is deleted only by the collector that wrote it, or when it is so old that the collector must be dead.
"""

from __future__ import annotations

import contextlib
import typing as t

from ...errors import ObjectMissing, StorageFull
from ..format import envelope, names
from ..repository import Repository

KIND = "doomed"
VERSION = 1
_SHAPE = {"names": list[str]}
_LISTED = 1024  # names in one list


def condemn(repository: Repository, name: str) -> None:
    """Condemn an object. If it is condemned already, the time of that stays."""
    repository.store.put(names.announcement(name), b"", replace=False)


def reprieve(repository: Repository, name: str) -> None:
    """Withdraw the condemnation of an object."""
    repository.discard(names.announcement(name))


def announced(repository: Repository) -> dict[str, float]:
    """Return the time of each condemnation by object, in seconds by the store's clock."""
    entries = ((names.announced(entry.name), entry.modified) for entry in repository.store.entries(names.CONDEMNED))
    return {name: since for name, since in entries if name is not None}


def list_for_deletion(repository: Repository, lease_id: str, objects: t.Sequence[str]) -> dict[str, t.Sequence[str]]:
    """List objects as about to be deleted by the holder of a lease.

    Returns the objects on each list, by the name of the list. The lists stand until the objects are gone. If there is
    room for some of the lists only, the other objects are not listed. Raises StorageFull if there is room for none.
    """
    lists: dict[str, t.Sequence[str]] = {}
    for start in range(0, len(objects), _LISTED):
        name, some = names.doomed(lease_id, start // _LISTED), objects[start : start + _LISTED]
        try:
            repository.put_object(name, envelope.encode(KIND, VERSION, {"names": some}))
        except StorageFull:
            if not lists:
                raise
            break
        lists[name] = some
    return lists


def pending_deletion(repository: Repository) -> set[str]:
    """Return the names of all objects that are condemned or listed for deletion.

    No new restore point may refer to them. Objects that have just been deleted are no longer among them, so check
    afterwards that an object exists.
    """
    found = set(filter(None, map(names.announced, repository.store.list(names.CONDEMNED))))
    return found | listed_for_deletion(repository)


def listed_for_deletion(repository: Repository) -> set[str]:
    """Return the names of all objects that are listed for deletion."""
    found: set[str] = set()
    for name in list(repository.store.list(names.DOOMED)):
        with contextlib.suppress(ObjectMissing):  # its objects were deleted or spared since it was listed
            listed = envelope.decode(KIND, VERSION, repository.get_object(name), name, _SHAPE)["names"]
            found.update(each for each in listed if names.is_collectable(each))
    return found
