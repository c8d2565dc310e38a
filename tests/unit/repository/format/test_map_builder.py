"""Building maps, against a plain list of blocks; and how large maps get."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import pack_ref

from _cbt.grid import BLOCK_SIZE, block_count
from _cbt.repository.format import maps
from _cbt.repository.format.maps import ExtentMap, MapBuilder
from _cbt.repository.format.packs import PackRef

REFS = {pack_ref(number).id: pack_ref(number) for number in range(6)}
IDS = sorted(REFS)

# The model: for each block of the disk the place it lies in, None for zero.
Blocks = list[tuple[bytes, int] | None]
Step = tuple[int, int, str, int, int]

STEPS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(1, 12),
        st.sampled_from(["zero", "keep", "place"]),
        st.integers(0, 5),
        st.integers(0, 60),
    ),
    max_size=12,
)


def listed(extents: ExtentMap) -> Blocks:
    blocks: Blocks = [None] * block_count(extents.size)
    for run in extents.runs():
        for index in range(run.count):
            assert blocks[run.first + index] is None, "covered twice"
            blocks[run.first + index] = run.pack.id, run.ordinal + index
    return blocks


def build(size: int, steps: list[Step], parent: ExtentMap | None, before: Blocks) -> tuple[ExtentMap, Blocks]:
    """The map made by the engine, and the same by the model."""
    total = block_count(size)
    model = (before + [None] * total)[:total]
    builder, block = MapBuilder(size, parent), 0
    for gap, count, action, pack, ordinal in steps:
        first = block + gap
        if first + count > total:
            break
        if action == "zero":
            builder.zero(first, count)
            model[first : first + count] = [None] * count
        elif action == "keep":
            builder.keep(first, count)
        else:
            builder.put(first, count, IDS[pack], ordinal)
            model[first : first + count] = [(IDS[pack], ordinal + index) for index in range(count)]
        block = first + count
    return builder.finish(REFS), model


SIZES = st.integers(1, 80).flatmap(lambda blocks: st.sampled_from([blocks * BLOCK_SIZE, blocks * BLOCK_SIZE - 512]))


@given(SIZES, STEPS, SIZES, STEPS, SIZES, STEPS)
def test_three_generations_hold_what_a_plain_list_of_blocks_holds(
    size1: int, steps1: list[Step], size2: int, steps2: list[Step], size3: int, steps3: list[Step]
) -> None:
    """The disk may grow or shrink from one to the next; what is not spoken of stays as it was."""
    first, model = build(size1, steps1, None, [])
    assert listed(first) == model
    second, model = build(size2, steps2, first, model)
    assert listed(second) == model
    third, model = build(size3, steps3, maps.decode(second.encode()), model)
    assert listed(third) == model
    assert listed(maps.decode(third.encode())) == model
    assert {ref.id for ref in third.packs} == {place[0] for place in model if place}, "no pack is named without need"


@given(SIZES, STEPS)
def test_neighbouring_runs_are_joined(size: int, steps: list[Step]) -> None:
    extents, _model = build(size, steps, None, [])
    runs = list(extents.runs())
    for one, two in zip(runs, runs[1:]):
        assert not (one.stop == two.first and one.pack == two.pack and one.ordinal + one.count == two.ordinal)


@pytest.mark.parametrize("action", ["zero", "keep", "place"])
def test_describing_a_block_twice_is_an_error(action: str) -> None:
    builder = MapBuilder(10 * BLOCK_SIZE)
    builder.zero(0, 5)
    with pytest.raises(ValueError, match="block 4 was already spoken of"):
        {
            "zero": builder.zero,
            "keep": builder.keep,
            "place": lambda first, count: builder.put(first, count, IDS[0], 0),
        }[action](4, 1)


def test_a_zero_range_cuts_the_parents_run_out() -> None:
    """Z1 in the map: zeroed blocks must not show the parent's."""
    parent, _model = build(10 * BLOCK_SIZE, [(0, 10, "place", 0, 0)], None, [])
    builder = MapBuilder(10 * BLOCK_SIZE, parent)
    builder.zero(3, 2)
    assert [(run.first, run.count, run.ordinal) for run in builder.finish({}).runs()] == [(0, 3, 0), (5, 5, 5)]


def test_the_parents_refs_are_taken_over_with_its_runs() -> None:
    parent, _model = build(10 * BLOCK_SIZE, [(0, 10, "place", 0, 0)], None, [])
    assert MapBuilder(10 * BLOCK_SIZE, parent).finish({}).packs == (REFS[IDS[0]],)


def test_a_freshly_written_disk_of_one_tebibyte_has_a_map_of_few_bytes_per_pack() -> None:
    packs = [PackRef(random.Random(number).randbytes(16), 64 << 20, 1024) for number in range(16384)]
    builder = MapBuilder(1 << 40)
    for number, ref in enumerate(packs):
        builder.put(number * 1024, 1024, ref.id, 0)
    data = builder.finish({ref.id: ref for ref in packs}).encode()
    assert len(data) < 1 << 20
    assert len(maps.decode(data)) == 16384


def test_a_disk_of_one_tebibyte_written_by_several_workers_has_a_map_under_8_mib() -> None:
    """Workers append portions of 16 blocks as they come, a little out of order: about a million runs."""
    chance = random.Random(1)
    packs = [PackRef(chance.randbytes(16), 64 << 20, 1024) for _number in range(16384)]
    portions = list(range(65536 * 16))
    for start in range(0, len(portions), 9):
        window = portions[start : start + 9]
        chance.shuffle(window)
        portions[start : start + 9] = window
    places = [0] * len(portions)
    for place, portion in enumerate(portions):
        places[portion] = place
    builder = MapBuilder(1 << 40)
    for portion, place in enumerate(places):
        builder.put(portion * 16, 16, packs[place // 64].id, place % 64 * 16)
    extents = builder.finish({ref.id: ref for ref in packs})
    assert len(extents) > 900_000
    assert len(extents.encode()) < 8 << 20


def test_scattered_changes_cost_few_bytes_each() -> None:
    """300,000 single blocks all over a disk, in packs in the order of the disk."""
    chance, count = random.Random(2), 300_000
    packs = [PackRef(chance.randbytes(16), 64 << 20, 1024) for _number in range(count // 1024 + 1)]
    builder = MapBuilder(1 << 40)
    for number, block in enumerate(sorted(chance.sample(range((1 << 40) // BLOCK_SIZE), count))):
        builder.put(block, 1, packs[number // 1024].id, number % 1024)
    extents = builder.finish({ref.id: ref for ref in packs})
    data = extents.encode()
    assert len(extents) > 290_000
    assert len(data) / len(extents) < 6
    assert list(maps.decode(data).runs(0, 2000)) == list(extents.runs(0, 2000))
