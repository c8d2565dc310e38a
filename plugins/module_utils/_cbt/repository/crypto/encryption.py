# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seals encrypted repositories: AES-256-GCM with keys derived from one master key.

docs/repository-format.md has the layout of sealed objects.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import struct
import threading
import typing as t

from ...errors import DamagedObject, RepositoryError
from ...files import Buffer
from .keys import TAG_SIZE, PackKeys

if t.TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from .gcm import Gcm

KEY_SIZE = 32
NONCE_SIZE = 12
MAGIC = b"KVMCBTSO"
VERSION = 1
_HEADER = struct.Struct("<8sHH12s")  # magic, version, zero, nonce
_MEMORY = threading.local()
_DIRECTORY_NONCE = b"\xff" * NONCE_SIZE  # larger than any ordinal


def derived(master: bytes, purpose: str, context: bytes = b"") -> bytes:
    """Return the 32-byte key for one purpose.

    It reveals neither the master key nor the key of another purpose.
    """
    return hmac.digest(master, f"kvm.cbt {purpose}".encode() + b"\0" + context, "sha256")


def _gcm() -> t.Any:
    from . import gcm  # imported only here: importing the library is slow

    return gcm


class Cipher:
    """AES-256-GCM under one key."""

    def __init__(self, key: bytes) -> None:
        self._aead: AESGCM = _gcm().one_shot(key)

    def encrypt(self, nonce: bytes, data: Buffer, around: bytes) -> bytes:
        """Return the encrypted data and the tag that authenticates it and ``around``.

        Use each nonce only once per key.
        """
        return self._aead.encrypt(nonce, bytes(data), around)

    def decrypt(self, nonce: bytes, stored: Buffer, around: bytes) -> bytes:
        """Return the decrypted data. Raises DamagedObject if an argument differs from that of ``encrypt``."""
        with _proving():
            return self._aead.decrypt(nonce, bytes(stored), around)


@contextlib.contextmanager
def _proving() -> t.Iterator[None]:
    try:
        yield
    except (_gcm().InvalidTag, ValueError) as error:
        raise DamagedObject("its seal is broken: it was changed, or it belongs elsewhere") from error


class EncryptedPack:
    """Seals the blocks and the directory of a pack under the pack's key.

    Each block is sealed by itself. Its nonce is its ordinal.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(key)
        self._blocks: Gcm = _gcm().new_gcm(key)

    def seal_blocks(self, first: int, payloads: t.Sequence[Buffer]) -> t.Sequence[Buffer]:
        room = _room(sum(map(len, payloads)) + len(payloads) * TAG_SIZE)
        self._blocks.seal_into(room, ((_nonce(ordinal), payload) for ordinal, payload in enumerate(payloads, first)))
        return [room]

    def unseal_block(self, ordinal: int, stored: Buffer) -> Buffer:
        with _proving():
            return self._blocks.unseal(_nonce(ordinal), stored)

    def seal_directory(self, header: bytes, directory: bytes, tail: bytes) -> tuple[bytes, bytes]:
        sealed = self._cipher.encrypt(_DIRECTORY_NONCE, directory, header + tail)
        return sealed[:-TAG_SIZE], sealed[-TAG_SIZE:] + bytes(TAG_SIZE)

    def unseal_directory(self, header: bytes, stored: bytes, tail: bytes, proof: bytes) -> bytes:
        if proof[TAG_SIZE:] != bytes(TAG_SIZE):
            raise DamagedObject("its seal is not valid")
        return self._cipher.decrypt(_DIRECTORY_NONCE, stored + proof[:TAG_SIZE], header + tail)


def _room(size: int) -> memoryview:
    """Return a buffer of this thread, which later calls reuse."""
    if len(getattr(_MEMORY, "room", b"")) < size:
        _MEMORY.room = bytearray(size)
    return memoryview(_MEMORY.room)[:size]


def _nonce(ordinal: int) -> bytes:
    return ordinal.to_bytes(NONCE_SIZE, "little")


def _bytes_of(name: str) -> bytes:
    """Return the name of an object as bytes. The name of a foreign file in a repository need not be UTF-8."""
    return name.encode(errors="surrogateescape")


class EncryptedKeys:
    """Keys of an encrypted repository, derived from its master key of 32 bytes."""

    overhead = TAG_SIZE
    seal_size = _HEADER.size + TAG_SIZE

    def __init__(self, master: bytes) -> None:
        self._master = master
        self._block_id = hmac.new(derived(master, "block id"), digestmod="sha256")
        self._objects = Cipher(derived(master, "objects"))

    def block_id(self, data: Buffer) -> bytes:
        digest = self._block_id.copy()  # unlike hmac.digest, this lets other threads run
        digest.update(data)
        return digest.digest()

    def pack(self, pack_id: bytes) -> PackKeys:
        return EncryptedPack(derived(self._master, "pack", pack_id))

    def seal(self, name: str, data: bytes) -> bytes:
        header = _HEADER.pack(MAGIC, VERSION, 0, os.urandom(NONCE_SIZE))
        return header + self._objects.encrypt(header[-NONCE_SIZE:], data, header + _bytes_of(name))

    def unseal(self, name: str, stored: bytes) -> bytes:
        header = stored[: _HEADER.size]
        if len(header) < _HEADER.size or header[:8] != MAGIC:
            raise DamagedObject(f"{name} is damaged: it is not a sealed object of this encrypted repository")
        try:
            data = self._objects.decrypt(
                header[-NONCE_SIZE:], memoryview(stored)[_HEADER.size :], header + _bytes_of(name)
            )
        except DamagedObject as error:
            raise DamagedObject(f"{name} is damaged: {error}") from error
        if header[:-NONCE_SIZE] != _HEADER.pack(MAGIC, VERSION, 0, b"")[:-NONCE_SIZE]:
            raise RepositoryError(
                f"{name} is sealed in a format that this version of kvm.cbt does not know. Update the collection."
            )
        return data
