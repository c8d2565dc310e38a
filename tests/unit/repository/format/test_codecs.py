"""How blocks are stored."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import struct
import tracemalloc
import zlib

import pytest
import soaks
import zstandard
from backports import zstd as standard_library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import random_bytes

from _cbt.errors import DamagedObject, RepositoryError
from _cbt.repository.format import codecs, zstd
from _cbt.repository.format.zstd import StandardLibrary, ZstandardModule

BLOCKS = st.one_of(
    st.binary(min_size=1, max_size=2000),
    st.builds(lambda unit, times: (unit * times)[:65536], st.binary(min_size=1, max_size=40), st.integers(1, 3000)),
    st.builds(random_bytes, st.integers(1, 65536), st.integers(0, 9)),
)


LEVELS = {"lz4": range(13), "zstd": range(1, 23), "zlib": range(1, 10)}
CODES = {"lz4": codecs.LZ4, "zstd": codecs.ZSTD, "zlib": codecs.ZLIB}
ZSTD_MODULES = {"zstandard": ZstandardModule(zstandard), "compression.zstd": StandardLibrary(standard_library)}


@pytest.fixture(params=ZSTD_MODULES)
def zstd_module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module that zstd may come from."""
    monkeypatch.setattr(zstd, "installed", lambda: ZSTD_MODULES[request.param])


@pytest.mark.parametrize(
    ("name", "level"), [(name, level) for name, levels in LEVELS.items() for level in (None, *levels)]
)
@settings(max_examples=soaks.examples(0.13))
@given(block=BLOCKS)
def test_every_compression_gives_back_what_it_was_given_at_every_level(
    name: str, level: int | None, block: bytes
) -> None:
    codec, payload = codecs.encoder(name, level)(block)
    assert codec in (codecs.STORED, CODES[name])
    assert len(payload) <= len(block)
    assert bytes(codecs.decode(codec, payload, len(block))) == block


@pytest.mark.parametrize("name", LEVELS)
@given(block=BLOCKS)
def test_every_compression_takes_a_view_as_well(name: str, block: bytes) -> None:
    codec, payload = codecs.encoder(name)(memoryview(b"x" + block)[1:])
    assert bytes(codecs.decode(codec, memoryview(payload), len(block))) == block


@pytest.mark.parametrize(
    ("name", "level"),
    [("lz4", -1), ("lz4", 13), ("zstd", 0), ("zstd", 23), ("zlib", 0), ("zlib", 10), ("none", 0), ("none", 1)],
)
def test_an_unknown_level_is_refused_with_the_valid_ones(name: str, level: int) -> None:
    with pytest.raises(
        RepositoryError, match=f"Compression {name} has no level {level}: it (goes from . to|has no levels)"
    ):
        codecs.encoder(name, level)


@pytest.mark.parametrize("writing", ZSTD_MODULES)
@pytest.mark.parametrize("reading", ZSTD_MODULES)
@given(block=BLOCKS)
def test_each_zstd_module_reads_the_output_of_the_other(writing: str, reading: str, block: bytes) -> None:
    payload = ZSTD_MODULES[writing].compress(memoryview(block), 3)
    assert ZSTD_MODULES[reading].decompress(memoryview(payload), len(block)) == block


@pytest.mark.parametrize("name", LEVELS)
def test_threads_share_an_encoder(name: str) -> None:
    encode = codecs.encoder(name)
    blocks = [(bytes([number]) * 100 + random_bytes(300, number)) * 100 for number in range(8)]

    def there_and_back(block: bytes) -> bool:
        return all(bytes(codecs.decode(*encode(block), len(block))) == block for _turn in range(100))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, blocks))


def _bomb(codec: int, size: int) -> bytes:
    data = bytes(size)
    if codec == codecs.ZSTD:
        return zstandard.ZstdCompressor(level=1).compress(data)
    if codec == codecs.ZLIB:
        return zlib.compress(data)
    return bytes(codecs.lz4_block.compress(data, store_size=False))


def _frame_without_size(size: int) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size))


def _frame_that_promises(size: int) -> bytes:
    # One raw block that is not as long.
    return struct.pack("<IBQ", 0xFD2FB528, 0b11100000, size) + b"\x03\x00\x00" + b"x"


@pytest.mark.usefixtures("zstd_module")
@pytest.mark.parametrize("codec", [codecs.LZ4, codecs.ZSTD, codecs.ZLIB])
def test_a_payload_that_unpacks_to_more_than_the_block_costs_no_more_memory_than_the_block(codec: int) -> None:
    payloads = [_bomb(codec, 64 << 20)]
    if codec == codecs.ZSTD:
        payloads += [_frame_without_size(64 << 20), _frame_that_promises(1 << 40), _frame_that_promises((1 << 64) - 1)]
    for payload in payloads:
        tracemalloc.start()
        try:
            with pytest.raises(DamagedObject):
                codecs.decode(codec, payload, 65536)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@given(BLOCKS)
def test_none_stores_a_block_as_it_is(block: bytes) -> None:
    assert codecs.encoder("none")(block) == (codecs.STORED, block)
    assert codecs.decode(codecs.STORED, block, len(block)) == block


def test_an_incompressible_block_is_stored_uncompressed() -> None:
    block = random_bytes(65536, 1)
    assert [codecs.encoder(name)(block) for name in LEVELS] == [(codecs.STORED, block)] * 3


@pytest.mark.parametrize("name", LEVELS)
def test_a_compressible_block_shrinks(name: str) -> None:
    codec, payload = codecs.encoder(name)(b"database page " * 4681)
    assert codec == CODES[name]
    assert len(payload) < 2000


def test_the_codes_keep_their_meaning() -> None:
    assert (codecs.STORED, codecs.LZ4, codecs.ZSTD, codecs.ZLIB) == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ["", "LZ4", "gzip"])
def test_an_unknown_compression_is_refused_with_the_available_ones(name: str) -> None:
    with pytest.raises(
        RepositoryError, match=re.escape(f"Compression {name} is unknown. Choose one of lz4, zstd, zlib, none.")
    ):
        codecs.encoder(name)


@pytest.mark.parametrize("codec", [4, 255])
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


def test_without_zstd_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zstd, "installed", lambda: None)
    with pytest.raises(RepositoryError, match="python3-zstandard"):
        codecs.encoder("zstd")
    with pytest.raises(RepositoryError, match="python3-zstandard") as caught:
        codecs.decode(codecs.ZSTD, b"x", 1)
    assert not isinstance(caught.value, DamagedObject)


@pytest.mark.usefixtures("zstd_module")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([codecs.STORED, *CODES.values()]), st.binary(max_size=300), st.integers(1, 65536))
def test_garbage_is_damage_or_has_the_right_length(codec: int, payload: bytes, length: int) -> None:
    with contextlib.suppress(DamagedObject):
        assert len(codecs.decode(codec, payload, length)) == length


@pytest.mark.usefixtures("zstd_module")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 500), st.integers(1, 65536), st.data())
def test_a_payload_under_another_length_is_damage(size: int, length: int, data: st.DataObject) -> None:
    block = data.draw(st.binary(min_size=1, max_size=8)) * size
    for name in ("none", *LEVELS):
        codec, payload = codecs.encoder(name)(block)
        if length != len(block):
            with pytest.raises(DamagedObject):
                codecs.decode(codec, payload, length)
