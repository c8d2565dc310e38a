# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof that the lab itself does what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import libvirt
import nbd
import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.process import alive
from lab.reference import copy_exports, pull_job_xml, same_bytes, snapshot_reference

KIB = 1024
MIB = 1024 * KIB
GRANULE = 64 * KIB
ODD_SIZE = 10 * MIB + 512

FIRST = "<domaincheckpoint><name>first</name></domaincheckpoint>"
SECOND = "<domaincheckpoint><name>second</name></domaincheckpoint>"


@pytest.fixture
def domain(hypervisor: Hypervisor) -> Iterator[BlockDomain]:
    with BlockDomain(hypervisor, [DiskSpec("vda", ODD_SIZE), DiskSpec("vdb", 4 * MIB)]) as made:
        yield made


def dirty_count(domain: BlockDomain, target: str) -> int:
    """Bytes dirty since the only checkpoint."""
    (bitmap,) = domain.bitmaps(target)
    return int(bitmap["count"])


def dirty_extents(socket: Path, export: str, bitmap: str) -> list[tuple[int, int]]:
    """(offset, length) of dirty extents of an export."""
    extents: list[tuple[int, int]] = []
    client = nbd.NBD()
    client.add_meta_context(f"qemu:dirty-bitmap:{bitmap}")
    client.set_export_name(export)
    client.connect_unix(str(socket))

    def collect(context: str, offset: int, entries: list[int], error: object) -> int:
        for length, flags in zip(entries[::2], entries[1::2], strict=True):
            if flags & 1:
                extents.append((offset, length))
            offset += length
        return 0

    client.block_status(client.get_size(), 0, collect)
    client.shutdown()
    return extents


def test_each_kind_of_write_sets_dirty_bits(domain: BlockDomain) -> None:
    domain.write("vda", 0, 10 * MIB, 0x11)
    domain.handle.checkpointCreateXML(FIRST, 0)
    assert dirty_count(domain, "vda") == 0
    domain.write("vda", 0, 4 * KIB, 0xAA)
    assert dirty_count(domain, "vda") == GRANULE
    domain.write_zeroes("vda", 2 * MIB, 2 * GRANULE)
    assert dirty_count(domain, "vda") == 3 * GRANULE
    domain.discard("vda", 4 * MIB, GRANULE)
    assert dirty_count(domain, "vda") == 4 * GRANULE
    domain.write_zeroes("vda", 6 * MIB, GRANULE, unmap=True)
    assert dirty_count(domain, "vda") == 5 * GRANULE
    domain.flush("vda")
    assert dirty_count(domain, "vda") == 5 * GRANULE
    assert dirty_count(domain, "vdb") == 0


def test_reference_holds_what_was_written(domain: BlockDomain, workspace: Path) -> None:
    data = domain.write_random("vda", 1 * MIB, 300 * KIB, seed=7)
    domain.write("vda", 10 * MIB, 512, 0xEE)
    domain.write("vdb", 0, 1 * MIB, 0x22)
    domain.write_zeroes("vdb", 512 * KIB, GRANULE)
    copies = snapshot_reference(domain, workspace)
    assert not domain.job_running()
    expected = bytearray(ODD_SIZE)
    expected[1 * MIB : 1 * MIB + len(data)] = data
    expected[10 * MIB :] = b"\xee" * 512
    assert copies["vda"].read_bytes() == expected
    second = b"\x22" * (512 * KIB) + bytes(GRANULE) + b"\x22" * (448 * KIB) + bytes(3 * MIB)
    assert copies["vdb"].read_bytes() == second


def test_incremental_backup_by_hand(domain: BlockDomain, workspace: Path) -> None:
    domain.write("vda", 0, 3 * MIB, 0x11)
    full = workspace / "full"
    full.mkdir()
    jobs = domain.hypervisor.folder()
    domain.handle.backupBegin(pull_job_xml(domain, jobs), FIRST, 0)
    domain.write("vda", 1 * MIB, 1 * MIB, 0x33)
    copies = copy_exports(domain, full)
    domain.abort_job()
    assert copies["vda"].read_bytes() == b"\x11" * (3 * MIB) + bytes(ODD_SIZE - 3 * MIB)

    domain.write_zeroes("vda", 0, GRANULE)
    domain.write("vda", 10 * MIB, 512, 0x44)
    domain.handle.backupBegin(pull_job_xml(domain, jobs, "first"), SECOND, 0)
    extents = dirty_extents(jobs / "socket", "vda", "backup-vda")
    domain.abort_job()
    assert extents == [(0, GRANULE), (1 * MIB, 1 * MIB), (10 * MIB, 512)]
    assert domain.checkpoints() == ["first", "second"]


