# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accepts connections, and serves each in threads of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import ssl
import threading
import time

from ...errors import Refused
from .handshake import Exports, negotiate
from .stream import Gone, Stream
from .transmission import Report, Transmission

MOST_CLIENTS = 64
_PAUSE = 0.1  # seconds
_SEND_BUFFER = 2 << 20  # bytes: a worker goes on decoding while a client reads


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How clients are served: threads for each, encryption, and where errors are reported."""

    workers: int
    tls: ssl.SSLContext | None
    report: Report


def tls_context(folder: str) -> ssl.SSLContext:
    """Return the settings of a server that proves itself, and asks each client to, with certificates of one CA.

    The files are named as libnbd and QEMU expect them. Raises Refused if one cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    authority, certificate, key = (
        os.path.join(folder, name) for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem")
    )
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise Refused(
            f"Cannot use {authority}, {certificate} and {key} for TLS: {error.strerror or error}. The role"
            " kvm.cbt.nbd_tls installs them; tls_certificates names another folder."
        ) from error
    return context


class Listener:
    """Serves the clients of a listening socket."""

    def __init__(self, listening: socket.socket, exports: Exports, options: ServerOptions) -> None:
        self._listening, self._exports, self._options = listening, exports, options
        self._clients = threading.Semaphore(MOST_CLIENTS)

    def serve(self) -> None:
        """Accept connections until the socket is shut down."""
        while True:
            self._clients.acquire()
            try:
                connection, _address = self._listening.accept()
            except OSError as error:
                self._clients.release()
                if error.errno in (errno.EINVAL, errno.EBADF):
                    return
                self._options.report(f"Cannot accept a connection: {error.strerror}")  # out of handles, for example
                time.sleep(_PAUSE)
                continue
            threading.Thread(target=self._serve_one, args=(connection,), daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        stream = Stream(connection)
        try:
            with contextlib.suppress(OSError):  # not every kind of socket has these
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(Gone):
                agreement = negotiate(stream, self._exports, self._options.tls)
                Transmission(agreement, self._options.workers, self._options.report).serve()
        finally:
            stream.close()
            self._clients.release()
