# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks: a sample of the block ids in each pack, used to find packs. Pure.

After Lillibridge et al., "Sparse Indexing: Large Scale, Inline Deduplication Using Sampling and Locality" (FAST 2009):
a writer that finds a hook loads the directory of its pack, and finds the neighbours of the block there. Layout,
integers little-endian:

    magic (8), version (2), zero (2), number of packs (4), SHA-256 of these 16 bytes and all that follows them (32)
    per pack: id (16), size (8), blocks (4), number of hooks (4)
    hooks (8 each: the first 8 bytes of a block id), pack by pack
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import typing as t

from ...errors import DamagedObject, RepositoryError
from .packs import PackRef

VERSION = 1
MAGIC = b"KVMCBTHK"
HEADER = struct.Struct("<8sHHI")
PACK = struct.Struct("<16sQII")
MOST = 32  # hooks of one pack
PACKS_PER_OBJECT = 4096

_KEY = struct.Struct(">Q")
_LEAST_BITS = 3
_FIRST_BYTES = 1 << 8 - _LEAST_BITS  # the first byte of a hook is less


class PackHooks(t.NamedTuple):
    """A pack and its hooks: first 8 bytes of block ids, as big-endian numbers."""

    ref: PackRef
    keys: tuple[int, ...]


def key_of(block_id: bytes) -> int:
    """Return the first 8 bytes of a block id as a big-endian number."""
    return int.from_bytes(block_id[: _KEY.size], "big")


def may_be_hook(block_id: bytes) -> bool:
    """Return True if a block can be a hook of a pack, as one in eight can."""
    return block_id[0] < _FIRST_BYTES


def choose(block_ids: t.Iterable[bytes]) -> tuple[int, ...]:
    """Return the hooks of a pack with these blocks, at most 32.

    They begin with a number of zero bits: the smallest, three or more, that leaves at most 32 hooks. So a large pack
    has no more of them either, and packs with the same number of bits sample the same blocks.
    """
    keys = sorted({key_of(block_id) for block_id in block_ids if may_be_hook(block_id)})
    bits = _LEAST_BITS
    while len(keys) > MOST:
        bits += 1
        keys = [key for key in keys if key >> 64 - bits == 0]
    return tuple(keys)


def encode(found: t.Sequence[PackHooks]) -> bytes:
    """Return the object with the hooks of up to PACKS_PER_OBJECT packs."""
    head = HEADER.pack(MAGIC, VERSION, 0, len(found))
    table = b"".join(PACK.pack(*each.ref, len(each.keys)) for each in found)
    rest = table + b"".join(_KEY.pack(key) for each in found for key in each.keys)
    return head + hashlib.sha256(head + rest).digest() + rest


def decode(data: bytes, name: str) -> list[PackHooks]:
    """Return the hooks in an object.

    Raises DamagedObject if anything in it is not as written, RepositoryError if its version is not known.
    """
    start = HEADER.size + 32
    if len(data) < start or data[:8] != MAGIC:
        raise DamagedObject(f"{name} is damaged: it holds no hooks")
    _magic, version, _zero, packs = HEADER.unpack_from(data)
    if hashlib.sha256(data[: HEADER.size] + data[start:]).digest() != data[HEADER.size : start]:
        raise DamagedObject(f"{name} is damaged: its checksum does not match")
    if version != VERSION:
        raise RepositoryError(
            f"{name} has format {version}; this version of kvm.cbt reads format {VERSION}. Update it."
        )
    end = start + packs * PACK.size
    table = list(PACK.iter_unpack(data[start:end])) if end <= len(data) else []
    if len(table) != packs or len(data) - end != sum(fields[3] for fields in table) * _KEY.size:
        raise DamagedObject(f"{name} is damaged: it does not have the length its header says")
    if max(data[end :: _KEY.size], default=0) >= _FIRST_BYTES:
        raise DamagedObject(f"{name} is damaged: it contains an invalid hook")
    keys = iter(struct.unpack(f">{(len(data) - end) // _KEY.size}Q", data[end:]))
    return [PackHooks(PackRef(*ref), tuple(itertools.islice(keys, count))) for *ref, count in table]
