# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain that moves between hypervisors over shared storage keeps its history: the backup runs on the node where it is."""

from __future__ import annotations

import concurrent.futures
import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.cluster import Cluster
from lab.domain import BlockDomain, DiskSpec
from lab.guest import LinuxGuest
from lab.moving import migrate_live, move_cold
from lab.nodes import Node
from lab.process import wait_until
from lab.reference import same_bytes, snapshot_reference
from lab.tree import trixie_tree
from node_backup import back_up_in

from _cbt.hypervisor.connection import Session
from _cbt.operations.domains import describe_domains
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL

pytestmark = pytest.mark.xdist_group("cluster")

KIB = 1 << 10
MIB = 1 << 20
GRANULE = 64 * KIB


@pytest.fixture(scope="module")
def cluster() -> t.Iterator[Cluster]:
    """Two nodes like this machine and a third of another release."""
    with Cluster(3, trees=[None, None, trixie_tree()]) as made:
        yield made


@pytest.fixture
def domain(cluster: Cluster) -> t.Iterator[BlockDomain]:
    with BlockDomain(cluster.nodes[0].hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 4 * MIB + 512)]) as made:
        made.write_random("vda", 0, 4 * MIB, 1)
        made.write("vdb", 0, MIB, 0x01)
        yield made


class History:
    """The backups of one domain, each with raw copies of its disks."""

    def __init__(self, cluster: Cluster, domain: BlockDomain) -> None:
        self._cluster, self._domain = cluster, domain
        self.folder = domain.hypervisor.folder()
        made = open_or_create(str(self.folder / "repository"))
        assert made is not None
        self.repository: Repository = made
        self._copies: dict[str, dict[str, Path]] = {}
        self._writes = 0

    def write(self, blocks: int) -> None:
        """Have the guest change so many blocks of vda, each in another place than before."""
        for _number in range(blocks):
            self._writes += 1
            self._domain.write("vda", self._writes * 2 * GRANULE, GRANULE, 0x10 + self._writes)

    def take(self, node: Node, mode: str, dirty: int | None = None, **wanted: t.Any) -> t.Any:
        """Back up on a node, which must read vda in this way and find so many blocks of it changed."""
        told = back_up_in(node, self.repository.store.location, domain=self._domain.name, **wanted)
        assert "failed" not in told, told
        assert [disk["mode"] for disk in told["disks"].values()] == [mode, mode], told
        assert dirty is None or told["disks"]["vda"]["dirty_bytes"] == dirty * GRANULE
        assert told["host"] == node.name
        # Exactly one checkpoint is known where the domain is, and exactly its bitmap is in the disks.
        assert self._domain.checkpoints() == [told["checkpoint"]]
        folder = self._domain.hypervisor.folder()
        if self._domain.running:
            for target in ("vda", "vdb"):
                assert [bitmap["name"] for bitmap in self._domain.bitmaps(target)] == [told["checkpoint"]]
            self._copies[told["id"]] = snapshot_reference(self._domain, folder)
        else:
            self._copies[told["id"]] = {}
            for target in ("vda", "vdb"):
                image, copy = self._domain.image(target), folder / f"{target}.raw"
                assert node.run(["qemu-img", "convert", "-O", "raw", image, copy]).returncode == 0
                self._copies[told["id"]][target] = copy
        return told

    def check(self) -> None:
        """Every point restores to the bytes of its copies."""
        out = self.folder / "restored"
        out.mkdir()
        for point, copies in self._copies.items():
            for disk in restore(
                self.repository, RestoreRequest(self._domain.name, restore_point=point, dest=str(out), format="raw")
            ).disks:
                assert same_bytes(Path(disk.path), copies[disk.target]) is None, (point, disk.target)
                Path(disk.path).unlink()
        assert [verdict.status for verdict in verify(self.repository, VerifyRequest(wanted=ALL))[0]] == ["ok"] * len(
            self._copies
        )


@pytest.fixture
def history(cluster: Cluster, domain: BlockDomain) -> History:
    return History(cluster, domain)


def test_destroyed_here_and_defined_there(cluster: Cluster, domain: BlockDomain, history: History) -> None:
    first, second, _third = cluster.nodes
    history.take(first, "full")
    history.write(1)
    move_cold(domain, second)
    assert domain.checkpoints() == []
    history.write(2)
    history.take(second, "incremental", 3)
    history.write(1)
    move_cold(domain, first, start=False)
    history.take(first, "incremental", 1)
    move_cold(domain, second, start=False)
    history.take(second, "incremental", 0)
    domain.start()
    history.write(2)
    history.take(second, "incremental", 2)
    history.check()


@pytest.mark.parametrize("keep_source", [False, True], ids=["source forgets", "source keeps"])
def test_live_migration_there_and_back(
    keep_source: bool, cluster: Cluster, domain: BlockDomain, history: History
) -> None:
    first, second, _third = cluster.nodes
    history.take(first, "full")
    history.write(1)
    migrate_live(domain, second, keep_source)
    history.write(1)
    history.take(second, "incremental", 2)
    history.write(3)
    history.take(second, "incremental", 3)
    history.write(1)
    migrate_live(domain, first, keep_source)
    if keep_source:
        # It knows the checkpoint of its last backup only, whose bitmap the other node has removed since.
        assert len(domain.checkpoints()) == 1
        assert domain.checkpoints()[0] not in [bitmap["name"] for bitmap in domain.bitmaps("vda")]
    history.write(1)
    history.take(first, "incremental", 2)
    history.write(1)
    migrate_live(domain, second, keep_source)
    history.take(second, "incremental", 1)
    history.write(1)
    history.take(second, "incremental", 1)
    history.check()


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_stale_metadata_of_a_node_that_takes_the_domain_over(
    running: bool, cluster: Cluster, domain: BlockDomain, history: History
) -> None:
    first, second, _third = cluster.nodes
    history.take(first, "full")
    stale = domain.checkpoints()
    migrate_live(domain, second, keep_source=True)
    history.write(2)
    history.take(second, "incremental", 2)
    history.write(1)
    # The second node is lost to the first, which starts the domain it still has.
    domain.destroy()
    domain.handle.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    domain.moved_to(first.hypervisor)
    assert domain.checkpoints() == stale
    if running:
        domain.start()
        history.write(1)
    history.take(first, "incremental", 2 if running else 1)
    if not running:
        domain.start()
    history.write(1)
    history.take(first, "incremental", 1)
    history.check()


