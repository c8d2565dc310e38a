"""Damaged blocks are read again by the next backup; points heal where it is proven that the content is the same, and only there."""

from __future__ import annotations

import contextlib
import random

import pytest
import soaks
from histories import BLOCKS, KEYS, History
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import OTHER_UUID, UUID, pack_ref, point, point_id, record

from _cbt.errors import DamagedObject, RepositoryError
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.format import names
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.records.damage import PackDamage, damaged_runs
from _cbt.repository.selecting import ALL


def verified(history: History) -> dict[str, str]:
    return {
        verdict.name: verdict.status for verdict in verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))[0]
    }


@pytest.fixture(params=KEYS, ids=KEYS.keys())
def history(request: pytest.FixtureRequest) -> History:
    """Two points; block 5 is in both, block 7 changed."""
    made = History(KEYS[request.param])
    for block in range(BLOCKS):
        made.disk.write(block, block + 1)
    made.backup()
    made.disk.write(7, 1007)
    made.backup()
    return made


def test_a_flipped_bit_is_healed_in_all_points_without_the_block_being_written(history: History) -> None:
    history.flip(point_id(1), 5)
    verified(history)
    history.backup()
    assert history.healed.blocks == {"vda": 1}
    assert (history.healed.points, history.healed.left) == (2, 0)
    assert (history.untrue(), history.damaged()) == ([], [])
    assert set(verified(history).values()) == {"ok"}
    history.backup()
    assert history.healed.blocks == {"vda": 0}


def test_a_block_that_changed_since_is_healed_nowhere_and_the_new_point_is_true(history: History) -> None:
    history.flip(point_id(1), 7)
    history.disk.write(5, 2005)
    history.flip(point_id(2), 5)
    verified(history)
    history.backup()
    assert (dict(history.healed.blocks), history.healed.points, history.healed.left) == ({"vda": 0}, 0, 2)
    assert history.untrue() == []
    assert history.damaged() == [point_id(1), point_id(2)]
    assert verified(history) == {point_id(1): "damaged", point_id(2): "damaged", point_id(3): "ok"}


def test_a_block_written_back_to_what_it_was_heals(history: History) -> None:
    history.flip(point_id(1), 7)
    verified(history)
    history.disk.write(7, 8)
    history.backup()
    assert (history.healed.blocks, history.damaged()) == ({"vda": 1}, [])


