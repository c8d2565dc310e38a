"""Packs: what is written is what is read, from several threads."""

from __future__ import annotations

import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from samples import encoded, random_bytes
from stores_for_tests import MemoryStore, failing

from _cbt.errors import DamagedObject, RepositoryError
from _cbt.repository.crypto.encryption import EncryptedKeys
from _cbt.repository.crypto.keys import PlainKeys
from _cbt.repository.format import codecs, packs
from _cbt.repository.format.maps import Run
from _cbt.repository.format.packs import Encoded, PackRef
from _cbt.repository.packs import reader as pack_reader
from _cbt.repository.packs.reader import PackReader
from _cbt.repository.packs.writer import BlockAddress, PackWriter
from _cbt.repository.stores.directory import DirectoryStore

pytestmark = pytest.mark.usefixtures("no_thread_left")

BLOCKS = [random_bytes(65536, 1), b"text " * 13107 + b"!", b"short", bytes(512)]


def content(reader: PackReader, ref: PackRef, first: int, count: int) -> list[bytes]:
    blocks = list(reader.blocks(ref, first, count))
    assert not any(isinstance(block, DamagedObject) for block in blocks)
    return [bytes(block) for block in blocks]


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_blocks_come_back_alone_and_together(tmp_path: Path, compression: str) -> None:
    store = DirectoryStore(str(tmp_path))
    writer = PackWriter(store, PlainKeys())
    placement = writer.append([encoded(block, compression) for block in BLOCKS])
    ref = writer.finish()[placement.pack]
    reader = PackReader(store, PlainKeys())
    assert placement.ordinal == 0
    assert content(reader, ref, 0, 4) == BLOCKS
    assert [content(reader, ref, ordinal, 1)[0] for ordinal in range(4)] == BLOCKS
    assert [reader.directory(ref).digest(ordinal) for ordinal in range(4)] == [
        encoded(block).digest for block in BLOCKS
    ]


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_many_blocks_of_one_append_are_sealed_each_at_its_place(tmp_path: Path, compression: str) -> None:
    store, keys = DirectoryStore(str(tmp_path)), EncryptedKeys(bytes(32))
    writer = PackWriter(store, keys)
    plain = [random_bytes(500 + number, number) + bytes(number * 100) for number in range(45)]
    for first, blocks in ((0, plain[:3]), (3, plain[3:])):
        sealed = [Encoded(keys.block_id(block), *codecs.encoder(compression)(block), len(block)) for block in blocks]
        assert writer.append(sealed).ordinal == first
    (ref,) = writer.finish().values()
    assert content(PackReader(store, keys), ref, 0, 45) == plain
    assert {PackReader(store, keys).directory(ref).entry(ordinal).crc for ordinal in range(45)} == {0}, (
        "the seal says it all"
    )


def test_a_block_that_is_not_as_long_as_the_disks_is_damaged() -> None:
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    placement = writer.append([encoded(block) for block in BLOCKS])
    ref = writer.finish()[placement.pack]
    short = len(BLOCKS[2])  # the third block, where the disk ends
    for size, sound in ((2 * 65536 + short, True), (3 * 65536, False), (2 * 65536 + short - 1, False)):
        found = list(PackReader(store, PlainKeys()).disk_blocks(Run(0, 3, ref, 0), size))
        assert [not isinstance(block, DamagedObject) for block in found] == [True, True, sound]
    assert "block 2 of pack" in str(found[2])


def test_a_pack_is_one_object_named_by_its_id_and_as_large_as_its_ref_says(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    writer = PackWriter(store, PlainKeys())
    pack = writer.append([encoded(b"one")]).pack
    ref = writer.finish()[pack]
    assert list(store.list("packs")) == [f"packs/{pack.hex()[:2]}/{pack.hex()}"]
    assert store.size(ref.name) == ref.size
    assert (ref.id, ref.blocks) == (pack, 1)


def test_several_threads_append_side_by_side_and_nothing_is_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 300_000)  # so that packs fill up and close while others still write
    store = DirectoryStore(str(tmp_path))
    writer = PackWriter(store, PlainKeys())

    def append(seed: int) -> list[tuple[BlockAddress, list[bytes]]]:
        chance = random.Random(seed)
        done = []
        for turn in range(25):
            blocks = [
                random_bytes(chance.choice([100, 4096, 65536]), seed * 1000 + turn * 10 + index)
                for index in range(chance.randint(1, 4))
            ]
            done.append((writer.append([encoded(block, chance.choice(["none", "lz4"])) for block in blocks]), blocks))
        return done

    with ThreadPoolExecutor(6) as pool:
        appended = [each for batch in pool.map(append, range(6)) for each in batch]
    written = writer.finish()
    assert len(written) > 3
    assert {ref.name: ref.size for ref in written.values()} == {name: store.size(name) for name in store.list("packs")}
    reader = PackReader(store, PlainKeys())
    for placement, blocks in appended:
        assert content(reader, written[placement.pack], placement.ordinal, len(blocks)) == blocks
    assert sum(ref.blocks for ref in written.values()) == sum(len(blocks) for _placement, blocks in appended)


