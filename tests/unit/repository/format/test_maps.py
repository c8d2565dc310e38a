"""Extent maps: encoded and decoded, damaged and lying."""

from __future__ import annotations

import array
import contextlib
import hashlib
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import UUID, pack_ref, point
from stores_for_tests import with_bit_flipped

from _cbt.errors import CbtError, DamagedObject, RepositoryError
from _cbt.grid import BLOCK_SIZE, block_count
from _cbt.repository.creation import open_or_create
from _cbt.repository.format import maps
from _cbt.repository.format.maps import ExtentMap, MapBuilder, Run

COLUMNS = maps.HEADER.size + 32


@st.composite
def extent_maps(draw: st.DrawFn) -> ExtentMap:
    """A map of a small disk, its last block often short."""
    size = draw(st.integers(0, 200 * BLOCK_SIZE))
    builder, block, total = MapBuilder(size), 0, block_count(size)
    packs = [pack_ref(number) for number in range(draw(st.integers(1, 4)))]
    for gap, count, index, ordinal in draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30), st.integers(0, 3), st.integers(0, 900)), max_size=12)
    ):
        if block + gap + count > total:
            break
        builder.put(block + gap, count, packs[index % len(packs)].id, ordinal)
        block += gap + count
    return builder.finish({ref.id: ref for ref in packs})


def rebuilt(data: bytes, columns: bytes, **fields: int) -> bytes:
    """A map whose header says something else, with a checksum that fits."""
    names = ("magic", "version", "zero", "block_size", "size", "packs", "zero2", "runs")
    header = dict(zip(names, maps.HEADER.unpack_from(data)))
    head = maps.HEADER.pack(*{**header, **fields}.values())
    return head + hashlib.sha256(head + columns).digest() + zlib.compress(columns)


def sample_map() -> ExtentMap:
    builder = MapBuilder(20 * BLOCK_SIZE + 512)
    builder.put(0, 3, pack_ref(1).id, 0)
    builder.put(7, 2, pack_ref(2).id, 5)
    builder.put(20, 1, pack_ref(1).id, 9)
    return builder.finish({pack_ref(1).id: pack_ref(1), pack_ref(2).id: pack_ref(2)})


@given(extent_maps())
def test_a_map_round_trips(extents: ExtentMap) -> None:
    again = maps.decode(extents.encode())
    assert (again.size, again.packs, list(again.runs())) == (extents.size, extents.packs, list(extents.runs()))
    assert again.stored_blocks == sum(run.count for run in extents.runs())
    assert again.encode() == extents.encode()


@given(extent_maps(), st.integers(0, 210), st.integers(0, 210))
def test_the_runs_of_a_range_are_the_runs_cut_to_it(extents: ExtentMap, first: int, stop: int) -> None:
    def blocks(runs: list[Run]) -> list[tuple[int, bytes, int]]:
        return [(run.first + index, run.pack.id, run.ordinal + index) for run in runs for index in range(run.count)]

    cut = list(extents.runs(first, stop))
    assert blocks(cut) == [each for each in blocks(list(extents.runs())) if first <= each[0] < stop]
    assert all(run.count > 0 for run in cut)


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, 1 << 40, (1 << 64) - 1])
def test_a_disk_without_data_has_a_map_too(size: int) -> None:
    again = maps.decode(MapBuilder(size).finish({}).encode())
    assert (again.size, len(again), again.packs, list(again.runs())) == (size, 0, (), [])


def test_every_flipped_bit_is_noticed_by_the_map_or_by_the_manifest(tmp_path: Path) -> None:
    """Padding bits of the compressed stream are seen by the manifest's SHA-256 alone."""
    repository = open_or_create(str(tmp_path / "repository"))
    whole = sample_map().encode()
    restore_point = point(1)
    file = repository.put_files(restore_point.folder, {"vda.map": whole})["vda.map"]
    path = tmp_path / "repository" / restore_point.folder / "vda.map"
    assert f"points/{UUID}/" in str(path)
    assert repository.get_file(restore_point, file) == whole
    for bit in range(len(whole) * 8):
        changed = with_bit_flipped(whole, bit)
        path.write_bytes(changed)
        with pytest.raises(DamagedObject):
            repository.get_file(restore_point, file)
        try:
            found, expected = maps.decode(changed), sample_map()
            assert (found.size, found.packs) == (expected.size, expected.packs), f"bit {bit} gives another map"
            assert list(found.runs()) == list(expected.runs()), f"bit {bit} gives another map"
        except RepositoryError:  # DamagedObject, or the version is unknown
            continue


