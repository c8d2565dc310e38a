# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Key slots: the master key, wrapped with a passphrase. Pure except for random salts."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import typing as t

from ...errors import DamagedObject, RepositoryError
from .encryption import KEY_SIZE, NONCE_SIZE, Cipher
from .keys import TAG_SIZE

COST = 1 << 17  # scrypt's n: with r = 8, one attempt takes 128 MiB of memory and some tenths of a second
MAX_SLOTS = 8  # all are tried, one after another
_BLOCK = 8  # r
_SALT_SIZE = 32
_MAX_MEMORY = 1 << 28  # bytes; the limit for one slot
_MAX_P = 4
_MAX_WORK = 1 << 24  # limit of n * r * p over all slots: 16 times one slot of ours, some seconds


@dataclasses.dataclass(frozen=True)
class Slot:
    """A wrapped copy of the master key, and the parameters of the key that unwraps it."""

    n: int
    r: int
    p: int
    salt: bytes
    wrapped: bytes

    def encode(self) -> dict[str, t.Any]:
        """Return the slot as a JSON object."""
        return {
            "kdf": "scrypt",
            "n": self.n,
            "r": self.r,
            "p": self.p,
            "salt": self.salt.hex(),
            "key": self.wrapped.hex(),
        }


def decode(body: t.Mapping[str, t.Any]) -> Slot:
    """Read a slot from JSON.

    Raises DamagedObject if a field is missing or invalid, or if the slot needs more memory than the limit. Raises
    RepositoryError if the key derivation is unknown.
    """
    try:
        slot = Slot(
            int(body["n"]), int(body["r"]), int(body["p"]), bytes.fromhex(body["salt"]), bytes.fromhex(body["key"])
        )
        kdf = body["kdf"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedObject(f"a key slot lacks a required field ({error})") from error
    if kdf != "scrypt":
        raise RepositoryError(
            "a key slot is of a kind that this version of kvm.cbt does not know. Update the collection."
        )
    power = slot.n > 1 and not slot.n & (slot.n - 1) and not slot.n >> 16 * max(slot.r, 0)  # RFC 7914, section 2
    if (
        not power
        or not 0 < slot.r <= 64
        or not 0 < slot.p <= _MAX_P
        or 128 * slot.n * slot.r > _MAX_MEMORY
        or len(slot.wrapped) != KEY_SIZE + TAG_SIZE
    ):
        raise DamagedObject("a key slot has invalid parameters")
    return slot


def decode_all(slots: t.Mapping[str, t.Any]) -> dict[str, Slot]:
    """Read the slots of a repository from JSON, by name.

    Raises as ``decode`` does, and DamagedObject if there are too many, or one passphrase on all takes too much work.
    """
    if len(slots) > MAX_SLOTS:
        raise DamagedObject("its key slots were changed")
    decoded = {name: decode(slot) for name, slot in slots.items()}
    work = sum(slot.n * slot.r * slot.p for slot in decoded.values())
    if work > _MAX_WORK:
        raise DamagedObject(
            f"its key slots ask for {work // (COST * _BLOCK)} times the work of one slot of kvm.cbt. No passphrase is"
            " tried on them"
        )
    return decoded


def _cipher(slot: Slot, passphrase: str) -> Cipher:
    try:
        key = hashlib.scrypt(
            passphrase.encode(), salt=slot.salt, n=slot.n, r=slot.r, p=slot.p, maxmem=_MAX_MEMORY * 2, dklen=KEY_SIZE
        )
    except (ValueError, MemoryError) as error:
        raise RepositoryError(
            f"A passphrase cannot be tried on this host ({error or 'out of memory'}). This requires"
            f" {128 * slot.n * slot.r >> 20} MiB of memory and scrypt of OpenSSL."
            " Check the memory and the crypto policy of this host."
        ) from error
    return Cipher(key)


def _around(repository_id: str, name: str) -> bytes:
    return f"kvm.cbt slot {repository_id} {name}".encode()


def wrap(master: bytes, passphrase: str, repository_id: str, name: str) -> Slot:
    """Return a new slot for a passphrase. Its key seals nothing else, because its salt is new."""
    slot = Slot(COST, _BLOCK, 1, os.urandom(_SALT_SIZE), b"")
    return dataclasses.replace(
        slot, wrapped=_cipher(slot, passphrase).encrypt(bytes(NONCE_SIZE), master, _around(repository_id, name))
    )


def unwrap(slot: Slot, passphrase: str, repository_id: str, name: str) -> bytes | None:
    """Return the master key; None if the passphrase does not open this slot."""
    try:
        return _cipher(slot, passphrase).decrypt(bytes(NONCE_SIZE), slot.wrapped, _around(repository_id, name))
    except DamagedObject:
        return None
