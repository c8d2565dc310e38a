"""The engine reads the released test vectors, and writes the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from stores_for_tests import MemoryStore

from _cbt.errors import DamagedObject
from _cbt.grid import BLOCK_SIZE
from _cbt.repository.crypto.keys import PlainKeys
from _cbt.repository.format import codecs, envelope, hooks, manifests, maps, packs
from _cbt.repository.format.hooks import PackHooks
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import Encoded, PackRef
from _cbt.repository.packs.writer import PackWriter
from _cbt.repository.repository import Repository, open_repository

VECTORS = Path(__file__).parents[2] / "vectors"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))
PACK = EXPECTED["pack"]
MAP = EXPECTED["map"]
CODECS = {"stored": codecs.STORED, "lz4": codecs.LZ4}


@pytest.fixture
def repository() -> Repository:
    return open_repository(str(VECTORS / "repository"))


@pytest.fixture
def ref() -> PackRef:
    return PackRef(bytes.fromhex(PACK["id"]), EXPECTED["objects"][PACK["name"]]["size"], len(PACK["blocks"]))


@pytest.fixture
def restore_point(repository: Repository) -> RestorePoint:
    listing = repository.points_of()
    assert dict(listing.damaged) == {}
    (found,) = listing.points
    return found


def test_the_repository_is_opened(repository: Repository) -> None:
    assert repository.id == EXPECTED["repository"]["id"]


def test_the_directory_says_what_is_described(repository: Repository, ref: PackRef) -> None:
    directory = repository.reader.directory(ref)
    assert (ref.name, ref.directory_offset, directory.end) == (
        PACK["name"],
        PACK["directory_offset"],
        PACK["directory_offset"],
    )
    for expected in PACK["blocks"]:
        assert directory.entry(expected["ordinal"]) == packs.BlockEntry(
            bytes.fromhex(expected["sha256"]),
            expected["offset"],
            expected["stored"],
            expected["crc32"],
            expected["length"],
            CODECS[expected["codec"]],
        )


def test_the_blocks_are_what_is_described(repository: Repository, ref: PackRef) -> None:
    blocks = list(repository.reader.blocks(ref, 0, ref.blocks))
    assert [hashlib.sha256(block).hexdigest() for block in blocks if not isinstance(block, DamagedObject)] == [
        each["sha256"] for each in PACK["blocks"]
    ]
    assert bytes(blocks[1]) == b"kvm.cbt " * 8192  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", EXPECTED["payloads"], ids=lambda vector: vector["codec"])
def test_every_codec_gives_the_block_that_is_described(vector: dict[str, Any]) -> None:
    block = codecs.decode(vector["number"], bytes.fromhex(vector["payload"]), vector["length"])
    assert hashlib.sha256(block).hexdigest() == vector["sha256"] == hashlib.sha256(b"kvm.cbt " * 8192).hexdigest()


def test_the_restore_point_is_what_is_described(restore_point: RestorePoint) -> None:
    body = json.loads(json.dumps(dataclasses.asdict(restore_point)))
    assert body == {**EXPECTED["manifest"]["body"], "dedup": "repository", "note": ""}  # missing where this is so
    assert restore_point.domain == "büro-1"


def test_the_map_is_what_is_described(repository: Repository, restore_point: RestorePoint, ref: PackRef) -> None:
    extents = repository.read_map(restore_point, "vda")
    assert (extents.size, extents.packs) == (MAP["disk_size"], (ref,))
    assert [(run.first, run.count, run.ordinal) for run in extents.runs()] == [
        (each["first"], each["count"], each["ordinal"]) for each in MAP["runs"]
    ]


def test_the_disk_is_what_is_described(repository: Repository, restore_point: RestorePoint) -> None:
    extents = repository.read_map(restore_point, "vda")
    image = bytearray(extents.size)
    for run in extents.runs():
        for index, block in enumerate(repository.reader.blocks(run.pack, run.ordinal, run.count)):
            assert not isinstance(block, DamagedObject)
            offset = (run.first + index) * BLOCK_SIZE
            image[offset : offset + len(block)] = block
    assert hashlib.sha256(image).hexdigest() == EXPECTED["disk"]["sha256"]


def test_the_configuration_file_is_proven(repository: Repository, restore_point: RestorePoint) -> None:
    assert "büro-1" in repository.get_file(restore_point, restore_point.files["domain.xml"]).decode()


def test_the_pack_is_written_the_same(repository: Repository, ref: PackRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads are taken as they are: what LZ4 makes of a block may differ from version to version."""
    released = repository.store.get(PACK["name"])
    monkeypatch.setattr(packs, "new_id", lambda: ref.id)
    store = MemoryStore()
    writer = PackWriter(store, PlainKeys())
    writer.append(
        [
            Encoded(
                bytes.fromhex(each["sha256"]),
                CODECS[each["codec"]],
                released[each["offset"] : each["offset"] + each["stored"]],
                each["length"],
            )
            for each in PACK["blocks"]
        ]
    )
    assert writer.finish() == {ref.id: ref}
    assert store.objects == {PACK["name"]: released}


def test_the_map_is_written_the_same_but_for_its_compression(repository: Repository, ref: PackRef) -> None:
    builder = MapBuilder(MAP["disk_size"])
    for each in MAP["runs"]:
        builder.put(each["first"], each["count"], ref.id, each["ordinal"])
    released, written = repository.store.get(MAP["name"]), builder.finish({ref.id: ref}).encode()
    assert written[:72] == released[:72], "the checksum in there covers the columns"
    assert list(maps.decode(written).runs()) == list(maps.decode(released).runs())


def test_the_manifest_and_the_configuration_are_written_the_same(
    repository: Repository, restore_point: RestorePoint
) -> None:
    assert manifests.encode(restore_point) == repository.store.get(EXPECTED["manifest"]["name"])
    data = repository.store.get("repository.json")
    assert envelope.encode("repository", 1, envelope.decode("repository", 1, data, "repository.json")) == data


def test_the_hooks_are_what_is_described_and_written_the_same(repository: Repository) -> None:
    """Chosen and laid out anew by what the format says."""
    described = EXPECTED["hooks"]
    gone = described["packs"][1]
    ids = [hashlib.sha256(b"hook" + number.to_bytes(4, "little")).digest() for number in range(gone["blocks"])]
    zero_bits = [256 - int.from_bytes(each, "big").bit_length() for each in ids]
    assert (
        sum(bits >= gone["leading_zero_bits"] for bits in zero_bits)
        <= 32
        < sum(bits >= gone["leading_zero_bits"] - 1 for bits in zero_bits)
    )
    assert gone["hooks"] == sorted(
        each.hex()[:16] for each, bits in zip(ids, zero_bits) if bits >= gone["leading_zero_bits"]
    )

    refs = [PackRef(bytes.fromhex(each["id"]), each["size"], each["blocks"]) for each in described["packs"]]
    found = [PackHooks(refs[0], ()), PackHooks(refs[1], hooks.choose(ids))]
    data = repository.store.get(described["name"])
    assert [(each.ref, [f"{key:016x}" for key in each.keys]) for each in hooks.decode(data, "it")] == [
        (ref, each["hooks"]) for ref, each in zip(refs, described["packs"])
    ]
    assert hooks.encode(found) == data
