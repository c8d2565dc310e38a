# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role nbd_tls: what it makes, and whom a real QEMU lets in with it. test_remote_backup.py has backups with such certificates."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import typing as t
from pathlib import Path

import pytest
from lab.certificates import Authority
from lab.process import run_tool, wait_until
from plays import run_playbook

from _cbt.blocks.nbd import Connection, check_reachable
from _cbt.endpoint import Export, TcpServer
from _cbt.errors import HypervisorError

MIB = 1 << 20


class Fleet:
    """Ansible with a hypervisor and a host that backs up, both in folders of this machine."""

    def __init__(self, collection: Path, folder: Path) -> None:
        self._collection, self.folder = collection, folder
        self.authority, self.server, self.client = (
            folder / "authority",
            folder / "kvm1/pki/qemu",
            folder / "backup1/pki/libnbd",
        )
        self.conf = folder / "kvm1/qemu.conf"
        for host in ("kvm1", "backup1"):
            (folder / host).mkdir()
        (folder / "inventory").write_text(
            "kvm1 nbd_tls_addresses=127.0.0.1 nbd_tls_kinds=server,client\nbackup1 nbd_tls_kinds=client\nlocalhost\n"
            "[all:vars]\nansible_connection=local\nansible_python_interpreter=/usr/bin/python3\n"
        )
        roles = [{"role": "kvm.cbt.nbd_tls"}]
        (folder / "playbook.yml").write_text(
            json.dumps([{"hosts": "kvm1:backup1", "gather_facts": False, "roles": roles}])
        )

    def run(self, *options: str, fails: str | None = None, **variables: t.Any) -> list[int]:
        """Run the role; how many tasks changed something on the hypervisor and on the other. ``fails`` is what it is to fail with."""
        own = f"{self.folder}/{{{{ inventory_hostname }}}}"
        given = {
            "nbd_tls_server_folder": f"{own}/pki/qemu",
            "nbd_tls_client_folder": f"{own}/pki/libnbd",
            "nbd_tls_qemu_conf": f"{own}/qemu.conf",
        }
        # Tests may run in a container themselves.
        given.update(nbd_tls_ca_folder=str(self.authority), nbd_tls_group="root", nbd_tls_restart=False)
        given.update({"__nbd_tls_container_files": [], "__nbd_tls_job_variables": ["AWX_JOB_ID"], **variables})
        # As surveys and the command line provide them: the sum of two texts is no number of days.
        given.update(
            nbd_tls_days=str(given.get("nbd_tls_days", 365)),
            nbd_tls_renew_days=str(given.get("nbd_tls_renew_days", 30)),
        )
        words = ["-i", self.folder / "inventory", "-e", json.dumps(given), *options, self.folder / "playbook.yml"]
        done = run_playbook(words, self._collection, self.folder, timeout=600)
        if (done.returncode == 0) != (fails is None) or "[WARNING]" in done.stdout or "[DEPRECATION" in done.stdout:
            pytest.fail(done.stdout, pytrace=False)
        assert fails is None or fails in re.sub(r"\s+", " ", done.stdout), done.stdout
        return [
            int(
                re.findall(rf"^{host}\s+: .*changed=(\d+)", done.stdout, re.MULTILINE)[-1]
                if f"\n{host} " in done.stdout
                else 0
            )
            for host in ("kvm1", "backup1")
        ]


@pytest.fixture
def fleet(collections: Path, tmp_path: Path) -> Fleet:
    return Fleet(collections, tmp_path)


