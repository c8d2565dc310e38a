"""A store that fails at every single call of what looks after a repository: no point is lost or untrue, and the next run goes on.

What a backup does is in test_store_faults.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from engine_history import EngineHistory
from faulty_store import FAULTS, FaultyStore, each_call
from histories import KEYS, use_small_disks
from samples import encoded, random_bytes

from _cbt.errors import ObjectMissing
from _cbt.grid import BLOCK_SIZE
from _cbt.operations import keys as repository_keys
from _cbt.operations.copy import CopyRequest, copy
from _cbt.operations.keys import KeyRequest, apply_keys
from _cbt.operations.point.new_point import StoringOptions
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.crypto import key_slots
from _cbt.repository.format import configuration
from _cbt.repository.format.configuration import Configuration
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import condemned, leases, trash

pytestmark = pytest.mark.slow

OPTIONS = StoringOptions(compression="lz4", workers=1)
OTHER = "11" * 16


@dataclass
class Scene:
    """A repository with four points, one of them in the trash, packs that are mostly dead, one on its way out, and one that nothing names.

    ``store`` is the one that fails: that of the history, or what is copied to.
    """

    history: EngineHistory
    store: FaultyStore
    removed: str
    points: set[str] = field(default_factory=set)

    @property
    def repository(self) -> Repository:
        return self.history.fresh()

    def published(self) -> set[str]:
        return {each.id for each in self.repository.points_of().points}

    def recoverable(self) -> set[str]:
        """Points in the trash of which everything is there."""
        found = set()
        for each in trash.removed(self.repository):
            with contextlib.suppress(ObjectMissing):
                packs = {ref.name for disk in each.point.disks for ref in self.repository.read_packs(each.point, disk)}
                if packs | {f"{each.point.folder}/{file.name}" for file in each.point.stored_files} <= set(
                    self.history.store.objects
                ):
                    found.add(each.point.id)
        return found


def scene(keys: str) -> Scene:
    history = EngineHistory(KEYS[keys])
    store = history.store = FaultyStore()
    store.clock = 1.8e9  # the points are of earlier
    store.objects[configuration.NAME] = b""
    for block in range(6):
        history.disk.write(block, block + 1)
    history.backup()
    for turn in range(3):
        for block in (turn, turn + 1, 7):
            history.disk.write(block, 10 * turn + block + 20)
        history.backup()
    repository = history.fresh()
    first, *rest = repository.points_of().points
    trash.remove(repository, first)
    writer = repository.writer()
    writer.append([encoded(random_bytes(BLOCK_SIZE, 99))])
    (unnamed,) = writer.finish().values()
    condemned.condemn(repository, unnamed.name)
    return Scene(history, store, first.id, {each.id for each in rest})


# What is done, and what must have come of it once a run was not disturbed.


def remove_and_reclaim(made: Scene) -> None:
    retention(made.repository, RetentionRequest(rules=Rules(last=1), compact_below=100))


def reclaim_at_once(made: Scene) -> None:
    made.store.clock += leases.LAPSE * 2
    retention(made.repository, RetentionRequest(grace=0.0, compact_below=100))


def bring_back(made: Scene) -> None:
    retention(made.repository, RetentionRequest(undelete=(made.removed,), collect=False))


def look_at_all(made: Scene) -> None:
    verdicts, _seconds = verify(made.repository, VerifyRequest(wanted=ALL, workers=1))
    assert not any(verdict.damage for verdict in verdicts), verdicts


def one_is_left(made: Scene) -> None:
    assert made.published() == {max(made.points)}
    assert made.recoverable() == {*made.points, made.removed} - {max(made.points)}


def nothing_else_is_left(made: Scene) -> None:
    assert made.published() == made.points
    made.store.clock += leases.LAPSE * 2
    made.history.collect()
    left = {
        name
        for name in made.history.store.objects
        if name.startswith(("packs/", "points/", "drafts/", "doomed/", "condemned/", "trash/"))
    }
    assert left == made.history.needed()


def it_is_back(made: Scene) -> None:
    assert made.published() == {*made.points, made.removed}


def all_are_seen(made: Scene) -> None:
    assert len(list(made.repository.store.list("verified"))) == len(made.points)


VERBS: dict[str, tuple[Callable[[Scene], None], Callable[[Scene], None]]] = {
    "removal": (remove_and_reclaim, one_is_left),
    "collection": (reclaim_at_once, nothing_else_is_left),
    "undelete": (bring_back, it_is_back),
    "verification": (look_at_all, all_are_seen),
}


@pytest.fixture(autouse=True)
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_disks(monkeypatch)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("keys", KEYS)
def test_no_point_is_lost_and_the_next_run_continues_after_any_failed_call(keys: str, verb: str) -> None:
    act, came_of_it = VERBS[verb]
    made = scene(keys)
    store, objects, times, clock = made.store, dict(made.store.objects), dict(made.store.times), made.store.clock

    def restore() -> None:
        store.objects, store.times, store.clock = dict(objects), dict(times), clock

    seen = set()
    for fault in FAULTS:
        for at, met, outcome, where in each_call(store, fault, restore, lambda: act(made)):
            if not met:
                break  # it has fewer calls
            seen.add(met.split()[0])
            assert not made.history.wrong(), where
            there = made.published() | made.recoverable()
            assert made.points <= there, where
            assert made.removed in there or verb == "collection", where
            assert not list(made.repository.store.list("damaged")), f"{where}: a fault passed for damage"
            if outcome != "done" and at % 8 == 0:
                act(made)
                came_of_it(made)
        assert at > 5
    assert seen >= {"get", "list", "put"}


@pytest.mark.parametrize("keys", KEYS)
def test_healing_makes_nothing_worse_and_is_resumed_after_any_failed_call(keys: str) -> None:
    made = scene(keys)
    history, store = made.history, made.store
    history.flip(max(made.points), 5)
    verify(made.repository, VerifyRequest(wanted=ALL, workers=1))
    assert history.damaged(), "there is nothing to heal"
    restore = history.kept()
    for fault in FAULTS:
        for at, met, outcome, where in each_call(store, fault, restore, history.backup):
            if not met:
                assert outcome == "done" and not history.wrong()
                break
            assert not history.untrue(), where
            assert made.points <= made.published(), where
            assert set(history.damaged()) <= made.points, f"{where}: a new point is not whole"
            if at % 8 == 0:
                history.backup()
                assert not history.wrong(), where
        assert at > 20


@pytest.mark.parametrize("failing", ["source", "destination"])
@pytest.mark.parametrize("keys", KEYS)
def test_a_copy_survives_any_failed_call_with_true_points_only_and_is_resumed(keys: str, failing: str) -> None:
    made = scene(keys)
    dest = EngineHistory(KEYS[keys])
    dest.store, dest.truth = FaultyStore(), made.history.truth
    dest.fresh = lambda: Repository(dest.store, OTHER, KEYS[keys])  # type: ignore[method-assign]
    dest.store.objects[configuration.NAME] = b""
    store = made.store if failing == "source" else dest.store
    objects, times = dict(dest.store.objects), dict(dest.store.times)
    source = dict(made.store.objects)

    def restore() -> None:
        dest.store.objects, dest.store.times = dict(objects), dict(times)

    for fault in FAULTS:
        for at, met, _outcome, where in each_call(store, fault, restore, lambda: taken(made, dest)):
            if not met:
                break
            assert made.store.objects == source, f"{where}: the source was changed"
            assert not dest.wrong(), where
            assert dest.needed() <= set(dest.store.objects), where
            if at % 6 == 0:
                taken(made, dest)
                assert {each.id for each in dest.fresh().points_of().points} == made.points, where
                dest.collect()
                left = {name for name in dest.store.objects if name.startswith(("packs/", "points/", "drafts/"))}
                assert (left, dest.wrong()) == (dest.needed(), []), where
        assert at > 20


def taken(made: Scene, dest: EngineHistory) -> None:
    """Copy everything; what the source cannot give for the moment is an error and no damaged point."""
    result = copy(made.repository, dest.fresh(), CopyRequest(options=OPTIONS))
    assert not result.failed


def test_a_repository_opens_with_the_old_or_the_new_passphrase_after_any_failed_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_slots, "COST", 16)
    store = FaultyStore()
    monkeypatch.setattr(repository_keys, "open_store", lambda _place: store)
    apply_keys(RepositoryLocation("memory", passphrase="old"), KeyRequest())
    objects = dict(store.objects)
    change = KeyRequest(new_passphrase="new", slot="second", remove=("default",))

    def restore() -> None:
        store.objects = dict(objects)

    for fault in FAULTS:
        for tried in each_call(
            store, fault, restore, lambda: apply_keys(RepositoryLocation("memory", passphrase="old"), change)
        ):
            if not tried.met:
                break
            found: Configuration = configuration.decode(store.objects[configuration.NAME], "memory")
            opened = [each for each in ("old", "new") if found.opened(each)]
            assert opened == ["new"] if tried.outcome == "done" else len(opened) == 1, tried.where
            apply_keys(RepositoryLocation("memory", passphrase=opened[0]), change)
            assert configuration.decode(store.objects[configuration.NAME], "memory").opened("new")
        assert tried.at > 2


def test_a_lost_configuration_is_rebuilt_unchanged_or_not_at_all_if_any_call_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = scene("plain")
    store = made.store
    monkeypatch.setattr(repository_keys, "open_store", lambda _place: store)
    del store.objects[configuration.NAME]
    objects = dict(store.objects)

    def restore() -> None:
        store.objects = dict(objects)

    for fault in FAULTS:
        for tried in each_call(
            store, fault, restore, lambda: apply_keys(RepositoryLocation("memory"), KeyRequest(rebuild=True))
        ):
            there = store.objects.pop(configuration.NAME, None)
            assert store.objects == objects, tried.where
            assert there is not None if tried.outcome == "done" else there is None or fault == "answer lost", (
                tried.where
            )
            assert there is None or configuration.decode(there, "memory").id == made.repository.id
        assert tried.at > 3
