"""Packs: whatever happens to their bytes is noticed, and never as anything but a fault of the repository."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import encoded, random_bytes
from stores_for_tests import MemoryStore, with_bit_flipped

from _cbt.errors import DamagedObject, ObjectMissing, RepositoryError
from _cbt.grid import BLOCK_SIZE
from _cbt.repository.crypto.keys import PlainKeys
from _cbt.repository.format import codecs, packs
from _cbt.repository.format.packs import PackRef
from _cbt.repository.packs.reader import PackReader
from _cbt.repository.packs.writer import PackWriter
from _cbt.repository.stores.base import Store
from _cbt.repository.stores.directory import DirectoryStore

# The second one compresses; its second match can be told by many offsets that all give the same bytes.
BLOCKS = [random_bytes(40, 7), b"a" * 100 + b"b" + b"a" * 60, b"end"]


def written(store: Store, blocks: list[bytes]) -> PackRef:
    writer = PackWriter(store, PlainKeys())
    pack = writer.append([encoded(block, "lz4") for block in blocks]).pack
    return writer.finish()[pack]


def faults(store: Store, ref: PackRef, blocks: list[bytes]) -> Iterator[RepositoryError]:
    """Everything a fresh reader complains of; a wrong byte without complaint fails the test."""
    try:
        found = list(PackReader(store, PlainKeys()).blocks(ref, 0, ref.blocks))
    except RepositoryError as error:
        yield error
        return
    for block, expected in zip(found, blocks):
        if isinstance(block, DamagedObject):
            yield block
        else:
            assert bytes(block) == expected, "wrong bytes passed for right ones"


@pytest.fixture
def small() -> tuple[MemoryStore, PackRef]:
    store = MemoryStore()
    ref = written(store, BLOCKS)
    assert [codecs.encoder("lz4")(block)[0] for block in BLOCKS] == [codecs.STORED, codecs.LZ4, codecs.STORED]
    assert not list(faults(store, ref, BLOCKS))
    return store, ref


def test_every_flipped_bit_is_detected(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    whole = store.objects[ref.name]
    for bit in range(len(whole) * 8):
        store.objects[ref.name] = with_bit_flipped(whole, bit)
        found = list(faults(store, ref, BLOCKS))
        assert found, f"bit {bit} of {len(whole) * 8} changed unnoticed"
        assert all(isinstance(error, DamagedObject) for error in found), f"bit {bit}: {found}"


def test_a_flipped_bit_in_one_block_costs_that_block_alone(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    start, length = PackReader(store, PlainKeys()).directory(ref).span(1, 1)
    store.objects[ref.name] = with_bit_flipped(store.objects[ref.name], (start + length // 2) * 8)
    first, second, third = PackReader(store, PlainKeys()).blocks(ref, 0, 3)
    assert (bytes(first), bytes(third)) == (BLOCKS[0], BLOCKS[2])
    assert isinstance(second, DamagedObject)
    assert f"block 1 of pack {ref.id.hex()}" in str(second)


def test_a_flipped_bit_that_still_decompresses_to_the_right_bytes_is_detected(
    small: tuple[MemoryStore, PackRef],
) -> None:
    """SHA-256 of the plain block cannot see it; the CRC of the payload does."""
    store, ref = small
    whole = store.objects[ref.name]
    start, length = PackReader(store, PlainKeys()).directory(ref).span(1, 1)
    harmless = []
    for bit in range(start * 8, (start + length) * 8):
        changed = with_bit_flipped(whole, bit)
        try:
            plain = codecs.decode(codecs.LZ4, changed[start : start + length], len(BLOCKS[1]))
        except DamagedObject:
            continue
        if hashlib.sha256(plain).digest() == hashlib.sha256(BLOCKS[1]).digest():
            harmless.append(changed)
    assert harmless, "the block of this test must have such a bit"
    for changed in harmless:
        store.objects[ref.name] = changed
        assert [str(error) for error in faults(store, ref, BLOCKS)] == [
            f"block 1 of pack {ref.id.hex()}: its stored bytes have changed"
        ]


def test_truncation_at_every_length_is_detected(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    whole = store.objects[ref.name]
    for length in range(len(whole)):
        store.objects[ref.name] = whole[:length]
        assert all(isinstance(error, DamagedObject) for error in faults(store, ref, BLOCKS))
        assert list(faults(store, ref, BLOCKS))


def test_truncation_after_the_directory_was_read_is_noticed(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    reader = PackReader(store, PlainKeys())
    reader.directory(ref)
    whole = store.objects[ref.name]
    for length in range(ref.directory_offset):
        store.objects[ref.name] = whole[:length]
        found = list(reader.blocks(ref, 0, 3))
        assert str(found[-1]) == f"block 2 of pack {ref.id.hex()}: the pack is truncated"
        for block, expected in zip(found, BLOCKS):
            assert isinstance(block, DamagedObject) or bytes(block) == expected


def test_appended_bytes_are_detected(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    store.objects[ref.name] += b"\0"
    assert list(faults(store, ref, BLOCKS))


def test_another_pack_in_its_place_is_noticed_even_with_equal_lengths() -> None:
    store = MemoryStore()
    one, two = written(store, [b"content A"]), written(store, [b"content B"])
    assert one.size == two.size
    store.objects[one.name], store.objects[two.name] = store.objects[two.name], store.objects[one.name]
    assert all(isinstance(error, DamagedObject) for error in faults(store, one, [b"content A"]))
    assert list(faults(store, one, [b"content A"]))


def test_another_blocks_payload_in_its_place_is_noticed() -> None:
    store = MemoryStore()
    ref = written(store, [b"content A", b"content B"])
    store.objects[ref.name] = store.objects[ref.name].replace(b"content B", b"content A")
    assert len(list(faults(store, ref, [b"content A", b"content B"]))) == 1


@pytest.mark.parametrize("blocks", [0, 1, 2, 4, 5, 100, 16384, 2**32 - 1])
def test_a_ref_with_a_wrong_number_of_blocks_is_refused(small: tuple[MemoryStore, PackRef], blocks: int) -> None:
    store, ref = small
    with pytest.raises(DamagedObject):
        PackReader(store, PlainKeys()).directory(ref._replace(blocks=blocks))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 95, 96, 97, 200, 10_000, 2**63])
def test_a_ref_with_a_wrong_size_is_refused(small: tuple[MemoryStore, PackRef], size: int) -> None:
    store, ref = small
    with pytest.raises(DamagedObject):
        PackReader(store, PlainKeys()).directory(ref._replace(size=size))


def test_a_ref_whose_size_and_blocks_are_wrong_in_step_is_refused(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    for more in (-1, 1):
        with pytest.raises(DamagedObject):
            PackReader(store, PlainKeys()).directory(
                ref._replace(size=ref.size + more * packs.ENTRY.size, blocks=ref.blocks + more)
            )


def test_blocks_beyond_the_directory_are_refused(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    with pytest.raises(DamagedObject, match="holds 3 blocks, not the 4"):
        list(PackReader(store, PlainKeys()).blocks(ref, 2, 2))


def test_a_missing_pack_is_missing_and_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing):
        PackReader(DirectoryStore(str(tmp_path)), PlainKeys()).directory(PackRef(bytes(16), 1000, 1))


def test_a_pack_of_a_newer_format_is_refused_by_name(small: tuple[MemoryStore, PackRef]) -> None:
    store, ref = small
    whole = store.objects[ref.name]
    head = packs.HEADER.pack(packs.MAGIC, 2, bytes(6), ref.id)
    checked = head + whole[ref.directory_offset : -40]
    store.objects[ref.name] = head + whole[32:-40] + hashlib.sha256(checked).digest() + packs.END_MAGIC
    with pytest.raises(RepositoryError, match="has format 2") as caught:
        PackReader(store, PlainKeys()).directory(ref)
    assert not isinstance(caught.value, DamagedObject)


@pytest.mark.parametrize("length", [0, BLOCK_SIZE + 1, (1 << 24) - 1])
def test_a_block_longer_than_a_block_is_refused_before_it_is_unpacked(length: int) -> None:
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    codec, payload = codecs.encoder("lz4")(bytes(length or 1))
    pack = writer.append([packs.Encoded(bytes(32), codec, payload, length)]).pack
    (block,) = PackReader(store, PlainKeys()).blocks(writer.finish()[pack], 0, 1)
    assert isinstance(block, DamagedObject)
    assert "length" in str(block)


def test_an_oversized_stored_block_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    pack = writer.append([packs.Encoded(bytes(32), codecs.STORED, bytes(10_000_000), 65536), encoded(b"sound")]).pack
    ref = writer.finish()[pack]
    reader = PackReader(store, PlainKeys())
    reader.directory(ref)
    read: list[int] = []
    monkeypatch.setattr(
        store,
        "get_range",
        lambda name, offset, length: (read.append(length), MemoryStore.get_range(store, name, offset, length))[1],
    )
    damaged, sound = reader.blocks(ref, 0, 2)
    assert isinstance(damaged, DamagedObject) and "more than any block takes" in str(damaged)
    assert sound == b"sound" and read == [5]


def test_a_bit_flipped_on_disk_is_detected(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    ref = written(store, BLOCKS)
    path = tmp_path / ref.name
    whole = path.read_bytes()
    for bit in range(0, len(whole) * 8, 37):
        path.write_bytes(with_bit_flipped(whole, bit))
        assert list(faults(store, ref, BLOCKS)), f"bit {bit} changed unnoticed"
