# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compression of blocks. The code of a released codec never changes its meaning."""

from __future__ import annotations

import functools
import typing as t
import zlib

from ...errors import DamagedObject, RepositoryError
from ...files import Buffer

try:
    import lz4.block as lz4_block
except ImportError:  # needed only if lz4 is chosen or was used
    lz4_block = None

STORED = 0
LZ4 = 1
ZSTD = 2
ZLIB = 3

Encoder = t.Callable[[Buffer], tuple[int, Buffer]]

_ZSTD_LEVEL = 3
_ZLIB_LEVEL = 6
_PIECE = 4 << 20  # bytes
# The levels that can be chosen, by name of the compression.
_LEVELS = {"lz4": range(13), "zstd": range(1, 23), "zlib": range(1, 10), "none": range(0)}


def _stored(data: Buffer) -> tuple[int, Buffer]:
    return STORED, data


def _lz4(level: int | None) -> t.Callable[[Buffer], bytes]:
    if lz4_block is None:
        raise RepositoryError(
            "Compression lz4 needs the Python module lz4. Install python3-lz4, or choose zlib or none."
        )
    mode = "high_compression" if level else "default"
    return functools.partial(lz4_block.compress, mode=mode, compression=level or 0, store_size=False)


def _zstd(level: int | None) -> t.Callable[[Buffer], bytes]:
    from . import zstd  # loaded only for this codec

    library = zstd.installed()
    if library is None:
        raise RepositoryError(
            "Compression zstd needs the Python module zstandard. Install python3-zstandard, or choose lz4, zlib or"
            " none."
        )
    return functools.partial(library.compress, level=level or _ZSTD_LEVEL)


def _zlib(level: int | None) -> t.Callable[[Buffer], bytes]:
    return functools.partial(zlib.compress, level=level or _ZLIB_LEVEL)


def encoder(name: str, level: int | None = None) -> Encoder:
    """Return a function that encodes one block and returns codec and payload.

    A block that does not shrink is stored as it is. ``name`` is lz4, zstd, zlib or none. ``level`` is 0 to 12 for lz4
    (default 0, fast), 1 to 22 for zstd (default 3) and 1 to 9 for zlib (default 6). Raises RepositoryError if the codec
    or the level is unknown, or if the library of the codec is missing.
    """
    allowed = _LEVELS.get(name)
    if allowed is None:
        raise RepositoryError(f"Compression {name} is unknown. Choose one of {', '.join(_LEVELS)}.")
    if level is not None and level not in allowed:
        scale = f"it goes from {allowed[0]} to {allowed[-1]}" if allowed else "it has no levels"
        raise RepositoryError(f"Compression {name} has no level {level}: {scale}.")
    if name == "none":
        return _stored
    codec, shrink = {"lz4": (LZ4, _lz4), "zstd": (ZSTD, _zstd), "zlib": (ZLIB, _zlib)}[name]
    pack = shrink(level)

    def compress(data: Buffer) -> tuple[int, Buffer]:
        payload = pack(data)
        return (codec, payload) if len(payload) < len(data) else (STORED, data)

    return compress


def inflated(payload: Buffer, length: int) -> t.Iterator[bytes]:
    """Yield the ``length`` bytes of a zlib payload in pieces of at most 4 MiB.

    A payload that decompresses to more takes no more memory. Raises DamagedObject if the payload does not decompress to
    exactly ``length`` bytes; this may be known only after the last piece.
    """
    engine, rest, left = zlib.decompressobj(), payload, length
    try:
        while left:
            piece = engine.decompress(rest, min(left, _PIECE))
            if not piece:
                break
            rest, left = engine.unconsumed_tail, left - len(piece)
            yield piece
        # The stream must end just here, with nothing behind it. The limit is one byte, because 0 means no limit.
        whole = not left and not engine.decompress(rest, 1) and engine.eof and not engine.unused_data
    except zlib.error as error:
        raise DamagedObject("it does not decompress") from error
    if not whole:
        raise DamagedObject("it does not have the length it should")


def inflate(payload: Buffer, length: int) -> bytes:
    """Return all bytes that ``inflated`` yields."""
    return b"".join(inflated(payload, length))


def _from_lz4(payload: Buffer, length: int) -> bytes:
    if lz4_block is None:
        raise RepositoryError("Reading this repository needs the Python module lz4. Install python3-lz4.")
    try:
        return t.cast(bytes, lz4_block.decompress(payload, uncompressed_size=length))
    except (lz4_block.LZ4BlockError, ValueError, MemoryError) as error:
        raise DamagedObject("it does not decompress") from error


def _from_zstd(payload: Buffer, length: int) -> bytes:
    from . import zstd  # loaded only for this codec

    library = zstd.installed()
    if library is None:
        raise RepositoryError("Reading this repository needs the Python module zstandard. Install python3-zstandard.")
    try:
        return library.decompress(payload, length)
    except (library.error, ValueError, MemoryError) as error:
        raise DamagedObject("it does not decompress") from error


_DECODERS: t.Mapping[int, t.Callable[[Buffer, int], Buffer]] = {
    STORED: lambda payload, _length: payload,
    LZ4: _from_lz4,
    ZSTD: _from_zstd,
    ZLIB: inflate,
}


def decode(codec: int, payload: Buffer, length: int) -> Buffer:
    """Return the block of ``length`` bytes of a payload; allocates no more than that.

    Raises DamagedObject if the payload does not decode to such a block, RepositoryError if the codec is unknown or its
    library is missing.
    """
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise RepositoryError(
            f"A block is stored with codec {codec}, which this version of kvm.cbt does not know. Update it."
        )
    data = decoder(payload, length)
    if len(data) != length:
        raise DamagedObject("its length is wrong")
    return data
