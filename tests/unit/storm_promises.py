# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the format promises of single requests in a storm, whatever the clocks show: who deletes or replaces what, and when."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from _cbt.errors import DamagedObject, ObjectMissing
from _cbt.repository.format import manifests, names
from _cbt.repository.sharing.leases import ASTRAY, LAPSE
from _cbt.repository.sharing.wholeness import needed

if TYPE_CHECKING:
    from clock_storm import Session, Storm

    from _cbt.operations.upkeep.retention import RetentionResult


class When(NamedTuple):
    """A moment: in which order, and in real seconds."""

    order: int
    real: float


@dataclasses.dataclass
class Requests:
    """The requests of a session, as far as a promise is about them. ``unread`` is what it stored and has not read since."""

    lease: str = ""
    stored: set[str] = dataclasses.field(default_factory=set)
    unread: set[str] = dataclasses.field(default_factory=set)
    stored_at: dict[str, int] = dataclasses.field(default_factory=dict)  # in which order, the last one of each folder
    read_at: dict[str, int] = dataclasses.field(default_factory=dict)
    last: int = 0

    def put(self, name: str, order: int) -> None:
        """Note an object that is stored."""
        self.stored.add(name)
        self.unread.add(name)
        self.stored_at[name.split("/")[0]] = order
        self.lease = name if name.startswith("leases/") else self.lease

    def done(self, request: str, name: str, order: int) -> None:
        """Note any request."""
        self.last = order
        if request == "get":
            self.unread.discard(name)
            self.read_at[name] = order


