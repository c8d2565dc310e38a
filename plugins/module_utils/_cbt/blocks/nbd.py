# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NBD connections for reading an export."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import typing as t

from ..endpoint import Server, TcpServer
from ..errors import HypervisorError, Refused
from .extents import Extent, clip, intersect, joined

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


def _collect(into: list[int], _context: str, _offset: int, entries: list[int], _error: t.Any) -> int:
    """Collect the entries of a block status reply."""
    into.extend(entries)
    return 0


def check_certificates(folder: str) -> None:
    """Raise Refused unless the TLS files in ``folder`` are readable.

    libnbd connects without a certificate and does not report one that it cannot read.
    """
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        path = os.path.join(folder, name)
        if not os.access(path, os.R_OK):
            raise Refused(
                f"Cannot read {path}, which TLS needs. The role kvm.cbt.nbd_tls installs it; tls_certificates names another folder."
            )


def check_reachable(server: TcpServer) -> None:
    """Raise HypervisorError if a TCP connection to the server fails."""
    try:
        socket.create_connection((server.address, server.port), ANSWER_WITHIN).close()
    except OSError as error:
        why = f"{error.strerror or error}. Check firewalls, nbd_address and nbd_port."
        raise HypervisorError(f"Cannot reach the NBD server at {server.address} port {server.port}: {why}") from error


class Connection:
    """One NBD connection to one export. Do not share it between threads."""

    def __init__(self, server: Server, export: str, context: str | None = None) -> None:
        """Connect. ``context`` is the metadata context that extents() uses.

        Raises HypervisorError if the server refuses or does not offer the context.
        """
        self._name = export or str(server)
        self._advice = "See QEMU's log of this domain."
        self._handle: t.Any = nbd.NBD()
        self._handle.set_export_name(export)
        if hasattr(self._handle, "set_pread_initialize"):
            self._handle.set_pread_initialize(False)  # a read either fills its buffer or raises
        if context is not None:
            self._handle.add_meta_context(context)
        with self._explained("connect to"):
            self._connect(server)
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

    def extents(self, offset: int, end: int, flag_bit: int) -> t.Iterator[Extent]:
        """Yield the extents between two offsets, flagged by ``flag_bit``."""
        while offset < end:
            entries: list[int] = []
            with self._explained("ask for extents of"):
                self._handle.block_status(min(STATUS_STEP, end - offset), offset, functools.partial(_collect, entries))
            covered = list(
                clip(
                    ((length, bool(flags & flag_bit)) for length, flags in zip(entries[::2], entries[1::2])),
                    offset,
                    end,
                )
            )
            if not covered:
                raise HypervisorError(f"The NBD export {self._name} returned no extents at offset {offset}.")
            yield from covered
            offset = covered[-1].end

    def close(self) -> None:
        """Disconnect cleanly, or drop the connection if that fails."""
        with contextlib.suppress(nbd.Error):
            self._handle.shutdown()
        self._handle = None  # libnbd closes a handle once it is garbage

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Source:
    """A readable export: its size and the extents to read."""

    def __init__(self, server: Server, export: str, dirty_context: str | None = None) -> None:
        """``dirty_context`` is the metadata context of changes, None for the whole disk."""
        self._server = server
        self._export = export
        with contextlib.ExitStack() as stack:
            self._allocation = stack.enter_context(Connection(server, export, ALLOCATION))
            # A separate connection: on a shared one, each status request about changes also makes QEMU walk the
            # allocation of unchanged parts. That cost grows with the disk.
            self._dirty = (
                stack.enter_context(Connection(server, export, dirty_context)) if dirty_context is not None else None
            )
            self._stack = stack.pop_all()
        self.size = self._allocation.size

    def connect(self) -> Connection:
        """Open another connection to read data."""
        return Connection(self._server, self._export)

    def allocation(self) -> t.Iterator[Extent]:
        """Return extents of the whole disk in order, flagged by whether they read as zero."""
        return joined(self._allocation.extents(0, self.size, _ZERO))

    def extents(self) -> t.Iterator[Extent]:
        """Yield the extents to process in order, flagged by whether they read as zero."""
        if self._dirty is None:
            yield from self.allocation()
            return
        for start in range(0, self.size, STATUS_STEP):
            end = min(start + STATUS_STEP, self.size)
            dirty = self.marked(start, end)
            if dirty:
                yield from intersect(dirty, self._allocation.extents(dirty[0].offset, dirty[-1].end, _ZERO))

    def marked(self, start: int, end: int) -> list[Extent]:
        """Return dirty extents between two offsets; everything without a dirty context."""
        if self._dirty is None:
            return [Extent(start, end - start, True)]
        return [extent for extent in joined(self._dirty.extents(start, end, _DIRTY)) if extent.flag]

    def dirty_bytes(self) -> int:
        """Return the number of dirty bytes; the whole disk without a dirty context."""
        if self._dirty is None:
            return self.size
        return sum(extent.length for extent in self._dirty.extents(0, self.size, _DIRTY) if extent.flag)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()
