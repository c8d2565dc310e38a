# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that differ: without lz4, with the socket of virtqemud, or reached by roles over TCP with a password."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.cluster import Cluster
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from lab.nodes import Node
from lab.process import end_process
from lab.reference import same_bytes, snapshot_reference
from module_process import ModuleProcess, created
from node_backup import back_up_in
from plays import Play

MIB = 1 << 20
PASSWORD = "p4ss-w0rd-of-the-lab"
# A Python without lz4: importing it fails as if it were not installed.
WITHOUT_LZ4 = "sys.modules['lz4'] = sys.modules['lz4.block'] = None"


def test_a_host_without_lz4_backs_up_with_zlib_and_warns(hypervisor: Hypervisor, workspace: Path) -> None:
    def run(module: str, before: str = WITHOUT_LZ4, **options: Any) -> dict[str, Any]:
        where = {"repository": repository, "domain": domain.name}
        return ModuleProcess(workspace, module, {**where, **options}, before=before).result()

    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        repository = created(workspace, workspace / "repository")
        domain.write("vda", 0, 4 * MIB, 0x11)
        first = run("cbt_backup")
        assert "compressed with zlib" in str(first["warnings"]) and "python3-lz4" in str(first["warnings"]), first[
            "warnings"
        ]
        assert first["disks"][0]["stored_bytes"] < first["disks"][0]["new_bytes"]
        assert "warnings" not in run("cbt_backup", compression="zlib")
        for chosen in ({"compression": "lz4"}, {"compression_level": 9}):
            refused = run("cbt_backup", **chosen)
            assert refused["failed"] and "Install python3-lz4, or choose zlib or none" in refused["msg"]
        # A host with lz4 continues the history; the other can restore only what is stored without it.
        (workspace / "out").mkdir()
        before = snapshot_reference(domain, workspace)["vda"]
        assert run("cbt_verify", restore_points=["all"])["restore_points"][0]["status"] == "ok"
        restored = run("cbt_restore", dest=str(workspace / "out"), format="raw")
        assert same_bytes(Path(restored["disks"][0]["path"]), before) is None
        domain.write("vda", MIB, MIB, 0x22)
        second = run("cbt_backup", before="")
        assert second["disks"][0]["mode"] == "incremental" and "warnings" not in second
        refused = run("cbt_restore", dest=str(workspace / "out"), format="raw", force=True)
        assert refused["failed"] and "needs the Python module lz4. Install python3-lz4" in refused["msg"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(1) as made:
        yield made


def test_libvirt_is_reached_at_the_socket_of_virtqemud_alone(cluster: Cluster) -> None:
    (node,) = cluster.nodes
    with BlockDomain(node.hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        domain.write("vda", 0, MIB, 0x11)
        place = node.hypervisor.folder()
        sockets = node.path(Path("/run/libvirt"))
        (sockets / "libvirt-sock").rename(sockets / "virtqemud-sock")
        try:
            connection = {"uri": "qemu:///system"}
            taken = back_up_in(
                node, str(place / "repository"), connection=connection, domain=domain.name, scratch_dir=str(place)
            )
        finally:
            (sockets / "virtqemud-sock").rename(sockets / "libvirt-sock")
        assert taken["disks"]["vda"]["mode"] == "full", taken


def listen_on_tcp(node: Node) -> None:
    """Restart the node's libvirtd to listen on TCP, for a user with a password."""
    # Without TLS, libvirt accepts only mechanisms that encrypt.
    node.path(Path("/etc/sasl2/libvirt.conf")).write_text(
        "mech_list: digest-md5\nsasldb_path: /etc/libvirt/passwd.db\n"
    )
    added = node.run(["saslpasswd2", "-p", "-a", "libvirt", "-f", "/etc/libvirt/passwd.db", "backup"], stdin=PASSWORD)
    assert added.returncode == 0, added.stderr
    settings = node.path(Path("/etc/libvirt/libvirtd.conf"))
    settings.write_text(
        settings.read_text() + f'listen_tls = 0\nlisten_tcp = 1\nauth_tcp = "sasl"\nlisten_addr = "{node.address}"\n'
    )
    pid = int(node.path(Path("/run/libvirtd.pid")).read_text())
    end_process(node.process(pid))
    assert node.run(["libvirtd", "-d", "--listen"]).returncode == 0
    assert node.hypervisor.connection.isAlive()  # waits for it


def test_roles_run_on_a_backup_host_over_tcp_with_a_password(
    cluster: Cluster, collections: Path, tmp_path: Path
) -> None:
    (node,) = cluster.nodes
    listen_on_tcp(node)
    host = "backup1 ansible_connection=local ansible_python_interpreter=/usr/bin/python3"
    play = Play(collections, tmp_path, host, within=cluster.command([]))
    with BlockDomain(node.hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", MIB, compat="0.10")]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        place = node.hypervisor.folder()
        repository = created(tmp_path, place / "repository")
        variables = {
            "cbt_uri": f"qemu+tcp://{node.address}/system",
            "cbt_username": "backup",
            "cbt_password": PASSWORD,
            "cbt_repository": repository,
            "cbt_domains": domain.name,
            "backup_options": {"transport": "tcp", "tls": False, "scratch_dir": str(place)},
            "qcow2_v3_report_only": True,
            "retention_keep_last": 1,
            "restore_dest": str(place),
            "restore_machines": [{"domain": domain.name, "new_name": f"{domain.name}-copy"}],
        }
        night = ",".join(f"role:kvm.cbt.{role}" for role in ("backup", "reconcile", "verify", "retention", "qcow2_v3"))
        printed = play.run(f"{night},role:kvm.cbt.restore", variables, "-vvv")
        assert "which holds no bitmaps" in printed
        assert PASSWORD not in printed
        copy = node.hypervisor.connection.lookupByName(f"{domain.name}-copy")
        try:
            image = place / f"{domain.name}-copy-vda.qcow2"
            assert image.exists() and os.stat(image).st_size > 4 * MIB
        finally:
            copy.undefine()
        # What needs the hypervisor's own files is refused by name.
        domain.destroy()
        tried = ",".join(f"role:kvm.cbt.{role}" for role in ("qcow2_v3", "restore", "reconcile", "backup"))
        steps = {f"{role}_fail_on_error": False for role in ("qcow2_v3", "restore", "reconcile")}
        refused = {"qcow2_v3_report_only": False, "restore_dest": str(tmp_path)}
        printed = play.run(tried, {**variables, **steps, **refused}, fails="Run the task on that host")
        assert printed.count("and its files are needed. Run the task on that host") >= 3
        assert f"{node.address} does not see the files of this host there" in printed
        assert PASSWORD not in printed
