"""The engine's own backup, undelete and collection, each halted before every one of its requests while others do all of their work.

``test_sharing`` tries longer histories, but its backup is one of its own. Taken away from the engine in turn, the draft, the look at
what is on its way out, storing again what is, and the second look of the collector each make tests fail here.
"""

from __future__ import annotations

import concurrent.futures
import copy
import hashlib
import itertools
from collections.abc import Callable, Sequence

import pytest
import stepping
from engine_history import EngineHistory
from histories import block_of
from samples import UUID
from stepping import Actor, OneAfterAnother, SteppedStore

from _cbt.errors import CbtError
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.repository.dedup import index
from _cbt.repository.format import hooks, names
from _cbt.repository.sharing import leases, trash

# Blocks that are found again, each by itself.
_FOUND = (number for number in itertools.count(1) if hooks.may_be_hook(hashlib.sha256(block_of(number)).digest()))
OLD, NEW = ([next(_FOUND) for _block in range(3)] for _content in range(2))


class World:
    """A disk whose first point holds what the second does not, and which holds that again by now."""

    def __init__(self) -> None:
        self.history = EngineHistory()
        self._write(OLD)
        self.first = self.history.backup().id
        self._write(NEW)
        self.history.backup()
        self._write(OLD)
        self.history.store.clock += 10
        self._checked: tuple[list[str], int] = ([], 0)

    def _write(self, numbers: Sequence[int]) -> None:
        for block, number in enumerate(numbers):
            self.history.disk.write(block, number)

    def begin(self, name: str) -> Actor:
        """Somebody at work, halted before the first request."""

        def work(actor: Actor) -> None:
            seen = copy.copy(self.history)
            seen.store = SteppedStore(self.history.store, actor)  # type: ignore[assignment]
            ACTIONS[name](self, seen)

        return Actor(name, work)

    def work(self, name: str) -> None:
        """Somebody does all of it."""
        ACTIONS[name](self, self.history)

    def backup(self, seen: EngineHistory) -> None:
        seen.backup()

    def remove(self, seen: EngineHistory) -> None:
        repository = seen.fresh()
        trash.remove(repository, repository.point(UUID, self.first))

    def collect(self, seen: EngineHistory) -> None:
        retention(seen.fresh(), RetentionRequest(grace=0.0, confirm_shrink=True))

    def undelete(self, seen: EngineHistory) -> None:
        retention(seen.fresh(), RetentionRequest(grace=3600.0, undelete=(self.first,), confirm_shrink=True))

    def check_changes(self) -> None:
        """As ``check``, where a point may have become untrue since: by another manifest, or an object less."""
        objects = self.history.store.objects
        state = (
            sorted(name for name in objects if name.endswith("manifest.json")),
            sum(1 for name in objects if name.startswith(("packs/", "points/"))),
        )
        if state != self._checked:
            self._checked = state
            self.check()

    def check(self) -> None:
        """All that is published is there and what it was."""
        assert not self.history.wrong()


ACTIONS: dict[str, Callable[[World, EngineHistory], None]] = {
    "backup": World.backup,
    "remove": World.remove,
    "collect": World.collect,
    "undelete": World.undelete,
}


def run(before: Sequence[str], halted: str, requests: int, meanwhile: Sequence[str]) -> bool:
    """Somebody does so many requests, then others all of their work, then the first one the rest. False if there was no rest."""
    world = World()
    for name in before:
        world.work(name)
    actor = world.begin(halted)

    def others() -> None:
        for name in meanwhile:
            try:
                world.work(name)
            except CbtError:
                assert name == "undelete", "only what is on its way out cannot be brought back"
            world.check()

    rest = stepping.halted(actor, requests, others, world.check_changes)
    if actor.error is not None:  # what cannot be brought back is refused, and is no point
        assert halted == "undelete", actor.error
        assert names.manifest(UUID, world.first) not in world.history.store.objects
    world.check()
    for _run in range(2):
        world.history.collect()
    world.check()
    left = {name for name in world.history.store.objects if name.startswith(("packs/", "points/"))}
    assert left == world.history.needed()
    return rest


@pytest.mark.parametrize(
    ("before", "halted", "meanwhile"),
    [
        ([], "backup", ["remove", "collect"]),
        (["remove"], "backup", ["collect", "collect"]),
        (["remove"], "backup", ["undelete"]),
        (["remove"], "collect", ["backup"]),
        (["remove"], "collect", ["undelete"]),
        (["remove"], "undelete", ["collect"]),
        (["remove"], "undelete", ["backup", "collect"]),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value) or "-",
)
def test_every_point_is_whole_whatever_others_do_before_any_request(
    before: list[str], halted: str, meanwhile: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", OneAfterAnother)
    monkeypatch.setattr(leases, "boot_clock", lambda: 0.0)
    monkeypatch.setattr(index, "_WAIT", 0)  # for one that is halted while it fills the index
    requests = 0
    while run(before, halted, requests, meanwhile):
        requests += 1
    assert requests > 20
