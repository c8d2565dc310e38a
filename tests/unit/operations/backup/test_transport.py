# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the disks of a running domain are read from, and what is refused before anything is begun."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import pytest
from samples import disk

from _cbt.blocks.nbd import check_reachable
from _cbt.endpoint import Server, TcpServer
from _cbt.errors import HypervisorError, Refused
from _cbt.hypervisor.backup_job import backup_xml
from _cbt.hypervisor.connection import Session
from _cbt.operations.backup.transport import FIRST_PORT, PORTS, Transport, servers


@dataclasses.dataclass(frozen=True)
class _Elsewhere:
    remote_host: str | None = "127.0.0.2"


def asked(host: str | None = "127.0.0.2", **wanted: t.Any) -> tuple[TcpServer, ...]:
    return servers(t.cast(Session, _Elsewhere(host)), Transport(**wanted))


def test_a_unix_socket_is_for_this_host_only() -> None:
    assert asked(None) == ()
    with pytest.raises(Refused, match=r"a domain on 127.0.0.2 over a Unix socket. Set transport: tcp"):
        asked()


def test_without_certificates_tls_is_refused_and_plain_text_is_never_chosen_for_it(tmp_path: Path) -> None:
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        with pytest.raises(Refused, match=f"Cannot read {tmp_path / name}, which TLS needs"):
            asked(kind="tcp", certificates=str(tmp_path))
        (tmp_path / name).touch()
    assert {server.certificates for server in asked(kind="tcp", certificates=str(tmp_path))} == {str(tmp_path)}
    assert {server.certificates for server in asked(kind="tcp", tls=False)} == {None}


def test_the_address_is_that_of_the_uri_or_the_one_given_and_the_port_one_of_a_range_or_the_one_given() -> None:
    tried = asked(kind="tcp", tls=False)
    assert [server.port for server in tried] == list(range(FIRST_PORT, FIRST_PORT + PORTS))
    assert {(server.address, server.listen) for server in tried} == {("127.0.0.2", "127.0.0.2")}
    assert asked(kind="tcp", tls=False, address="localhost", port=7)[0].listen in ("127.0.0.1", "::1")
    assert [server.port for server in asked(kind="tcp", tls=False, port=7)] == [7]
    with pytest.raises(Refused, match="Cannot find the address of no such host: .* Set nbd_address"):
        asked(kind="tcp", tls=False, address="no such host")


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("/scratch/nbd.sock", {"transport": "unix", "socket": "/scratch/nbd.sock"}),
        (
            TcpServer("kvm1", "10.0.0.1", 10809, "/etc/pki/libnbd"),
            {"transport": "tcp", "name": "10.0.0.1", "port": "10809", "tls": "yes"},
        ),
        (TcpServer("kvm1", "10.0.0.1", 10809), {"transport": "tcp", "name": "10.0.0.1", "port": "10809"}),
    ],
    ids=["unix", "tls", "plain"],
)
def test_libvirt_receives_the_address_to_serve_on(server: Server, expected: dict[str, str]) -> None:
    made = ElementTree.fromstring(backup_xml({"vda": None}, [disk("vda")], "/scratch", server)).find("server")
    assert made is not None and made.attrib == expected


def test_a_port_without_a_listener_is_reported_before_anything_is_read() -> None:
    with pytest.raises(
        HypervisorError, match="Cannot reach the NBD server at 127.0.0.1 port 1: Connection refused. Check firewalls"
    ):
        check_reachable(TcpServer("127.0.0.1", "127.0.0.1", 1))
