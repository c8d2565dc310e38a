"""The format on disk, read without the engine: whoever changes it breaks this test, and every repository in the field.

Only the documented layout is used: struct, zlib, hashlib and an LZ4 block decoder of a few lines.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).parents[2] / "vectors"
REPOSITORY = VECTORS / "repository"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))
BLOCK = 65536


def counter_stream(label: bytes, length: int) -> bytes:
    return b"".join(hashlib.sha256(label + number.to_bytes(4, "little")).digest() for number in range(length // 32))


PLAIN = [counter_stream(b"kvm.cbt", BLOCK), b"kvm.cbt " * 8192, counter_stream(b"short", 1536)]


def read(name: str) -> bytes:
    return (REPOSITORY / name).read_bytes()


def unpack_lz4(data: bytes) -> bytes:
    """An LZ4 block: sequences of token, literals, and a match told by offset and length."""
    out, at = bytearray(), 0

    def length(start: int) -> int:
        nonlocal at
        total = start
        if start == 15:
            while True:
                more = data[at]
                at += 1
                total += more
                if more != 255:
                    break
        return total

    while True:
        token = data[at]
        at += 1
        literals = length(token >> 4)
        out += data[at : at + literals]
        at += literals
        if at == len(data):
            return bytes(out)
        offset = int.from_bytes(data[at : at + 2], "little")
        at += 2
        for _byte in range(length(token & 15) + 4):
            out.append(out[-offset])


def pack_blocks(data: bytes, pack_id: bytes) -> list[bytes]:
    """The plain blocks of a pack, read from its end."""
    magic, version, zero, found_id = struct.unpack("<8sH6s16s", data[:32])
    assert (magic, version, zero, found_id) == (b"KVMCBTPK", 1, bytes(6), pack_id)
    offset, count, reserved, checksum, end_magic = struct.unpack("<QII32s8s", data[-56:])
    assert (reserved, end_magic, offset) == (0, b"PKKVMCBT", len(data) - 56 - 44 * count)
    assert hashlib.sha256(data[:32] + data[offset:-40]).digest() == checksum
    blocks, at = [], 32
    for digest, stored, crc, rest in struct.iter_unpack("<32sIII", data[offset:-56]):
        payload, codec, length = data[at : at + stored], rest >> 24, rest & 0xFFFFFF
        at += stored
        assert crc == (0 if codec == 0 else zlib.crc32(payload))
        block = {0: bytes, 1: unpack_lz4}[codec](payload)
        assert (len(block), hashlib.sha256(block).digest()) == (length, digest)
        blocks.append(block)
    assert at == offset
    return blocks


def map_content(data: bytes) -> dict[str, Any]:
    """The packs and runs of an extent map."""
    magic, version, zero, block_size, size, packs, reserved, runs = struct.unpack("<8sHHIQIIQ", data[:40])
    assert (magic, version, zero, block_size, reserved) == (b"KVMCBTMP", 1, 0, BLOCK, 0)
    columns = zlib.decompress(data[72:])
    assert hashlib.sha256(data[:40] + columns).digest() == data[40:72]
    assert len(columns) == packs * 28 + runs * 20
    table = [struct.unpack_from("<16sQI", columns, index * 28) for index in range(packs)]
    gaps, counts, indexes, ordinals = (
        struct.unpack_from(f"<{runs}{code}", columns, packs * 28 + runs * start)
        for code, start in (("Q", 0), ("I", 8), ("I", 12), ("I", 16))
    )
    found, end = [], 0
    for gap, count, index, ordinal in zip(gaps, counts, indexes, ordinals):
        found.append({"first": end + gap, "count": count, "pack": index, "ordinal": ordinal})
        end += gap + count
    return {
        "disk_size": size,
        "packs": [{"id": each[0].hex(), "size": each[1], "blocks": each[2]} for each in table],
        "runs": found,
    }


def sealed_body(data: bytes, kind: str) -> Any:
    match = re.fullmatch(rb'\{"kvm\.cbt":"(.*?)","version":1,"sha256":"(.{64})","body":(.*)\}\n', data)
    assert match is not None
    assert match[1].decode() == kind
    assert hashlib.sha256(f"{kind} 1 ".encode() + match[3]).hexdigest() == match[2].decode()
    return json.loads(match[3])


@pytest.mark.parametrize("name", EXPECTED["objects"])
def test_the_vectors_are_those_that_were_released(name: str) -> None:
    assert {"size": len(read(name)), "sha256": hashlib.sha256(read(name)).hexdigest()} == EXPECTED["objects"][name]


def test_there_is_no_object_without_description() -> None:
    assert sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*") if path.is_file()) == sorted(
        EXPECTED["objects"]
    )


def test_the_pack() -> None:
    pack = EXPECTED["pack"]
    assert pack["name"] == f"packs/00/{bytes(range(16)).hex()}"
    assert pack_blocks(read(pack["name"]), bytes(range(16))) == PLAIN
    assert [each["sha256"] for each in pack["blocks"]] == [hashlib.sha256(block).hexdigest() for block in PLAIN]


def test_the_map() -> None:
    expected = {key: value for key, value in EXPECTED["map"].items() if key != "name"}
    assert map_content(read(EXPECTED["map"]["name"])) == expected


def test_the_manifest_and_the_configuration() -> None:
    assert sealed_body(read(EXPECTED["manifest"]["name"]), "manifest") == EXPECTED["manifest"]["body"]
    expected = {"id": EXPECTED["repository"]["id"], "block_size": BLOCK, "hash": "sha256", "features": []}
    assert sealed_body(read("repository.json"), "repository") == expected


def test_the_disk_is_put_together_from_manifest_map_and_pack() -> None:
    manifest = sealed_body(read(EXPECTED["manifest"]["name"]), "manifest")
    (disk,) = manifest["disks"]
    folder = f"points/{manifest['uuid']}/{manifest['id']}"
    data = read(f"{folder}/{disk['map']['name']}")
    assert (len(data), hashlib.sha256(data).hexdigest()) == (disk["map"]["size"], disk["map"]["sha256"])
    extents = map_content(data)
    image = bytearray(extents["disk_size"])
    for run in extents["runs"]:
        pack_id = bytes.fromhex(extents["packs"][run["pack"]]["id"])
        blocks = pack_blocks(read(f"packs/{pack_id.hex()[:2]}/{pack_id.hex()}"), pack_id)
        content = b"".join(blocks[run["ordinal"] : run["ordinal"] + run["count"]])
        image[run["first"] * BLOCK : run["first"] * BLOCK + len(content)] = content
    assert len(image) == EXPECTED["disk"]["size"] == disk["size"]
    assert hashlib.sha256(image).hexdigest() == EXPECTED["disk"]["sha256"]
