"""The cipher of blocks, by the library's public classes and by OpenSSL's functions, against the library's one-shot call."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from samples import random_bytes

import _cbt
from _cbt.repository.crypto import gcm
from _cbt.repository.crypto.gcm import TAG_SIZE

KEY = random_bytes(32, 1)
SIZES = [1, 15, 16, 17, 100, 4096, 65535, 65536]
MESSAGES = [(number.to_bytes(12, "little"), random_bytes(size, number)) for number, size in enumerate(SIZES)]

# Runs with the distribution's Python, whose version of the library still carries OpenSSL's functions.
_DIRECTLY = """
import json, sys
from cryptography.exceptions import InvalidTag
from _cbt.repository.crypto import gcm
asked = json.load(sys.stdin)
cipher = gcm.new_gcm(bytes.fromhex(asked["key"]))
messages = [(bytes.fromhex(nonce), memoryview(bytes.fromhex(content))) for nonce, content in asked["seal"]]
room = bytearray(sum(len(content) + gcm.TAG_SIZE for _nonce, content in messages))
cipher.seal_into(memoryview(room), messages)
unsealed = []
for nonce, stored in asked["unseal"]:
    try:
        unsealed.append(bytes(cipher.unseal(bytes.fromhex(nonce), memoryview(bytes.fromhex(stored)))).hex())
    except InvalidTag:
        unsealed.append(None)
print(json.dumps({"class": type(cipher).__name__, "sealed": bytes(room).hex(), "unsealed": unsealed}))
"""


def expected(key: bytes, messages: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    return [AESGCM(key).encrypt(nonce, content, b"") for nonce, content in messages]


def changed(stored: bytes) -> list[bytes]:
    """What is not a sealed message any more."""
    flipped = [
        stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :]
        for place in sorted({0, len(stored) // 2, len(stored) - TAG_SIZE, len(stored) - 1})
    ]
    return [*flipped, stored[1:], stored[:-1], stored + b"\0", stored[:TAG_SIZE], stored[: TAG_SIZE - 1], b""]


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=6), st.binary(min_size=32, max_size=32))
def test_the_public_classes_seal_as_the_one_shot_call_does(contents: list[bytes], key: bytes) -> None:
    messages = [(number.to_bytes(12, "little"), content) for number, content in enumerate(contents)]
    room = bytearray(sum(len(content) + TAG_SIZE for content in contents))
    gcm.PublicGcm(key).seal_into(memoryview(room), messages)
    assert bytes(room) == b"".join(expected(key, messages))
    for (nonce, content), stored in zip(messages, expected(key, messages)):
        assert gcm.PublicGcm(key).unseal(nonce, memoryview(stored)) == content


@pytest.mark.parametrize("stored", changed(expected(KEY, MESSAGES)[4]))
def test_the_public_classes_take_nothing_that_was_changed(stored: bytes) -> None:
    with pytest.raises(InvalidTag):
        gcm.PublicGcm(KEY).unseal(MESSAGES[4][0], stored)


def test_the_functions_of_openssl_seal_and_unseal_the_same_and_take_nothing_that_was_changed() -> None:
    stored = expected(KEY, MESSAGES)
    whole = [(nonce, sealed) for (nonce, _content), sealed in zip(MESSAGES, stored)]
    broken = [(MESSAGES[index][0], wrong) for index in (0, 4, 7) for wrong in changed(stored[index])]
    broken += [(MESSAGES[1][0], stored[2]), (bytes(12), stored[1])]
    # A refusal leaves nothing behind.
    asked = {
        "key": KEY.hex(),
        "seal": [(nonce.hex(), content.hex()) for nonce, content in MESSAGES],
        "unseal": [(nonce.hex(), sealed.hex()) for nonce, sealed in [*whole, *broken, *whole]],
    }
    environment = {"PYTHONPATH": str(Path(_cbt.__file__).parents[1])}
    done = subprocess.run(
        ["/usr/bin/python3", "-c", _DIRECTLY],
        input=json.dumps(asked),
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout)
    assert told["class"] == "DirectGcm"
    assert bytes.fromhex(told["sealed"]) == b"".join(stored)
    contents = [content.hex() for _nonce, content in MESSAGES]
    assert told["unsealed"] == [*contents, *[None] * len(broken), *contents]