class Objects(dict[str, bytes]):
    """The objects of a store, whose promises are looked at before one appears or goes."""

    def __init__(self, world: Storm) -> None:
        super().__init__()
        self.world = world
        self.at: dict[str, When] = {}  # when each object appeared last

    def __setitem__(self, name: str, data: bytes) -> None:
        if self.world.current is not None:
            self.world.blame(name, replaced(self.world, self.world.current, name))
            self.world.blame(name, emptied(self.world, self.world.current, name, data))
            self.world.current.note(name, data)
        self.at[name] = When(self.world.tick(), self.world.real)
        super().__setitem__(name, data)

    def asked(self, request: str, name: str) -> None:
        """Note a request that was carried out."""
        if self.world.current is not None:
            self.world.current.requests.done(request, name, self.world.tick())

    def pop(self, name: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        """Delete an object."""
        if name in self and self.world.current is not None:
            self.world.blame(name, deleted(self.world, self.world.current, name))
        return super().pop(name, default)


def replaced(world: Storm, session: Session, name: str) -> str:
    """What is wrong with replacing an object; empty if nothing is.

    Who moves a point has read the manifest that it replaces, unless that appeared just now. Who copies a point, or brings it back,
    leaves a whole one of another session, unless a late manifest is about.
    """
    if not is_manifest(name) or name not in world.store.objects:
        return ""
    if session.asked is not None and session.asked.what == "move":
        unseen = session.requests.read_at.get(name, 0) < world.store.objects.at[name].order < session.requests.last
        if session.asked.stored is not None:
            unseen = name in session.requests.unread and session.asked.stored != world.store.objects[name]
        return "a manifest of another session is replaced unseen" if unseen else ""
    if session.kind not in ("copy", "undelete") or name in session.requests.stored or name in world.ever_late:
        return ""
    point = manifests.decode(world.store.objects[name], name)
    return "" if world.wrong(point) else "a whole point of another session is replaced"


def emptied(world: Storm, session: Session, name: str, data: bytes) -> str:
    """What is wrong with moving the blocks of a point; empty if nothing is.

    Compaction moves no block out of a pack that a hold keeps: that would cost space and free none.
    """
    if session.kind != "compact" or name not in world.store.objects or not is_manifest(name) or name in world.ever_late:
        return ""
    repository, kept = world.plain(), set[str]()
    for hold, order in world.held:
        if hold.point is not None and order < session.began and not world.accidents.lacks(hold):
            kept.update(needed(repository, hold.point))
    try:
        before, after = (needed(repository, manifests.decode(each, name)) for each in (world.store.objects[name], data))
        left = {each for each in before.keys() - after.keys() if each.startswith("packs/")}
    except (DamagedObject, ObjectMissing):
        return ""  # the point is not whole
    return "blocks of a pack that a hold keeps are moved" if left & kept else ""


def retained(world: Storm, session: Session, result: RetentionResult) -> str:
    """What is wrong with the result of a retention; empty if nothing is.

    It names each hold of a point that it kept. While a hold cannot be read, it says so and frees nothing.
    """
    for hold, order in world.held:
        of_point = [each.rules for each in result.verdicts if each.point.key == hold.key and order < session.began]
        for rules in of_point:
            if not any(hold.reason in rule or hold.name in rule for rule in rules):
                return f"{hold.name} is not named among {rules}"
    for name in world.accidents.unreadable(session):
        if name not in result.damaged or result.collected is not None:
            return f"{name} cannot be read, and space is reclaimed"
    return ""


def deleted(world: Storm, session: Session, name: str) -> str:
    """What is wrong with a deletion; empty if nothing is."""
    if is_manifest(name):
        return _held(world, session, name)
    if session.collects and names.is_collectable(name):
        return _drafted(world, session, name) or _leased(world, session, name)
    return _young(world, session, name)


def is_manifest(name: str) -> bool:
    return name.startswith("points/") and name.endswith("/manifest.json")


def _held(world: Storm, session: Session, name: str) -> str:
    """A point is not removed if it was held before the entry of its removal was there."""
    entered = session.requests.stored_at.get("trash", -1)
    taken = names.parsed(name)
    assert taken is not None
    held = any(each.key == taken.point and order < entered for each, order in world.held)
    return "it is held" if held else ""


def _young(world: Storm, session: Session, name: str) -> str:
    """Others delete what a session relies on only when it is so old by any clock that the session cannot rely on it."""
    least = {
        ("collect", "drafts"): LAPSE + ASTRAY,
        ("collect", "doomed"): LAPSE + ASTRAY,
        ("undelete", "trash"): LAPSE + ASTRAY,
        ("collect", "leases"): LAPSE + world.grace,
        ("collect", "trash"): world.grace,
    }.get(("collect" if session.collects else session.kind, name.split("/")[0]))
    at = world.store.objects.at[name]
    if least is None or at.order > session.began or session.requests.lease.partition("/")[2] in name:
        return ""
    return f"it is {world.real - at.real} s old" if world.real - at.real < least - world.apart else ""


def _drafted(world: Storm, session: Session, name: str) -> str:
    """A collector deletes nothing that is named by a draft which was there before its list, and which its writer relies on."""
    for draft, data in world.store.objects.items():
        at = world.store.objects.at[draft]
        fresh = at.order < session.requests.stored_at.get("doomed", 0) and world.real - at.real < LAPSE
        if draft.startswith("drafts/") and fresh:
            try:
                if name in needed(world.plain(), manifests.decode(data, names.manifest_kept_by(draft))):
                    return f"{draft} names it"
            except (DamagedObject, ObjectMissing):
                continue  # it cannot be published as it is
    return ""


def _leased(world: Storm, session: Session, name: str) -> str:
    """A collector deletes nothing that a session stored which gave a sign of life since then.

    The time of the object must not be before the sign of life of its session that came before it: only the second one after
    a clock was set back says so in the lease.
    """
    store, lease = world.store, world.spared.get(name, "")
    if lease not in store.objects or session.requests.lease not in store.objects:
        return ""
    between = store.objects.at[name].order < store.objects.at[lease].order < session.began
    alive = store.times[session.requests.lease] - store.times[lease] <= LAPSE
    return f"the session of {lease} is at work" if between and alive else ""
