# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Negotiates with a client which export it uses, and how."""

from __future__ import annotations

import dataclasses
import ssl
import struct
import typing as t

from . import protocol
from .disk import Disk, WritableDisk
from .stream import Gone, Stream

_WITHIN = 60.0  # seconds for each step of a client
_MOST_OPTIONS = 256

Exports = t.Mapping[str, Disk]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What was negotiated. ``contexts`` is whether the client may ask for base:allocation."""

    stream: Stream
    disk: Disk
    structured: bool
    contexts: bool


def negotiate(stream: Stream, exports: Exports, tls: ssl.SSLContext | None) -> Agreement:
    """Return what a new client and the server agree on. With ``tls``, nothing is said before it. Raises Gone."""
    handshake = _Handshake(stream, exports, tls)
    try:
        return handshake.run()
    except BaseException:
        handshake.stream.close()
        raise


class _Handshake:
    def __init__(self, stream: Stream, exports: Exports, tls: ssl.SSLContext | None) -> None:
        self.stream, self._exports, self._tls = stream, exports, tls
        self._structured = False
        self._contexts_of: Disk | None = None
        self._chosen: Disk | None = None
        self._answers: dict[int, t.Callable[[int, bytes], None]] = {
            protocol.LIST: self._list,
            protocol.INFO: self._inform,
            protocol.GO: self._inform,
            protocol.STRUCTURED_REPLY: self._structure,
            protocol.LIST_CONTEXTS: self._contexts,
            protocol.SET_CONTEXT: self._contexts,
        }

    def run(self) -> Agreement:
        self.stream.limit(_WITHIN)
        self.stream.send(protocol.GREETING)
        (flags,) = protocol.CLIENT_FLAGS.unpack(self.stream.receive(protocol.CLIENT_FLAGS.size))
        for _option in range(_MOST_OPTIONS):
            magic, option, length = protocol.OPTION.unpack(self.stream.receive(protocol.OPTION.size))
            if magic != protocol.OPTION_MAGIC or length > protocol.LONGEST_OPTION:
                raise Gone
            data = bytes(self.stream.receive(length))
            if option == protocol.EXPORT_NAME:
                self._choose_at_once(data, bool(flags & protocol.NO_ZEROES))
            else:
                self._answer(option, data)
            if self._chosen is not None:
                self.stream.limit(None)
                contexts = self._contexts_of is self._chosen
                return Agreement(self.stream, self._chosen, self._structured, contexts)
        raise Gone

    def _answer(self, option: int, data: bytes) -> None:
        if option == protocol.ABORT:
            self._reply(option, protocol.ACK)
            raise Gone
        if option == protocol.STARTTLS and self._tls is not None and not data:
            self._reply(option, protocol.ACK)
            self.stream, self._tls = self.stream.encrypted(self._tls), None
            self._structured, self._contexts_of = False, None
        elif self._tls is not None:
            self._reply(option, protocol.TLS_REQUIRED, b"This server requires TLS.")
        elif option in self._answers:
            self._answers[option](option, data)
        else:
            self._reply(option, protocol.UNSUPPORTED)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self.stream.send(protocol.OPTION_REPLY.pack(protocol.OPTION_REPLY_MAGIC, option, kind, len(data)), data)

    def _find(self, name: str) -> Disk | None:
        """Return an export. The only one is also the default."""
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)

    def _choose_at_once(self, name: bytes, no_zeroes: bool) -> None:
        disk = self._find(name.decode(errors="replace"))
        if disk is None or self._tls is not None:  # this option has no error reply
            raise Gone
        flags = protocol.flags(isinstance(disk, WritableDisk))
        self.stream.send(struct.pack(">QH", disk.size, flags), b"" if no_zeroes else bytes(124))
        self._chosen = disk

    def _list(self, option: int, data: bytes) -> None:
        if data:
            self._reply(option, protocol.INVALID)
            return
        for name in self._exports:
            self._reply(option, protocol.SERVER, struct.pack(">I", len(name.encode())) + name.encode())
        self._reply(option, protocol.ACK)

    def _structure(self, option: int, data: bytes) -> None:
        self._structured = not data
        self._reply(option, protocol.INVALID if data else protocol.ACK)

    def _inform(self, option: int, data: bytes) -> None:
        name = protocol.parse_export_name(data)
        disk = self._find(name) if name is not None else None
        if disk is None:
            self._reply(option, protocol.INVALID if name is None else protocol.UNKNOWN)
            return
        for each in protocol.description(disk.size, isinstance(disk, WritableDisk)):
            self._reply(option, protocol.INFO_REPLY, each)
        self._reply(option, protocol.ACK)
        if option == protocol.GO:
            self._chosen = disk

    def _contexts(self, option: int, data: bytes) -> None:
        asked = protocol.parse_contexts(data)
        disk = self._find(asked[0]) if asked is not None else None
        if asked is None or disk is None or not self._structured:
            self._reply(option, protocol.UNKNOWN if asked is not None and self._structured else protocol.INVALID)
            return
        listing = option == protocol.LIST_CONTEXTS
        exact = protocol.ALLOCATION in asked[1]
        if exact or (listing and (not asked[1] or "base:" in asked[1])):
            number = struct.pack(">I", 0 if listing else protocol.ALLOCATION_ID)
            self._reply(option, protocol.CONTEXT, number + protocol.ALLOCATION.encode())
        if not listing:
            self._contexts_of = disk if exact else None
        self._reply(option, protocol.ACK)
