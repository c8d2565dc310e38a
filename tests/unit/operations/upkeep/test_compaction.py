"""Compaction empties packs that are mostly dead, and nothing that happens meanwhile makes a restore point wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import pytest
import soaks
from histories import BLOCKS, KEYS, History
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import UUID, pack_ref, point_id
from stores_for_tests import MemoryStore, with_bit_flipped

from _cbt.control import Control
from _cbt.errors import DamagedObject, Interrupted, RepositoryError
from _cbt.operations.upkeep import compaction
from _cbt.operations.upkeep.compaction import Candidates, Compacted
from _cbt.operations.upkeep.live_blocks import live_blocks, set_ranges, sparse_packs
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.format import hooks, names
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing.leases import Lease


@given(st.sets(st.integers(0, 300)))
def test_stretches_are_the_rows_of_set_bits(ordinals: set[int]) -> None:
    found = list(set_ranges(sum(1 << ordinal for ordinal in ordinals)))
    assert [ordinal for first, count in found for ordinal in range(first, first + count)] == sorted(ordinals)
    assert all(first + count < following for (first, count), (following, _count) in zip(found, found[1:]))


@given(
    st.lists(st.dictionaries(st.integers(0, 20), st.tuples(st.integers(0, 2), st.integers(0, 9))), max_size=4),
    st.integers(1, 100),
)
def test_a_block_lives_if_any_map_names_it(disks: list[dict[int, tuple[int, int]]], below: int) -> None:
    maps = []
    for held in disks:
        builder = MapBuilder(21 * 65536)
        for block, (pack, ordinal) in sorted(held.items()):
            builder.put(block, 1, pack_ref(pack, 10).id, ordinal)
        maps.append(builder.finish({pack_ref(pack, 10).id: pack_ref(pack, 10) for pack in range(3)}))
    named = {place for held in disks for place in held.values() if place[0] != 1}
    living = live_blocks(maps, lambda ref: ref != pack_ref(1, 10))
    assert {
        (pack, ordinal) for pack in (0, 2) for ordinal in range(10) if living.get(pack_ref(pack, 10), 0) >> ordinal & 1
    } == named
    share = {pack: 10 * len([place for place in named if place[0] == pack]) for pack in (0, 2)}
    assert {ref.id for ref in sparse_packs(living, below, {})} == {
        pack_ref(pack, 10).id for pack, percent in share.items() if 0 < percent < below
    }


def compact(repository: Repository, below: int, control: Control | None = None) -> Compacted:
    """As retention does it."""
    lease = Lease(repository, "compaction")
    try:
        return compaction.compact(lease, Candidates(below, repository.points_of().points), control or Control())
    finally:
        lease.release()


def predict(repository: Repository, below: int) -> Compacted:
    """As check mode does it."""
    return compaction.predict(repository, Candidates(below, repository.points_of().points), Control())


def forget(history: History, name: str) -> None:
    """Remove a point, as retention does."""
    del history.store.objects[names.manifest(UUID, name)]
    del history.truth[name]


def collect(history: History) -> None:
    """Delete all packs and maps that no point needs."""
    repository = history.fresh()
    named = {f"{each.folder}/{each.disk('vda').map.name}" for each in repository.points_of().points}  # type: ignore[union-attr]
    named |= {names.manifest(each.uuid, each.id) for each in repository.points_of().points}
    named |= {ref.name for each in repository.points_of().points for ref in repository.read_map(each, "vda").packs}
    for name in list(history.store.objects):
        if name.startswith(("packs/", "points/")) and name not in named:
            del history.store.objects[name]


def stored(history: History) -> int:
    return sum(len(data) for name, data in history.store.objects.items() if name.startswith("packs/"))


def made_history(keys: str = "plain") -> History:
    """Three points of which the first is removed; of its pack a few blocks live."""
    made = History(KEYS[keys])
    for block in range(BLOCKS):
        made.disk.write(block, block + 1)
    made.backup()
    for block in range(BLOCKS):
        if block % 10 and block % 10 != 1:
            made.disk.write(block, block + 1001)
    made.backup()
    made.disk.write(3, 2003)
    made.backup()
    forget(made, point_id(1))
    return made


@pytest.fixture(params=KEYS, ids=KEYS.keys())
def history(request: pytest.FixtureRequest) -> History:
    """A fresh one."""
    return made_history(request.param)


def test_a_mostly_dead_pack_is_emptied_and_can_go(history: History) -> None:
    before = stored(history)
    assert predict(history.fresh(), 50).packs == 1
    assert compact(history.fresh(), 10) == Compacted()
    done = compact(history.fresh(), 50)
    assert (done.packs, done.points, done.copied_bytes) == (1, 2, 10 * 65536)
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])
    assert stored(history) < before - 35 * 65536
    assert compact(history.fresh(), 50) == Compacted()


def test_the_new_packs_have_hooks_so_that_backups_find_what_is_in_them(history: History) -> None:
    compact(history.fresh(), 50)
    repository = history.fresh()
    collect(history)
    (name,) = repository.store.list("hooks/compaction")
    (found,) = hooks.decode(repository.get_object(name), name)
    packs = {ref for each in repository.points_of().points for ref in repository.read_map(each, "vda").packs}
    directory = repository.reader.directory(found.ref)
    assert found.ref in packs
    assert found.keys == hooks.choose(directory.digest(ordinal) for ordinal in range(len(directory)))


def test_compaction_in_small_batches_has_the_same_result(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "PACKS_AT_ONCE", 1)
    monkeypatch.setattr(compaction, "EMPTIED_AT_ONCE", 1)
    assert compact(history.fresh(), 50).packs == 1
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])


def test_a_damaged_block_is_not_copied_and_its_pack_stays(history: History) -> None:
    whole = history.flip(point_id(2), 20)
    pack = history.block_place(point_id(2), 20)[0]
    done = compact(history.fresh(), 50)
    assert (done.packs, done.points) == (0, 2)
    assert [status.status for status in verify(history.fresh(), VerifyRequest(wanted=ALL))[0]] == ["damaged", "damaged"]
    collect(history)
    assert history.untrue() == []
    history.store.objects[pack] = whole
    assert history.damaged() == []


def test_a_block_damaged_and_moved_at_once_heals(history: History) -> None:
    history.flip(point_id(2), 20)
    verify(history.fresh(), VerifyRequest(wanted=ALL))
    compact(history.fresh(), 50)
    history.backup()
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])
    assert {verdict.status for verdict in verify(history.fresh(), VerifyRequest(wanted=ALL))[0]} == {"ok"}


def test_a_backup_based_on_a_point_moved_during_the_run_is_correct(history: History) -> None:
    """The base's map is read before, the new point published after: it names the old pack, which then must not go."""
    repository = history.fresh()
    base = repository.read_map(repository.point(UUID, point_id(3)), "vda")
    compact(history.fresh(), 50)
    files = repository.put_files(f"points/{UUID}/{point_id(4)}", {"vda.map": base.encode()})

    third = repository.point(UUID, point_id(3))
    fourth = dataclasses.replace(
        third, id=point_id(4), disks=(dataclasses.replace(third.disks[0], map=files["vda.map"]),)
    )
    repository.publish(fourth)
    history.truth[point_id(4)] = history.truth[point_id(3)]
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])


