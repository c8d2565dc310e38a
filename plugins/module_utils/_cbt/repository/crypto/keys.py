# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a repository readable: block ids and the seals around its objects."""

from __future__ import annotations

import hashlib
import typing as t

from ...errors import DamagedObject
from ...files import Buffer

TAG_SIZE = 16  # bytes; what proves a sealed message


class PackKeys(t.Protocol):
    """How the blocks and the directory of one pack are sealed. May be used from several threads."""

    def seal_blocks(self, first: int, payloads: t.Sequence[Buffer]) -> t.Sequence[Buffer]:
        """The payloads of consecutive blocks as they are to be stored one after another, ``first`` being the ordinal of the first one.

        They last until the same thread seals others. What stands at an ordinal of a pack is sealed once: never call it again with something else.
        """

    def unseal_block(self, ordinal: int, stored: Buffer) -> Buffer:
        """The payload of a block. Raises DamagedObject if it is not the one that was stored at this place."""

    def seal_directory(self, header: bytes, directory: bytes, tail: bytes) -> tuple[bytes, bytes]:
        """The directory as it is to be stored, and the 32 bytes that prove it and what stands around it."""

    def unseal_directory(self, header: bytes, stored: bytes, tail: bytes, proof: bytes) -> bytes:
        """The directory. Raises DamagedObject if it or what stands around it is not what was sealed."""


class Keys(t.Protocol):
    """How blocks are named and objects are sealed in one repository. May be used from several threads.

    A stored block is ``overhead`` bytes longer than its payload, a sealed object ``seal_size`` bytes longer than what it seals.
    """

    overhead: int
    seal_size: int

    def block_id(self, data: Buffer) -> bytes:
        """What names a block by its content: 32 bytes. In an encrypted repository nobody else can tell them from the content."""

    def pack(self, pack_id: bytes) -> PackKeys:
        """How a pack is sealed."""

    def seal(self, name: str, data: bytes) -> bytes:
        """The bytes to be stored under ``name``."""

    def unseal(self, name: str, stored: bytes) -> bytes:
        """What was sealed under ``name``. Raises DamagedObject if the bytes are not what was stored under it."""


class PlainPack:
    """Of a repository that is not encrypted: blocks and directory as they are, the directory proven by a SHA-256."""

    def seal_blocks(self, _first: int, payloads: t.Sequence[Buffer]) -> t.Sequence[Buffer]:
        return payloads

    def unseal_block(self, _ordinal: int, stored: Buffer) -> Buffer:
        return stored

    def seal_directory(self, header: bytes, directory: bytes, tail: bytes) -> tuple[bytes, bytes]:
        return directory, hashlib.sha256(header + directory + tail).digest()

    def unseal_directory(self, header: bytes, stored: bytes, tail: bytes, proof: bytes) -> bytes:
        if hashlib.sha256(header + stored + tail).digest() != proof:
            raise DamagedObject("its checksum does not match")
        return stored


class PlainKeys:
    """Of a repository that is not encrypted: SHA-256, and objects as they are."""

    overhead = 0
    seal_size = 0
    _PACK = PlainPack()

    def block_id(self, data: Buffer) -> bytes:
        return hashlib.sha256(data).digest()

    def pack(self, _pack_id: bytes) -> PackKeys:
        return self._PACK

    def seal(self, _name: str, data: bytes) -> bytes:
        return data

    def unseal(self, _name: str, stored: bytes) -> bytes:
        return stored
