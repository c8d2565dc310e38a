# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates a repository, changes its key slots, and rebuilds a lost configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing as t

from ..errors import PassphraseRefused, Refused, RepositoryError, UnreadableObject
from ..repository.creation import put_first
from ..repository.crypto import encryption, key_slots
from ..repository.crypto.encryption import EncryptedKeys
from ..repository.crypto.keys import Keys
from ..repository.format import configuration, manifests, names
from ..repository.format.configuration import FORMAT, Configuration
from ..repository.location import RepositoryLocation, open_store
from ..repository.repository import Repository, Watch, Watching, configuration_in
from ..repository.stores.base import Store

__all__ = ["FORMAT", "Configuration", "KeyChange", "KeyRequest", "apply_keys"]

_ATTEMPTS = 20  # attempts to write while other runs write too; each takes some tenths of a second
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclasses.dataclass(frozen=True)
class KeyRequest:
    """The key slots wanted: ``slot`` opens with ``new_passphrase``; ``remove`` are deleted.

    With ``rebuild``, a missing or damaged configuration is created again.
    """

    new_passphrase: str | None = dataclasses.field(default=None, repr=False)
    slot: str = configuration.FIRST_SLOT
    remove: tuple[str, ...] = ()
    rebuild: bool = False


@dataclasses.dataclass(frozen=True)
class KeyChange:
    """The configuration before and after a change, or a predicted change.

    ``before`` is None if there was no repository, or if its configuration was ``rebuilt``.
    """

    before: Configuration | None
    after: Configuration
    rebuilt: bool = False

    @property
    def changed(self) -> bool:
        """Return True if the configuration differs from the one before."""
        return self.before != self.after


def _master(found: Configuration, passphrases: t.Iterable[str | None], location: str) -> bytes:
    """Return the master key from the first passphrase that opens a slot."""
    for passphrase in passphrases:
        master = found.opened(passphrase) if passphrase is not None else None
        if master is not None:
            return master
    raise PassphraseRefused(
        f"No passphrase given opens a key slot of the repository {location}: they are wrong, or the slot was changed."
    )


def _changed(found: Configuration, given: t.Sequence[str], request: KeyRequest, location: str) -> Configuration:
    """Return the new configuration of an encrypted repository, for the passphrases given, a new one first.

    Raises a CbtError if no passphrase opens it, or if the request is not possible.
    """
    master = _master(found, reversed(given), location)
    slots = {name: slot for name, slot in found.slots.items() if name not in request.remove}
    if request.new_passphrase is not None:
        present = slots.get(request.slot)
        if present is None or key_slots.unwrap(present, request.new_passphrase, found.id, request.slot) is None:
            slots[request.slot] = key_slots.wrap(master, request.new_passphrase, found.id, request.slot)
    after = found if slots == found.slots else dataclasses.replace(found, slots=slots).proven_by(master)
    if not any(after.opened(each) for each in given):
        raise Refused(
            f"Cannot remove the last key slot of the repository {location} that a passphrase given opens: the"
            " repository could no longer be read."
        )
    if len(slots) > key_slots.MAX_SLOTS:
        raise Refused(
            f"Cannot add a key slot to the repository {location}: it has {key_slots.MAX_SLOTS}, which is the maximum."
            " Remove one."
        )
    return after


def _decide(found: Configuration | None, passphrase: str | None, request: KeyRequest, location: str) -> Configuration:
    given = [configuration.checked(each) for each in (request.new_passphrase, passphrase) if each is not None]
    if not _NAME.fullmatch(request.slot):
        raise Refused(
            f"A key slot cannot be named {request.slot}: use up to 64 letters, digits, dots, hyphens and underscores."
        )
    if request.new_passphrase is not None and request.slot in request.remove:
        raise Refused(f"The key slot {request.slot} of the repository {location} cannot be set and removed at once.")
    if (
        found is None
        and passphrase is not None
        and request.new_passphrase is not None
        and request.slot != configuration.FIRST_SLOT
    ):
        found = configuration.create(passphrase)
    if found is None:
        return configuration.create(given[0] if given else None, request.slot)
    if found.encrypted:
        if not given:
            raise PassphraseRefused(f"The repository {location} is encrypted. Give its passphrase.")
        return _changed(found, given, request, location)
    if given:
        raise PassphraseRefused(
            f"The repository {location} is not encrypted, and cannot be encrypted later."
            " Create another one with a passphrase, and copy the restore points."
        )
    return found


