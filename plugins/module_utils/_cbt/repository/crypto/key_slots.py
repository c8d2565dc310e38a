# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Key slots: the master key of an encrypted repository, wrapped by a passphrase. Pure but for chance."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import typing as t

from ...errors import DamagedObject, RepositoryError
from .encryption import KEY_SIZE, NONCE_SIZE, Cipher
from .keys import TAG_SIZE

COST = 1 << 17  # scrypt's n: with r = 8 it takes 128 MiB and some tenths of a second to try one passphrase
MAX_SLOTS = 8  # each is tried in turn
_BLOCK = 8  # r
_SALT_SIZE = 32
_MAX_MEMORY = 1 << 28  # bytes; what a slot may ask for
_MAX_P = 4
_MAX_WORK = 1 << 24  # n * r * p of all slots: 16 times what one slot of ours takes, some seconds


@dataclasses.dataclass(frozen=True)
class Slot:
    """One wrapped copy of the master key, and how to derive the key that opens it."""

    n: int
    r: int
    p: int
    salt: bytes
    wrapped: bytes

    def encode(self) -> dict[str, t.Any]:
        """For JSON."""
        return {
            "kdf": "scrypt",
            "n": self.n,
            "r": self.r,
            "p": self.p,
            "salt": self.salt.hex(),
            "key": self.wrapped.hex(),
        }


def decode(body: t.Mapping[str, t.Any]) -> Slot:
    """A slot from JSON.

    Raises DamagedObject if it cannot be one, RepositoryError if it wants another derivation or more memory than is reasonable.
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


def check_work(slots: t.Iterable[Slot]) -> None:
    """Raise DamagedObject if trying a passphrase on all slots would take more work than is reasonable."""
    work = sum(slot.n * slot.r * slot.p for slot in slots)
    if work > _MAX_WORK:
        raise DamagedObject(
            f"its key slots ask for {work // (COST * _BLOCK)} times the work of one slot of kvm.cbt. No passphrase is tried on them"
        )


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
    """A new slot for a passphrase. Its salt is its own, so the key it derives seals nothing else."""
    slot = Slot(COST, _BLOCK, 1, os.urandom(_SALT_SIZE), b"")
    return dataclasses.replace(
        slot, wrapped=_cipher(slot, passphrase).encrypt(bytes(NONCE_SIZE), master, _around(repository_id, name))
    )


def unwrap(slot: Slot, passphrase: str, repository_id: str, name: str) -> bytes | None:
    """The master key, None if the passphrase does not open this slot."""
    try:
        return _cipher(slot, passphrase).decrypt(bytes(NONCE_SIZE), slot.wrapped, _around(repository_id, name))
    except DamagedObject:
        return None
