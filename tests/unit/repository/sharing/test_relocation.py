"""Blocks that lie elsewhere now: maps made anew, and points that name the new place, whatever happens in between."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import pytest
from histories import BLOCKS, History
from hypothesis import given
from hypothesis import strategies as st
from samples import UUID, pack_ref, point_id
from stores_for_tests import MemoryStore

from _cbt.errors import RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format import names
from _cbt.repository.format.maps import ExtentMap, MapBuilder
from _cbt.repository.format.packs import Encoded
from _cbt.repository.repository import Repository
from _cbt.repository.sharing.leases import Lease
from _cbt.repository.sharing.relocation import Move, Moves, joined, relocate, relocated

Places = dict[int, tuple[int, int]]  # block: number of pack, ordinal

places = st.dictionaries(st.integers(0, 40), st.tuples(st.integers(0, 2), st.integers(0, 30)))
changes = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 30)), st.tuples(st.integers(5, 6), st.integers(0, 30))
)


def made_map(held: Places) -> ExtentMap:
    builder = MapBuilder(41 * BLOCK_SIZE)
    for block in sorted(held):
        pack, ordinal = held[block]
        builder.put(block, 1, pack_ref(pack).id, ordinal)
    return builder.finish({pack_ref(pack).id: pack_ref(pack) for pack, _ordinal in held.values()})


def told(extents: ExtentMap) -> Places:
    return {
        run.first + index: (int.from_bytes(run.pack.id, "big"), run.ordinal + index)
        for run in extents.runs()
        for index in range(run.count)
    }


@given(places, changes)
def test_every_block_is_where_it_was_or_where_it_was_moved_to(
    held: Places, moved: dict[tuple[int, int], tuple[int, int]]
) -> None:
    packs = {pack for pack, _ordinal in moved}
    moves = {
        pack_ref(pack).id: joined(
            Move(ordinal, 1, pack_ref(new), place) for (old, ordinal), (new, place) in moved.items() if old == pack
        )
        for pack in packs
    }
    expected = {block: moved.get(place, place) for block, place in held.items()}
    found = relocated(made_map(held), moves)
    assert (found is None) == (expected == held)
    if found is not None:
        assert told(found) == expected
        assert {ref.id for ref in found.packs} == {pack_ref(pack).id for pack, _ordinal in expected.values()}


def test_neighbours_that_stay_neighbours_become_one_run() -> None:
    held = {block: (0, block) for block in range(40)}
    moves = {
        pack_ref(0).id: joined(
            Move(ordinal, 1, pack_ref(7), ordinal - 10) for ordinal in random.Random(1).sample(range(10, 30), 20)
        )
    }
    assert len(moves[pack_ref(0).id]) == 1
    found = relocated(made_map(held), moves)
    assert found is not None
    assert [(run.first, run.count) for run in found.runs()] == [(0, 10), (10, 20), (30, 10)]


class MemoryView(MemoryStore):
    """The same objects, looked at by somebody else."""

    def __init__(self, like: MemoryStore) -> None:
        super().__init__()
        self.objects = like.objects


class Interfering(MemoryStore):
    """Does something before the n-th operation, or dies there and stays dead until it is revived."""

    def __init__(self, history: MemoryStore) -> None:
        super().__init__()
        self.objects = history.objects
        self.operations, self.at, self.then = 0, -1, lambda: None

    def _count(self) -> None:
        self.operations += 1
        if self.operations == self.at:
            self.then()

    def get(self, name: str, most: int | None = None) -> bytes:
        self._count()
        return super().get(name, most)

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        self._count()
        done = super().put(name, data, replace)
        self._count()
        return done

    def size(self, name: str) -> int:
        self._count()
        return len(self.objects[name]) if name in self.objects else super().size(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._count()
        return (
            self.objects[name][offset : offset + length]
            if name in self.objects
            else super().get_range(name, offset, length)
        )

    def delete(self, name: str) -> None:
        self._count()
        super().delete(name)


def history() -> tuple[History, Moves]:
    """A history of three points, all blocks of whose first pack were copied to a new one."""
    made = History()
    for block in range(0, BLOCKS, 2):
        made.disk.write(block, block + 1)
    first = made.backup()
    made.disk.write(3, 100)
    made.backup()
    made.disk.write(4, 101)
    made.backup()
    repository = made.fresh()
    (ref,) = repository.read_map(first, "vda").packs
    directory, writer = repository.reader.directory(ref), repository.writer()
    blocks = [
        bytes(block) for block in repository.reader.blocks(ref, 0, len(directory)) if not isinstance(block, Exception)
    ]
    placed = writer.append(
        [Encoded(directory.digest(ordinal), 0, block, len(block)) for ordinal, block in enumerate(blocks)]
    )
    return made, {ref.id: [Move(0, len(directory), writer.finish()[placed.pack], 0)]}


def moved(made: History, moves: Moves) -> list[str]:
    """Points that name no old place any more."""
    repository = made.fresh()
    maps = {each.id: repository.read_map(each, "vda") for each in repository.points_of().points}
    return [name for name, extents in maps.items() if not any(ref.id in moves for ref in extents.packs)]


def drafted(store: MemoryStore) -> bool:
    """True if a manifest is about to be published."""
    return any(name.startswith("drafts/") for name in store.objects)


def relocate_all(made: History, moves: Moves) -> int:
    repository = made.fresh()
    lease = Lease(repository, "compaction")
    return sum(relocate(lease, each, moves) for each in repository.points_of().points)


def test_points_name_the_new_place_and_need_the_old_pack_no_more() -> None:
    made, moves = history()
    assert relocate_all(made, moves) == 3
    assert len(moved(made, moves)) == 3
    for pack in moves:
        del made.store.objects[f"packs/{pack.hex()[:2]}/{pack.hex()}"]
    assert (made.untrue(), made.damaged()) == ([], [])
    assert relocate_all(made, moves) == 0


def operations() -> int:
    made, moves = history()
    made.store = counting = Interfering(made.store)
    relocate_all(made, moves)
    return counting.operations


OPERATIONS = operations()


@pytest.mark.parametrize("at", range(1, OPERATIONS + 1))
def test_killed_at_any_operation_all_points_are_true_and_the_next_run_goes_on(at: int) -> None:
    made, moves = history()
    alive, made.store = made.store, Interfering(made.store)

    def die() -> None:
        made.store.at += 1  # type: ignore[attr-defined]  # a dead process does nothing more
        raise RepositoryError("the store is gone")

    made.store.at, made.store.then = at, die
    with contextlib.suppress(RepositoryError):  # drafts that cannot be deleted are no error
        relocate_all(made, moves)
    made.store = alive
    assert (made.untrue(), made.damaged()) == ([], [])
    relocate_all(made, moves)
    assert len(moved(made, moves)) == 3
    assert (made.untrue(), made.damaged()) == ([], [])


@pytest.mark.parametrize("at", range(1, OPERATIONS + 1))
def test_a_point_removed_at_any_operation_stays_removed_and_can_be_brought_back(at: int) -> None:
    made, moves = history()
    store = made.store = Interfering(made.store)
    name, trash = names.manifest(UUID, point_id(2)), f"trash/{UUID}/{point_id(2)}/{'0' * 16}"

    def remove() -> None:
        store.objects[trash] = store.objects.pop(name)

    store.at, store.then = at, remove
    relocate_all(made, moves)
    assert name not in store.objects
    assert (made.untrue(), made.damaged()) == ([], [])
    store.objects[name] = store.objects.pop(trash)
    assert made.read(point_id(2)) == made.truth[point_id(2)]


@pytest.mark.parametrize("at", range(1, OPERATIONS + 1))
def test_a_new_pack_deleted_at_any_operation_before_a_draft_names_it_costs_no_point(at: int) -> None:
    made, moves = history()
    store = made.store = Interfering(made.store)
    pack = next(iter(moves.values()))[0].to_pack

    def collect() -> None:
        """As a collector does, which found nothing that names it: condemned long ago, deleted now."""
        if not moved(made, moves) and not drafted(store):
            store.objects[f"condemned/{pack.id.hex()}"] = b""
            store.objects.pop(pack.name)

    store.at, store.then = at, collect
    relocate_all(made, moves)
    assert (made.untrue(), made.damaged()) == ([], [])


@pytest.mark.parametrize("at", range(1, OPERATIONS + 1))
def test_a_new_map_deleted_at_any_operation_before_a_draft_names_it_costs_no_point(at: int) -> None:
    made, moves = history()
    store = made.store = Interfering(made.store)

    def collect() -> None:
        """As a collector does, which found nothing that names it."""
        if drafted(store):
            return
        named = {
            f"{each.folder}/{disk.map.name}"
            for each in Repository(MemoryView(store), "00" * 16).points_of().points
            for disk in each.disks
        }
        for name in [name for name in store.objects if name.endswith(".map") and name not in named]:
            store.objects[f"condemned/{name.partition('/')[2]}"] = b""
            del store.objects[name]

    store.at, store.then = at, collect
    relocate_all(made, moves)
    assert (made.untrue(), made.damaged()) == ([], [])


def test_a_concurrently_changed_manifest_keeps_its_change() -> None:
    made, moves = history()
    store = made.store = Interfering(made.store)
    repository = made.fresh()
    listed = repository.points_of().points
    store.operations, store.at = 0, 4

    def pin() -> None:
        made.repository.publish(dataclasses.replace(listed[0], pinned=True))

    store.then = pin
    assert relocate(Lease(repository, "compaction"), listed[0], moves)
    assert repository.point(UUID, listed[0].id).pinned
    assert listed[0].id in moved(made, moves)