def apply_keys(
    where: RepositoryLocation, request: KeyRequest, check_only: bool = False, watching: Watching | None = None
) -> KeyChange:
    """Give a repository the requested key slots, or with ``check_only`` predict the change.

    If there is no repository, one is created; it is encrypted if a passphrase is given. A change writes only the
    configuration. If another run changes the configuration at the same time, the change is applied again to the new
    one. With ``watching``, the repository is compared with the known facts about it. Raises a CbtError on failure.
    """
    store = open_store(where)
    watch = watching(store) if watching is not None else None
    if request.rebuild and lost(store):
        change = _rebuilt(store, where.passphrase, request, watch)
        if not check_only:
            store.put(configuration.NAME, change.after.encode())
        return change
    first: KeyChange | None = None
    for _attempt in range(_ATTEMPTS):
        found = configuration_in(store)
        if watch is not None:
            watch.check_identity(found)
        if found is None:
            store.check_creatable()
        change = KeyChange(found, _decide(found, where.passphrase, request, store.location))
        if found is not None and watch is not None and first is None:
            watch.check_last(_repository(store, found, where.passphrase, request))
        if check_only or not change.changed:
            return change if first is None else KeyChange(first.before, change.after)
        if _written(store, change, watch):
            first = first or change
            if configuration_in(store) == change.after:  # otherwise another run has written at the same time
                if watch is not None:
                    watch.check_identity(change.after)
                return KeyChange(first.before, change.after)
    raise RepositoryError(
        f"The key slots of the repository {store.location} are being changed by other runs. Try again."
    )


def _rebuilt(store: Store, passphrase: str | None, request: KeyRequest, watch: Watch | None) -> KeyChange:
    made = rebuilt(store)
    if watch is not None:
        watch.check_identity(made)
        watch.check_last(Repository(store, made.id))
    return KeyChange(None, _decide(made, passphrase, request, store.location), rebuilt=True)


def _repository(store: Store, found: Configuration, passphrase: str | None, request: KeyRequest) -> Repository:
    """Return the repository, opened with the first passphrase given that opens a slot."""
    given = (passphrase, request.new_passphrase)
    keys: Keys | None = EncryptedKeys(_master(found, given, store.location)) if found.encrypted else None
    return Repository(store, found.id, keys)


def _written(store: Store, change: KeyChange, watch: Watch | None) -> bool:
    """Write a configuration if the stored one is still the one before; returns whether it did."""
    if change.before is None:
        return put_first(store, change.after, watch)
    before = store.get(configuration.NAME)
    return configuration.decode(before, store.location) == change.before and store.swap(
        configuration.NAME, before, change.after.encode()
    )


def lost(store: Store) -> bool:
    """Return True if the configuration is missing or damaged.

    Raises RepositoryError if the store fails or the configuration has a newer format.
    """
    try:
        configuration.decode(store.get(configuration.NAME), store.location)
    except UnreadableObject:
        return True
    return False


def rebuilt(store: Store) -> Configuration:
    """Return the configuration to which the manifests in a store belong.

    Raises Refused if the repository is encrypted, or if the manifests do not name exactly one repository.
    """
    ids: set[str] = set()
    for name, _taken in names.of_kind(store.list(names.POINTS), names.MANIFEST_KIND):
        with contextlib.suppress(UnreadableObject):  # another manifest names the same repository
            data = store.get(name)
            if data.startswith(encryption.MAGIC):
                raise Refused(
                    f"The repository {store.location} is encrypted. Its {configuration.NAME} contained the only copies"
                    " of its key and cannot be recreated. Put a copy of that file back."
                )
            ids.add(manifests.decode(data, name).repository)
    if len(ids) != 1:
        what = (
            f"its restore points come from different ones ({', '.join(sorted(ids))})"
            if ids
            else "no readable restore point contains its id"
        )
        raise Refused(
            f"Cannot recreate {configuration.NAME} of the repository {store.location}: {what}. Put a copy of that file"
            " back."
        )
    return configuration.decode(Configuration(ids.pop()).encode(), store.location)