@contextlib.contextmanager
def served(image: Path, certificates: Path) -> t.Iterator[int]:
    """The port at which QEMU serves an image with the certificates of a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    credentials = [
        "--object",
        f"tls-creds-x509,id=tls,dir={certificates},endpoint=server,verify-peer=yes",
        "--tls-creds",
        "tls",
    ]
    with subprocess.Popen(
        ["qemu-nbd", "-r", "-f", "raw", "-x", "vda", "-t", "-b", "127.0.0.1", "-p", str(port), *credentials, image]
    ) as server:
        try:
            wait_until(lambda: server.poll() is not None or _listens(port), 30, "start of qemu-nbd")
            assert server.poll() is None, "qemu-nbd has ended"
            yield port
            assert server.poll() is None, "qemu-nbd has ended"
        finally:
            server.terminate()


def _listens(port: int) -> bool:
    with contextlib.suppress(HypervisorError):
        check_reachable(TcpServer("127.0.0.1", "127.0.0.1", port))
        return True
    return False


def read(port: int, certificates: Path) -> bytes | str:
    """The first bytes, or why they were not to be had."""
    try:
        server = TcpServer("127.0.0.1", "127.0.0.1", port, str(certificates))
        with contextlib.closing(Connection(Export("vda", server, None), None)) as connection:
            return bytes(connection.read(0, 4))
    except HypervisorError as error:
        return str(error)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}


def test_certificates_from_the_first_to_the_last(fleet: Fleet, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"data" + bytes(MIB))
    own = tmp_path / "kvm1/pki/libnbd"
    assert all(fleet.run("--check"))
    assert not any(path.exists() for path in (fleet.authority, fleet.server, fleet.client, fleet.conf))
    assert all(fleet.run())
    # In a container, a CA that exists is used.
    assert fleet.run(__nbd_tls_container_files=[str(tmp_path)]) == [0, 0]
    assert modes(fleet.server) == {"ca-cert.pem": "0o644", "server-cert.pem": "0o644", "server-key.pem": "0o640"}
    assert (
        modes(fleet.client)
        == modes(own)
        == {"ca-cert.pem": "0o644", "client-cert.pem": "0o644", "client-key.pem": "0o600"}
    )
    assert (fleet.client.stat().st_mode & 0o777, fleet.authority.stat().st_mode & 0o777) == (0o700, 0o700)
    assert fleet.conf.read_text() == f'backup_tls_x509_cert_dir = "{fleet.server}"\nbackup_tls_x509_verify = 1\n'
    stranger = Authority(tmp_path / "others", "others").issue("client", "backup1", "127.0.0.1")
    shutil.copy(fleet.client / "ca-cert.pem", stranger / "ca-cert.pem")
    with served(image, fleet.server) as port:
        assert read(port, fleet.client) == read(port, own) == b"data"
        assert "Cannot connect to" in str(read(port, stranger))

    # A certificate that is revoked opens nothing any more, and those that are near their end are issued anew.
    lost = Path(shutil.copytree(fleet.client, tmp_path / "lost"))
    before = [path.read_bytes() for path in (fleet.server / "server-cert.pem", own / "client-cert.pem")]
    assert all(fleet.run(nbd_tls_revoked=["backup1"], nbd_tls_renew_days=366))
    assert list(fleet.client.iterdir()) == []
    assert not {*before} & {path.read_bytes() for path in (fleet.server / "server-cert.pem", own / "client-cert.pem")}
    with served(image, fleet.server) as port:
        assert read(port, own) == b"data"
        assert "Cannot connect to" in str(read(port, lost))

    # A host that is trusted again gets another certificate; what is taken from the other is its own and no more.
    revocations = (fleet.authority / "ca-crl.pem").read_bytes()
    (fleet.server / "file").touch()
    assert all(fleet.run(nbd_tls_state="{{ 'absent' if inventory_hostname == 'kvm1' else 'present' }}"))
    assert (
        [path.name for path in fleet.server.iterdir()] == ["file"]
        and list(own.iterdir()) == []
        and fleet.conf.read_text() == ""
    )
    assert (fleet.client / "client-cert.pem").read_bytes() != (lost / "client-cert.pem").read_bytes()
    assert (fleet.client / "ca-crl.pem").read_bytes() == revocations


def test_certificates_of_another_authority_are_left_alone(fleet: Fleet, tmp_path: Path) -> None:
    others = Authority(tmp_path / "others", "others").issue("server", "kvm1", "127.0.0.1")
    shutil.copytree(others, fleet.server)
    fleet.run("--limit", "kvm1", fails="contains certificates of another CA")
    assert sorted(path.read_bytes() for path in fleet.server.iterdir()) == sorted(
        path.read_bytes() for path in others.iterdir()
    )


def test_in_a_container_a_ca_is_not_created_but_taken_from_variables(fleet: Fleet, tmp_path: Path) -> None:
    def run(**variables: t.Any) -> list[int]:
        return fleet.run("--limit", "backup1", __nbd_tls_container_files=[str(tmp_path)], **variables)

    run(fails="is a container, such as an execution environment")
    assert not (fleet.authority / "ca-key.pem").exists() and not fleet.client.exists()
    vault = Authority(tmp_path / "vault", "vault")
    given = {"nbd_tls_ca_certificate": vault.certificate.read_text(), "nbd_tls_ca_key": vault.key.read_text()}
    run(**given)
    installed = {path: path.read_bytes() for path in fleet.client.iterdir()}
    assert not (fleet.authority / "ca-key.pem").exists()
    run_tool(["openssl", "verify", "-CAfile", vault.certificate, fleet.client / "client-cert.pem"])
    # The next job has a new container, and changes nothing.
    shutil.rmtree(fleet.authority)
    assert run(**given) == [0, 0]
    assert {path: path.read_bytes() for path in fleet.client.iterdir()} == installed
    run(fails="nbd_tls_revoked requires a CA in nbd_tls_ca_folder", nbd_tls_revoked=["backup1"], **given)
