# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups that run on a second host, which shares nothing with the hypervisor but a network: libvirt over SSH, NBD over TLS."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import node_backup
import pytest
from lab.certificates import Authority
from lab.cluster import Cluster
from lab.domain import BlockDomain, DiskSpec
from lab.nodes import Node
from lab.process import wait_until
from lab.reference import same_bytes, snapshot_reference
from node_backup import back_up_in

from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.restore.saved_machine import saved_files
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL

MIB = 1 << 20
GRANULE = 1 << 16
CONNECTION = {"uri": "qemu+ssh://node1/system"}
CERTIFICATES = Path("/etc/pki/libnbd")
SCRATCH = Path("/var/tmp")

pytestmark = pytest.mark.xdist_group("remote backup")

# Reads the first bytes of every export it is told of, and prints what it got of them.
PROBE = """
import nbd, sys
address, port, folder = sys.argv[1:]
handle = nbd.NBD()
handle.set_export_name("vda")
if folder != "plain":
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_certificates(folder)
try:
    handle.connect_tcp(address, port)
    print(len(handle.pread(65536, 0)), "bytes")
except nbd.Error as error:
    print(error)
"""


def install(node: Node, source: Path, place: Path, owner: str = "root") -> None:
    """Have files in a folder of a node, closed to others than their owner."""
    shutil.copytree(source, node.path(place), dirs_exist_ok=True)
    assert (
        node.run(["sh", "-c", f"chown -R {owner} {place} && chmod 0700 {place} && chmod 0600 {place}/*"]).returncode
        == 0
    )


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[tuple[Node, Node]]:
    """A hypervisor and the host that backs its domains up, with certificates of one authority."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, others = Authority(folder / "ours", "ours"), Authority(folder / "others", "others")
    with Cluster(2, shared=False, ssh=True) as cluster:
        hypervisor, reader = cluster.nodes
        install(hypervisor, ours.issue("server", "node1", hypervisor.address), Path("/etc/pki/qemu"), "libvirt-qemu")
        hypervisor.hypervisor.restart_daemon()  # it looks for the folder when it starts
        mine, foreign = ours.issue("client", "node2", reader.address), others.issue("client", "node2", reader.address)
        install(reader, mine, CERTIFICATES)
        shutil.copy(ours.certificate, foreign / "ca-cert.pem")  # so that it is not this side that refuses
        install(reader, foreign, Path("/root/foreign"))
        for name in ("client-cert.pem", "client-key.pem"):
            (mine / name).unlink()
        install(reader, mine, Path("/root/none"))
        yield hypervisor, reader


@pytest.fixture
def domain(nodes: tuple[Node, Node]) -> t.Iterator[BlockDomain]:
    with BlockDomain(nodes[0].hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 4 * MIB + 512)]) as made:
        made.write_random("vda", 0, 4 * MIB, 1)
        made.write("vdb", 0, MIB, 0x01)
        yield made
        assert not (made.running and made.job_running())
        assert list(nodes[0].path(SCRATCH).glob("kvm-cbt-remote-*")) == []
        assert [pool.name() for pool in made.hypervisor.connection.listAllStoragePools()] == []


@pytest.fixture
def repository(nodes: tuple[Node, Node]) -> Repository:
    made = open_or_create(str(nodes[1].hypervisor.folder() / "repository"))
    assert made is not None
    return made


@pytest.fixture
def take(nodes: tuple[Node, Node], domain: BlockDomain, repository: Repository) -> t.Callable[..., t.Any]:
    """Backs the domain up from the second node."""

    def back_up(**wanted: t.Any) -> t.Any:
        transport = {"kind": "tcp", **wanted.pop("transport", {})}
        return back_up_in(
            nodes[1],
            repository.store.location,
            connection=CONNECTION,
            domain=domain.name,
            transport=transport,
            **wanted,
        )

    return back_up


def check(domain: BlockDomain, repository: Repository, point: str, copies: t.Mapping[str, Path], folder: Path) -> None:
    """The point restores to the bytes of the copies."""
    for disk in restore(
        repository, RestoreRequest(domain.name, restore_point=point, dest=str(folder), format="raw")
    ).disks:
        assert same_bytes(Path(disk.path), copies[disk.target]) is None, (point, disk.target)
        Path(disk.path).unlink()


def copied(domain: BlockDomain, folder: Path, name: str) -> t.Mapping[str, Path]:
    """Raw copies of the disks, read on the hypervisor."""
    place = folder / name
    place.mkdir()
    return snapshot_reference(domain, place)


def test_full_and_incremental_over_tls_hold_the_bytes_of_the_disks(
    nodes: tuple[Node, Node], domain: BlockDomain, repository: Repository, take: t.Callable[..., t.Any], tmp_path: Path
) -> None:
    first = take()
    assert [disk["mode"] for disk in first["disks"].values()] == ["full", "full"], first
    assert first["host"] == "node1"
    copies = {first["id"]: copied(domain, tmp_path, "first")}
    domain.write("vda", 2 * MIB, GRANULE, 0xAA)
    domain.write_zeroes("vda", 0, GRANULE)
    second = take(transport={"address": nodes[0].address, "port": 12345})
    assert [(disk["mode"], disk["dirty_bytes"]) for disk in second["disks"].values()] == [
        ("incremental", 2 * GRANULE),
        ("incremental", 0),
    ]
    assert domain.checkpoints() == [second["checkpoint"]]
    copies[second["id"]] = copied(domain, tmp_path, "second")
    for point, copy in copies.items():
        check(domain, repository, point, copy, tmp_path)
    assert [verdict.status for verdict in verify(repository, VerifyRequest(wanted=ALL))[0]] == ["ok", "ok"]
    image = repository.points_of(domain.handle.UUIDString()).points[-1].disks[0].image
    assert (image["format"], image["compat"], image["cluster-size"]) == ("qcow2", "1.1", GRANULE)


class Running:
    """A backup under way in the second node, slow enough to look at."""

    def __init__(self, reader: Node, domain: BlockDomain, repository: Repository, **wanted: t.Any) -> None:
        asked = {
            "repository": repository.store.location,
            "connection": CONNECTION,
            "domain": domain.name,
            "transport": {"kind": "tcp"},
        }
        words = reader.command(["sh", "-c", 'echo $$ >&2; exec /usr/bin/python3 "$0"', node_backup.__file__])
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stderr is not None
        self._pid = reader.process(int(self._process.stderr.readline()))
        self._process.stdin.write(json.dumps({**asked, "rate_limit": 64 << 10, **wanted}))
        self._process.stdin.close()
        wait_until(domain.job_running, 60, "begin of the backup")

    def kill(self) -> None:
        os.kill(self._pid, 9)
        self._process.wait(30)

    def end(self) -> t.Any:
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        assert self._process.wait(60) == 0
        return json.loads(said)


def test_reading_requires_a_certificate_of_the_authority_and_a_killed_run_is_cleaned_up(
    nodes: tuple[Node, Node], domain: BlockDomain, repository: Repository, take: t.Callable[..., t.Any], tmp_path: Path
) -> None:
    hypervisor, reader = nodes
    first = take()
    domain.write("vda", 4 * MIB, 2 * MIB, 0xBB)
    running = Running(reader, domain, repository)

    def probe(folder: str) -> str:
        return reader.run(["/usr/bin/python3", "-c", PROBE, "node1", "10809", folder]).stdout.strip()

    # So the server is there, and it is the certificate that decides.
    wait_until(lambda: probe(str(CERTIFICATES)) == "65536 bytes", 30, "answer of the NBD server")
    for folder in ("plain", "/root/none", "/root/foreign"):
        assert "bytes" not in probe(folder), folder
    assert "server requires TLS" in probe("plain")
    listening = hypervisor.run(["ss", "-Hltn", "sport = :10809"]).stdout.split()
    assert f"{hypervisor.address}:10809" in listening, "it listens on the address asked for and on no other"
    refused = take()
    assert "Another run of kvm.cbt is working on" in refused["failed"]
    running.kill()
    assert domain.job_running()
    local = back_up_in(hypervisor, str(domain.hypervisor.folder() / "repository"), domain=domain.name)
    assert "a backup job is running on it that is not ours" in local["failed"]  # it cannot tell that the run is dead
    second = take()
    assert any("that a killed run had left" in warning for warning in second["warnings"]), second
    assert second["disks"]["vda"]["dirty_bytes"] == 2 * MIB
    check(domain, repository, first["id"], {**copied(domain, tmp_path, "x"), "vda": _before(tmp_path)}, tmp_path)
    check(domain, repository, second["id"], copied(domain, tmp_path, "second"), tmp_path)


def _before(folder: Path) -> Path:
    """vda as it was before it was written to again."""
    path = folder / "before.raw"
    shutil.copy(folder / "x/vda.raw", path)
    with path.open("r+b") as file:
        file.seek(4 * MIB)
        file.write(bytes(2 * MIB))
    return path


def test_a_server_with_an_unverified_name_is_not_read(
    nodes: tuple[Node, Node], domain: BlockDomain, take: t.Callable[..., t.Any]
) -> None:
    hosts = nodes[1].path(Path("/etc/hosts"))
    hosts.write_text(hosts.read_text() + f"{nodes[0].address} node1.other\n")
    told = take(transport={"address": "node1.other"})["failed"]
    assert "Cannot connect to the NBD export vda" in told and "that of the server must include node1.other" in told
    assert domain.checkpoints() == []


def test_a_port_in_use_is_skipped_unless_it_is_requested(
    nodes: tuple[Node, Node], domain: BlockDomain, take: t.Callable[..., t.Any]
) -> None:
    listen = (
        f"import socket; s = socket.create_server(('{nodes[0].address}', 10809)); print('ready', flush=True); input()"
    )
    with subprocess.Popen(
        nodes[0].command(["/usr/bin/python3", "-c", listen]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        assert "Address already in use" in take(transport={"port": 10809})["failed"]
        assert domain.checkpoints() == []
        assert take(transport={"tls": False})["disks"]["vda"]["mode"] == "full"  # only if it is asked for by name
        other.communicate("\n", timeout=30)


def with_firmware(domain: BlockDomain) -> Path:
    """Give a domain that is shut off firmware with variables, in a file that only its host has."""
    variables = Path("/var/lib/libvirt/qemu/nvram", f"{domain.name}-variables.fd")
    root = ElementTree.fromstring(domain.xml(inactive=True))
    system = root.find("os")
    assert system is not None
    ElementTree.SubElement(system, "loader", readonly="yes", type="pflash").text = "/usr/share/OVMF/OVMF_CODE_4M.fd"
    ElementTree.SubElement(system, "nvram", template="/usr/share/OVMF/OVMF_VARS_4M.fd").text = str(variables)
    domain.hypervisor.connection.defineXML(ElementTree.tostring(root, encoding="unicode"))
    return variables


def test_a_shut_off_domain_is_started_paused_or_refused(
    nodes: tuple[Node, Node], domain: BlockDomain, repository: Repository, take: t.Callable[..., t.Any], tmp_path: Path
) -> None:
    take()
    domain.write("vdb", 2 * MIB, GRANULE, 0xCC)
    copies = copied(domain, tmp_path, "first")
    domain.destroy()
    plain, variables = domain.xml(inactive=True), with_firmware(domain)
    assert "its files are needed" in take()["failed"]
    Running(nodes[1], domain, repository, start_paused=True, rate_limit=4096).kill()
    assert domain.running
    told = take(start_paused=True)
    assert not domain.running and "a run that was killed had started it" in told["warnings"][0], told
    (saved,) = (
        file
        for file in saved_files(repository, repository.points_of(domain.handle.UUIDString()).points[-1])
        if file.kind == "nvram"
    )
    assert saved.sha256 == hashlib.sha256(nodes[0].path(variables).read_bytes()).hexdigest() and not variables.exists()
    assert [disk["mode"] for disk in told["disks"].values()] == ["incremental", "incremental"], told
    assert told["disks"]["vdb"]["dirty_bytes"] == GRANULE
    domain.hypervisor.connection.defineXML(plain)
    check(domain, repository, told["id"], copies, tmp_path)


def test_scratch_space_of_the_hypervisor_is_watched_from_afar(
    nodes: tuple[Node, Node], domain: BlockDomain, repository: Repository, take: t.Callable[..., t.Any]
) -> None:
    hypervisor, reader = nodes
    assert (
        hypervisor.run(["sh", "-c", "mkdir /mnt/scratch && mount -t tmpfs -o size=4M scratch /mnt/scratch"]).returncode
        == 0
    )
    try:
        running = Running(reader, domain, repository, scratch_dir="/mnt/scratch")
        for start in range(0, 4 * MIB, GRANULE):  # more than there is space for, unless it is ended
            domain.write("vda", start, GRANULE, 0xDD)
            if not domain.job_running():
                break
            time.sleep(0.05)
        told = running.end()
        assert "The backup was ended because the scratch directory on node1," in told["failed"], told
        assert "guest was not affected" in told["failed"] and "error" not in domain.qmp("query-block")[0].get(
            "io-status", "ok"
        )
        assert list(hypervisor.path(Path("/mnt/scratch")).iterdir()) == []
        (hypervisor.path(Path("/mnt/scratch")) / "file").write_bytes(bytes(4 * MIB - 65536))
        assert (
            "The backup was not started because the scratch directory on node1,"
            in take(scratch_dir="/mnt/scratch")["failed"]
        )
    finally:
        hypervisor.run(["umount", "-l", "/mnt/scratch"])
