# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain on a block device that two nodes share runs on one node and is shut off on the other.

Each node has a device node of its own, so the image locks of one node do not reach the other, as on two hosts. In every
way of losing sight of the node where the domain runs, the other node stores no restore point and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest
from fleet_plays import Fleet
from lab.cluster import Cluster
from lab.domain import BlockDomain, DiskSpec
from lab.moving import migrate_live
from lab.nodes import Node
from lab.process import run_tool
from loop_devices import loop_device
from node_backup import back_up_in
from test_fleet_roles import summed_up

from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository

pytestmark = pytest.mark.xdist_group("shared device")

MIB = 1 << 20


class Shared:
    """Two nodes, a device that both have, and a domain on it that both have defined; it runs on the first node."""

    def __init__(self, fleet: Fleet, device: Path, domain: BlockDomain) -> None:
        self.fleet, self.device, self.domain = fleet, device, domain
        self.owner, self.other = fleet.cluster.nodes
        made = open_or_create(str(fleet.cluster.shared / "repository"))
        assert made is not None
        self.repository: Repository = made
        self.nodes = [node.name for node in fleet.cluster.nodes]

    def variables(self, **more: Any) -> dict[str, Any]:
        return {
            "cbt_repository": self.repository.store.location,
            "cbt_cluster": self.nodes,
            "cbt_domains": [self.domain.name],
            **more,
        }

    def hosts(self) -> list[str]:
        """The hosts of the restore points, oldest first."""
        return [point.host for point in self.repository.points_of().points]

    def content(self) -> str:
        """What the device holds, as a digest."""
        with self.device.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return hashlib.sha256(opened.read()).hexdigest()

    def write(self) -> None:
        """Have the guest write, so that each backup has something to do."""
        self.domain.write("vda", 0, MIB, len(self.hosts()) + 1)
        self.domain.flush("vda")


def _backing(cluster: Cluster) -> Path:
    made: Path = cluster.shared / "backing"
    made.touch()
    os.truncate(made, 16 * MIB)
    return made


