# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The format of packs: immutable objects with many blocks and a directory. Pure.

A pack can be read without any other object. Layout, all integers little-endian:

    header     magic (8), version (2), zero (6), pack id (16)
    payloads   one after another, in the order of the directory
    directory  per block: block id (32), stored length (4), CRC-32 (4), plain length and codec (4)
    footer     directory offset (8), blocks (4), zero (4), proof of header, directory and these 16 bytes (32), magic (8)

Without encryption, block id and proof are each a SHA-256. With encryption, payloads and directory are sealed.
"""

from __future__ import annotations

import array
import itertools
import os
import struct
import typing as t
import zlib

from ...errors import DamagedObject, RepositoryError
from ...files import Buffer
from ...grid import BLOCK_SIZE
from ..crypto.keys import Keys, PackKeys
from . import codecs, names

VERSION = 1
MAGIC = b"KVMCBTPK"
END_MAGIC = b"PKKVMCBT"
TARGET_SIZE = 64 << 20  # payload bytes after which a pack is closed
MOST_BLOCKS = 1 << 15  # of a pack that is read; the last blocks that are appended may lead beyond the next line
MAX_BLOCKS = 16384  # keeps the directory of a pack of highly compressible blocks under 1 MiB

HEADER = struct.Struct("<8sH6s16s")
ENTRY = struct.Struct("<32sIII")
TAIL = struct.Struct("<QII")
FOOTER_SIZE = TAIL.size + 32 + len(END_MAGIC)
_CODEC_SHIFT = 24


class Encoded(t.NamedTuple):
    """A block ready to be stored."""

    digest: bytes
    codec: int
    payload: Buffer
    length: int


class PackRef(t.NamedTuple):
    """A reference to a pack, sufficient to fetch its directory in one request."""

    id: bytes
    size: int
    blocks: int

    @property
    def name(self) -> str:
        """Return the name of its object."""
        return names.pack(self.id)

    @property
    def directory_offset(self) -> int:
        """Return the offset of its directory."""
        return self.size - FOOTER_SIZE - self.blocks * ENTRY.size


def check_ref(ref: PackRef) -> None:
    """Raise DamagedObject if no pack can have this size and number of blocks."""
    if ref.blocks > MOST_BLOCKS or not HEADER.size <= ref.directory_offset <= names.PACK_KIND.largest:
        raise DamagedObject(f"pack {ref.id.hex()} cannot have {ref.size} bytes and {ref.blocks} blocks")


def new_id() -> bytes:
    """Return a new random pack id of 16 bytes."""
    return os.urandom(16)


def header(pack_id: bytes) -> bytes:
    """Return the header of a pack, its first bytes."""
    return HEADER.pack(MAGIC, VERSION, bytes(6), pack_id)


def entry(block: Encoded, overhead: int) -> bytes:
    """Return a block's entry of the directory. Sealing adds ``overhead`` bytes to the payload."""
    crc = _checksum(block.codec, block.payload, overhead)
    return ENTRY.pack(block.digest, len(block.payload) + overhead, crc, block.length | block.codec << _CODEC_SHIFT)


def _checksum(codec: int, payload: Buffer, overhead: int) -> int:
    """Return the CRC-32 of a compressed payload, 0 for a stored or sealed one.

    A changed bit in a compressed payload may still decompress to the right bytes; the checksum detects it all the same.
    A stored payload is the block itself, which its block id proves. The seal proves a sealed one.
    """
    return 0 if overhead or codec == codecs.STORED else zlib.crc32(payload)


