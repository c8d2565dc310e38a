"""Restored disks go to no NBD server but the one that was meant: real servers with real certificates, right and wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.certificates import Authority, self_signed
from lab.process import run_tool

from _cbt.blocks.nbd_target import NbdTarget, NbdTls, check_tls, verifies_by_itself
from _cbt.errors import CbtError, Refused

SECRET = b"what only the right server may have"


class Pki:
    """Certificates of servers on this host, by what is wrong with them, and what clients trust."""

    def __init__(self, folder: Path) -> None:
        self.right, other = Authority(folder / "right", "right"), Authority(folder / "other", "other")
        self.servers = {
            "right": self.right.issue("server", "localhost", "127.0.0.1"),
            "another CA": other.issue("server", "localhost", "127.0.0.1"),
            "another name": self.right.issue("server", "elsewhere.example", "192.0.2.7"),
            "expired": self.right.issue("server", "localhost", "127.0.0.1", days=-1),
            "self-signed": self._self_signed(folder / "self-signed"),
            "of a client with another name": self._as_server(
                self.right.issue("client", "backup0.example", "192.0.2.8")
            ),
        }
        self.client = self.right.issue("client", "backup0.example", "192.0.2.8", days=3)
        self.authority = folder / "authority"
        self.authority.mkdir()
        shutil.copy(self.right.certificate, self.authority / "ca-cert.pem")

    @staticmethod
    def _self_signed(folder: Path) -> Path:
        folder.mkdir()
        key, certificate = folder / "server-key.pem", folder / "server-cert.pem"
        self_signed(key, certificate, "localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        shutil.copy(certificate, folder / "ca-cert.pem")
        return folder

    @staticmethod
    def _as_server(folder: Path) -> Path:
        for name in ("cert", "key"):
            shutil.copy(folder / f"client-{name}.pem", folder / f"server-{name}.pem")
        return folder


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(bytes(1 << 20))
    return made


@contextlib.contextmanager
def served(image: Path, certificates: Path | None = None, ask_client: bool = False) -> Iterator[int]:
    """The port at which qemu-nbd serves an image; it listens already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    asking = "yes" if ask_client else "no"
    # Without sanity checks it starts with certificates that no client should believe.
    credentials = f"tls-creds-x509,id=tls,dir={certificates},endpoint=server,verify-peer={asking},sanity-check=no"
    tls = ["--object", credentials, "--tls-creds", "tls"] if certificates is not None else []
    pid = image.with_name("pid")
    run_tool(
        [
            "qemu-nbd",
            "--fork",
            "--persistent",
            f"--pid-file={pid}",
            "--bind=127.0.0.1",
            f"--port={port}",
            "--format=raw",
            *tls,
            image,
        ]
    )
    try:
        yield port
    finally:
        handle = os.pidfd_open(int(pid.read_text()))
        signal.pidfd_send_signal(handle, signal.SIGKILL)  # after a refused handshake, SIGTERM may not end it
        os.close(handle)


def send(uri: str, tls: NbdTls) -> None:
    """Write to a server as a restore does."""
    with contextlib.closing(NbdTarget(uri, tls)) as target:
        target.write([SECRET], 0)
        target.sync()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_right_server_gets_the_disk(host: str, pki: Pki, image: Path) -> None:
    with served(image, pki.servers["right"]) as port:
        send(f"nbds://{host}:{port}/", NbdTls(certificates=str(pki.authority)))
    assert image.read_bytes().startswith(SECRET)


def test_a_server_that_asks_for_a_certificate_is_shown_one(pki: Pki, image: Path) -> None:
    with served(image, pki.servers["right"], ask_client=True) as port:
        with pytest.raises(CbtError):
            send(f"nbds://localhost:{port}/", NbdTls(certificates=str(pki.authority)))
        assert not any(image.read_bytes())
        send(f"nbds://localhost:{port}/", NbdTls(certificates=str(pki.client)))
    assert image.read_bytes().startswith(SECRET)


