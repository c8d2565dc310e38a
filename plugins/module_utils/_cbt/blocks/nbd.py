# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NBD connections for reading an export."""

from __future__ import annotations

import contextlib
import os
import socket
import typing as t

from ..endpoint import Export, Server
from ..errors import HypervisorError, Refused
from .extents import Extent, intersect, joined

try:
    import nbd
except ImportError:  # the module reports it before it calls the engine
    nbd = None

ALLOCATION = "base:allocation"
# A status request must stay under 4 GiB without extended headers. A reply may be shorter than the request.
STATUS_STEP = 2 << 30
MAX_REQUEST = 1 << 20  # bytes of a single read; the protocol's own limit is 32 MiB
ANSWER_WITHIN = 30  # seconds; without it, a firewall that drops packets holds up a job for minutes

_ZERO = 2  # bit 1 of base:allocation; a hole without it may hold a backing file's data and is read
_DIRTY = 1


def check_certificates(folder: str) -> None:
    """Raise Refused unless the TLS files in ``folder`` are readable.

    libnbd connects without a certificate and does not report one that it cannot read.
    """
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        path = os.path.join(folder, name)
        if not os.access(path, os.R_OK):
            raise Refused(
                f"Cannot read {path}, which TLS needs. The role kvm.cbt.nbd_tls installs it; tls_certificates names"
                " another folder."
            )


def check_reachable(server: Server) -> None:
    """Raise HypervisorError if a TCP connection to the server fails. A Unix socket is not checked."""
    if isinstance(server, str):
        return
    try:
        socket.create_connection((server.address, server.port), ANSWER_WITHIN).close()
    except OSError as error:
        why = f"{error.strerror or error}. Check firewalls, nbd_address and nbd_port."
        raise HypervisorError(f"Cannot reach the NBD server at {server.address} port {server.port}: {why}") from error


class Connection:
    """One NBD connection to one export. Do not share it between threads."""

    def __init__(self, export: Export, context: str | None) -> None:
        """Connect. ``context`` is the metadata context that extents() uses.

        Raises HypervisorError if the server refuses or does not offer the context.
        """
        self._name = export.target
        self._advice = "See QEMU's log of this domain."
        self._handle: t.Any = nbd.NBD()
        self._handle.set_export_name(export.target)
        if hasattr(self._handle, "set_pread_initialize"):
            self._handle.set_pread_initialize(False)  # a read either fills its buffer or raises
        if context is not None:
            self._handle.add_meta_context(context)
        with self._explained("connect to"):
            self._connect(export.server)
            self.size: int = self._handle.get_size()
            if context is not None and not self._handle.can_meta_context(context):
                raise HypervisorError(
                    f"The NBD export {self._name} does not offer {context}, so its extents are unknown."
                )

    def _connect(self, server: Server) -> None:
        if isinstance(server, str):
            self._handle.connect_unix(server)
            return
        if server.certificates is not None:
            self._advice += (
                f" The certificates in {server.certificates} and that of the server must be signed by the same CA,"
                f" and that of the server must include {server.address}."
            )
            self._handle.set_tls(nbd.TLS_REQUIRE)
            self._handle.set_tls_certificates(server.certificates)
            self._handle.set_tls_verify_peer(True)
        self._handle.connect_tcp(server.address, str(server.port))

    @contextlib.contextmanager
    def _explained(self, verb: str) -> t.Iterator[None]:
        try:
            yield
        except nbd.Error as error:
            said = str(error).rstrip(".")
            raise HypervisorError(f"Cannot {verb} the NBD export {self._name}: {said}. {self._advice}") from error

    def read(self, offset: int, length: int) -> bytearray:
        """Read ``length`` bytes from ``offset``."""
        with self._explained("read"):
            return t.cast(bytearray, self._handle.pread(length, offset))

    def status(self, offset: int, end: int) -> t.Iterator[tuple[int, int, int]]:
        """Yield (offset, length, flags) of the extents between two offsets."""
        reply: list[int] = []
        while offset < end:
            reply.clear()
            with self._explained("ask for extents of"):
                self._handle.block_status(
                    min(STATUS_STEP, end - offset),
                    offset,
                    lambda _context, _offset, entries, _error: reply.extend(entries),
                )
            if not any(reply[::2]):
                raise HypervisorError(f"The NBD export {self._name} returned no extents at offset {offset}.")
            for length, flags in zip(reply[::2], reply[1::2]):
                # The last extents may lie beyond what was asked for.
                if offset < end:
                    yield offset, min(length, end - offset), flags
                offset += length

    def close(self) -> None:
        """Disconnect cleanly, or drop the connection if that fails."""
        with contextlib.suppress(nbd.Error):
            self._handle.shutdown()
        self._handle = None  # libnbd closes a handle once it is garbage


class Source:
    """A readable export: its size and the extents to read."""

    def __init__(self, export: Export) -> None:
        self._export = export
        with contextlib.ExitStack() as stack:
            self._allocation = stack.enter_context(self._connected(ALLOCATION))
            # A separate connection: on a shared one, each status request about changes also makes QEMU walk the
            # allocation of unchanged parts. That cost grows with the disk.
            self._dirty = stack.enter_context(self._connected(export.dirty_context)) if export.dirty_context else None
            self._stack = stack.pop_all()
        self.size = self._allocation.size

    def _connected(self, context: str | None) -> contextlib.closing[Connection]:
        return contextlib.closing(Connection(self._export, context))

    def connect(self) -> contextlib.closing[Connection]:
        """Open another connection to read data."""
        return self._connected(None)

    def allocation(self) -> t.Iterator[Extent]:
        """Return extents of the whole disk in order."""
        return joined(self._allocated(0, self.size))

    def _allocated(self, start: int, end: int) -> t.Iterator[Extent]:
        for offset, length, flags in self._allocation.status(start, end):
            yield Extent(offset, length, bool(flags & _ZERO))

    def extents(self) -> t.Iterator[Extent]:
        """Yield the extents to process in order."""
        if self._dirty is None:
            yield from self.allocation()
            return
        for start in range(0, self.size, STATUS_STEP):
            dirty = list(self.marked(start, min(start + STATUS_STEP, self.size)))
            if dirty:
                yield from intersect(dirty, self._allocated(dirty[0].offset, dirty[-1].end))

    def marked(self, start: int, end: int) -> t.Iterator[Extent]:
        """Return dirty extents between two offsets; everything without a dirty context."""
        status = self._dirty.status(start, end) if self._dirty is not None else ((start, end - start, _DIRTY),)
        return joined(Extent(offset, length, False) for offset, length, flags in status if flags & _DIRTY)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()