def test_a_pack_closes_at_its_number_of_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_BLOCKS", 10)
    writer = PackWriter(MemoryStore(), PlainKeys())
    for _turn in range(25):
        writer.append([encoded(b"x")])
    assert sorted(ref.blocks for ref in writer.finish().values()) == [5, 10, 10]


def test_one_append_never_spans_two_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_BLOCKS", 4)
    writer = PackWriter(MemoryStore(), PlainKeys())
    first = writer.append([encoded(b"a")] * 3)
    second = writer.append([encoded(b"b")] * 5)
    assert (first.pack, second) == (second.pack, BlockAddress(first.pack, 3))
    assert writer.finish()[first.pack].blocks == 8


def test_no_pack_appears_before_it_is_complete() -> None:
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    writer.append([encoded(b"x")])
    assert not store.objects
    writer.finish()
    assert len(store.objects) == 1


def test_discard_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_BLOCKS", 2)
    store = DirectoryStore(str(tmp_path))
    writer = PackWriter(store, PlainKeys())
    for _turn in range(5):
        writer.append([encoded(b"x")])
    writer.discard()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_store_that_is_slow_to_seal_holds_up_the_writing_before_open_files_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, begun, sealing = DirectoryStore(str(tmp_path)), threading.Semaphore(0), threading.Event()
    upload, fsync = store.upload, os.fsync
    store.put("collected.json", b"")
    monkeypatch.setattr(packs, "TARGET_SIZE", 1)
    monkeypatch.setattr(store, "upload", lambda name: (begun.release(), upload(name))[1])
    monkeypatch.setattr(os, "fsync", lambda handle: (sealing.wait(30), fsync(handle))[1])
    writer = PackWriter(store, PlainKeys())
    appending = threading.Thread(target=lambda: [writer.append([encoded(b"%d" % number)]) for number in range(200)])
    appending.start()
    before = 0
    while begun.acquire(timeout=1):
        before += 1
    sealing.set()
    appending.join()
    assert len(writer.finish()) == 200
    assert before == 64


def test_discard_after_finish_deletes_what_was_sealed(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    writer = PackWriter(store, PlainKeys())
    writer.append([encoded(b"x")])
    writer.finish()
    writer.discard()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_store_that_is_full_is_reported_to_every_thread_that_appends() -> None:
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    writer.append([encoded(b"fits")])
    store.full = True
    for _turn in range(2):
        with pytest.raises(RepositoryError, match="No space left"):
            writer.append([encoded(b"does not")])
    writer.discard()
    assert not store.objects
    assert not store.uploads


@pytest.mark.parametrize("more", [1, 9])
def test_a_pack_that_cannot_be_sealed_is_an_error_at_the_latest_when_finishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """What append returned must never be taken for stored."""
    monkeypatch.setattr(packs, "MAX_BLOCKS", 2)
    writer = PackWriter(DirectoryStore(str(tmp_path)), PlainKeys())
    writer.append([encoded(b"x")])
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(RepositoryError, match="No space left on device. Free space there"):
        for _turn in range(more):
            writer.append([encoded(b"x")])
        writer.finish()
    monkeypatch.undo()
    writer.discard()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_nothing_appended_means_no_pack() -> None:
    store = MemoryStore()
    assert PackWriter(store, PlainKeys()).finish() == {}
    assert not store.objects


def test_directories_are_cached_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_reader, "CACHED_BLOCKS", 25)
    monkeypatch.setattr(packs, "MAX_BLOCKS", 10)
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    for _turn in range(10):
        writer.append([encoded(b"x")] * 10)
    written = list(writer.finish().values())
    reader = PackReader(store, PlainKeys())
    for ref in [*written, *written]:
        assert len(reader.directory(ref)) == 10
        assert reader._cached == sum(len(directory) for directory in reader._cache.values()) <= 25
    assert reader.directory(written[-1]) is reader.directory(written[-1])


def test_one_reader_serves_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_BLOCKS", 3)
    monkeypatch.setattr(pack_reader, "CACHED_BLOCKS", 9)
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    placements = [
        writer.append([encoded(random_bytes(200, turn * 3 + index)) for index in range(3)]) for turn in range(20)
    ]
    written, reader, start = writer.finish(), PackReader(store, PlainKeys()), threading.Barrier(4)

    def read(_thread: int) -> list[list[bytes]]:
        start.wait()
        return [content(reader, written[each.pack], each.ordinal, 3) for each in placements]

    expected = [[random_bytes(200, turn * 3 + index) for index in range(3)] for turn in range(20)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [expected] * 4