@pytest.mark.parametrize("harm", ["missing", "truncated", "directory"])
def test_where_no_id_is_left_the_new_point_is_true_and_older_ones_stay_damaged(harm: str, history: History) -> None:
    pack = history.block_place(point_id(1), 5)[0]
    whole = history.store.objects.pop(pack)
    if harm == "truncated":
        history.store.objects[pack] = whole[: len(whole) // 2]
    elif harm == "directory":
        history.store.objects[pack] = whole[:-70] + b"?" + whole[-69:]
    verified(history)
    history.backup()
    assert history.untrue() == []
    assert history.damaged() == [point_id(1), point_id(2)]
    assert verified(history)[point_id(3)] == "ok"
    history.store.objects[pack] = whole
    assert set(verified(history).values()) == {"ok"}


@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_pack_that_is_gone_needs_no_verification_to_be_noticed(harm: str, history: History) -> None:
    pack = history.block_place(point_id(1), 5)[0]
    whole = history.store.objects.pop(pack)
    if harm == "truncated":
        history.store.objects[pack] = whole[:-1]
    history.backup()
    assert history.read(point_id(3)) == history.truth[point_id(3)]


def test_the_points_of_a_clone_that_share_the_block_are_healed_as_well(history: History) -> None:
    repository = history.fresh()
    original = repository.read_map(repository.point(UUID, point_id(1)), "vda")
    files = repository.put_files(f"points/{OTHER_UUID}/{point_id(9)}", {"vda.map": original.encode()})
    repository.publish(point(9, (record(size=original.size, map=files["vda.map"]),), uuid=OTHER_UUID))
    history.truth[point_id(9)] = history.truth[point_id(1)]
    history.flip(point_id(1), 5)
    verified(history)
    history.backup()
    assert history.healed.points == 3
    assert (history.untrue(), history.damaged()) == ([], [])


def test_a_run_killed_while_it_healed_is_taken_up_by_the_next(history: History) -> None:
    before = dict(history.store.objects)
    history.flip(point_id(1), 5)
    verified(history)
    history.backup()
    # The first point as if it had not been reached.
    history.store.objects[names.manifest(UUID, point_id(1))] = before[names.manifest(UUID, point_id(1))]
    assert history.damaged() == [point_id(1)]
    history.backup()
    assert (history.healed.points, history.untrue(), history.damaged()) == (1, [], [])


def test_a_copy_that_is_also_damaged_is_not_used(history: History) -> None:
    name = names.manifest(UUID, point_id(1))
    before = history.store.objects[name]
    history.flip(point_id(1), 5)
    verified(history)
    history.backup()
    # The first point as if it had not been reached, and the sound copy damaged in turn, which nobody has noticed.
    history.store.objects[name] = before
    history.flip(point_id(3), 5)
    history.backup()
    assert (history.healed.points, history.healed.left) == (0, 1)
    assert history.untrue() == []


def test_only_the_damaged_blocks_are_read_again(history: History) -> None:
    history.flip(point_id(1), 5)
    history.flip(point_id(1), 20)
    verified(history)
    reads: list[int] = []
    plain = history.disk.read
    history.disk.read = lambda offset, length: (reads.append(length), plain(offset, length))[1]  # type: ignore[method-assign]
    history.backup()
    assert sum(reads) == 2 * 65536


@given(
    st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 2), st.integers(0, 9))),
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, 9))),
    st.booleans(),
)
def test_damaged_runs_cover_damaged_blocks_and_no_others(
    held: dict[int, tuple[int, int]], hurt: set[tuple[int, int]], whole: bool
) -> None:
    builder = MapBuilder(31 * 65536)
    for block, (pack, ordinal) in sorted(held.items()):
        builder.put(block, 1, pack_ref(pack).id, ordinal)
    extents = builder.finish({pack_ref(pack).id: pack_ref(pack) for pack, _ordinal in held.values()})
    damages = {
        pack_ref(pack).id: PackDamage(frozenset(each for other, each in hurt if other == pack), "")
        for pack, _ordinal in hurt
    }
    if whole:
        damages[pack_ref(0).id] = PackDamage(None, "")
    found = {
        run.first + index: run.ordinal + index for run in damaged_runs(extents, damages) for index in range(run.count)
    }
    assert found == {block: place[1] for block, place in held.items() if place in hurt or (whole and place[0] == 0)}


STEPS = st.sampled_from(["write", "write", "backup", "backup", "flip", "flip", "lose", "verify", "verify sample"])


@settings(max_examples=soaks.examples(0.4))
@given(st.lists(STEPS, min_size=3, max_size=25), st.randoms(use_true_random=False))
def test_no_point_restores_to_wrong_bytes_after_any_sequence_of_events(steps: list[str], chance: random.Random) -> None:
    history = History()
    for block in range(0, BLOCKS, 3):
        history.disk.write(block, block + 1)
    history.backup()
    for step in steps:
        existing = list(history.truth)
        if step == "write":
            for _times in range(chance.randint(1, 6)):
                history.disk.write(chance.randrange(BLOCKS), chance.choice([0, chance.randint(1, 90)]))
        elif step == "backup":
            history.backup()
            assert history.read(list(history.truth)[-1]) == history.truth[list(history.truth)[-1]], (
                "a new point whose base is known to be damaged is whole"
            )
        elif step == "flip":
            with contextlib.suppress(StopIteration, DamagedObject, RepositoryError):
                history.flip(chance.choice(existing), chance.randrange(BLOCKS))
            verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))
        elif step == "lose":
            packs = [name for name in history.store.objects if name.startswith("packs/")]
            if packs:
                history.store.objects.pop(chance.choice(packs))
        else:
            verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1, sample=30 if step == "verify sample" else 100))
        assert history.untrue() == []
    told = {name for name, status in verified(history).items() if status != "ok"}
    assert told == set(history.damaged())