@pytest.fixture(scope="module")
def shared(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with Cluster(2, ssh=True) as cluster, loop_device(_backing(cluster)) as device:
        for node in cluster.nodes:
            number = os.stat(device).st_rdev
            made = node.run(["mknod", "-m", "666", device, "b", str(os.major(number)), str(os.minor(number))])
            assert made.returncode == 0, made.stderr
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", device, str(8 * MIB)])
        owner, other = cluster.nodes
        with BlockDomain(owner.hypervisor, [DiskSpec("vda", 8 * MIB, source=device)]) as domain:
            define_on(other, domain)
            it = Shared(Fleet(cluster, collections, tmp_path_factory.mktemp("plays")), device, domain)
            it.write()
            told = back_up_in(owner, it.repository.store.location, domain=domain.name)
            assert told["disks"]["vda"]["mode"] == "full", told
            yield it


def define_on(node: Node, domain: BlockDomain) -> None:
    """Define the domain on another node, too, as migrations leave it there."""
    xml = domain.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    node.hypervisor.connection.defineXML(xml)


def untouched(it: Shared, play: Callable[[], str]) -> list[str]:
    """Run a play that must neither publish a restore point nor write to the device; what it summed up."""
    before, content = it.hosts(), it.content()
    lines = summed_up(play())
    assert (it.hosts(), it.content()) == (before, content), lines
    return lines


WITHHELD = "skipped: vda of {name} may be in use on another host: {name} is shut off on node2, node1 did not report"


def test_an_unreachable_owner_is_silent(shared: Shared) -> None:
    it = shared
    fleet = it.fleet.beside("node1")  # no settings for ssh: it cannot be reached
    variables = it.variables(cbt_cluster="node1,node2")  # as surveys give it
    lines = untouched(
        it,
        lambda: fleet.run("kvm.cbt.backup", variables, nodes=[it.other], fails="Some steps failed", warns="node1 did"),
    )
    assert any(WITHHELD.format(name=it.domain.name) in line for line in lines), lines


def test_an_owner_outside_the_limit_is_queried(shared: Shared) -> None:
    it = shared
    variables = it.variables(cbt_cluster=json.dumps(it.nodes))
    lines = untouched(it, lambda: it.fleet.run("kvm.cbt.backup", variables, "--limit", "node2"))
    assert lines == [f"backup on node2: {it.domain.name}: skipped: it is running on node1"]


def test_an_owner_in_a_later_batch_backs_the_domain_up(shared: Shared, tmp_path: Path) -> None:
    it = shared
    it.write()
    plays = [
        {"hosts": "all", "gather_facts": False, "serial": 1, "order": "reverse_inventory", "roles": ["kvm.cbt.backup"]},
        {"hosts": "all", "gather_facts": False, "roles": [{"role": "kvm.cbt.summary", "summary_steps": ["backup"]}]},
    ]
    (tmp_path / "batches.yml").write_text(json.dumps(plays))
    before = it.hosts()
    lines = summed_up(it.fleet.run(str(tmp_path / "batches.yml"), it.variables()))
    assert f"backup on node2: {it.domain.name}: skipped: it is running on node1" in lines
    assert it.hosts() == [*before, "node1"], lines
    assert "vda incremental" in str(lines), lines


@pytest.mark.parametrize("cluster", [["node1", "node2"], "all"], ids=["list", "group"])
def test_an_owner_in_another_slice_is_silent(shared: Shared, cluster: Any) -> None:
    """A slice has no other hosts in its inventory, nor in its groups."""
    it = shared
    how: dict[str, Any] = {"warns": "node1 did"} if cluster != "all" else {"fails": "Some steps failed"}
    variables = it.variables(cbt_cluster=cluster)
    lines = untouched(it, lambda: it.fleet.run("kvm.cbt.backup", variables, nodes=[it.other], **how))
    told = WITHHELD.format(name=it.domain.name).removeprefix("skipped: ")
    assert any(told in line for line in lines), lines


def test_an_owner_whose_libvirtd_is_down_is_silent(shared: Shared) -> None:
    it = shared
    with it.owner.without_libvirtd():
        lines = untouched(
            it, lambda: it.fleet.run("kvm.cbt.backup", it.variables(), "--limit", "node2", warns="node1 did")
        )
    assert any(WITHHELD.format(name=it.domain.name) in line for line in lines), lines
    assert it.domain.running


def test_a_domain_that_migrates_before_its_turn_is_reported(shared: Shared, tmp_path: Path) -> None:
    """The role evaluates its options after it has listed the domains: then the domain migrates."""
    it = shared
    migrate_live(it.domain, it.other, keep_source=True)
    go, done, moved = (tmp_path / name for name in ("go", "done", "moved"))
    for fifo in (go, done):
        os.mkfifo(fifo)
    script = f"[ -e {moved} ] || {{ touch {moved}; echo > {go}; read _ < {done}; }}; echo /var/tmp"

    def migrate() -> None:
        go.read_text()
        migrate_live(it.domain, it.owner, keep_source=True)
        done.write_text("done\n")

    mover = threading.Thread(target=migrate)
    mover.start()
    variables = it.variables(
        backup_scratch_dir=f"{{{{ lookup('pipe', {script!r}) if backup_found is defined else '/var/tmp' }}}}"
    )
    before = it.hosts()
    try:
        lines = summed_up(it.fleet.run("kvm.cbt.backup", variables, "--limit", "node2", fails="Some steps failed"))
    finally:
        mover.join(60)
    assert it.hosts() == before, lines
    assert any(
        "it was active on this host when the play began, and it is running on node1 now" in line for line in lines
    )
    it.write()
    told = back_up_in(it.owner, it.repository.store.location, domain=it.domain.name)
    assert told["disks"]["vda"]["mode"] == "incremental", told  # no bitmap was lost


def test_a_domain_that_is_shut_off_everywhere_is_backed_up_by_the_first_host(shared: Shared) -> None:
    it = shared
    with suppress(libvirt.libvirtError):  # it may be off already; bitmaps show below whether it ended in order
        it.domain.destroy()
    assert not it.domain.running
    try:
        before = it.hosts()
        lines = summed_up(it.fleet.run("kvm.cbt.backup", it.variables()))
        assert it.hosts() == [*before, "node1"] and "vda incremental" in str(lines), lines
    finally:
        it.domain.start()
