# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends and receives on a connection, encrypted or not."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import typing as t

from ...files import Buffer

_VECTORS = 512  # buffers passed to the kernel in one call; its limit is 1024


class Gone(Exception):
    """The client is gone, or does not speak the protocol. The connection is closed."""


class Stream:
    """A connection. One thread may receive while others send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def receive(self, length: int) -> bytearray:
        """Return the next bytes. Raises Gone."""
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            got = self._receive_into(rest)
            if not got:
                raise Gone
            rest = rest[got:]
        return data

    def send(self, *buffers: Buffer) -> None:
        """Send buffers one after another, without others in between. Raises Gone."""
        with self._sending:
            try:
                self._send_all([memoryview(each) for each in buffers if len(each)])
            except OSError as error:
                raise Gone from error

    def _receive_into(self, buffer: memoryview) -> int:
        try:
            return self._connection.recv_into(buffer)
        except OSError as error:
            raise Gone from error

    def _send_all(self, left: list[memoryview]) -> None:
        while left:
            sent = self._connection.sendmsg(left[:_VECTORS])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def limit(self, seconds: float | None) -> None:
        """Set how long the client may take for each step."""
        self._connection.settimeout(seconds)

    def encrypted(self, context: ssl.SSLContext) -> Stream:
        """Return the encrypted connection. Raises Gone if the client cannot prove who it is."""
        try:
            return _TlsStream(context.wrap_socket(self._connection, server_side=True))
        except OSError as error:
            raise Gone from error

    def cut(self) -> None:
        """End the connection; threads that wait for it go on. Close it once no thread uses it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        self.cut()
        self._connection.close()


class _TlsStream(Stream):
    """An encrypted connection. OpenSSL lets one thread at a time use it, so a thread does not wait while it uses it."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        super().__init__(connection)
        self._tls = connection
        self._using = threading.Lock()
        connection.setblocking(False)

    def cut(self) -> None:
        """End the connection, as a stream does."""
        with self._using:  # a thread that sends now would do so without encryption
            super().cut()

    def limit(self, seconds: float | None) -> None:
        """Change nothing: the handshake is nearly over once a connection is encrypted."""

    def _receive_into(self, buffer: memoryview) -> int:
        return self._done(lambda: self._tls.recv_into(buffer))

    def _send_all(self, left: list[memoryview]) -> None:
        for each in left:
            while each:
                part = each
                each = each[self._done(lambda: self._tls.send(part)) :]  # noqa: B023

    def _done(self, action: t.Callable[[], int]) -> int:
        while True:
            wanted: int
            try:
                with self._using:
                    return action()
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except OSError as error:
                raise Gone from error
            waiting = select.poll()
            waiting.register(self._tls, wanted)
            waiting.poll()