def test_failing_writes_raise(hypervisor: Hypervisor, domain: BlockDomain) -> None:
    for attempt in (
        lambda: domain.write("vda", ODD_SIZE, 512, 1),
        lambda: domain.write_zeroes("vda", ODD_SIZE - 512, 1024),
        lambda: domain.discard("vda", ODD_SIZE, 512),
        lambda: domain.write_random("vda", ODD_SIZE - 512, 1024),
        lambda: domain.write("vdz", 0, 512, 1),
    ):
        with pytest.raises(LabError):
            attempt()
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB, readonly=True)]) as other:  # noqa: SIM117
        with pytest.raises(LabError):
            other.write("vda", 0, 512, 1)


def test_same_bytes_requires_equal_size_and_content(workspace: Path) -> None:
    short, padded, other = (workspace / name for name in ("short", "padded", "other"))
    short.write_bytes(b"\x01" * 512)
    padded.write_bytes(b"\x01" * 512 + bytes(512))
    other.write_bytes(b"\x02" * 512)
    assert same_bytes(short, short) is None
    assert "sizes differ" in (same_bytes(short, padded) or "")
    assert "mismatch" in (same_bytes(short, other) or "")


def test_destroy_keeps_bitmaps_and_kill_breaks_them(domain: BlockDomain) -> None:
    domain.handle.checkpointCreateXML(FIRST, 0)
    domain.write("vda", 0, 512, 1)
    domain.destroy()
    domain.start()
    assert dirty_count(domain, "vda") == GRANULE
    domain.shutdown_hard()
    domain.start()
    assert dirty_count(domain, "vda") == GRANULE
    pid = domain.qemu_pid
    domain.kill()
    assert not alive(pid)
    domain.start()
    (bitmap,) = domain.bitmaps("vda")
    assert bitmap["inconsistent"]
    domain.write("vda", 0, 512, 2)


def test_unusual_disks_and_names(hypervisor: Hypervisor, workspace: Path) -> None:
    disks = [
        DiskSpec("vda", 2 * MIB, compat="0.10"),
        DiskSpec("vdb", 2 * MIB, format="raw"),
        DiskSpec("vdc", 2 * MIB, logical_block_size=4096, physical_block_size=4096),
        DiskSpec("vdd", 2 * MIB, cluster_size=128 * KIB),
        DiskSpec("sda", 1 * MIB, format="raw", device="cdrom"),
        DiskSpec("sdb", device="cdrom"),
    ]
    with BlockDomain(hypervisor, disks, name=f"Größe mit Leerzeichen {uuid.uuid4().hex[:8]}") as domain:
        folder, log = domain.folder, domain.qemu_log
        for target in ("vda", "vdb", "vdc", "vdd"):
            domain.write(target, 0, MIB, 0x55)
        copies = snapshot_reference(domain, workspace)
        domain.destroy()
        for target, image_format in (("vda", "qcow2"), ("vdb", "raw")):
            assert same_bytes(copies[target], domain.image(target), "raw", image_format) is None
        assert log.exists()
    assert not folder.exists()
    assert not log.exists()


def test_close_removes_domain_with_job_and_checkpoints(hypervisor: Hypervisor) -> None:
    domain = BlockDomain(hypervisor, [DiskSpec("vda", MIB)])
    domain.handle.backupBegin(pull_job_xml(domain, hypervisor.folder()), FIRST, 0)
    assert domain.job_running()
    domain.close()
    domain.close()
    with pytest.raises(libvirt.libvirtError):
        hypervisor.connection.lookupByName(domain.name)


def test_daemon_restart_leaves_domain_running(hypervisor: Hypervisor, domain: BlockDomain) -> None:
    if not hypervisor.may_restart:
        pytest.skip("libvirtd was started by somebody else")
    pid = domain.qemu_pid
    hypervisor.restart_daemon()
    assert domain.running
    assert domain.qemu_pid == pid
    domain.write("vda", 0, 512, 3)


ENDED_SCRIPT = """
import sys, time
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
with Hypervisor() as hypervisor:
    domain = BlockDomain(hypervisor, [DiskSpec("vda", 1 << 20)])
    print(domain.name, domain.qemu_pid, hypervisor.workspace, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(hypervisor: Hypervisor, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", ENDED_SCRIPT],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        assert other.stdout is not None
        name, pid, folder = other.stdout.readline().split()
        assert hypervisor.connection.lookupByName(name).isActive()
        other.send_signal(number)
        assert other.wait(30) != 0
    with pytest.raises(libvirt.libvirtError):
        hypervisor.connection.lookupByName(name)
    assert not alive(int(pid))
    assert not Path(folder).exists()
