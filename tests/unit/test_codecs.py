"""How blocks are stored."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import random_bytes

from _cbt.errors import DamagedObject, RepositoryError
from _cbt.repository import codecs

BLOCKS = st.one_of(
    st.binary(min_size=1, max_size=2000),
    st.builds(lambda unit, times: (unit * times)[:65536], st.binary(min_size=1, max_size=40), st.integers(1, 3000)),
    st.builds(random_bytes, st.integers(1, 65536), st.integers(0, 9)),
)


@pytest.mark.parametrize("level", [None, *range(13)])
@given(block=BLOCKS)
def test_lz4_gives_back_what_it_was_given_at_every_level(level: int | None, block: bytes) -> None:
    codec, payload = codecs.encoder("lz4", level)(block)
    assert len(payload) <= len(block)
    assert bytes(codecs.decode(codec, payload, len(block))) == block


@given(BLOCKS)
def test_lz4_takes_a_view_as_well(block: bytes) -> None:
    codec, payload = codecs.encoder("lz4")(memoryview(b"x" + block)[1:])
    assert bytes(codecs.decode(codec, memoryview(payload), len(block))) == block


@given(BLOCKS)
def test_none_stores_a_block_as_it_is(block: bytes) -> None:
    assert codecs.encoder("none")(block) == (codecs.STORED, block)
    assert codecs.decode(codecs.STORED, block, len(block)) == block


def test_a_block_that_does_not_shrink_is_stored_as_it_is() -> None:
    block = random_bytes(65536, 1)
    assert codecs.encoder("lz4")(block) == (codecs.STORED, block)


def test_a_compressible_block_shrinks() -> None:
    codec, payload = codecs.encoder("lz4")(b"database page " * 4681)
    assert codec == codecs.LZ4
    assert len(payload) < 2000


def test_the_codes_keep_their_meaning() -> None:
    assert (codecs.STORED, codecs.LZ4) == (0, 1)


@pytest.mark.parametrize("name", ["", "LZ4", "gzip", "zstd"])
def test_an_unknown_compression_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(RepositoryError, match=re.escape(f"Compression {name} is unknown. Choose lz4 or none.")):
        codecs.encoder(name)


@pytest.mark.parametrize("codec", [2, 3, 255])
def test_a_block_of_an_unknown_codec_is_refused_and_not_called_damaged(codec: int) -> None:
    with pytest.raises(RepositoryError, match=f"codec {codec}") as caught:
        codecs.decode(codec, b"payload", 7)
    assert not isinstance(caught.value, DamagedObject)


def test_without_lz4_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "lz4_block", None)
    with pytest.raises(RepositoryError, match="python3-lz4"):
        codecs.encoder("lz4")
    with pytest.raises(RepositoryError, match="python3-lz4"):
        codecs.decode(codecs.LZ4, b"x", 1)
    assert codecs.encoder("none")(b"x") == (codecs.STORED, b"x")


@given(st.sampled_from([codecs.STORED, codecs.LZ4]), st.binary(max_size=300), st.integers(1, 65536))
def test_garbage_is_damage_or_has_the_right_length(codec: int, payload: bytes, length: int) -> None:
    with contextlib.suppress(DamagedObject):
        assert len(codecs.decode(codec, payload, length)) == length


@given(st.integers(1, 500), st.integers(1, 65536), st.data())
def test_a_payload_under_another_length_is_damage(size: int, length: int, data: st.DataObject) -> None:
    block = data.draw(st.binary(min_size=1, max_size=8)) * size
    for name in ("none", "lz4"):
        codec, payload = codecs.encoder(name)(block)
        if length != len(block):
            with pytest.raises(DamagedObject):
                codecs.decode(codec, payload, length)