class Dying(MemoryStore):
    """Fails at the n-th change and from then on."""

    def __init__(self, like: MemoryStore, at: int) -> None:
        super().__init__()
        self.objects, self.changes, self.at = like.objects, 0, at

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        self.change(name)
        return super().put(name, data, replace)

    def upload(self, name: str):  # type: ignore[no-untyped-def]
        self.change(name)
        return super().upload(name)

    def delete(self, name: str) -> None:
        self.change(name)
        super().delete(name)

    def change(self, name: str) -> None:
        """Count, and fail when it is time."""
        self.changes += 1
        if 0 < self.at <= self.changes:
            raise RepositoryError(f"Cannot write {name}: the store is gone.")


def changes() -> int:
    """How many changes to the store one compaction of the history makes."""
    made = made_history()
    made.store = counting = Dying(made.store, 0)
    compact(made.fresh(), 50)
    return counting.changes


@pytest.mark.parametrize("at", range(1, changes() + 1))
def test_killed_at_any_change_all_points_are_true_and_the_next_run_goes_on(at: int, history: History) -> None:
    alive, history.store = history.store, Dying(history.store, at)
    with pytest.raises(RepositoryError, match="the store is gone"):
        compact(history.fresh(), 50)
    history.store = alive
    assert (history.untrue(), history.damaged()) == ([], [])
    compact(history.fresh(), 50)
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])
    assert compact(history.fresh(), 50) == Compacted()


def test_interrupted_while_it_copies_it_leaves_nothing_behind(history: History) -> None:
    control = Control()

    class Interrupting(Dying):
        """Has the run interrupted when its first pack begins."""

        def change(self, name: str) -> None:
            control.request("SIGTERM")

    before = dict(history.store.objects)
    history.store = Interrupting(history.store, 0)
    with pytest.raises(Interrupted):
        compact(history.fresh(), 50, control=control)
    assert history.store.objects == before
    assert history.store.uploads == set()


STEPS = st.sampled_from(
    ["write", "write", "backup", "backup", "flip", "lose", "verify", "forget", "compact", "compact", "collect", "die"]
)


@settings(max_examples=soaks.examples(0.53))
@example(["backup", "backup", "forget", "forget", "backup", "forget", "backup"], random.Random(0))
@given(st.lists(STEPS, min_size=4, max_size=30), st.randoms(use_true_random=False))
def test_no_point_restores_to_wrong_bytes_after_any_sequence_of_events(steps: list[str], chance: random.Random) -> None:
    history = History()
    for block in range(0, BLOCKS, 2):
        history.disk.write(block, block + 1)
    history.backup()
    harmed = False
    for step in steps:
        packs = [name for name in history.store.objects if name.startswith("packs/")]
        if step == "write":
            for _times in range(chance.randint(1, 12)):
                history.disk.write(chance.randrange(BLOCKS), chance.choice([0, chance.randint(1, 90)]))
        elif step == "backup":
            history.backup()
        elif step == "flip" and packs:
            name = chance.choice(packs)
            history.store.objects[name] = with_bit_flipped(
                history.store.objects[name], chance.randrange(len(history.store.objects[name]) * 8)
            )
            harmed = True
        elif step == "lose" and packs:
            del history.store.objects[chance.choice(packs)]
            harmed = True
        elif step == "verify":
            verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))
        elif step == "forget" and len(history.truth) > 1:
            forget(history, chance.choice(sorted(history.truth)[:-1]))
        elif step == "compact":
            compact(history.fresh(), chance.choice([20, 60, 100]))
        elif step == "collect":
            collect(history)
        elif step == "die":
            alive, history.store = history.store, Dying(history.store, chance.randint(1, 9))
            with contextlib.suppress(RepositoryError, DamagedObject):
                compact(history.fresh(), 80)
            history.store = alive
        assert history.untrue() == []
        assert harmed or history.damaged() == []
    told = {
        verdict.name for verdict in verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))[0] if verdict.damage
    }
    assert told == set(history.damaged())
