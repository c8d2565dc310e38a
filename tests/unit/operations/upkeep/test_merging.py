"""Blocks that are stored more than once become one, whatever happens meanwhile, and no restore point holds anything else than before."""

from __future__ import annotations

import dataclasses

import pytest
from histories import BLOCKS, KEYS, History
from hypothesis import given
from hypothesis import strategies as st
from samples import OTHER_UUID, UUID, pack_ref
from stores_for_tests import MemoryStore
from test_compaction import Dying, collect, compact, predict

from _cbt.control import Control
from _cbt.errors import RepositoryError
from _cbt.operations.upkeep import merging
from _cbt.operations.upkeep.compaction import Compacted, make_plan
from _cbt.operations.upkeep.live_blocks import live_blocks, without
from _cbt.operations.upkeep.merging import EqualBlocks, find_equal
from _cbt.repository.dedup import dedup
from _cbt.repository.format import hooks
from _cbt.repository.repository import Repository
from _cbt.repository.sharing.relocation import Move

packs_of_blocks = st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=6)
REFS = [pack_ref(number) for number in range(8)]


def merged(packs: list[list[int]], order: list[int], remembered: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Where blocks are kept in place of others, each told by number of pack and ordinal."""
    equal = EqualBlocks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "REMEMBERED", remembered)
        for rank in order:
            equal.note(rank, [(ordinal, bytes([block])) for ordinal, block in enumerate(packs[rank])])
    return {
        (REFS.index(ref), move.ordinal + index): (REFS.index(move.to_pack), move.to_ordinal + index)
        for ref, moves in equal.merges(REFS).items()
        for move in moves
        for index in range(move.count)
    }


@given(packs_of_blocks, st.data())
def test_the_first_of_equal_blocks_is_kept_in_any_order_of_packs(packs: list[list[int]], data: st.DataObject) -> None:
    order = [
        *data.draw(st.permutations(range(len(packs)))),
        *data.draw(st.lists(st.sampled_from(range(len(packs))), max_size=3) if packs else st.just([])),
    ]
    places: dict[int, list[tuple[int, int]]] = {}
    for rank, blocks in enumerate(packs):
        for ordinal, block in enumerate(blocks):
            places.setdefault(block, []).append((rank, ordinal))
    assert merged(packs, order, 1000) == {place: found[0] for found in places.values() for place in found[1:]}


@given(packs_of_blocks, st.integers(1, 12), st.data())
def test_only_forgotten_blocks_are_not_found(packs: list[list[int]], remembered: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(packs))))
    found = merged(packs, order, remembered)
    for (pack, ordinal), (kept, place) in found.items():
        assert packs[pack][ordinal] == packs[kept][place]
        assert (kept, place) not in found


def test_only_packs_of_which_little_is_left_are_given_up() -> None:
    living = {REFS[1]: 0b1111, REFS[2]: 0b11, REFS[3]: 0b1}
    living = {pack_ref(number, 4): bits for number, bits in enumerate(living.values(), 1)}
    one, two, three = living
    merges = {one: [Move(0, 1, two, 0)], two: [Move(1, 1, one, 3)]}
    found = make_plan(living, merges, 50, {three: 0b111}, ())
    assert found == ({two: 0b11}, {two: merges[two]})
    assert without(found.live, found.merges) == {two: 0b1}


def doubled(keys: str = "plain") -> History:
    """Three points: the first two hold the same blocks in packs of their own, the third one less of them, and some of its own."""
    made = History(KEYS[keys])
    for number in (1, 2, 3):
        made._last = None
        for block in range(BLOCKS - 1):
            made.disk.write(block, block + 1 if number < 3 or block % 4 else block + 101)
        made.disk.write(BLOCKS - 2, BLOCKS - 1 if number < 3 else 0)
        made.backup(UUID if number < 3 else OTHER_UUID)
    return made


def stored_blocks(history: History) -> list[bytes]:
    """The ids of all blocks in packs that points name."""
    repository = history.fresh()
    packs = {ref for each in repository.points_of().points for ref in repository.read_map(each, "vda").packs}
    return [
        directory.digest(ordinal)
        for directory in map(repository.reader.directory, packs)
        for ordinal in range(len(directory))
    ]


@pytest.fixture(params=KEYS, ids=KEYS.keys())
def history(request: pytest.FixtureRequest) -> History:
    """A fresh one."""
    return doubled(request.param)


OWN = len(range(0, BLOCKS - 1, 4))  # blocks of the third point that no other holds


def test_equal_blocks_become_one_and_only_what_is_left_of_a_pack_is_copied(history: History) -> None:
    assert len(stored_blocks(history)) == 3 * (BLOCKS - 1) - 1
    expected = predict(history.fresh(), 60)
    done = compact(history.fresh(), 60)
    assert (done.packs, done.points, done.copied_bytes) == (2, 3, OWN * 65536)
    assert (expected.packs, round(expected.copied_bytes / done.copied_bytes, 1)) == (2, 1.0)
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])
    found = stored_blocks(history)
    assert len(found) == len(set(found)) == BLOCKS - 1 + OWN
    assert compact(history.fresh(), 60) == Compacted()


def test_a_pack_that_has_much_of_its_own_keeps_what_others_hold_as_well(history: History) -> None:
    assert compact(history.fresh(), 100 * OWN // BLOCKS).packs == 1
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])
    assert len(stored_blocks(history)) == 2 * (BLOCKS - 1) - 1


@pytest.mark.parametrize("scope", ["none", "domain"])
def test_what_was_to_be_stored_apart_is_neither_given_up_for_a_copy_nor_one(history: History, scope: str) -> None:
    repository = history.fresh()
    apart = repository.points_of().points[0]
    repository.publish(dataclasses.replace(apart, dedup=scope))
    packs = repository.read_map(apart, "vda").packs
    assert (compact(history.fresh(), 60).packs, predict(history.fresh(), 60).packs) == (1, 0)
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [])
    assert repository.read_map(history.fresh().point(apart.uuid, apart.id), "vda").packs == packs
    assert (
        sum(packs == history.repository.read_map(each, "vda").packs for each in history.repository.points_of().points)
        == 1
    )
    found = stored_blocks(history)
    assert len(found) == 2 * (BLOCKS - 1) + OWN
    assert len(set(found)) == BLOCKS - 1 + OWN


def test_no_point_is_redirected_to_a_damaged_copy(history: History) -> None:
    repository = history.fresh()
    maps = {each.id: repository.read_map(each, "vda") for each in repository.points_of().points}
    merges = find_equal(repository, live_blocks(maps.values(), lambda _ref: True), Control())
    (kept,) = {move.to_pack for moves in merges.values() for move in moves}
    (hurt,) = (name for name, extents in maps.items() if kept in extents.packs)
    history.flip(hurt, 5)
    compact(history.fresh(), 60)
    collect(history)
    assert (history.untrue(), history.damaged()) == ([], [hurt])
    assert len(stored_blocks(history)) == BLOCKS - 1 + OWN + 2  # the damaged one and what the others have in its place


def test_forgotten_copies_are_found_by_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "REMEMBERED", 2)
    made = History()
    # The first and the last hold the same; in this order they are looked at.
    for number, blocks in enumerate((44, 43, 42, 41)):
        made._last = None
        for block in range(BLOCKS):
            made.disk.write(block, 0 if block >= blocks else block + 1 + 100 * (number % 3))
        made.backup()
    assert compact(made.fresh(), 60) == Compacted()
    repository = made.fresh()
    dedup.tidy(repository, repository.points_of().points)
    assert compact(made.fresh(), 60) == Compacted(1, 1, 0)
    collect(made)
    assert (made.untrue(), made.damaged()) == ([], [])


class Locking(MemoryStore):
    """Locks what belongs to points for a time, as a bucket with object lock does with all there is."""

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        if name.startswith("points/"):
            self.locks[name] = self.clock + 1000
        return super().put(name, data, replace)


def test_a_copy_that_points_refer_to_is_locked_like_the_points(history: History) -> None:
    locking = Locking()
    locking.objects, history.store = history.store.objects, locking
    compact(history.fresh(), 60)
    named = {
        ref.name
        for each in history.fresh().points_of().points
        for ref in history.repository.read_map(each, "vda").packs
    }
    assert len(named) == 2
    assert all(locking.locked_until(name) == locking.clock + 1000 for name in named)


def changes() -> int:
    """How many changes to the store one compaction of the history makes."""
    made = doubled()
    made.store = counting = Dying(made.store, 0)
    compact(made.fresh(), 60)
    return counting.changes


@pytest.mark.parametrize("at", range(1, changes() + 1))
def test_killed_at_any_change_all_points_are_true_and_the_next_run_goes_on(at: int) -> None:
    made = doubled()
    alive, made.store = made.store, Dying(made.store, at)
    with pytest.raises(RepositoryError, match="the store is gone"):
        compact(made.fresh(), 60)
    made.store = alive
    assert (made.untrue(), made.damaged()) == ([], [])
    compact(made.fresh(), 60)
    collect(made)
    assert (made.untrue(), made.damaged()) == ([], [])
    found = stored_blocks(made)
    assert len(found) == len(set(found))


def test_later_runs_find_the_copy_that_was_kept_by_its_hooks(history: History) -> None:
    repository: Repository = history.fresh()
    compact(repository, 60)
    collect(history)
    told = {
        each.ref
        for name in repository.store.list("hooks/compaction")
        for each in hooks.decode(repository.get_object(name), name)
    }
    assert told == {ref for each in repository.points_of().points for ref in repository.read_map(each, "vda").packs}
