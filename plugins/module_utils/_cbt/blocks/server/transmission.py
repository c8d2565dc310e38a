# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers the requests of one client, several at a time."""

from __future__ import annotations

import errno
import itertools
import queue
import struct
import threading
import typing as t

from ...errors import CbtError
from ...files import Buffer
from ...grid import coalesce
from . import protocol
from .disk import WritableDisk
from .handshake import Agreement
from .protocol import Request
from .stream import Gone

_MOST_WAITING = 64  # requests
_MOST_EXTENTS = 4096  # of one reply, which may be shorter than what was asked for
_LONGEST_EXTENT = (1 << 32) - 1

Report = t.Callable[[str], None]


class Transmission:
    """Serves one client until it leaves. Reads are answered by up to ``workers`` threads, in any order.

    Writes are answered by the thread that receives them, so that a client cannot fill the memory with them.
    """

    def __init__(self, agreement: Agreement, workers: int, report: Report) -> None:
        """``report`` gets each error that a client gets."""
        self._stream, self._disk = agreement.stream, agreement.disk
        self._structured, self._contexts = agreement.structured, agreement.contexts
        self._writable = self._disk if isinstance(self._disk, WritableDisk) else None
        self._most, self._report = workers, report
        self._waiting: queue.Queue[Request | None] = queue.Queue(_MOST_WAITING)
        self._workers: list[threading.Thread] = []

    def serve(self) -> None:
        """Answer requests until the client leaves."""
        try:
            while True:
                request = Request(*protocol.REQUEST.unpack(self._stream.receive(protocol.REQUEST.size)))
                if request.magic != protocol.REQUEST_MAGIC or request.kind == protocol.DISCONNECT:
                    return
                if request.kind in (protocol.READ, protocol.BLOCK_STATUS):
                    self._hand_over(request)
                else:
                    self._change(request)
        except Gone:
            pass
        finally:
            for _worker in self._workers:
                self._waiting.put(None)
            for worker in self._workers:
                worker.join()
            self._stream.close()

    def _hand_over(self, request: Request) -> None:
        if len(self._workers) < self._most:
            worker = threading.Thread(target=self._work, daemon=True)
            worker.start()
            self._workers.append(worker)
        self._waiting.put(request)

    def _work(self) -> None:
        """Answer requests. After the client is gone, only take them."""
        gone = False
        for request in iter(self._waiting.get, None):
            if gone:
                continue
            try:
                self._answer(request)
            except Gone:
                gone = True
                self._stream.cut()

    def _answer(self, request: Request) -> None:
        if request.offset + request.length > self._disk.size or not request.length:
            self._fail(request, errno.EINVAL)
        elif request.kind == protocol.BLOCK_STATUS:
            self._answer_status(request)
        elif request.length > protocol.MOST_DATA:
            self._fail(request, errno.EINVAL)
        elif not self._structured or request.flags & protocol.FLAG_DONT_FRAGMENT:
            self._answer_whole(request)
        else:
            self._answer_in_pieces(request)

    def _answer_whole(self, request: Request) -> None:
        buffers: list[Buffer] = []
        try:
            for length, found in self._disk.read(request.offset, request.length):
                buffers += found or [bytes(length)]
        except (CbtError, OSError) as error:
            self._report(str(error))
            self._fail(request, protocol.number_of(error))
            return
        if self._structured:
            self._send(request, protocol.DATA | protocol.DONE << 16, struct.pack(">Q", request.offset), *buffers)
        else:
            self._stream.send(protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_MAGIC, 0, request.cookie), *buffers)

    def _answer_in_pieces(self, request: Request) -> None:
        """Send each piece once it is read. An error is one at the place where it is."""
        offset, end = request.offset, request.offset + request.length
        pieces = self._disk.read(request.offset, request.length)
        while offset < end:
            try:
                length, buffers = next(pieces)
            except (CbtError, OSError) as error:
                self._report(str(error))
                at = struct.pack(">IHQ", protocol.number_of(error), 0, offset)
                self._send(request, protocol.ERROR_AT | protocol.DONE << 16, at)
                return
            last = protocol.DONE << 16 if offset + length == end else 0
            if buffers:
                self._send(request, protocol.DATA | last, struct.pack(">Q", offset), *buffers)
            else:
                self._send(request, protocol.HOLE | last, struct.pack(">QI", offset, length))
            offset += length

    def _answer_status(self, request: Request) -> None:
        if not self._contexts:
            self._fail(request, errno.EINVAL)
            return
        found = coalesce(self._disk.extents(request.offset, request.length), _joined)
        most = 1 if request.flags & protocol.FLAG_ONE else _MOST_EXTENTS
        try:
            extents = list(itertools.islice(found, most))
        except (CbtError, OSError) as error:
            self._report(str(error))
            self._fail(request, protocol.number_of(error))
            return
        body = b"".join(struct.pack(">II", length, 0 if data else protocol.ZERO) for length, data in extents)
        context = struct.pack(">I", protocol.ALLOCATION_ID)
        self._send(request, protocol.STATUS | protocol.DONE << 16, context, body)

    def _change(self, request: Request) -> None:
        """Carry out a request that writes, or refuse it."""
        writing = request.kind == protocol.WRITE
        if writing and request.length > protocol.MOST_DATA:
            raise Gone  # what follows cannot be distinguished from the next request
        data = self._stream.receive(request.length) if writing else b""
        if request.kind not in (protocol.WRITE, protocol.FLUSH, protocol.TRIM, protocol.WRITE_ZEROES):
            self._fail(request, errno.EINVAL)
        elif self._writable is None:
            self._fail(request, errno.EPERM)
        elif request.offset + request.length > self._writable.size:
            self._fail(request, errno.ENOSPC if writing else errno.EINVAL)
        else:
            self._carry_out(self._writable, request, data)

    def _carry_out(self, disk: WritableDisk, request: Request, data: Buffer) -> None:
        try:
            if request.kind == protocol.WRITE:
                disk.write(request.offset, data)
            elif request.kind != protocol.FLUSH:
                disk.zero(request.offset, request.length)
        except (CbtError, OSError) as error:
            self._report(str(error))
            self._fail(request, protocol.number_of(error))
            return
        if self._structured:
            self._send(request, protocol.NONE | protocol.DONE << 16)
        else:
            self._stream.send(protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_MAGIC, 0, request.cookie))

    def _fail(self, request: Request, number: int) -> None:
        if self._structured:
            self._send(request, protocol.ERROR | protocol.DONE << 16, struct.pack(">IH", number, 0))
        else:
            self._stream.send(protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_MAGIC, number, request.cookie))

    def _send(self, request: Request, kind: int, *buffers: Buffer) -> None:
        """Send a chunk. ``kind`` has the flags in its upper half."""
        length = sum(map(len, buffers))
        head = protocol.CHUNK.pack(protocol.CHUNK_MAGIC, kind >> 16, kind & 0xFFFF, request.cookie, length)
        self._stream.send(head, *buffers)


def _joined(one: tuple[int, bool], other: tuple[int, bool]) -> tuple[int, bool] | None:
    """Return two neighbouring extents as one, None if they differ."""
    length = one[0] + other[0]
    return (length, one[1]) if one[1] == other[1] and length <= _LONGEST_EXTENT else None
