# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines come back on a host that never saw them, and are rehearsed beside the originals."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest
from fleet_plays import Fleet
from lab.base import UNDEFINE_ALL
from lab.cluster import Cluster
from lab.disks import DiskSpec
from lab.guest import LinuxGuest
from lab.nodes import Node
from lab.process import run_tool
from lab.tree import trixie_tree
from node_backup import back_up_in

pytestmark = pytest.mark.xdist_group("disaster recovery")

MIB = 1 << 20
PLAYBOOK = "kvm.cbt.disaster_recovery"
NAMES = ("lab-database", "lab-application", "lab-front")
IMAGES = Path("/srv/images")
INTERFACE = "<interface type='network'><mac address='52:54:00:12:34:5{number}'/><source network='lan'/><model type='virtio'/></interface>"


def guest_on(node: Node, number: int) -> LinuxGuest:
    """A guest with an interface on the network lan of the node."""
    guest = LinuxGuest(node.hypervisor, [DiskSpec("vda", 64 * MIB)], NAMES[number], memory_mib=192, start=False)
    interface = INTERFACE.format(number=number)
    node.hypervisor.connection.defineXML(guest.xml(inactive=True).replace("</devices>", f"{interface}</devices>"))
    guest.start()
    return guest


def network(node: Node, name: str) -> None:
    connection = node.hypervisor.connection
    connection.networkDefineXML(f"<network><name>{name}</name></network>").create()


