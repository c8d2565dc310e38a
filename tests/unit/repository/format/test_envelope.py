"""JSON objects with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores_for_tests import with_bit_flipped

from _cbt.errors import CbtError, DamagedObject, RepositoryError
from _cbt.repository.format import envelope

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=10,
)
BODIES = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), VALUES, max_size=5)


@given(BODIES, st.integers(0, 9))
def test_a_body_round_trips(body: dict[str, object], version: int) -> None:
    assert envelope.decode("manifest", version, envelope.encode("manifest", version, body), "name") == body


@given(BODIES)
def test_equal_bodies_give_equal_bytes_and_plain_json(body: dict[str, object]) -> None:
    data = envelope.encode("manifest", 1, body)
    assert data == envelope.encode("manifest", 1, dict(reversed(list(body.items()))))
    assert json.loads(data)["body"] == body
    assert data.endswith(b"\n")


def test_every_flipped_bit_is_damage() -> None:
    data = envelope.encode("manifest", 1, {"domain": "büro-1 \u2013 日本", "sizes": [1, 2, 3]})
    for bit in range(len(data) * 8):
        with pytest.raises(DamagedObject):
            envelope.decode("manifest", 1, with_bit_flipped(data, bit), "name")


def test_every_truncation_is_damage() -> None:
    data = envelope.encode("manifest", 1, {"a": {"b": 1}})
    for length in range(len(data)):
        with pytest.raises(DamagedObject, match="^the/name is damaged"):
            envelope.decode("manifest", 1, data[:length], "the/name")


def test_appended_bytes_are_damage() -> None:
    data = envelope.encode("manifest", 1, {})
    for more in (b"\n", b" ", b"}", data):
        with pytest.raises(DamagedObject):
            envelope.decode("manifest", 1, data + more, "name")


def test_a_newer_version_is_refused_by_name_and_not_called_damaged() -> None:
    with pytest.raises(
        RepositoryError, match=r"^repo/repository.json has format 2; .*reads up to format 1.*Update the collection"
    ) as caught:
        envelope.decode("repository", 1, envelope.encode("repository", 2, {}), "repo/repository.json")
    assert not isinstance(caught.value, DamagedObject)


def test_an_older_version_is_read() -> None:
    assert envelope.decode("manifest", 3, envelope.encode("manifest", 2, {"a": 1}), "name") == {"a": 1}


def test_another_kind_is_refused() -> None:
    with pytest.raises(DamagedObject, match="it is not a manifest"):
        envelope.decode("manifest", 1, envelope.encode("repository", 1, {}), "name")


def test_a_version_changed_by_hand_is_damage() -> None:
    """So a flipped bit is never taken for a newer format."""
    data = envelope.encode("manifest", 1, {}).replace(b'"version":1', b'"version":2')
    with pytest.raises(DamagedObject, match="checksum"):
        envelope.decode("manifest", 1, data, "name")


@pytest.mark.parametrize(
    "body", [b"{no}", b'{"a":"\xff"}', b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}", b'{"a":' + b"9" * 5000 + b"}"]
)
def test_invalid_json_with_a_valid_checksum_is_damage(body: bytes) -> None:
    checksum = hashlib.sha256(b"manifest 1 " + body).hexdigest().encode()
    with pytest.raises(DamagedObject, match="^the/name is damaged: it cannot be read"):
        envelope.decode(
            "manifest",
            1,
            b'{"kvm.cbt":"manifest","version":1,"sha256":"%s","body":%s}\n' % (checksum, body),
            "the/name",
        )


def test_an_endless_version_number_is_damage() -> None:
    with pytest.raises(DamagedObject):
        envelope.decode(
            "manifest",
            1,
            envelope.encode("manifest", 1, {}).replace(b'"version":1', b'"version":' + b"1" * 5000),
            "name",
        )


def test_a_name_that_is_not_utf_8_comes_back() -> None:
    body = {"names": [os.fsdecode(b"\xff")]}
    assert envelope.decode("doomed", 1, envelope.encode("doomed", 1, body), "name") == body


@given(st.binary(max_size=200))
def test_random_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedObject):
        envelope.decode("manifest", 1, data, "name")


@given(st.integers(0, 200), st.integers(0, 200), st.binary(max_size=6))
def test_spliced_bytes_are_damage_or_the_same(first: int, second: int, between: bytes) -> None:
    data = envelope.encode("manifest", 1, {"domain": "web1"})
    with contextlib.suppress(CbtError):
        assert envelope.decode("manifest", 1, data[:first] + between + data[second:], "name") == {"domain": "web1"}
