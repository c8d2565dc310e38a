# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nights of a fleet: twelve domains on three nodes of two releases, with shared storage; then a node is lost while backups run."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_plays import Fleet
from lab.cluster import Cluster
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from lab.moving import move_cold
from lab.nodes import Node
from lab.process import end_process, wait_until
from lab.reference import same_bytes, snapshot_reference
from lab.tree import trixie_tree
from plays import Play, chroot
from test_fleet_roles import summed_up

from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository

MIB = 1 << 20
# All that there are but kvm.cbt.prepare, which comes after them.
PLAYBOOKS = [
    f"kvm.cbt.{name}"
    for name in (
        "backup",
        "verify",
        "retention",
        "reconcile",
        "restore",
        "remediate_disk_formats",
        "disaster_recovery",
        "site",
    )
]


pytestmark = pytest.mark.xdist_group("fleet nights")


class Night:
    """The fleet, its domains by node, and one repository."""

    def __init__(self, fleet: Fleet, domains: int) -> None:
        """Each node has that many domains."""
        self.fleet = fleet
        self.nodes = fleet.cluster.nodes
        self.domains = {
            node: [BlockDomain(node.hypervisor, [DiskSpec("vda", 4 * MIB)]) for _number in range(domains)]
            for node in self.nodes
        }
        self._writes = 0
        self.begin_anew()
        for domain in self.all():
            self.write(domain, MIB)

    def begin_anew(self) -> None:
        """Take a repository that does not exist yet."""
        self.repository = self.fleet.cluster.shared / f"repository-{uuid.uuid4().hex[:8]}"

    def back_up(self, nodes: Sequence[Node] = ()) -> None:
        """Have a first night behind."""
        self.fleet.run("kvm.cbt.backup", self.variables(), "kvm.cbt.prepare", nodes=nodes)

    def all(self) -> list[BlockDomain]:
        return [domain for domains in self.domains.values() for domain in domains]

    def write(self, domain: BlockDomain, length: int) -> None:
        """Have a guest write what no disk holds."""
        self._writes += 1
        domain.write_random("vda", 0, length, self._writes)

    def variables(self, **more: Any) -> dict[str, Any]:
        # The nodes reach no archive of packages.
        return {
            "cbt_repository": str(self.repository),
            "prepare_install": False,
            "retention_keep_last": 1,
            "backup_parallel": 2,
            **more,
        }

    def points(self) -> list[str]:
        """The names of the domains, one for each restore point."""
        return sorted(point.domain for point in self._opened().points_of().points)

    def differs(self, domain: BlockDomain, folder: Path) -> int | None:
        """Where the latest point of a domain is not what its disk holds."""
        (disk,) = restore(self._opened(), RestoreRequest(domain.name, dest=str(folder), format="raw")).disks
        return same_bytes(Path(disk.path), snapshot_reference(domain, domain.hypervisor.folder())["vda"])

    def _opened(self) -> Repository:
        made = open_or_create(str(self.repository))
        assert made is not None
        return made


@contextmanager
def fleet(domains: int, collections: Path, folder: Path) -> Iterator[Night]:
    with Cluster(3, trees=[None, None, trixie_tree()], ssh=True) as cluster:
        yield Night(Fleet(cluster, collections, folder), domains)


