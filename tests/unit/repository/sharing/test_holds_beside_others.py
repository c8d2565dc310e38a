# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds are taken while points are removed, blocks are moved and space is reclaimed, at every single request, whoever is killed there.

What a hold that was given keeps is there and what it was, until it is released. Then nothing is left of it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Sequence

import pytest
from samples import UUID, point_id
from stepping import Actor, OneAfterAnother
from stores_for_tests import MemoryUpload
from test_relocation_beside_others import CONTENTS
from test_relocation_beside_others import World as Moving

from _cbt.errors import CbtError, DamagedObject, ObjectMissing, Refused, StorageFull
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.format import names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import holding, holds, leases
from _cbt.repository.sharing.holds import Hold

FIRST = names.manifest(UUID, point_id(1))


def content(repository: Repository, point: RestorePoint) -> list[bytes]:
    """The blocks of a point as its own maps say. Raises DamagedObject or ObjectMissing."""
    runs = list(repository.read_map(point, "vda").runs())
    blocks = [block for run in runs for block in repository.reader.blocks(run.pack, run.ordinal, run.count)]
    return [bytes(block) for block in blocks if not isinstance(block, DamagedObject)]


class World(Moving):
    """As where blocks are moved; the first point is held and removed."""

    def __init__(self) -> None:
        super().__init__()
        self.store.clock = 2e9  # after the points were made
        self.held: list[Hold] = []
        self._checked: dict[str, bytes] = {}

    def hold(self, repository: Repository) -> None:
        """Take a hold of the first point. What is gone, or about to be, is refused."""
        with contextlib.suppress(CbtError):
            self.held.append(holding.hold(repository, repository.point(UUID, point_id(1)), "export"))

    def retain(self, repository: Repository) -> None:
        """Remove the first point as retention does, but for the collection."""
        retention(repository, RetentionRequest(Rules(), domain=UUID, grace=0.0, allow_empty=True, collect=False))

    def undelete(self, repository: Repository) -> None:
        """Bring it back, however long ago it was removed."""
        retention(repository, RetentionRequest(grace=0.0, undelete=(point_id(1),), domain=UUID, collect=False))

    def check(self) -> None:
        """All that is published, and all that is held, is there and what it was."""
        objects = {
            name: data for name, data in self.store.objects.items() if name.startswith(("packs/", "points/", "holds/"))
        }
        if objects == self._checked:
            return
        self._checked = objects
        super().check()
        repository = self.repository()
        for each in self.held:
            assert each.point is not None
            assert content(repository, each.point) == CONTENTS
        assert {each.name for each in self.held} <= set(self.store.list(names.HOLDS))


ACTIONS: dict[str, Callable[[World], Callable[[Repository], object]]] = {
    "move": lambda world: world.move(0),
    "hold": lambda world: world.hold,
    "remove": lambda world: world.retain,
    "undelete": lambda world: world.undelete,
    "collect": lambda world: world.collect,
}


def run(before: Sequence[str], halted: str, requests: int, meanwhile: Sequence[str], killed: bool) -> bool:
    """Somebody does so many requests, then others all of their work, then the first one the rest unless it is killed. False if there was no rest."""
    world = World()
    for name in before:
        ACTIONS[name](world)(world.repository())
        world.store.clock += 10
    actor = world.begin(ACTIONS[halted](world))
    for _request in range(requests):
        actor.step()
    rest = not actor.over
    if killed:
        actor.crash()
    for name in meanwhile:
        with contextlib.suppress(ObjectMissing):  # a point that is gone is not moved
            ACTIONS[name](world)(world.repository())
        world.check()
    finish(world, actor)
    world.store.clock += 2 * leases.LAPSE + leases.ASTRAY
    world.collect(world.repository())
    world.check()
    if world.held:
        if FIRST not in world.store.objects:
            assert killed, "a removal that goes on gives a point back that was held meanwhile"
            world.undelete(world.repository())
        assert FIRST in world.store.objects
        world.check()
    cleared(world)
    return rest


def finish(world: World, actor: Actor) -> None:
    """It does the rest, checked after each request."""
    while not actor.over:
        actor.step()
        world.check()
    assert actor.error is None or (isinstance(actor.error, Refused) and not world.held), (
        "only what is about to go cannot be brought back"
    )