def ending(pack_id: bytes, directory: bytes, offset: int, keys: PackKeys) -> bytes:
    """Return directory and footer of a pack whose payloads end at ``offset``."""
    tail = TAIL.pack(offset, len(directory) // ENTRY.size, 0)
    stored, proof = keys.seal_directory(header(pack_id), directory, tail)
    return stored + tail + proof + END_MAGIC


class BlockEntry(t.NamedTuple):
    """The entry of one block; ``offset`` and ``stored`` are bytes in the pack."""

    digest: bytes
    offset: int
    stored: int
    crc: int
    length: int
    codec: int


class Directory:
    """The checked directory of one pack, and the ``keys`` to its blocks."""

    def __init__(self, raw: bytes, keys: PackKeys) -> None:
        self._raw = raw
        self.keys = keys
        lengths = (fields[1] for fields in ENTRY.iter_unpack(raw))
        self._offsets: array.array[int] = array.array("Q", itertools.accumulate(lengths, initial=HEADER.size))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def end(self) -> int:
        """Return the offset where the payloads end."""
        return self._offsets[-1]

    def digest(self, ordinal: int) -> bytes:
        """Return the id of a block."""
        return self._raw[ordinal * ENTRY.size : ordinal * ENTRY.size + 32]

    def entry(self, ordinal: int) -> BlockEntry:
        """Return the entry of one block."""
        digest, stored, crc, rest = ENTRY.unpack_from(self._raw, ordinal * ENTRY.size)
        return BlockEntry(
            digest, self._offsets[ordinal], stored, crc, rest & ((1 << _CODEC_SHIFT) - 1), rest >> _CODEC_SHIFT
        )

    def span(self, first: int, count: int) -> tuple[int, int]:
        """Return offset and length in the pack of ``count`` consecutive blocks."""
        return self._offsets[first], self._offsets[first + count] - self._offsets[first]


def parse_directory(ref: PackRef, head: bytes, rest: bytes, keys: PackKeys) -> Directory:
    """Return a pack's directory from its header and the bytes from its offset on.

    Raises DamagedObject if anything in it is not as written, RepositoryError if its version is not known.
    """
    stored, footer = rest[:-FOOTER_SIZE], rest[-FOOTER_SIZE:]
    tail, proof = footer[: TAIL.size], footer[TAIL.size : -len(END_MAGIC)]
    try:
        raw = keys.unseal_directory(head, stored, tail, proof)
    except DamagedObject as error:
        raise DamagedObject(f"Pack {ref.id.hex()} is damaged: its header or directory was changed") from error
    if len(head) == HEADER.size and head[:8] == MAGIC and HEADER.unpack(head)[1] != VERSION:
        raise RepositoryError(
            f"Pack {ref.id.hex()} has format {HEADER.unpack(head)[1]}; this version of kvm.cbt reads format {VERSION}."
            " Update it."
        )
    expected = header(ref.id), ref.blocks * ENTRY.size, TAIL.pack(ref.directory_offset, ref.blocks, 0), END_MAGIC
    if (head, len(raw), tail, footer[-len(END_MAGIC) :]) != expected:
        raise DamagedObject(f"Pack {ref.id.hex()} is damaged: its header or directory was changed")
    parsed = Directory(raw, keys)
    if parsed.end != ref.directory_offset:
        raise DamagedObject(f"Pack {ref.id.hex()} is damaged: its directory does not fit its size")
    return parsed


def decode(block: BlockEntry, ordinal: int, stored: Buffer, pack: PackKeys, keys: Keys) -> tuple[Encoded, Buffer]:
    """Return a block ready to be stored elsewhere, and its plain bytes, proven by seal, checksum and block id.

    Raises DamagedObject with the cause if they are not what was written.
    """
    if len(stored) != block.stored:
        raise DamagedObject("the pack is truncated")
    if not 0 < block.length <= BLOCK_SIZE:
        raise DamagedObject("its length is wrong")
    payload = pack.unseal_block(ordinal, stored)
    if block.crc != _checksum(block.codec, payload, keys.overhead):
        raise DamagedObject("its stored bytes have changed")
    data = codecs.decode(block.codec, payload, block.length)
    if keys.block_id(data) != block.digest:
        raise DamagedObject("its content does not match its SHA-256")
    return Encoded(block.digest, block.codec, payload, block.length), data