def test_truncation_at_every_length_is_detected() -> None:
    whole = sample_map().encode()
    for length in range(len(whole)):
        with pytest.raises(DamagedObject):
            maps.decode(whole[:length])


def test_appended_bytes_are_detected() -> None:
    with pytest.raises(DamagedObject):
        maps.decode(sample_map().encode() + b"\0")


def test_a_newer_version_is_refused_by_name_and_not_called_damaged() -> None:
    whole = sample_map().encode()
    with pytest.raises(RepositoryError, match="format 2") as caught:
        maps.decode(rebuilt(whole, zlib.decompress(whole[COLUMNS:]), version=2))
    assert not isinstance(caught.value, DamagedObject)


LIES = {
    "number of runs": {"runs": 1 << 50, "size": (1 << 64) - 1},
    "number of packs": {"packs": (1 << 32) - 1, "runs": 1 << 33, "size": (1 << 64) - 1},
    "runs that only a larger object could hold": {"runs": 1 << 22, "size": 1 << 50},
    "more runs than blocks": {"runs": 1 << 20},
    "more packs than runs": {"packs": 100},
    "block size": {"block_size": 4096},
    "smaller disk": {"size": BLOCK_SIZE},
    "no runs": {"runs": 0},
    "no packs": {"packs": 0},
}


@pytest.mark.parametrize("fields", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_damage_and_takes_no_memory(fields: dict[str, int]) -> None:
    whole = sample_map().encode()
    lying = rebuilt(whole, zlib.decompress(whole[COLUMNS:]), **fields)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedObject):
            maps.decode(lying)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("runs", [0, 1, 1000])
def test_columns_that_unpack_to_more_than_the_header_says_take_no_memory(runs: int) -> None:
    bomb = rebuilt(sample_map().encode(), bytes(64 << 20), packs=0, runs=runs, size=1 << 40)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(DamagedObject):
            maps.decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=400) | st.binary(max_size=300).map(lambda tail: sample_map().encode()[:COLUMNS] + tail))
def test_random_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(CbtError):
        maps.decode(data)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, 50))
def test_a_mutated_map_is_damage_or_the_same_map(changes: list[tuple[int, int]], cut: int) -> None:
    changed = bytearray(sample_map().encode())
    for place, value in changes:
        changed[place % len(changed)] = value
    with contextlib.suppress(CbtError):
        assert list(maps.decode(bytes(changed[: len(changed) - cut])).runs()) == list(sample_map().runs())


NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from([255, 65536, (1 << 32) - 1]))


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=4),
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 12),
)
@example([(0, 0, 0, 0)], 1, 10, 5)  # a run of no blocks
@example([(0, 5, 0, 1)], 1, 10, 5)  # beyond the pack
@example([(6, 5, 0, 0)], 1, 10, 5)  # beyond the disk
@example([], 1, 10, 5)  # a pack without runs
def test_columns_with_a_right_checksum_are_still_checked(
    runs: list[tuple[int, ...]], packs: int, blocks: int, in_pack: int
) -> None:
    """Whatever is written there, what is accepted lies within the disk and its packs."""
    refs = [pack_ref(number, in_pack) for number in range(packs)]
    columns = b"".join(maps.PACK.pack(ref.id, ref.size, ref.blocks) for ref in refs)
    for code, values in zip("QIII", zip(*runs)):
        columns += array.array(code, values).tobytes()
    data = rebuilt(sample_map().encode(), columns, size=blocks * BLOCK_SIZE, packs=packs, runs=len(runs))
    try:
        extents = maps.decode(data)
    except DamagedObject:
        return
    accepted = [extents.run(index) for index in range(len(extents))]
    assert len(extents.packs) <= len(accepted) == len(runs)
    assert all(run.count > 0 and run.stop <= blocks and run.ordinal + run.count <= run.pack.blocks for run in accepted)
    assert all(one.stop <= two.first for one, two in zip(accepted, accepted[1:]))