class Site:
    """Three machines with data and their backups on one node, and a host of another release that never saw them."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.old, self.new = fleet.cluster.nodes
        self.repository = fleet.cluster.shared / "repository"
        for node in fleet.cluster.nodes:
            node.run(["mkdir", "-m", "711", "-p", IMAGES])
        network(self.old, "lan")
        bridged = "<network><name>outside</name><forward mode='bridge'/><bridge name='br0'/></network>"
        self.old.hypervisor.connection.networkDefineXML(bridged)
        network(self.new, "office")
        self.guests = {name: guest_on(self.old, number) for number, name in enumerate(NAMES)}
        self.definitions = [guest.xml(inactive=True) for guest in self.guests.values()]
        self.data: dict[str, str] = {}
        for name, guest in self.guests.items():
            guest.wait_ready()
            self.data[name] = guest.write_random_file("/data/file", 3 * MIB)
            back_up_in(self.old, str(self.repository), domain=name, quiesce="required")
        # On the day, nothing is to be written to what is left.
        read_only = f"mount --bind {self.repository} {self.repository} && mount -o remount,bind,ro {self.repository}"
        assert self.new.run(["sh", "-c", read_only]).returncode == 0

    def variables(self, *machines: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {
            "cbt_repository": str(self.repository),
            "disaster_recovery_dest": str(IMAGES),
            "disaster_recovery_machines": machines,
            **fields,
        }

    def lose(self) -> None:
        """The machines are lost with their host."""
        for guest in self.guests.values():
            if guest.running:
                guest.destroy()
            guest.image("vda").rename(guest.folder / "lost")
            guest.handle.undefineFlags(UNDEFINE_ALL)
            guest.moved_to(self.new.hypervisor)

    def have_originals(self) -> None:
        """The machines run where they were, also if a test before has lost them and restored them on the new host."""
        for number, guest in enumerate(self.guests.values()):
            if guest.hypervisor is self.new.hypervisor:
                if guest.running:
                    guest.destroy()
                guest.handle.undefineFlags(UNDEFINE_ALL)
                guest.moved_to(self.old.hypervisor)
                self.old.hypervisor.connection.defineXML(self.definitions[number])
                (guest.folder / "lost").rename(guest.image("vda"))
                guest.start()
                guest.wait_ready()


@pytest.fixture(scope="module")
def site(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Cluster(2, trees=[None, trixie_tree()], ssh=True) as cluster:
        yield Site(Fleet(cluster, collections, tmp_path_factory.mktemp("plays")))


def networks_of(xml: str) -> list[tuple[str, str]]:
    found = ElementTree.fromstring(xml).findall("./devices/interface")
    return [(each.find("source").attrib["network"], each.find("mac").attrib["address"]) for each in found]  # type: ignore[union-attr]


def test_a_rehearsal_runs_isolated_beside_the_originals(site: Site) -> None:
    database, application, _front = NAMES
    variables = site.variables(
        {"name": database},
        {"name": application, "after": [database], "start": False},
        disaster_recovery_rehearsal="true",
    )
    site.have_originals()
    nodes = [site.old]
    connection = site.old.hypervisor.connection
    printed = site.fleet.run(PLAYBOOK, variables, "--check", nodes=nodes)
    assert "2 of 2 machines would be restored" in printed and len(connection.listAllDomains()) == 3
    assert "rehearsal" not in connection.listDefinedNetworks() + connection.listNetworks()
    printed = site.fleet.run(PLAYBOOK, variables, nodes=nodes)
    assert "2 of 2 machines are restored" in printed
    copies = [connection.lookupByName(f"rehearsal-{name}") for name in (database, application)]
    try:
        assert [copy.isActive() for copy in copies] == [1, 0] and all(guest.running for guest in site.guests.values())
        assert [networks_of(copy.XMLDesc(0)) for copy in copies] == [
            [("rehearsal", f"52:54:00:12:34:5{number}")] for number in (0, 1)
        ]
        bridges = site.old.run(["ls", "/sys/class/net/virbr0/brif", "/sys/class/net/virbr1/brif"]).stdout
        assert bridges.count("vnet") == 4, bridges
        assert site.fleet.changed(PLAYBOOK, variables, nodes=nodes) == {}
        # A network which machines of other hosts can be reached by is not taken.
        variables["disaster_recovery_rehearsal_network"] = "outside"
        site.fleet.run(PLAYBOOK, variables, nodes=nodes, fails="leads out of the host")
    finally:
        for copy in copies:
            with contextlib.suppress(libvirt.libvirtError):
                copy.destroy()
            copy.undefineFlags(UNDEFINE_ALL)
        site.old.run(["sh", "-c", f"rm {IMAGES}/*"])


def sound(guest: LinuxGuest, folder: Path) -> bool:
    """Whether the file system of a guest, which is stopped for this, is in order."""
    guest.check("mount -o remount,ro /disks/vda")
    guest.destroy()
    copy = folder / f"{guest.name}.raw"
    run_tool(["qemu-img", "convert", "-O", "raw", guest.hypervisor.path(guest.image("vda")), copy])
    done = subprocess.run(["e2fsck", "-f", "-n", copy], check=False, capture_output=True)
    copy.unlink()
    return done.returncode == 0


def test_three_machines_come_back_on_a_host_that_never_saw_them(site: Site, tmp_path: Path) -> None:
    database, application, front = NAMES
    site.lose()
    answers = {"host": "127.0.0.1", "port": 22}  # of the host itself
    variables = site.variables(
        {"name": database, "wait_for": answers},
        {"name": application},
        {"name": front, "after": [database]},
        disaster_recovery_networks={"lan": "office"},
    )
    nodes, connection = [site.new], site.new.hypervisor.connection
    assert "3 of 3 machines would be restored" in site.fleet.run(PLAYBOOK, variables, "--check", nodes=nodes)
    assert connection.listAllDomains() == []
    # One fails, and with it the one that needs it; the other comes back.
    obstacle = site.new.path(IMAGES / f"{database}-vda.qcow2")
    obstacle.touch()
    printed = site.fleet.run(PLAYBOOK, variables, nodes=nodes, fails=f"Not restored: {database}, {front}.")
    assert (
        "it exists already" in printed
        and f"Skipped because it depends on {database}" in printed
        and "1 of 3 machines are restored" in printed
    )
    assert [domain.name() for domain in connection.listAllDomains()] == [application]
    obstacle.unlink()
    printed = site.fleet.run(PLAYBOOK, variables, nodes=nodes)
    lines = [line for line in printed.splitlines() if any(line.strip(' "').startswith(f"{name}: ") for name in NAMES)]
    steps = [("restored from", "started", "responded after"), ("exists already",), ("restored from", "started")]
    assert [[step in line for step in each] for line, each in zip(lines, steps, strict=True)] == [
        [True] * len(each) for each in steps
    ], printed
    assert [
        "differs from the original: An interface was connected to the network office" in line for line in lines
    ] == [
        True,
        False,
        True,
    ]
    for guest in site.guests.values():
        guest.wait_ready()
        assert guest.sha256("/data/file") == site.data[guest.name]
        assert networks_of(guest.xml())[0][0] == "office"
    assert site.fleet.changed(PLAYBOOK, variables, nodes=nodes) == {}
    assert [sound(guest, tmp_path) for guest in site.guests.values()] == [True] * 3


def test_a_machine_is_restored_only_once_and_after_its_dependencies(site: Site) -> None:
    database, application, _front = NAMES
    site.fleet.run(PLAYBOOK, site.variables({"name": database}), fails="listed twice")
    wrong = site.variables({"name": application, "after": [database]}, {"name": database})
    site.fleet.run(PLAYBOOK, wrong, nodes=[site.new], fails="is listed before a machine that it depends on")
