# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides how disks are reached: over a Unix socket, or over TCP from another host."""

from __future__ import annotations

import dataclasses
import socket

from ...blocks.nbd import check_certificates
from ...endpoint import TcpServer
from ...errors import Refused
from ...hypervisor.connection import Session

UNIX = "unix"
FIRST_PORT = 10809  # the port that IANA assigns to NBD
PORTS = 64


@dataclasses.dataclass(frozen=True)
class Transport:
    """How the disks are reached.

    ``address`` is the hypervisor's; None is the host in the URI, or localhost. If ``port`` is None, any free one is
    used. ``certificates`` is the folder with the certificates of this host.
    """

    kind: str = UNIX
    address: str | None = None
    port: int | None = None
    tls: bool = True
    certificates: str = "/etc/pki/libnbd"


def servers(session: Session, wanted: Transport) -> tuple[TcpServer, ...]:
    """Return the addresses at which QEMU may serve, in this order; none for a Unix socket.

    Raises Refused if the disks cannot be reached that way, or if certificates for TLS are missing.
    """
    host = session.remote_host
    if wanted.kind == UNIX:
        if host is not None:
            raise Refused(
                f"Cannot read the disks of a domain on {host} over a Unix socket. Set transport: tcp, or run the task"
                " on that host."
            )
        return ()
    if wanted.tls:
        check_certificates(wanted.certificates)
    address = wanted.address or host or "localhost"
    listen = _resolved(address)
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if wanted.port is None else [wanted.port]
    return tuple(TcpServer(address, listen, port, wanted.certificates if wanted.tls else None) for port in ports)


def _resolved(address: str) -> str:
    """Return the numeric address.

    The hypervisor may resolve its own name to a loopback address.
    """
    try:
        return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise Refused(
            f"Cannot find the address of {address}: {error.strerror}. Set nbd_address to an address of the hypervisor."
        ) from error
