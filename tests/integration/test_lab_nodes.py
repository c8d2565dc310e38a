# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof that the lab's clusters do what they say, and what becomes of checkpoints when a domain moves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lab.cluster import Cluster
from lab.domain import BlockDomain, DiskSpec
from lab.moving import migrate_live, move_cold
from lab.nodes import CHECKOUT
from lab.process import alive, wait_until
from lab.reference import pull_job_xml, snapshot_reference
from lab.tree import trixie_tree

KIB = 1024
MIB = 1024 * KIB
GRANULE = 64 * KIB
SIZE = 4 * MIB

FIRST = "<domaincheckpoint><name>first</name></domaincheckpoint>"
REDEFINE = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as made:
        yield made


@pytest.fixture
def domain(cluster: Cluster) -> Iterator[BlockDomain]:
    with BlockDomain(cluster.nodes[0].hypervisor, [DiskSpec("vda", SIZE)]) as made:
        yield made


def names(connection: libvirt.virConnect) -> set[str]:
    return {domain.name() for domain in connection.listAllDomains()}


def checkpoint_xml(domain: BlockDomain) -> str:
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN
    return str(domain.handle.checkpointLookupByName("first").getXMLDesc(flags))


def dirty_count(domain: BlockDomain) -> int:
    """Bytes dirty since the only checkpoint."""
    (bitmap,) = domain.bitmaps("vda")
    assert bitmap["recording"]
    assert not bitmap.get("inconsistent")
    return int(bitmap["count"])


def test_nodes_have_their_own_domains_and_share_storage(cluster: Cluster, domain: BlockDomain) -> None:
    first, second = cluster.nodes
    with BlockDomain(second.hypervisor, [DiskSpec("vda", SIZE)]) as other:
        assert names(first.hypervisor.connection) == {domain.name}
        assert names(second.hypervisor.connection) == {other.name}
        other.write("vda", 0, GRANULE, 0xBB)
        assert alive(other.qemu_pid)
    assert names(second.hypervisor.connection) == set()
    assert second.hypervisor.connection.getHostname() == "node2"
    (cluster.shared / "file").write_text("content")
    assert second.run(["cat", cluster.shared / "file"]).stdout == "content"
    assert second.run(["ls", "/dev/kvm"]).returncode != 0


