# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks: which blocks they are, and their objects, whole, damaged and lying."""

from __future__ import annotations

import contextlib
import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import pack_ref
from stores_for_tests import with_bit_flipped

from _cbt.errors import CbtError, DamagedObject, RepositoryError
from _cbt.repository.format import hooks
from _cbt.repository.format.hooks import PackHooks


def block_ids(count: int, seed: int = 0) -> list[bytes]:
    return [random.Random(seed * 1_000_000 + number).randbytes(32) for number in range(count)]


FOUND = [PackHooks(pack_ref(number), hooks.choose(block_ids(100 * number, number))) for number in range(4)]


@pytest.mark.parametrize("blocks", [0, 1, 20, 200, 1024, 16384])
def test_a_pack_has_at_most_32_hooks_and_a_small_one_those_of_its_blocks_that_begin_with_three_zero_bits(
    blocks: int,
) -> None:
    given = block_ids(blocks)
    chosen = hooks.choose(given)
    assert len(chosen) <= 32
    assert set(chosen) <= {hooks.key_of(each) for each in given if hooks.may_be_hook(each)}
    if blocks <= 200:
        assert len(chosen) == sum(each[0] < 32 for each in given)
    else:
        assert len(chosen) >= 10


@given(st.integers(0, 3000), st.randoms(use_true_random=False))
def test_hooks_depend_on_the_blocks_and_not_on_their_order_or_number(count: int, chance: random.Random) -> None:
    given = block_ids(count)
    shuffled = [*given, *given[: count // 2]]
    chance.shuffle(shuffled)
    assert hooks.choose(shuffled) == hooks.choose(given)


def test_two_packs_of_one_size_that_share_half_of_their_blocks_share_hooks() -> None:
    """Else what was found once would not be found again among other neighbours."""
    common = block_ids(512, 1)
    one, two = (set(hooks.choose(common + block_ids(512, seed))) for seed in (2, 3))
    assert len(one & two) >= 4


@given(st.lists(st.tuples(st.integers(0, 1 << 100), st.lists(st.integers(0, (1 << 61) - 1), max_size=32)), max_size=5))
def test_an_object_round_trips(content: list[tuple[int, list[int]]]) -> None:
    found = [PackHooks(pack_ref(number), tuple(keys)) for number, keys in content]
    assert hooks.decode(hooks.encode(found), "it") == found


def test_every_flipped_bit_and_every_truncation_is_detected() -> None:
    data = hooks.encode(FOUND)
    for bit in range(len(data) * 8):
        with pytest.raises(DamagedObject):
            hooks.decode(with_bit_flipped(data, bit), "it")
    for length in range(len(data)):
        with pytest.raises(DamagedObject):
            hooks.decode(data[:length], "it")
    with pytest.raises(DamagedObject):
        hooks.decode(data + b"\0", "it")


def lying(packs: int, rest: bytes, version: int = hooks.VERSION) -> bytes:
    """An object that is not what it says, with a checksum that fits."""
    head = hooks.HEADER.pack(hooks.MAGIC, version, 0, packs)
    return head + hashlib.sha256(head + rest).digest() + rest


@given(st.integers(0, (1 << 32) - 1), st.binary(max_size=200))
def test_a_lying_object_is_an_error_of_ours_or_empty(packs: int, rest: bytes) -> None:
    with contextlib.suppress(CbtError):
        assert len(hooks.decode(lying(packs, rest), "it")) * hooks.PACK.size <= len(rest)


def test_an_invalid_hook_is_refused() -> None:
    """A key that a writer never makes could not be kept in the index."""
    one = hooks.PACK.pack(bytes(16), 100, 1, 1)
    for first in (0x20, 0x80, 0xFF):
        with pytest.raises(DamagedObject, match="an invalid hook"):
            hooks.decode(lying(1, one + bytes([first]) * 8), "it")


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(RepositoryError, match="it has format 2") as caught:
        hooks.decode(lying(0, b"", version=2), "it")
    assert not isinstance(caught.value, DamagedObject)
