# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a block is stored. Private to the collection. Codes once released keep their meaning for ever."""

from __future__ import annotations

import typing as t
import zlib

from ..errors import DamagedObject, RepositoryError
from ..files import Buffer

try:
    import lz4.block as lz4_block
except ImportError:  # needed only where lz4 is chosen or was used
    lz4_block = None

STORED = 0
LZ4 = 1

Encoder = t.Callable[[Buffer], t.Tuple[int, Buffer]]


def _stored(data: Buffer) -> t.Tuple[int, Buffer]:
    return STORED, data


def encoder(name: str, level: t.Optional[int] = None) -> Encoder:
    """A function that encodes one block and returns codec and payload; a block that does not shrink stays as it is.

    ``name`` is none or lz4; for lz4, ``level`` 0 (default) is fast and 1 to 12 spend more time for less space.
    Raises RepositoryError if the codec is unknown or its library is missing.
    """
    if name == "none":
        return _stored
    if name != "lz4":
        raise RepositoryError(f"Compression {name} is unknown. Choose lz4 or none.")
    if lz4_block is None:
        raise RepositoryError("Compression lz4 needs the Python module lz4. Install python3-lz4, or set compression to none.")
    options: t.Dict[str, t.Any] = {"store_size": False}
    if level:
        options.update(mode="high_compression", compression=level)

    def compress(data: Buffer) -> t.Tuple[int, Buffer]:
        payload = lz4_block.compress(data, **options)
        return (LZ4, payload) if len(payload) < len(data) else (STORED, data)

    return compress


def checksum(codec: int, payload: Buffer) -> int:
    """CRC-32 of a payload as kept in a pack's directory.

    A changed bit in a compressed payload may still unpack to the right bytes; the checksum finds it all the same.
    A stored payload is the block itself, whose SHA-256 says everything, so it carries 0.
    """
    return 0 if codec == STORED else zlib.crc32(payload)


def decode(codec: int, payload: Buffer, length: int) -> Buffer:
    """The block of ``length`` bytes from its payload.

    Raises DamagedObject if the payload cannot be it, RepositoryError if the codec is unknown or its library missing.
    """
    if codec == STORED:
        if len(payload) != length:
            raise DamagedObject("its length is wrong")
        return payload
    if codec != LZ4:
        raise RepositoryError(f"A block is stored with codec {codec}, which this version of kvm.cbt does not know. Update it.")
    if lz4_block is None:
        raise RepositoryError("Reading this repository needs the Python module lz4. Install python3-lz4.")
    try:
        data = lz4_block.decompress(payload, uncompressed_size=length)
    except (lz4_block.LZ4BlockError, ValueError, MemoryError) as error:
        raise DamagedObject("it does not decompress") from error
    if len(data) != length:
        raise DamagedObject("its length is wrong")
    return t.cast(bytes, data)
