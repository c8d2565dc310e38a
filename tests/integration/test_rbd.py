# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk on a real Ceph cluster: read by scan, stored as what differs."""

from __future__ import annotations

import os
import shutil
import typing as t
from pathlib import Path

import libvirt
import pytest
from lab.ceph import PROGRAMS, Ceph
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from module_process import run_module
from witness import ask, differences, differing, session_of, witnessed_backup

from _cbt.errors import Refused
from _cbt.operations.backup.backup import backup
from _cbt.repository.creation import open_or_create

MIB = 1 << 20
SIZE = 32 * MIB

_DISK = """
<disk type="network" device="disk">
  <driver name="qemu" type="raw" discard="unmap"/>
  <source protocol="rbd" name="{name}"><config file="{config}"/></source>
  <target dev="{target}" bus="virtio"/>
</disk>
"""

missing = [program for program in PROGRAMS if shutil.which(program) is None]
if not any(
    Path(folder, "qemu", "block-rbd.so").exists()
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
):
    missing.append("qemu-block-extra")
pytestmark = pytest.mark.skipif(
    bool(missing),
    reason=f"not installed: {', '.join(missing)}; tests/tools/install.sh installs them where the distribution has them",
)


@pytest.fixture(scope="module")
def ceph() -> t.Iterator[Ceph]:
    with Ceph() as cluster:
        yield cluster


def test_an_rbd_disk_is_scanned_beside_a_tracked_one_and_stores_only_what_differs(
    hypervisor: Hypervisor, workspace: Path, ceph: Ceph
) -> None:
    repository = open_or_create(str(workspace / "repository"))
    assert repository is not None
    ceph.create("disk", SIZE)
    restored = workspace / "restored"
    restored.mkdir()
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)], start=False) as domain:
        domain.handle.attachDeviceFlags(
            _DISK.format(name=ceph.name("disk"), config=ceph.config, target="vdb"), libvirt.VIR_DOMAIN_AFFECT_CONFIG
        )
        domain.start()
        domain.write_random("vda", 0, MIB, 1)
        domain.write_random("vdb", 0, 8 * MIB, 2)
        first = witnessed_backup(domain, repository, workspace)
        assert [(disk.target, disk.mode) for disk in first.result.disks] == [("vda", "full"), ("vdb", "scan")]
        assert first.result.disks[1].statistics.new_bytes == 8 * MIB
        assert differences(domain.name, repository, first, restored) == []

        domain.write("vda", 0, 65536, 3)
        domain.write("vdb", 3 * MIB, 65536, 3)
        domain.write_zeroes("vdb", 5 * MIB, MIB, unmap=True)
        domain.discard("vdb", 7 * MIB, MIB)
        # What is written meanwhile is not to be seen.
        second = witnessed_backup(domain, repository, workspace, meanwhile=lambda: domain.write("vdb", 0, MIB, 4))
        assert [disk.mode for disk in second.result.disks] == ["incremental", "scan"]
        assert [differing(disk) for disk in second.result.disks] == [65536, 65536]
        assert "holds no bitmaps" in second.result.disks[1].reason
        assert second.copies["vdb"].read_bytes()[5 * MIB : 6 * MIB] == bytes(MIB)
        assert differences(domain.name, repository, second, restored) == []

        third = witnessed_backup(domain, repository, workspace)
        assert [differing(disk) for disk in third.result.disks] == [0, MIB]
        assert differences(domain.name, repository, third, restored, "qcow2") == []


def test_an_rbd_disk_of_a_shut_off_domain_is_read_by_starting_it_paused(
    hypervisor: Hypervisor, workspace: Path, ceph: Ceph
) -> None:
    repository = open_or_create(str(workspace / "repository"))
    assert repository is not None
    ceph.create("cold", SIZE)
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)], start=False) as domain:
        domain.handle.attachDeviceFlags(
            _DISK.format(name=ceph.name("cold"), config=ceph.config, target="vdb"), libvirt.VIR_DOMAIN_AFFECT_CONFIG
        )
        domain.start()
        data = domain.write_random("vdb", MIB, 2 * MIB, 5)
        domain.destroy()
        with pytest.raises(Refused, match="vdb is a network disk.* Set offline to start_paused"):
            backup(session_of(domain), repository, ask(domain.name))
        arguments = {"domain": domain.name, "repository": repository.store.location}
        done = run_module(workspace, "cbt_backup", offline="start_paused", **arguments)
        assert not done.get("failed"), done
        assert [disk["mode"] for disk in done["disks"]] == ["full", "scan"] and not domain.running
        restored = workspace / "restored"
        restored.mkdir()
        told = run_module(workspace, "cbt_restore", dest=str(restored), format="raw", **arguments)
        path = next(disk["path"] for disk in told["disks"] if disk["target"] == "vdb")
        held = bytearray(SIZE)
        held[MIB : 3 * MIB] = data
        assert Path(path).read_bytes() == bytes(held)
        exported = workspace / "exported"
        run_tool(["rbd", "--conf", str(ceph.config), "export", "--no-progress", ceph.name("cold"), str(exported)])
        assert os.path.getsize(exported) == SIZE and exported.read_bytes() == bytes(held)
