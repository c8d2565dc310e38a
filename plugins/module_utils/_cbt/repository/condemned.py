# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects on their way out, and what a writer asks before it publishes. Private to the collection.

An object that nothing names is announced: ``condemned/<pack id>`` for a pack, ``condemned/<domain uuid>/<point id>/<file>`` for a
file of a restore point. After the grace period, a collector writes the list of what it is about to delete to ``doomed/<session>``,
looks once more for what is named, and only then deletes. An announcement may be taken back by anyone; a list only goes with the
collector that wrote it, or once that is dead for certain.
"""

from __future__ import annotations

import contextlib
import re
import typing as t

from ..errors import ObjectMissing
from . import sealed
from .repository import Repository

KIND = "doomed"
VERSION = 1
CONDEMNED = "condemned"
DOOMED = "doomed"
_MAY_GO = re.compile(r"packs/[0-9a-f]{2}/[0-9a-f]{32}|points/[0-9a-f-]{36}/[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}/(?!manifest\.json$)[^/]+")
_SHAPE = {"names": t.List[str]}
_LISTED = 8192  # names in one list


def may_go(name: str) -> bool:
    """True if it is the name of a pack or of a file of a restore point, its manifest excepted."""
    return _MAY_GO.fullmatch(name) is not None


def entry_name(name: str) -> str:
    """Name of the entry that announces the end of an object below packs or points."""
    if name.startswith("packs/"):
        return f"{CONDEMNED}/{name.rpartition('/')[2]}"
    return f"{CONDEMNED}/{name.partition('/')[2]}"


def object_name(entry: str) -> t.Optional[str]:
    """Name of the object whose end an entry announces; None if it is not the name of an entry, but something foreign."""
    rest = entry.partition("/")[2]
    name = f"points/{rest}" if "/" in rest else f"packs/{rest[:2]}/{rest}"
    return name if may_go(name) else None


def announce(repository: Repository, name: str) -> None:
    """Announce the end of an object; an announcement that stands keeps its time."""
    repository.store.put(entry_name(name), b"", replace=False)


def pardon(repository: Repository, name: str) -> None:
    """Take an announcement back."""
    repository.discard(entry_name(name))


class Announced(t.NamedTuple):
    """Names of the objects that are announced, and since when, in seconds by the store's clock; and names of what does not belong among them."""

    objects: t.Dict[str, float]
    foreign: t.List[str]


def announced(repository: Repository) -> Announced:
    """What is announced. What is foreign announces nothing and is left alone."""
    found = Announced({}, [])
    for entry in repository.store.entries(CONDEMNED):
        name = object_name(entry.name)
        if name is None:
            found.foreign.append(entry.name)
        else:
            found.objects[name] = entry.modified
    return found


def doom(repository: Repository, session: str, names: t.Sequence[str]) -> t.List[str]:
    """List objects as about to be deleted by a session; returns the names of the lists, which stand until the objects are gone."""
    lists = []
    for start in range(0, len(names), _LISTED):
        lists.append(f"{DOOMED}/{session}/{start // _LISTED}")
        body = {"names": list(names[start : start + _LISTED])}
        repository.put_object(lists[-1], sealed.encode(KIND, VERSION, body))
    return lists


def on_their_way_out(repository: Repository) -> t.Set[str]:
    """Names of all objects that are announced or listed: nothing new may be made to rest on them.

    What has just been deleted is no longer among them, so ask for its existence afterwards.
    """
    names = set(filter(None, map(object_name, repository.store.list(CONDEMNED))))
    for name in list(repository.store.list(DOOMED)):
        with contextlib.suppress(ObjectMissing):  # all on it is deleted or spared since it was listed
            names.update(sealed.decode(KIND, VERSION, repository.get_object(name), name, _SHAPE)["names"])
    return names
