# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a repository, its object repository.json.

It cannot be sealed, because it contains the key slots that open the seals. With encryption, it contains an
authentication code (HMAC) of all other fields instead, which cannot be computed without the master key.
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
from ..crypto.keys import Keys, PlainKeys
from . import envelope, names

if t.TYPE_CHECKING:
    from ..crypto.key_slots import Slot

FORMAT = 1
KIND = "repository"
NAME = names.CONFIGURATION
ENCRYPTION = "encryption"
FIRST_SLOT = "default"
_SURROGATE = re.compile("[\ud800-\udfff]")  # characters that stand for bytes that are not UTF-8


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The configuration of a repository, which is not encrypted if ``slots`` is empty.

    ``code`` proves the other fields with the master key.
    """

    id: str
    slots: t.Mapping[str, Slot] = dataclasses.field(default_factory=dict)
    code: str = ""

    @property
    def encrypted(self) -> bool:
        """Whether reading the repository needs a passphrase."""
        return bool(self.slots)

    def _body(self) -> dict[str, t.Any]:
        body: dict[str, t.Any] = {"id": self.id, "block_size": BLOCK_SIZE, "hash": "sha256", "features": []}
        if self.encrypted:
            slots = {name: slot.encode() for name, slot in self.slots.items()}
            body.update(hash="hmac-sha256", features=[ENCRYPTION], slots=slots)
        return body

    def encode(self) -> bytes:
        """Return the bytes of the object."""
        return envelope.encode(KIND, FORMAT, {**self._body(), "code": self.code} if self.encrypted else self._body())

    def proven_by(self, master: bytes) -> Configuration:
        """Return the same configuration with the code that the master key makes for it."""
        from ..crypto.encryption import derived  # loaded only for an encrypted repository

        return dataclasses.replace(
            self, code=hmac.digest(derived(master, "configuration"), envelope.text(self._body()), "sha256").hex()
        )

    def opened(self, passphrase: str) -> bytes | None:
        """Return the master key from the slot that a passphrase opens, or None.

        Raises DamagedObject if the configuration was changed without the master key.
        """
        from ..crypto import key_slots  # loaded only for an encrypted repository

        for name, slot in self.slots.items():
            master = key_slots.unwrap(slot, passphrase, self.id, name)
            if master is not None:
                if not hmac.compare_digest(self.proven_by(master).code, self.code):
                    raise DamagedObject(f"{NAME} was changed without the master key. Put back an intact copy of it.")
                return master
        return None


def create(passphrase: str | None = None, slot: str = FIRST_SLOT) -> Configuration:
    """Return the configuration of a new repository.

    With a passphrase, the repository is encrypted. Raises PassphraseRefused if it is empty or not text in UTF-8.
    """
    made = Configuration(secrets.token_hex(16))
    if passphrase is None:
        return made
    from ..crypto import key_slots  # loaded only for an encrypted repository
    from ..crypto.encryption import KEY_SIZE

    master = os.urandom(KEY_SIZE)
    slots = {slot: key_slots.wrap(master, checked(passphrase), made.id, slot)}
    return dataclasses.replace(made, slots=slots).proven_by(master)


def checked(passphrase: str) -> str:
    """Return the passphrase. Raises PassphraseRefused if it is empty or not text in UTF-8."""
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
    """Return the configuration from the bytes of its object.

    Raises DamagedObject if they are not what was written, RepositoryError if they need a newer version of the
    collection.
    """
    body = envelope.decode(KIND, FORMAT, data, f"{location}/{NAME}", {"features": list[str], "id": str})
    known = (body.get("hash"), body.get("features")) in (("sha256", []), ("hmac-sha256", [ENCRYPTION]))
    if body.get("block_size") != BLOCK_SIZE or not known:
        raise RepositoryError(
            f"The repository {location} uses features this version of kvm.cbt does not know. Update the collection."
        )
    slots, code = (body.get("slots"), body.get("code")) if body["features"] else ({}, "")
    try:
        if not isinstance(slots, dict) or bool(slots) != bool(body["features"]) or _SURROGATE.search("".join(slots)):
            raise DamagedObject("its key slots were changed")
        if not isinstance(code, str) or not code.isascii():
            raise DamagedObject("it lacks a required field")
        repository_id = names.check_repository_id(body["id"])
        if not slots:
            return Configuration(repository_id)
        from ..crypto import key_slots  # loaded only for an encrypted repository

        return Configuration(repository_id, key_slots.decode_all(slots), code)
    except DamagedObject as error:
        raise DamagedObject(f"{location}/{NAME} is damaged: {error}") from error


def keys_of(configuration: Configuration, passphrase: str | None, location: str) -> Keys:
    """Return the keys of a repository.

    Raises PassphraseRefused if the passphrase is missing, invalid or wrong, or if the repository is not encrypted and
    there is one.
    """
    if passphrase is not None:
        checked(passphrase)
    if not configuration.encrypted:
        if passphrase is not None:
            raise PassphraseRefused(
                f"The repository {location} is not encrypted, but a passphrase was given. Omit the passphrase if this"
                " is intended. If the repository should be encrypted, this is a different one."
            )
        return PlainKeys()
    if passphrase is None:
        raise PassphraseRefused(f"The repository {location} is encrypted. Give its passphrase.")
    master = configuration.opened(passphrase)
    if master is None:
        raise PassphraseRefused(
            f"The passphrase opens no key slot of the repository {location}: it is wrong, or the slot was changed."
        )
    from ..crypto.encryption import EncryptedKeys  # loaded only for an encrypted repository

    return EncryptedKeys(master)
