"""A lost repository.json is made again from the manifests, or it is told why not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from samples import point

from _cbt.errors import PassphraseRefused, Refused, RepositoryError
from _cbt.operations.keys import KeyChange, KeyRequest, apply_keys
from _cbt.repository.creation import open_or_create
from _cbt.repository.crypto import key_slots
from _cbt.repository.format import configuration, envelope, names
from _cbt.repository.location import RepositoryLocation
from _cbt.repository.repository import Repository, open_repository

REBUILD = KeyRequest(rebuild=True)


@pytest.fixture
def lost(place: Path, repository: Repository) -> bytes:
    """What the configuration was; a restore point is left, and one with a damaged manifest."""
    repository.publish(point(1, repository=repository.id))
    repository.store.put(
        names.manifest("00000000-0000-4000-8000-000000000000", "20260101T120000Z-00000000"), b"damaged"
    )
    path = place / configuration.NAME
    data = path.read_bytes()
    path.unlink()
    return data


def rebuild(place: Path, check: bool = False, passphrase: str | None = None) -> KeyChange:
    return apply_keys(RepositoryLocation(str(place), passphrase=passphrase), REBUILD, check)


def test_a_rebuilt_configuration_equals_the_lost_one(place: Path, lost: bytes) -> None:
    with pytest.raises(RepositoryError, match="rebuild: true"):
        open_or_create(str(place))
    predicted = rebuild(place, check=True)
    assert not (place / configuration.NAME).exists()
    made = rebuild(place)
    assert made == predicted and made.changed
    assert (place / configuration.NAME).read_bytes() == lost
    assert [each.id for each in open_repository(str(place)).points_of().points] == [point(1).id]
    assert not rebuild(place).changed


@pytest.mark.parametrize("damaged", [b"", b"{}", b"\0" * 211])
def test_a_damaged_configuration_is_replaced(place: Path, lost: bytes, damaged: bytes) -> None:
    (place / configuration.NAME).write_bytes(damaged)
    rebuild(place)
    assert (place / configuration.NAME).read_bytes() == lost


def test_a_configuration_of_a_newer_format_is_not_rebuilt(place: Path, lost: bytes) -> None:
    newer = envelope.encode(configuration.KIND, configuration.FORMAT + 1, {})
    (place / configuration.NAME).write_bytes(newer)
    with pytest.raises(RepositoryError, match="Update the collection"):
        rebuild(place)
    assert (place / configuration.NAME).read_bytes() == newer


def test_rebuilding_a_plain_configuration_with_a_passphrase_is_refused(place: Path, lost: bytes) -> None:
    with pytest.raises(PassphraseRefused, match="is not encrypted"):
        rebuild(place, passphrase="secret")
    assert not (place / configuration.NAME).exists()


def test_the_configuration_of_an_encrypted_repository_cannot_be_rebuilt(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_slots, "COST", 16)
    made = open_or_create(RepositoryLocation(str(place), passphrase="secret"))
    assert made is not None
    made.publish(point(1, repository=made.id))
    (place / configuration.NAME).unlink()
    for passphrase in (None, "secret"):
        with pytest.raises(Refused, match=r"only copies of its key.*Put a copy of that file back"):
            rebuild(place, passphrase=passphrase)
    assert not (place / configuration.NAME).exists()


def test_a_configuration_cannot_be_rebuilt_from_manifests_of_two_repositories(
    place: Path, repository: Repository, lost: bytes
) -> None:
    repository.publish(dataclasses.replace(point(2), repository="11" * 16))
    with pytest.raises(Refused, match=f"different ones .*{'11' * 16}"):
        rebuild(place)


def test_a_configuration_cannot_be_rebuilt_without_any_manifest(place: Path) -> None:
    with pytest.raises(Refused, match="no readable restore point contains its id"):
        rebuild(place)
    assert not place.exists()