@pytest.mark.parametrize(
    "wrong", ["another CA", "another name", "expired", "self-signed", "of a client with another name", "plain"]
)
def test_a_wrong_server_gets_nothing(wrong: str, pki: Pki, image: Path) -> None:
    said = r"Cannot write to nbds://localhost:\d+/: .* The certificate of the server must be valid, be signed by the CA in tls_certificates"
    with served(image, pki.servers.get(wrong)) as port, pytest.raises(CbtError, match=said):
        send(f"nbds://localhost:{port}/", NbdTls(required=False, certificates=str(pki.authority)))
    assert not any(image.read_bytes())


@pytest.mark.parametrize("trusted", ["right", "self-signed"])
def test_a_server_unknown_to_system_authorities_is_refused_without_a_certificate_folder(
    trusted: str, pki: Pki, image: Path
) -> None:
    # By libnbd, or in its place where it does not verify.
    with served(image, pki.servers[trusted]) as port, pytest.raises(CbtError, match="Cannot write to nbds://localhost"):
        send(f"nbds://localhost:{port}/", NbdTls())
    assert not any(image.read_bytes())


def test_a_plain_server_of_this_host_gets_the_disk(image: Path) -> None:
    with served(image) as port:
        send(f"nbd://127.0.0.1:{port}/", NbdTls())
    assert image.read_bytes().startswith(SECRET)


@pytest.mark.parametrize(
    "uri",
    [
        "nbd://backup.example/",
        "nbd://192.0.2.1:10809/x",
        "nbd://[2001:db8::1]/",
        "nbd://127.0.0.1.example/",
        "nbd://0.0.0.0/",
    ],
)
def test_plain_tcp_to_another_host_has_to_be_written_out(uri: str) -> None:
    with pytest.raises(Refused, match="Use nbds:// and tls_certificates, or set tls: false"):
        check_tls(uri, NbdTls(), "1.22.0")
    check_tls(uri, NbdTls(required=False), "1.22.0")


@pytest.mark.parametrize("uri", ["nbds://[2001:db8::1/", "nbds://backup.example/?tls-verify-peer=false"])
def test_an_invalid_uri_or_one_that_disables_verification_is_refused(uri: str) -> None:
    with pytest.raises(Refused, match="it is not a URI|Remove tls-verify-peer from it"):
        check_tls(uri, NbdTls(required=True), "1.22.0")


@pytest.mark.parametrize(
    "uri",
    [
        "nbd://localhost/",
        "nbd:///",
        "nbd://127.3.2.1:1/",
        "nbd://[::1]/",
        "nbd+unix:///?socket=/a",
        "nbds+unix:///?socket=/a",
    ],
)
def test_this_host_is_reached_without_tls(uri: str) -> None:
    check_tls(uri, NbdTls(), "1.14.2")


@pytest.mark.parametrize(
    ("version", "verifies"),
    [
        *[
            (old, False)
            for old in ("1.8.0", "1.14.2", "1.18.4", "1.19.9", "1.20.0", "1.20.1", "1.21.3", "", None, "unknown")
        ],
        *[(new, True) for new in ("1.18.5", "1.18.6", "1.20.2", "1.20.3-1.el9", "1.22.0", "1.24.1", "2.0.0")],
    ],
)
def test_the_authorities_of_the_system_count_where_libnbd_verifies_them(version: str | None, verifies: bool) -> None:
    assert verifies_by_itself(version) is verifies
    if verifies:
        check_tls("nbds://backup.example/", NbdTls(), version)
    else:
        with pytest.raises(Refused, match="Set tls_certificates to a folder with the server's CA"):
            check_tls("nbds://backup.example/", NbdTls(required=False), version)


@pytest.mark.parametrize("missing", ["ca-cert.pem", "client-cert.pem", "client-key.pem"])
def test_an_unreadable_certificate_is_named(missing: str, pki: Pki, tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    shutil.copytree(pki.client, folder)
    (folder / missing).unlink()
    with pytest.raises(Refused, match=f"{folder / missing} cannot be read. Check tls_certificates."):
        check_tls("nbds://backup.example/", NbdTls(certificates=str(folder)), "1.14.2")
