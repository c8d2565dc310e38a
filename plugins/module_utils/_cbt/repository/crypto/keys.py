# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of keys, and its implementation for unencrypted repositories.

Keys compute block ids and seal objects.
"""

from __future__ import annotations

import hashlib
import typing as t

from ...errors import DamagedObject
from ...files import Buffer

TAG_SIZE = 16  # bytes of the tag that authenticates a sealed message


class PackKeys(t.Protocol):
    """Seals the blocks and the directory of one pack. Thread-safe."""

    def seal_blocks(self, first: int, payloads: t.Sequence[Buffer]) -> t.Sequence[Buffer]:
        """Return the payloads of consecutive blocks as stored, one after another.

        ``first`` is the ordinal of the first block. The result is valid until the same thread seals other blocks. Seal
        only one content for each ordinal of a pack: the ordinal may be the nonce.
        """

    def unseal_block(self, ordinal: int, stored: Buffer) -> Buffer:
        """Return the payload of a block. Encrypted: raises DamagedObject if it was not stored at this ordinal."""

    def seal_directory(self, header: bytes, directory: bytes, tail: bytes) -> tuple[bytes, bytes]:
        """Return the stored directory and the 32 bytes that authenticate it and its context.

        The context is ``header`` and ``tail``.
        """

    def unseal_directory(self, header: bytes, stored: bytes, tail: bytes, proof: bytes) -> bytes:
        """Return the directory. Raises DamagedObject if it or its context is not what was sealed."""


class Keys(t.Protocol):
    """Computes block ids and seals the objects of one repository. Thread-safe.

    A stored block is ``overhead`` bytes longer than its payload, and a sealed object ``seal_size`` bytes longer than
    its content.
    """

    overhead: int
    seal_size: int

    def block_id(self, data: Buffer) -> bytes:
        """Return the 32-byte id of a block, a digest of its content.

        In an encrypted repository the digest needs the key.
        """

    def pack(self, pack_id: bytes) -> PackKeys:
        """Return the keys of a pack."""

    def seal(self, name: str, data: bytes) -> bytes:
        """Return the bytes to store under ``name``."""

    def unseal(self, name: str, stored: bytes) -> bytes:
        """Return the content sealed under ``name``.

        In an encrypted repository, raises DamagedObject if the bytes were not sealed under this name.
        """


class PlainPack:
    """Stores blocks and directory as they are. A SHA-256 digest authenticates the directory."""

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
    """Keys of an unencrypted repository: SHA-256 ids, and objects as they are."""

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
