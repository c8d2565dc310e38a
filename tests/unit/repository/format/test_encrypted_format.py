"""An encrypted repository as its format describes it, read without the engine: struct, hashlib, hmac and an AES-GCM."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import lz4.block
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from stores_for_tests import MemoryStore
from test_format import map_content

from _cbt.repository.crypto.encryption import EncryptedKeys
from _cbt.repository.format import packs
from _cbt.repository.format.packs import Encoded, PackRef
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.packs.writer import PackWriter
from _cbt.repository.repository import open_repository

VECTORS = Path(__file__).parents[2] / "vectors"
REPOSITORY = VECTORS / "encrypted"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))["encrypted"]
PACK = EXPECTED["pack"]
MASTER = bytes(range(32))
DECODERS = {
    0: lambda payload, _length: payload,
    1: lambda payload, length: lz4.block.decompress(payload, uncompressed_size=length),
    2: lambda payload, _length: zstandard.ZstdDecompressor().decompress(payload),
    3: lambda payload, _length: zlib.decompress(payload),
}


def read(name: str) -> bytes:
    return (REPOSITORY / name).read_bytes()


def derived(purpose: bytes, context: bytes = b"") -> bytes:
    return hmac.new(MASTER, b"kvm.cbt " + purpose + b"\0" + context, "sha256").digest()


def configuration() -> dict[str, Any]:
    match = re.fullmatch(
        rb'\{"kvm\.cbt":"repository","version":1,"sha256":"(.{64})","body":(.*)\}\n', read("repository.json")
    )
    assert match is not None
    assert hashlib.sha256(b"repository 1 " + match[2]).hexdigest() == match[1].decode()
    body: dict[str, Any] = json.loads(match[2])
    return body


def unsealed(name: str) -> bytes:
    stored = read(name)
    magic, version, zero, nonce = struct.unpack("<8sHH12s", stored[:24])
    assert (magic, version, zero) == (b"KVMCBTSO", 1, 0)
    return AESGCM(derived(b"objects")).decrypt(nonce, stored[24:], stored[:24] + name.encode())


def pack_blocks() -> list[bytes]:
    """The plain blocks of the pack, read from its end."""
    data, pack_id = read(PACK["name"]), bytes.fromhex(PACK["id"])
    assert struct.unpack("<8sH6s16s", data[:32]) == (b"KVMCBTPK", 1, bytes(6), pack_id)
    offset, count, reserved, tag, zero, end_magic = struct.unpack("<QII16s16s8s", data[-56:])
    assert (reserved, zero, end_magic, offset) == (0, bytes(16), b"PKKVMCBT", len(data) - 56 - 44 * count)
    cipher = AESGCM(derived(b"pack", pack_id))
    directory = cipher.decrypt(b"\xff" * 12, data[offset:-56] + tag, data[:32] + data[-56:-40])
    blocks, at = [], 32
    for ordinal, (block_id, stored, crc, rest) in enumerate(struct.iter_unpack("<32sIII", directory)):
        payload = cipher.decrypt(ordinal.to_bytes(12, "little"), data[at : at + stored], b"")
        at += stored
        codec, length = rest >> 24, rest & 0xFFFFFF
        assert crc == 0
        block = DECODERS[codec](payload, length)
        assert (len(block), hmac.new(derived(b"block id"), block, "sha256").digest()) == (length, block_id)
        blocks.append(block)
    assert at == offset
    return blocks


@pytest.mark.parametrize("name", EXPECTED["objects"])
def test_the_vectors_are_those_that_were_released(name: str) -> None:
    assert {"size": len(read(name)), "sha256": hashlib.sha256(read(name)).hexdigest()} == EXPECTED["objects"][name]


def test_there_is_no_object_without_description() -> None:
    assert sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*") if path.is_file()) == sorted(
        EXPECTED["objects"]
    )


def test_the_derived_keys() -> None:
    context = {"pack": bytes.fromhex(PACK["id"])}
    assert {name: derived(name.encode(), context.get(name, b"")).hex() for name in EXPECTED["derived"]} == EXPECTED[
        "derived"
    ]


@pytest.mark.parametrize("name", EXPECTED["passphrases"])
def test_each_slot_gives_the_master_key_to_its_passphrase(name: str) -> None:
    body = configuration()
    slot = body["slots"][name]
    assert (slot["kdf"], len(bytes.fromhex(slot["salt"]))) == ("scrypt", 32)
    passphrase = EXPECTED["passphrases"][name].encode()
    key = hashlib.scrypt(
        passphrase, salt=bytes.fromhex(slot["salt"]), n=slot["n"], r=slot["r"], p=slot["p"], maxmem=1 << 30, dklen=32
    )
    around = f"kvm.cbt slot {body['id']} {name}".encode()
    assert (
        AESGCM(key).decrypt(bytes(12), bytes.fromhex(slot["key"]), around)
        == MASTER
        == bytes.fromhex(EXPECTED["master_key"])
    )


def test_the_configuration_is_proven_by_the_master_key() -> None:
    body = configuration()
    code = body.pop("code")
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hmac.new(derived(b"configuration"), text, "sha256").hexdigest() == code
    assert (body["hash"], body["features"], body["block_size"]) == ("hmac-sha256", ["encryption"], 65536)


def test_the_pack() -> None:
    blocks = pack_blocks()
    assert [hashlib.sha256(block).hexdigest() for block in blocks] == [each["sha256"] for each in PACK["blocks"]]
    assert blocks[:3] == [b"kvm.cbt " * 8192, b"zstandard block " * 4096, b"zlib 123" * 8192]


def test_the_disk_is_put_together_from_manifest_map_and_pack() -> None:
    manifest = json.loads(
        re.fullmatch(rb'\{"kvm\.cbt":"manifest".*?"body":(.*)\}\n', unsealed(EXPECTED["manifest"]))[1]
    )  # type: ignore[index]
    assert manifest["domain"] == "büro-1"
    data = unsealed(EXPECTED["map"])
    assert hashlib.sha256(data).hexdigest() == manifest["disks"][0]["map"]["sha256"]
    extents, blocks = map_content(data), pack_blocks()
    image = bytearray(extents["disk_size"])
    for run in extents["runs"]:
        content = b"".join(blocks[run["ordinal"] : run["ordinal"] + run["count"]])
        image[run["first"] * 65536 : run["first"] * 65536 + len(content)] = content
    assert {"size": len(image), "sha256": hashlib.sha256(image).hexdigest()} == EXPECTED["disk"]


@pytest.mark.parametrize("passphrase", EXPECTED["passphrases"].values())
def test_the_engine_reads_the_same(passphrase: str) -> None:
    repository = open_repository(RepositoryLocation(str(REPOSITORY), passphrase=passphrase))
    (found,) = repository.points_of().points
    (ref,) = repository.read_map(found, "vda").packs
    assert [bytes(block) for block in repository.reader.blocks(ref, 0, ref.blocks)] == pack_blocks()  # type: ignore[arg-type]
    assert (
        repository.get_file(found, found.files["domain.xml"]).decode()
        == "<domain type='kvm'><name>büro-1</name></domain>\n"
    )


def test_the_engine_writes_the_same_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same payloads: what a codec makes of a block may differ from version to version."""
    data, pack_id = read(PACK["name"]), bytes.fromhex(PACK["id"])
    cipher = AESGCM(derived(b"pack", pack_id))
    monkeypatch.setattr(packs, "new_id", lambda: pack_id)
    store = MemoryStore()
    writer = PackWriter(store, EncryptedKeys(MASTER))
    codes = {"stored": 0, "lz4": 1, "zstd": 2, "zlib": 3}
    blocks = []
    for each in PACK["blocks"]:
        payload = cipher.decrypt(
            each["ordinal"].to_bytes(12, "little"), data[each["offset"] : each["offset"] + each["stored"]], b""
        )
        blocks.append(Encoded(bytes.fromhex(each["id"]), codes[each["codec"]], payload, each["length"]))
    writer.append(blocks)
    assert writer.finish() == {pack_id: PackRef(pack_id, len(data), len(blocks))}
    assert store.objects == {PACK["name"]: data}
