# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a repository, its object repository.json.

It cannot be sealed, for it holds what opens the seals. So it proves itself: by a code that only who has the master key
can make, over all there is in it.
"""

from __future__ import annotations

import dataclasses
import hmac
import os
import re
import secrets
import typing as t

from ...errors import DamagedObject, PassphraseRefused, RepositoryError
from ...grid import BLOCK_SIZE
from ..crypto import key_slots
from ..crypto.encryption import KEY_SIZE, EncryptedKeys, derived
from ..crypto.key_slots import Slot
from ..crypto.keys import Keys, PlainKeys
from . import envelope, names

FORMAT = 1
KIND = "repository"
NAME = names.CONFIGURATION
ENCRYPTION = "encryption"
FIRST_SLOT = "default"
_ID = re.compile(r"[0-9a-f]{32}")
_SURROGATE = re.compile("[\ud800-\udfff]")  # what bytes that are no text come as


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What a repository is. Without ``slots`` it is not encrypted; ``code`` proves the rest with the master key."""

    id: str
    slots: t.Mapping[str, Slot] = dataclasses.field(default_factory=dict)
    code: str = ""

    @property
    def encrypted(self) -> bool:
        """Whether it takes a passphrase to read it."""
        return bool(self.slots)

    def _body(self) -> dict[str, t.Any]:
        body: dict[str, t.Any] = {"id": self.id, "block_size": BLOCK_SIZE, "hash": "sha256", "features": []}
        if self.encrypted:
            slots = {name: slot.encode() for name, slot in self.slots.items()}
            body.update(hash="hmac-sha256", features=[ENCRYPTION], slots=slots)
        return body

    def encode(self) -> bytes:
        """The object's bytes."""
        return envelope.encode(KIND, FORMAT, {**self._body(), "code": self.code} if self.encrypted else self._body())

    def proven_by(self, master: bytes) -> Configuration:
        """The same with the code that belongs to it."""
        return dataclasses.replace(
            self, code=hmac.digest(derived(master, "configuration"), envelope.text(self._body()), "sha256").hex()
        )

    def opened(self, passphrase: str) -> tuple[str, bytes] | None:
        """Name of the slot that a passphrase opens, and the master key; None if it opens none.

        Raises DamagedObject if anything in the configuration was changed by somebody without the master key.
        """
        for name, slot in self.slots.items():
            master = key_slots.unwrap(slot, passphrase, self.id, name)
            if master is not None:
                if not hmac.compare_digest(self.proven_by(master).code, self.code):
                    raise DamagedObject(f"{NAME} was changed without the master key. Put back an intact copy of it.")
                return name, master
        return None


def create(passphrase: str | None = None, slot: str = FIRST_SLOT) -> tuple[Configuration, Keys]:
    """Of a new repository, encrypted if there is a passphrase; and what it is read and written with."""
    made = Configuration(secrets.token_hex(16))
    if passphrase is None:
        return made, PlainKeys()
    master = os.urandom(KEY_SIZE)
    slots = {slot: key_slots.wrap(master, checked(passphrase), made.id, slot)}
    return dataclasses.replace(made, slots=slots).proven_by(master), EncryptedKeys(master)


def checked(passphrase: str) -> str:
    """The passphrase, unless it cannot be meant as one. Raises PassphraseRefused."""
    if not passphrase:
        raise PassphraseRefused(
            "The passphrase is empty. Give one, or leave the option out for a repository that is not encrypted."
        )
    if not passphrase.isascii() and _SURROGATE.search(passphrase):
        raise PassphraseRefused(
            "The passphrase is not text in UTF-8. Give it as text, such as the Base64 of random bytes."
        )
    return passphrase


def decode(data: bytes, location: str) -> Configuration:
    """From the object's bytes.

    Raises DamagedObject if it is not what was written, RepositoryError if it needs a newer version of the collection.
    """
    body = envelope.decode(KIND, FORMAT, data, f"{location}/{NAME}", {"features": list[str]})
    known = (body.get("hash"), body.get("features")) in (("sha256", []), ("hmac-sha256", [ENCRYPTION]))
    if body.get("block_size") != BLOCK_SIZE or not known:
        raise RepositoryError(
            f"The repository {location} uses features this version of kvm.cbt does not know. Update the collection."
        )
    slots, code = (body.get("slots"), body.get("code")) if body["features"] else ({}, "")
    try:
        if (
            not isinstance(slots, dict)
            or len(slots) > key_slots.MAX_SLOTS
            or bool(slots) != bool(body["features"])
            or _SURROGATE.search("".join(slots))
        ):
            raise DamagedObject("its key slots were changed")
        if (
            not isinstance(code, str)
            or not code.isascii()
            or not isinstance(body.get("id"), str)
            or not _ID.fullmatch(body["id"])
        ):
            raise DamagedObject("it lacks a required field")
        decoded = {name: key_slots.decode(slot) for name, slot in slots.items()}
        key_slots.check_work(decoded.values())
        return Configuration(body["id"], decoded, code)
    except DamagedObject as error:
        raise DamagedObject(f"{location}/{NAME} is damaged: {error}") from error


def keys_of(configuration: Configuration, passphrase: str | None, location: str) -> Keys:
    """What the repository is read and written with. Raises PassphraseRefused if the passphrase is missing, wrong or too much."""
    if passphrase is not None:
        checked(passphrase)
    if not configuration.encrypted:
        if passphrase is not None:
            raise PassphraseRefused(
                f"The repository {location} is not encrypted, but a passphrase was given. Omit the passphrase if this is intended."
                " If the repository should be encrypted, this is a different one."
            )
        return PlainKeys()
    if passphrase is None:
        raise PassphraseRefused(f"The repository {location} is encrypted. Give its passphrase.")
    opened = configuration.opened(passphrase)
    if opened is None:
        raise PassphraseRefused(
            f"The passphrase opens no key slot of the repository {location}: it is wrong, or the slot was changed."
        )
    return EncryptedKeys(opened[1])
