# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of a storm that last for a time: a hold that cannot be read, or one whose map is gone.

In the end, each object is put back, as from a copy of the repository. Until then, nothing may go that it needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from _cbt.errors import ObjectMissing
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.sharing.holds import Hold

if TYPE_CHECKING:
    from clock_storm import Session, Storm

ACCIDENTS = DAMAGE, LOSS = "damage", "loss"  # of a hold, and of a map that a hold keeps and no restore point names


def _maps_of(point: RestorePoint | None) -> list[str]:
    return [point.object_name(disk.map) for disk in point.disks] if point is not None else []


class Accidents:
    """The objects that are damaged or gone now, as they were, and when that happened to each."""

    def __init__(self, world: Storm) -> None:
        self._world = world
        self._whole: dict[str, bytes] = {}
        self._struck: dict[str, int] = {}  # in which order

    def happen(self, what: str) -> None:
        """Damage a hold, or lose one of its maps, if there is any."""
        found = [each.name for each, _order in self._world.held] if what == DAMAGE else self._maps()
        found = [name for name in found if name in self._world.store.objects and name not in self._whole]
        if not found:
            return
        name = self._world.random.choice(found)
        self._whole[name] = data = self._world.store.objects[name]
        self._struck[name] = self._world.tick()
        if what == DAMAGE:
            dict.__setitem__(self._world.store.objects, name, data[: self._world.random.choice((0, len(data) // 2))])
        else:
            dict.pop(self._world.store.objects, name)

    def _maps(self) -> list[str]:
        """The maps that holds keep and no restore point names any more."""
        repository, found = self._world.plain(), []
        for each, _order in self._world.held:
            current: set[str] = set()
            with contextlib.suppress(ObjectMissing):
                current = set(_maps_of(repository.point(*each.key)))
            found += [name for name in _maps_of(each.point) if name not in current]
        return found

    def end(self) -> None:
        """Put everything back."""
        dict.update(self._world.store.objects, self._whole)
        self._whole.clear()

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Have everything put back for the moment."""
        objects = self._world.store.objects
        struck = {name: objects.get(name) for name in self._whole}
        dict.update(objects, self._whole)
        try:
            yield
        finally:
            for name, data in struck.items():
                dict.pop(objects, name)
                if data is not None:
                    dict.__setitem__(objects, name, data)

    def unreadable(self, session: Session) -> list[str]:
        """The holds that could not be read since a session began."""
        held = [each.name for each, _order in self._world.held]
        return [name for name in self._whole if name in held and self._struck[name] < session.began]

    def lacks(self, hold: Hold) -> bool:
        """Whether a map of a hold is gone."""
        return any(name in self._whole for name in _maps_of(hold.point))

    def explain(self, session: Session, error: str) -> bool:
        """Whether a session may fail so: a hold was damaged while it was at work, or a map of it is gone."""
        return any(
            each.name in error
            and (
                self._struck.get(each.name, 0) > session.began
                or any(name in self._struck for name in _maps_of(each.point))
            )
            for each, _order in self._world.held
        )