@pytest.fixture(scope="module")
def twelve(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """Four domains on each of three nodes, shared by tests."""
    with fleet(4, collections, tmp_path_factory.mktemp("plays")) as night:
        yield night


@pytest.fixture
def night(twelve: Night) -> Night:
    """The twelve domains, and no repository yet."""
    twelve.begin_anew()
    return twelve


def names(domains: list[BlockDomain]) -> list[str]:
    return sorted(domain.name for domain in domains)


def test_two_nights(night: Night, tmp_path: Path) -> None:
    fleet, variables = night.fleet, night.variables()
    first, second, third = night.nodes
    assert (
        third.hypervisor.connection.getLibVersion() // 1_000_000
        > first.hypervisor.connection.getLibVersion() // 1_000_000
    )
    fleet.run("kvm.cbt.prepare", variables, "--check")
    assert not night.repository.exists()
    # Of the hosts that prepare at the same time, one creates the repository, and a second run leaves it as it is.
    fleet.run("kvm.cbt.prepare", variables)
    assert fleet.changed("kvm.cbt.prepare", variables) == {}
    fleet.run("kvm.cbt.site", variables, "--check")
    assert night.points() == []
    lines = summed_up(fleet.run("kvm.cbt.site", variables))
    assert sum(line.startswith("backup on ") and "vda full" in line for line in lines) == 12
    assert night.points() == names(night.all())
    # Guests write, one domain moves, and the second night comes.
    moved = night.domains[first].pop()
    for domain in (*night.all(), moved):
        night.write(domain, 65536)
    move_cold(moved, second)
    night.domains[second].append(moved)
    lines = summed_up(fleet.run("kvm.cbt.site", variables, "kvm.cbt.prepare"))
    assert sum(line.startswith("backup on ") and "vda incremental" in line for line in lines) == 12, lines
    assert any(line.startswith(f"backup on node2: {moved.name}: ") for line in lines)
    assert [
        line for line in lines if line.startswith("reconcile on ") and not line.endswith(": in order")
    ] != []  # the one that moved
    assert night.points() == names(night.all())
    assert [
        night.differs(domain, tmp_path) for domain in (moved, night.domains[first][0], night.domains[third][0])
    ] == [None] * 3
    # What only configures has nothing left to do.
    assert fleet.changed("kvm.cbt.prepare", variables, "kvm.cbt.reconcile", "kvm.cbt.retention") == {}


def machines(night: Night) -> dict[str, Any]:
    one, two = names(night.domains[night.nodes[0]])[:2]
    shared = str(night.fleet.cluster.shared)
    wanted = {"restore_machines": [{"domain": one, "new_name": "copy"}], "restore_dest": shared}
    return night.variables(
        **wanted,
        cbt_domains=[one, two],
        disaster_recovery_machines=[{"name": two}],
        disaster_recovery_dest=shared,
        disaster_recovery_rehearsal=True,
    )


def test_check_mode_of_every_playbook_on_a_node_that_is_prepared(night: Night) -> None:
    night.back_up([night.nodes[0]])
    before = night.points()
    printed = night.fleet.run("kvm.cbt.prepare", machines(night), "--check", *PLAYBOOKS, nodes=[night.nodes[0]])
    assert "1 of 1 machines would be restored." in printed
    assert night.points() == before


def test_check_mode_of_every_playbook_on_a_fresh_node(
    night: Night, collections: Path, tmp_path: Path, workspace: Path
) -> None:
    with chroot(workspace) as root:
        play = Play(
            collections,
            tmp_path,
            f"{root} ansible_connection=community.general.chroot ansible_python_interpreter=/usr/bin/python3",
        )
        play.run("kvm.cbt.prepare", {**machines(night), "prepare_install": True}, "--check", *PLAYBOOKS)
        assert not (root / "usr/bin/qemu-img").exists()


def lose(node: Node, domains: list[BlockDomain], heir: Hypervisor) -> None:
    """A node loses power; its domains are started anew elsewhere, as a cluster manager does."""
    definitions = [domain.xml(inactive=True) for domain in domains]
    end_process(node.pid, signal.SIGKILL)
    for domain, definition in zip(domains, definitions, strict=True):
        domain.moved_to(heir)
        heir.connection.defineXML(definition)


def test_a_node_is_lost_while_backups_run(collections: Path, tmp_path: Path) -> None:
    plays = tmp_path / "plays"
    plays.mkdir()
    with fleet(2, collections, plays) as night:
        night.back_up()
        _lose_a_node(night, tmp_path)


def _lose_a_node(night: Night, tmp_path: Path) -> None:
    first, second, third = night.nodes
    lost = night.domains.pop(second)
    stay = night.all()
    for domain in (*stay, *lost):
        night.write(domain, 4 * MIB)
    variables = night.variables(backup_rate_limit="512K")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(night.fleet.run, "kvm.cbt.backup", variables, fails="Some steps failed")
        wait_until(lambda: any(domain.job_running() for domain in lost), 120, "a backup on node2")
        lose(second, lost, first.hypervisor)
        lines = summed_up(running.result())
    of_lost = [line for line in lines if " on node2: " in line]
    assert [name for name in names(lost) if not any(name in line and "FAILED" in line for line in of_lost)] == [], (
        "\n".join(of_lost)
    )
    assert sum(f": {domain.name}: " in line and "vda" in line for domain in stay for line in lines) == len(stay), lines
    for domain in lost:
        domain.start()
    night.domains[first] += lost
    # QEMU had no time to save its bitmaps: what was lost is read in full, and told.
    lines = summed_up(
        night.fleet.run("kvm.cbt.backup", night.variables(), nodes=[first, third], warns="Read in full: the bitmap ")
    )
    assert sum(f" {domain.name}: " in line and "vda" in line for domain in lost for line in lines) == len(lost)
    assert [night.differs(domain, tmp_path) for domain in (lost[0], stay[0])] == [None, None]
