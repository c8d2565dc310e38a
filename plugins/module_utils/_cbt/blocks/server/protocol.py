# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the NBD protocol that the server speaks: numbers and layouts, all integers big-endian. Pure."""

from __future__ import annotations

import errno
import struct
import typing as t

from ...grid import BLOCK_SIZE

# Handshake
GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 1 | 2)  # fixed newstyle, no zeroes
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY = struct.Struct(">QIII")
OPTION_REPLY_MAGIC = 0x3E889045565A9
NO_ZEROES = 2  # of the client's flags
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_CONTEXTS, SET_CONTEXT = 1, 2, 3, 5, 6, 7, 8, 9, 10
ACK, SERVER, INFO_REPLY, CONTEXT = 1, 2, 3, 4
UNSUPPORTED, INVALID, TLS_REQUIRED, UNKNOWN = ((1 << 31) + number for number in (1, 3, 5, 6))
LONGEST_OPTION = 1 << 16
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
ALLOCATION = "base:allocation"
ALLOCATION_ID = 1

# Transmission
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
READ, WRITE, DISCONNECT, FLUSH, TRIM, BLOCK_STATUS = 0, 1, 2, 3, 4, 7
WRITE_ZEROES = 6
FLAG_DONT_FRAGMENT, FLAG_ONE = 4, 8
SIMPLE_REPLY = struct.Struct(">IIQ")
SIMPLE_MAGIC = 0x67446698
CHUNK = struct.Struct(">IHHQI")
CHUNK_MAGIC = 0x668E33EF
DONE = 1
NONE, DATA, HOLE, STATUS, ERROR, ERROR_AT = 0, 1, 2, 5, 0x8001, 0x8002
MOST_DATA = 32 << 20  # bytes of one request that are read or written
ZERO = 1 | 2  # of base:allocation: a hole that reads as zeroes
_NAMED_ERRORS = {errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW}

_READ_ONLY_FLAGS = 1 | 1 << 1 | 1 << 7 | 1 << 8  # has flags, read-only, don't fragment, several connections
_WRITABLE_FLAGS = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8  # flush, FUA, trim and write zeroes


class Request(t.NamedTuple):
    """A request of a client; ``cookie`` is repeated in the reply."""

    magic: int
    flags: int
    kind: int
    cookie: int
    offset: int
    length: int


def flags(writable: bool) -> int:
    """Return the flags of an export."""
    return _WRITABLE_FLAGS if writable else _READ_ONLY_FLAGS


def description(size: int, writable: bool) -> tuple[bytes, bytes]:
    """Return what describes an export to a client: size and flags, and the sizes of requests."""
    return (
        struct.pack(">HQH", INFO_EXPORT, size, flags(writable)),
        struct.pack(">HIII", INFO_BLOCK_SIZE, 1, BLOCK_SIZE, MOST_DATA),
    )


def parse_export_name(data: bytes) -> str | None:
    """Return the name of the export that a client asks for, None if the data is not of that form."""
    return _string(data, 0)[0]


def parse_contexts(data: bytes) -> tuple[str, list[str]] | None:
    """Return the export and the metadata contexts that a client asks for, None if the data is not of that form."""
    name, at = _string(data, 0)
    if name is None or len(data) < at + 4:
        return None
    (count,) = struct.unpack_from(">I", data, at)
    queries: list[str] = []
    at += 4
    while len(queries) < count:
        query, at = _string(data, at)
        if query is None:
            return None
        queries.append(query)
    return (name, queries) if at == len(data) else None


def _string(data: bytes, at: int) -> tuple[str | None, int]:
    """Return a string with its length before it, None if there is none, and where it ends."""
    if len(data) < at + 4:
        return None, at
    (length,) = struct.unpack_from(">I", data, at)
    end = at + 4 + length
    if len(data) < end:
        return None, at
    return data[at + 4 : end].decode(errors="replace"), end


def number_of(error: BaseException) -> int:
    """Return the error number for a client."""
    number = error.errno if isinstance(error, OSError) else None
    return number if number in _NAMED_ERRORS else errno.EIO