def cleared(world: World) -> None:
    """Once all holds are released, nothing is left but what points need."""
    repository = world.repository()
    held, world.held = holds.listed(repository), []
    for each in held:
        holds.release(repository, each.id)
    for _run in range(2):
        world.store.clock += 2 * leases.LAPSE + leases.ASTRAY
        world.collect(world.repository())
    world.check()
    found = repository.points_of().points
    needed = {f"{each.folder}/{file.name}" for each in found for file in each.stored_files} | {
        names.manifest(*each.key) for each in found
    }
    needed |= {ref.name for each in found for ref in repository.read_packs(each, each.disks[0])}
    assert {name for name in world.store.objects if not name.startswith(("removed/", "hooks/"))} == {
        *needed,
        names.RECORD,
    }


@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed"])
@pytest.mark.parametrize(
    ("before", "halted", "meanwhile"),
    [
        ([], "hold", ["remove"]),
        ([], "hold", ["remove", "collect"]),
        ([], "hold", ["move", "collect"]),
        ([], "hold", ["move", "collect", "remove", "collect"]),
        ([], "hold", ["remove", "undelete", "collect"]),
        ([], "remove", ["hold", "collect"]),
        ([], "remove", ["hold", "move", "collect"]),
        (["remove"], "undelete", ["hold", "collect"]),
        (["remove", "undelete"], "hold", ["remove", "collect"]),
        (["remove", "undelete"], "remove", ["hold", "collect"]),
        (["remove"], "collect", ["hold"]),
        ([], "move", ["hold", "collect"]),
        ([], "move", ["hold", "remove", "collect"]),
        (["move"], "collect", ["hold"]),
        (["hold"], "move", ["collect"]),
        (["hold"], "remove", ["collect"]),
        (["hold", "move"], "collect", ["remove"]),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value) or "-",
)
def test_a_held_point_stays_whatever_others_do_before_any_request(
    before: list[str], halted: str, meanwhile: list[str], killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
    monkeypatch.setattr(leases, "boot_clock", lambda: 0.0)
    monkeypatch.setattr(leases, "wall_clock", lambda: 0.0)
    requests = 0
    while run(before, halted, requests, meanwhile, killed):
        requests += 1
    assert requests > 3


def test_a_point_that_was_removed_is_not_held() -> None:
    world = World()
    point = world.repository().point(UUID, point_id(1))
    world.retain(world.repository())
    with pytest.raises(Refused, match=f"Restore point {point.id} of web1 cannot be held: it was removed"):
        holding.hold(world.repository(), point, "export")
    assert list(world.store.list(names.HOLDS)) == []


def test_a_hold_given_before_the_entry_of_a_removal_is_there_ends_the_removal() -> None:
    """Whatever becomes of the removal: it is killed before it deletes, or it was about to, the manifest stands."""
    world = World()
    removal = world.begin(world.retain)
    while not removal.pending.startswith("put trash"):
        removal.step()
    world.hold(world.repository())
    while not (removal.over or removal.pending.startswith("delete points")):
        removal.step()
    assert removal.over and len(world.held) == 1
    assert FIRST in world.store.objects and list(world.store.list(names.TRASH)) == []


def test_a_removal_without_space_to_return_a_held_point_names_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    removal = world.begin(world.retain)
    while not removal.pending.startswith("delete points"):
        removal.step()
    world.hold(world.repository())
    with monkeypatch.context() as patched:
        patched.setattr(MemoryUpload, "write", full)
        while not removal.over:
            removal.step()
    assert len(world.held) == 1 and FIRST not in world.store.objects
    assert f"Restore point {point_id(1)} of web1 is held by export" in str(removal.error)
    assert f"bring it back with undelete: {point_id(1)}" in str(removal.error)
    world.undelete(world.repository())
    assert FIRST in world.store.objects
    world.check()


def full(upload: MemoryUpload, _buffers: object, _offset: int) -> None:
    """A write to a store without one free byte."""
    raise StorageFull("There is no room.")


def test_a_point_whose_removal_was_killed_when_it_met_a_hold_stays_in_the_trash_as_long_as_that() -> None:
    world = World()
    removal = world.begin(world.retain)
    while not removal.pending.startswith("delete points"):
        removal.step()
    world.hold(world.repository())
    removal.step()
    removal.crash()
    assert len(world.held) == 1 and FIRST not in world.store.objects
    for _night in range(3):
        world.store.clock += 10 * leases.LAPSE
        world.collect(world.repository())
        world.check()
    world.undelete(world.repository())
    assert FIRST in world.store.objects
    cleared(world)
