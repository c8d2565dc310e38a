"""Points are told of other places while points are removed, other blocks are moved and space is reclaimed, at every single request.

Taken away from it in turn, the draft, the look at what is on its way out and the look at whether the point is what it was each make
tests fail here.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import stepping
from samples import OTHER_UUID, UUID, encoded, point, point_id, record
from stepping import Actor, OneAfterAnother, SteppedStore
from stores_for_tests import MemoryStore

from _cbt.control import Control
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.upkeep.points import PointRequest, change_points
from _cbt.repository.format import names
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import PackRef
from _cbt.repository.repository import Repository
from _cbt.repository.sharing import leases, trash
from _cbt.repository.sharing.collector import Collector
from _cbt.repository.sharing.leases import Lease
from _cbt.repository.sharing.relocation import Move, relocate

CONTENTS = [bytes([value]) * BLOCK_SIZE for value in (1, 2)]


class World:
    """Two points of the same two blocks, each block in a pack of its own: that of the other point can be named in its place."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.packs: dict[str, list[PackRef]] = {}
        self.pinned = False
        for uuid in (UUID, OTHER_UUID):
            self._store_point(uuid)
        self.store.clock += 10

    def repository(self) -> Repository:
        """As another process opens it."""
        return Repository(self.store, "0" * 32)  # type: ignore[arg-type]

    def _store_point(self, uuid: str) -> None:
        repository = self.repository()
        builder, written = MapBuilder(2 * BLOCK_SIZE), {}
        for block, content in enumerate(CONTENTS):
            writer = repository.writer()
            builder.put(block, 1, *writer.append([encoded(content)]))
            written.update(writer.finish())
        self.packs[uuid] = list(written.values())
        files = repository.put_files(
            names.point_folder(uuid, point_id(1)), {"vda.map": builder.finish(written).encode()}
        )
        disk = dataclasses.replace(record(size=2 * BLOCK_SIZE), map=files["vda.map"])
        repository.publish(point(1, (disk,), uuid=uuid, repository="0" * 32))

    def begin(self, work: Callable[[Repository], object]) -> Actor:
        """Somebody at work, halted before the first request."""
        return Actor("", lambda actor: work(Repository(SteppedStore(self.store, actor), "0" * 32)))  # type: ignore[arg-type]

    # What somebody may be doing.

    def move(self, block: int) -> Callable[[Repository], object]:
        """Have the first point name the other one's copy of a block."""

        def work(repository: Repository) -> None:
            moves = {self.packs[UUID][block].id: [Move(0, 1, self.packs[OTHER_UUID][block], 0)]}
            lease = Lease(repository, "compaction")
            relocate(lease, repository.point(UUID, point_id(1)), moves)
            lease.release()

        return work

    def remove(self, repository: Repository) -> None:
        """Remove the other point, without grace."""
        trash.remove(repository, repository.point(OTHER_UUID, point_id(1)))

    def pin(self, repository: Repository) -> None:
        """Pin the first point."""
        change_points(repository, PointRequest((point_id(1),), domain=UUID, pinned=True), Control())
        self.pinned = True

    def collect(self, repository: Repository) -> None:
        """Delete what nothing needs, without grace."""
        lease = Lease(repository, "retention")
        Collector(repository, lease.now(), 0).collect(lease, confirm_shrink=True)
        lease.release()

    def check(self) -> None:
        """All that is published is there and what it was."""
        repository = self.repository()
        for each in repository.points_of().points:
            runs = list(repository.read_map(each, "vda").runs())
            assert [
                bytes(block) for run in runs for block in repository.reader.blocks(run.pack, run.ordinal, run.count)
            ] == CONTENTS  # type: ignore[arg-type]


ACTIONS: dict[str, Callable[[World], Callable[[Repository], object]]] = {
    "move": lambda world: world.move(0),
    "move another": lambda world: world.move(1),
    "remove": lambda world: world.remove,
    "pin": lambda world: world.pin,
    "collect": lambda world: world.collect,
}


def run(before: Sequence[str], halted: str, requests: int, meanwhile: Sequence[str]) -> bool:
    """Somebody does so many requests, then others all of their work, then the first one the rest. False if there was no rest."""
    world = World()
    for name in before:
        ACTIONS[name](world)(world.repository())
    actor = world.begin(ACTIONS[halted](world))

    def others() -> None:
        for name in meanwhile:
            ACTIONS[name](world)(world.repository())
            world.check()

    rest = stepping.halted(actor, requests, others, world.check)
    assert actor.error is None, actor.error
    if halted != "move":  # else it may put its manifest in the place of the new one
        assert world.repository().point(UUID, point_id(1)).pinned == world.pinned
    world.collect(world.repository())
    world.check()
    return rest


@pytest.mark.parametrize(
    ("before", "halted", "meanwhile"),
    [
        ([], "move", ["remove", "collect"]),
        ([], "move", ["move another", "collect"]),
        ([], "move", ["move another", "remove", "collect"]),
        ([], "move", ["pin", "collect"]),
        ([], "pin", ["move", "collect"]),
        ([], "pin", ["move", "remove", "collect"]),
        (["move"], "collect", ["pin"]),
        (["remove"], "collect", ["move"]),
        (["remove", "move another"], "collect", ["move"]),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value) or "-",
)
def test_a_point_stays_whole_whatever_others_do_before_any_request(
    before: list[str], halted: str, meanwhile: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
    monkeypatch.setattr(leases, "boot_clock", lambda: 0.0)
    requests = 0
    while run(before, halted, requests, meanwhile):
        requests += 1
    assert requests > 10
