# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AES-256-GCM for many blocks, at little more than the cost of the cipher.

Up to version 42 of the library, as in Debian 12 and RHEL 9, its public classes take twice as long as OpenSSL for a
block of 64 KiB, and each of their many calls releases the interpreter lock and takes it again. These versions include
bindings of OpenSSL's own functions, which this module calls instead. Later versions lack the bindings, and their public
classes are as fast.
"""

from __future__ import annotations

import typing as t

from ...errors import RepositoryError
from ...files import Buffer
from .keys import TAG_SIZE

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.bindings.openssl.binding import Binding
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    _LIB, _FFI = Binding.lib, Binding.ffi
except ImportError:  # needed only for encrypted repositories
    AESGCM = None  # type: ignore[assignment,misc,unused-ignore]

_ENCRYPT, _DECRYPT = 1, 0

Message = tuple[bytes, Buffer]  # nonce of 12 bytes, content


def one_shot(key: bytes) -> AESGCM:
    """Return the cipher for whole messages with associated data.

    Raises RepositoryError if the library is missing.
    """
    if AESGCM is None:
        raise RepositoryError(
            "Encrypted repositories need the Python module cryptography. Install python3-cryptography."
        )
    return AESGCM(key)


class Gcm(t.Protocol):
    """The cipher under one key. May be used from several threads."""

    def seal_into(self, room: memoryview, messages: t.Iterable[Message]) -> None:
        """Encrypt messages one after another into ``room``, each with its tag.

        A tag has TAG_SIZE bytes. Use each nonce for one content only.
        """

    def unseal(self, nonce: bytes, stored: Buffer) -> Buffer:
        """Return the content of a sealed message.

        Raises InvalidTag if the message was not sealed with this key and nonce.
        """


class PublicGcm:
    """Uses the public classes of the library."""

    def __init__(self, key: bytes) -> None:
        self._aead, self._algorithm = AESGCM(key), algorithms.AES(key)

    def seal_into(self, room: memoryview, messages: t.Iterable[Message]) -> None:
        start = 0
        for nonce, content in messages:
            stop = start + len(content)
            encryptor = Cipher(self._algorithm, modes.GCM(nonce)).encryptor()
            encryptor.update_into(content, room[start : stop + TAG_SIZE])
            encryptor.finalize()
            start = stop + TAG_SIZE
            room[stop:start] = encryptor.tag

    def unseal(self, nonce: bytes, stored: Buffer) -> Buffer:
        return self._aead.decrypt(nonce, bytes(stored), b"")


class DirectGcm:
    """Uses OpenSSL's functions from the bindings of the library."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._algorithm = _LIB.EVP_get_cipherbyname(b"aes-256-gcm")

    def _context(self, direction: int) -> t.Any:
        context = _FFI.gc(_LIB.EVP_CIPHER_CTX_new(), _LIB.EVP_CIPHER_CTX_free)
        _done(int(context != _FFI.NULL))
        _done(_LIB.EVP_CipherInit_ex(context, self._algorithm, _FFI.NULL, self._key, _FFI.NULL, direction))
        return context

    def _update(self, context: t.Any, direction: int, nonce: bytes, content: Buffer, into: t.Any) -> None:
        null = _FFI.NULL
        _done(_LIB.EVP_CipherInit_ex(context, null, null, null, nonce, direction))
        _done(_LIB.EVP_CipherUpdate(context, into, _FFI.new("int *"), _FFI.from_buffer(content), len(content)))

    def seal_into(self, room: memoryview, messages: t.Iterable[Message]) -> None:
        context, begin, rest = self._context(_ENCRYPT), _FFI.from_buffer(room), _FFI.new("int *")
        start = 0
        for nonce, content in messages:
            stop = start + len(content)
            if stop + TAG_SIZE > len(room):
                raise ValueError("no room")  # OpenSSL would write past the end
            self._update(context, _ENCRYPT, nonce, content, begin + start)
            _done(_LIB.EVP_CipherFinal_ex(context, begin + stop, rest))
            _done(_LIB.EVP_CIPHER_CTX_ctrl(context, _LIB.EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, begin + stop))
            start = stop + TAG_SIZE

    def unseal(self, nonce: bytes, stored: Buffer) -> Buffer:
        if len(stored) < TAG_SIZE:
            raise InvalidTag()
        content, tag = memoryview(stored)[:-TAG_SIZE], bytes(stored[-TAG_SIZE:])
        plain = bytearray(len(content))
        context = self._context(_DECRYPT)
        self._update(context, _DECRYPT, nonce, content, _FFI.from_buffer(plain))
        _done(_LIB.EVP_CIPHER_CTX_ctrl(context, _LIB.EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, tag))
        if _LIB.EVP_CipherFinal_ex(context, _FFI.NULL, _FFI.new("int *")) != 1:
            _LIB.ERR_clear_error()
            raise InvalidTag()
        return plain


def _done(result: int) -> None:
    """Raise RepositoryError if a function of OpenSSL failed.

    Causes are a lack of memory, or a policy of the host that forbids the cipher.
    """
    if result != 1:
        raise RepositoryError(
            "OpenSSL refuses AES-256-GCM, which encrypted repositories need. Check the memory and the crypto policy of"
            " this host."
        )


_FUNCTIONS = (
    "ERR_clear_error",
    "EVP_CIPHER_CTX_ctrl",
    "EVP_CIPHER_CTX_free",
    "EVP_CIPHER_CTX_new",
    "EVP_CTRL_AEAD_GET_TAG",
    "EVP_CTRL_AEAD_SET_TAG",
    "EVP_CipherFinal_ex",
    "EVP_CipherInit_ex",
    "EVP_CipherUpdate",
    "EVP_get_cipherbyname",
)
new_gcm: t.Callable[[bytes], Gcm] = PublicGcm
if AESGCM is not None and all(hasattr(_LIB, name) for name in _FUNCTIONS):
    new_gcm = DirectGcm
