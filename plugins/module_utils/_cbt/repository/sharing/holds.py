# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds, which keep restore points while machines are served from them.

``holds/<domain uuid>/<point id>/<hold id>`` keeps a restore point, and all objects that its manifest named when the
hold was taken, for as long as the hold exists. A hold does not expire. It contains that manifest, so that a run that
moves blocks does not take away the blocks that are served. The name of a hold identifies its point, so a damaged hold
still keeps it. holding.py takes holds.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

from ...errors import DamagedObject, Held, ObjectMissing
from ...printable import utc_time
from ..format import envelope, manifests, names
from ..format.manifests import Budget, Key, RestorePoint
from ..repository import Repository
from ..stores.base import LATEST

KIND = "hold"
VERSION = 1
LONGEST = 255  # characters of a hostname, and of a purpose
_SHOWN = 8  # holds of a point that a message lists
_SHAPE = {"host": str, "purpose": str, "since": t.Union[None, int, float], "manifest": str}


@dataclasses.dataclass(frozen=True)
class Hold:
    """A hold of the restore point ``key`` for a ``purpose`` on ``host``.

    ``since`` is its start in seconds by the store's clock, None until the point was found whole after the hold was
    written. ``point`` is the restore point as it was when the hold was taken. If a hold cannot be read,
    ``why_unreadable`` gives the reason, and only id and key are known.
    """

    id: str
    key: Key
    host: str = ""
    purpose: str = ""
    since: float | None = None
    point: RestorePoint | None = None
    why_unreadable: str | None = None

    @property
    def name(self) -> str:
        """Return the name of its object."""
        return names.hold(*self.key, self.id)

    @property
    def begun(self) -> str | None:
        """Return its start in UTC (ISO 8601), or None if it is not known."""
        return utc_time(self.since) if self.since is not None else None

    @property
    def reason(self) -> str:
        """Return why the restore point is kept."""
        if self.why_unreadable is not None:
            return f"held by {self.name}, which cannot be read"
        return f"held by {self.purpose} on {self.host}" + (f" since {self.begun}" if self.begun else "")


def encode(hold: Hold, point: RestorePoint) -> bytes:
    """Return the object of a hold that keeps a point."""
    manifest = manifests.encode(point).decode(errors="surrogatepass")
    return envelope.encode(
        KIND, VERSION, {"host": hold.host, "purpose": hold.purpose, "since": hold.since, "manifest": manifest}
    )


def decode(data: bytes, name: str) -> tuple[Hold, RestorePoint]:
    """Return a hold from its object, and the point that it keeps.

    Raises as ``envelope.decode`` does.
    """
    taken = names.parsed(name)
    if taken is None or taken.kind is not names.HOLD_KIND:
        raise DamagedObject(f"{names.shown(name)} is not the name of a hold")
    body = envelope.decode(KIND, VERSION, data, name, _SHAPE)
    since = body.get("since")
    if not (_is_line(body["host"]) and _is_line(body["purpose"])):
        raise DamagedObject(f"{name} is damaged: its host or its purpose is not a line of text")
    if since is not None and not 0 <= since <= LATEST:
        raise DamagedObject(f"{name} is damaged: its start time is not a valid time")
    try:
        point = manifests.decode(body["manifest"].encode(errors="surrogatepass"), names.manifest(*taken.point))
    except DamagedObject as error:
        raise DamagedObject(f"{name} is damaged: {error}") from error
    return Hold(taken.parts["mark"], taken.point, body["host"], body["purpose"], since, point), point


def _is_line(text: str) -> bool:
    return 0 < len(text) <= LONGEST and text.isprintable()


def of(repository: Repository, key: Key) -> list[Hold]:
    """Return the holds of a restore point, as ``listed`` does."""
    return listed(repository, names.holds_folder(*key))


def listed(repository: Repository, folder: str = names.HOLDS) -> list[Hold]:
    """Return all holds below a folder, the oldest first, including those that cannot be read.

    Raises RepositoryError if the store fails.
    """
    found = []
    budget = Budget()
    for name, taken in repository.of_kind(names.HOLD_KIND, folder):
        try:
            found.append(decode(budget.take(repository.get_object(name)), name)[0])
        except ObjectMissing:
            continue  # released since it was listed
        except DamagedObject as error:
            budget.take(b"")
            found.append(
                Hold(taken.parts["mark"], taken.point, why_unreadable=f"{str(error).rstrip('.')}. {how_to_end(name)}")
            )
    return sorted(found, key=lambda hold: (hold.since or 0.0, hold.name))


def reasons(found: t.Sequence[Hold]) -> tuple[str, ...]:
    """Return why a point is kept: up to eight reasons, and the number of others."""
    more = len(found) - _SHOWN
    return (*(each.reason for each in found[:_SHOWN]), *([f"held by {more} more holds"] if more > 0 else []))


def how_to_end(name: str) -> str:
    """Return the instruction to end a hold that nothing needs any more."""
    return f"Delete {name} from the repository if nothing uses the restore point any more."


def release(repository: Repository, hold_id: str) -> None:
    """End a hold, from any host. A hold that has ended already is no error.

    Raises ObjectLocked if the store still locks the object: the hold then lasts until it is released after that.
    """
    for name, taken in list(repository.of_kind(names.HOLD_KIND, names.HOLDS)):
        if taken.parts["mark"] == hold_id:
            repository.store.delete(name)


def check_free(repository: Repository, key: Key) -> None:
    """Raise Held if a restore point is held."""
    found = of(repository, key)
    if found:
        uses = "; ".join(
            f"{reason} (hold {each.id})" if each else reason
            for reason, each in itertools.zip_longest(reasons(found), found[:_SHOWN])
        )
        raise Held(
            f"Restore point {key[1]} of {key[0]} cannot be removed: it is {uses}. End what uses it with the module"
            f" that started it, which can run on any host. {how_to_end(found[0].name)}",
            reasons(found),
        )