def test_what_a_guest_writes_during_the_migration_is_in_the_next_incremental(cluster: Cluster) -> None:
    first, second, _third = cluster.nodes
    with LinuxGuest(first.hypervisor, [DiskSpec("vda", 32 * MIB)]) as guest:
        guest.wait_ready()
        repository = open_or_create(str(guest.hypervisor.folder() / "repository"))
        assert repository is not None
        where = repository.store.location
        assert back_up_in(first, where, domain=guest.name)["disks"]["vda"]["mode"] == "full"
        loop = "i=0; while :; do i=$((i + 1)); head -c 65536 /dev/urandom > /data/$((i % 64)); [ $((i % 8)) -gt 0 ] || sync; done"
        guest.check(f"({loop}) >/dev/null 2>&1 &")
        for destination in (second, first):
            migrate_live(guest, destination, keep_source=True)
            wait_until(guest.agent_answers, 30, "agent after the migration")
            guest.handle.suspend()  # so that the copy is of the same moment
            told = back_up_in(destination, where, domain=guest.name)
            assert told["disks"]["vda"]["mode"] == "incremental" and told["disks"]["vda"]["dirty_bytes"] > 0
            assert guest.checkpoints() == [told["checkpoint"]]
            folder = guest.hypervisor.folder()
            copy = snapshot_reference(guest, folder)["vda"]
            restored = restore(
                repository, RestoreRequest(guest.name, restore_point=told["id"], dest=str(folder), format="raw")
            ).disks[0]
            assert same_bytes(Path(restored.path), copy) is None
            guest.handle.resume()


def test_a_domain_that_is_being_migrated_is_refused_on_both_nodes(cluster: Cluster) -> None:
    first, second, _third = cluster.nodes
    with LinuxGuest(first.hypervisor, [DiskSpec("vda", 32 * MIB)]) as guest:
        guest.wait_ready()
        where = str(guest.hypervisor.folder() / "repository")
        # The guest changes its memory faster than it is moved, so the migration lasts as long as the test needs.
        guest.check("(while head -c 33554432 /dev/urandom > /tmp/memory; do :; done) > /dev/null 2>&1 &")
        guest.handle.migrateSetMaxSpeed(1)  # MiB/s
        with concurrent.futures.ThreadPoolExecutor() as pool:
            moving = pool.submit(migrate_live, guest, second)
            try:
                wait_until(lambda: guest.handle.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE, 30, "the migration")
                for node in (first, second):
                    told = back_up_in(node, where, domain=guest.name)
                    assert "another job, such as a migration" in told["failed"], told
                    session = Session(lambda node=node: libvirt.open(node.hypervisor.uri), node.hypervisor.uri)
                    jobs = {each.name: each.job for each, _known in describe_domains(session)}
                    assert jobs[guest.name] == ("other" if node is first else "incoming")
            finally:
                guest.handle.abortJob()
                with pytest.raises(libvirt.libvirtError):
                    moving.result(60)
        assert guest.checkpoints() == []
        assert back_up_in(first, where, domain=guest.name)["disks"]["vda"]["mode"] == "full"


def test_a_repository_of_each_node_keeps_to_its_own(cluster: Cluster, domain: BlockDomain) -> None:
    first, second, _third = cluster.nodes
    places = [str(domain.hypervisor.folder() / "repository") for _node in range(2)]

    def take(node: Node, place: str) -> tuple[str, int]:
        told = back_up_in(node, place, domain=domain.name)
        return told["disks"]["vda"]["mode"], told["disks"]["vda"]["dirty_bytes"] // GRANULE

    assert take(first, places[0])[0] == take(first, places[1])[0] == "full"
    migrate_live(domain, second)
    domain.write("vda", 0, GRANULE, 0xAA)
    assert take(second, places[0]) == ("incremental", 1)
    domain.write("vda", MIB, GRANULE, 0xAB)
    assert take(second, places[0]) == ("incremental", 1)
    assert take(second, places[1]) == ("incremental", 2)
    assert len(domain.checkpoints()) == 2


def test_to_another_release_of_libvirt_and_qemu_and_back(
    cluster: Cluster, domain: BlockDomain, history: History
) -> None:
    old, _second, new = cluster.nodes
    versions = history.take(old, "full")["versions"]
    history.write(1)
    migrate_live(domain, new)
    history.write(1)
    told = history.take(new, "incremental", 2)
    assert told["versions"]["libvirt"].startswith("11.") and told["versions"] != versions
    history.write(3)
    history.take(new, "incremental", 3)
    domain.destroy()
    history.take(new, "incremental", 0)
    move_cold(domain, old)
    history.write(1)
    history.take(old, "incremental", 1)
    history.check()