def test_programs_run_inside(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    program = "import libvirt, lz4.frame, nbd; print(libvirt.open('qemu:///system').getHostname(), input())"
    result = node.run(["/usr/bin/python3", "-c", program], stdin="told")
    assert (result.stdout, result.stderr) == ("node1 told\n", "")
    assert "Read-only" in node.run(["touch", CHECKOUT / "README.md"]).stderr
    assert node.run(["sh", "-c", "echo $SETTING; exit 3"], {"SETTING": "value"}).stdout == "value\n"


def test_daemon_restart_in_a_node(cluster: Cluster, domain: BlockDomain) -> None:
    pid = domain.qemu_pid
    cluster.nodes[0].hypervisor.restart_daemon()
    assert domain.running
    assert domain.qemu_pid == pid


def test_cold_move_keeps_the_bitmap_and_loses_the_checkpoint(cluster: Cluster, domain: BlockDomain) -> None:
    domain.handle.checkpointCreateXML(FIRST, 0)
    known = checkpoint_xml(domain)
    domain.write("vda", 0, GRANULE, 0xAA)
    move_cold(domain, cluster.nodes[1])
    assert names(cluster.nodes[0].hypervisor.connection) == set()
    assert domain.checkpoints() == []
    assert dirty_count(domain) == GRANULE
    with pytest.raises(libvirt.libvirtError, match="Bitmap already exists: first"):
        domain.handle.checkpointCreateXML(FIRST, 0)
    domain.handle.checkpointCreateXML(known, REDEFINE)
    domain.write("vda", MIB, GRANULE, 0xAB)
    assert dirty_count(domain) == 2 * GRANULE


def test_live_migration_keeps_content_and_bitmap(cluster: Cluster, domain: BlockDomain) -> None:
    domain.handle.checkpointCreateXML(FIRST, 0)
    known = checkpoint_xml(domain)
    domain.write("vda", 0, GRANULE, 0xAA)
    migrate_live(domain, cluster.nodes[1])
    assert names(cluster.nodes[0].hypervisor.connection) == set()
    assert domain.checkpoints() == []
    assert dirty_count(domain) == GRANULE
    domain.write("vda", MIB, GRANULE, 0xAB)
    domain.handle.checkpointCreateXML(known, REDEFINE)
    assert dirty_count(domain) == 2 * GRANULE
    content = snapshot_reference(domain, domain.hypervisor.folder())["vda"].read_bytes()
    expected = b"\xaa" * GRANULE + bytes(MIB - GRANULE) + b"\xab" * GRANULE
    assert content == expected.ljust(SIZE, b"\0")


def test_a_definition_kept_at_the_source_knows_its_checkpoints_again(cluster: Cluster, domain: BlockDomain) -> None:
    domain.handle.checkpointCreateXML(FIRST, 0)
    migrate_live(domain, cluster.nodes[1], keep_source=True)
    domain.write("vda", 0, GRANULE, 0xAA)
    assert domain.checkpoints() == []
    migrate_live(domain, cluster.nodes[0])
    assert domain.checkpoints() == ["first"]
    assert dirty_count(domain) == GRANULE


def test_another_debian_and_ssh() -> None:
    with Cluster(2, trees=[None, trixie_tree()], ssh=True) as cluster:
        old, new = cluster.nodes
        assert new.hypervisor.connection.getLibVersion() // 1_000_000 == 11
        with BlockDomain(old.hypervisor, [DiskSpec("vda", SIZE)]) as domain:
            domain.write("vda", 0, GRANULE, 0xAA)
            migrate_live(domain, new)
            folder = domain.hypervisor.folder()
            domain.handle.backupBegin(pull_job_xml(domain, folder), FIRST, 0)
            program = "import nbd; n = nbd.NBD(); n.set_export_name('vda'); n.connect_unix(input()); print(n.pread(65536, 0).count(0xAA))"
            read = new.run(["/usr/bin/python3", "-c", program], stdin=str(folder / "socket"))
            assert (read.stdout, read.stderr) == (f"{GRANULE}\n", "")
            domain.abort_job()
            assert domain.checkpoints() == ["first"]
        # Into a node, from one to the other, and the way qemu+ssh takes.
        login = ["ssh", "-F", str(cluster.ssh_config)]
        result = cluster.run([*login, "node1", "ssh node2 hostname && virsh -q -c qemu+ssh://node2/system hostname"])
        assert result.stdout == "node2\nnode2\n", result.stderr
        assert cluster.run([*login, "node2", "ssh node1 hostname"]).stdout == "node1\n"


def processes_in(namespaces: set[str]) -> list[int]:
    """Processes that have one of these namespaces."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/ns"):
        try:
            if {os.readlink(link) for link in folder.iterdir()} & namespaces:
                found.append(int(folder.parent.name))
        except OSError:  # ended meanwhile, or one of the machine's that even root must not ask
            continue
    return found


def own_namespaces(pid: int) -> set[str]:
    """The namespaces in which a process is and this one is not."""
    there, here = ({os.readlink(link) for link in Path(f"/proc/{process}/ns").iterdir()} for process in (pid, "self"))
    return there - here


def test_nothing_is_left_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), Cluster(1, ssh=True) as cluster:
        BlockDomain(cluster.nodes[0].hypervisor, [DiskSpec("vda", SIZE)])
        namespaces = own_namespaces(cluster.nodes[0].pid)
        assert {name.partition(":")[0] for name in namespaces} == {"mnt", "uts", "pid", "ipc", "net"}
        assert len(processes_in(namespaces)) > 4
        # Nor does the machine see anything of it meanwhile.
        assert str(cluster.shared.parent) not in Path("/proc/self/mounts").read_text()
        assert not {"lab", "port1"} & set(os.listdir("/sys/class/net"))
        raise ZeroDivisionError
    assert processes_in(namespaces) == []
    assert not cluster.shared.parent.exists()


KILLED_SCRIPT = """
import time
from lab.cluster import Cluster
from lab.domain import BlockDomain, DiskSpec
with Cluster(1) as cluster:
    domain = BlockDomain(cluster.nodes[0].hypervisor, [DiskSpec("vda", 1 << 20)])
    print(cluster.nodes[0].pid, cluster.shared, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_after_a_signal(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_SCRIPT],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        assert other.stdout is not None
        pid, folder = other.stdout.readline().split()
        namespaces = own_namespaces(int(pid))
        other.send_signal(number)
        assert other.wait(30) != 0
    wait_until(lambda: processes_in(namespaces) == [], 10, "end of the node")
    if number == signal.SIGKILL:
        shutil.rmtree(Path(folder).parent)
    assert not Path(folder).parent.exists()
