# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof that lab guests have real file systems and a real agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from lab.disks import DiskSpec
from lab.guest import LinuxGuest
from lab.hypervisor import Hypervisor
from lab.process import run_tool, wait_until
from lab.reference import same_bytes, snapshot_reference

pytestmark = pytest.mark.xdist_group("lab guest")

MIB = 1024 * 1024
DISKS = (DiskSpec("vda", 128 * MIB), DiskSpec("vdb", 64 * MIB + 512))


@pytest.fixture(scope="module")
def guest(hypervisor: Hypervisor) -> Iterator[LinuxGuest]:
    with LinuxGuest(hypervisor, DISKS) as made:
        made.wait_ready()
        yield made


def test_commands_and_files(guest: LinuxGuest) -> None:
    assert guest.run("echo out; echo err >&2; exit 3") == (3, "out\nerr\n")
    data = bytes(range(256)) * 2048
    guest.write_file("/data/some file", data)
    assert guest.check("wc -c < '/data/some file'").strip() == str(len(data))
    guest.write_random_file("/disks/vdb/random", MIB)
    assert "/dev/vdb /disks/vdb ext4 rw" in guest.check("cat /proc/mounts")


def test_freeze_holds_writers_and_leaves_clean_file_systems(guest: LinuxGuest, workspace: Path) -> None:
    writer = "while :; do date >> /data/log; sync; echo >> /data/ticks; done"
    guest.check("touch /data/ticks")
    guest.check(f"({writer}) >/dev/null 2>&1 &")

    def ticks() -> int:
        return int(guest.check("wc -l < /data/ticks").strip())

    wait_until(lambda: ticks() > 0, 30, "first line of the writer")
    assert not guest.frozen()
    assert guest.handle.fsFreeze() == len(DISKS)
    try:
        assert guest.frozen()
        first, second = workspace / "first", workspace / "second"
        for folder in (first, second):
            folder.mkdir()
            snapshot_reference(guest, folder)
    finally:
        assert guest.handle.fsThaw() == len(DISKS)
    assert not guest.frozen()
    for target in ("vda", "vdb"):
        assert same_bytes(first / f"{target}.raw", second / f"{target}.raw") is None
        # A journal that wants recovery would make e2fsck -n complain.
        run_tool(["/sbin/e2fsck", "-f", "-n", first / f"{target}.raw"])
    before = ticks()
    wait_until(lambda: ticks() > before, 30, "writer after the thaw")


def test_killed_agent_is_noticed(hypervisor: Hypervisor) -> None:
    with LinuxGuest(hypervisor, DISKS[:1]) as guest:
        guest.wait_ready()
        guest.kill_agent()
        with pytest.raises(libvirt.libvirtError):
            guest.handle.fsFreeze()


def test_hung_agent_times_out(hypervisor: Hypervisor) -> None:
    with LinuxGuest(hypervisor, DISKS[:1]) as guest:
        guest.wait_ready()
        guest.hang_agent()
        guest.handle.agentSetResponseTimeout(2)
        with pytest.raises(libvirt.libvirtError) as caught:
            guest.handle.fsFreeze()
        assert caught.value.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE


def test_guest_without_agent_reads_a_disk_of_another(hypervisor: Hypervisor, workspace: Path) -> None:
    with LinuxGuest(hypervisor, DISKS[:1]) as first:
        first.wait_ready()
        digest = first.write_random_file("/data/kept", MIB)
        first.handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        wait_until(lambda: not first.running, 30, "shutdown by the agent")
        moved = first.image("vda").rename(workspace / "moved image.qcow2")
    with LinuxGuest(hypervisor, [DiskSpec("vda", source=moved)]) as second:
        second.wait_ready()
        assert second.sha256("/data/kept") == digest
    assert moved.exists()
    with LinuxGuest(hypervisor, DISKS[:1], agent=False) as silent:
        silent.wait_ready()
        assert not silent.agent_answers()
