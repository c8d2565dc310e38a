# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks on block devices of the host, as logical volumes are: RAW ones are scanned, those with qcow2 in them are tracked."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from loop_devices import loop_device
from witness import Witnessed, ask, differences, session_of, witnessed_backup

from _cbt.grid import BLOCK_SIZE
from _cbt.operations.backup.backup import backup
from _cbt.operations.point.disk_reader import Statistics
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository

MIB = 1 << 20
SIZE = 16 * MIB + 512  # the last block is one sector


@pytest.fixture
def device(workspace: Path) -> t.Iterator[Path]:
    """A loop device of the host, and no file behind a file name."""
    backing = workspace / "backing"
    backing.touch()
    backing.open("r+b").truncate(SIZE)
    with loop_device(backing) as made:
        yield made


class Device:
    """A domain whose disk is a block device, and its backups, each with a witness."""

    def __init__(self, hypervisor: Hypervisor, workspace: Path, device: Path, fmt: str) -> None:
        self.format, self.workspace, self.device = fmt, workspace, device
        if fmt == "qcow2":
            run_tool(["qemu-img", "create", "-q", "-f", "qcow2", device, str(8 * MIB)])
        self.domain = BlockDomain(hypervisor, [DiskSpec("vda", format=fmt, source=device)])
        made = open_or_create(str(workspace / "repository"))
        assert made is not None
        self.repository: Repository = made
        self.taken: list[Witnessed] = []

    def backup(self, mode: str) -> Statistics:
        """Back up, which must be done in this mode; what was counted."""
        folder = self.workspace / f"taken-{len(self.taken)}"
        folder.mkdir()
        if self.domain.running:
            taken = witnessed_backup(self.domain, self.repository, folder)
        else:
            copy = folder / "vda.raw"
            run_tool(["qemu-img", "convert", "-f", self.format, "-O", "raw", self.device, copy])
            taken = Witnessed(backup(session_of(self.domain), self.repository, ask(self.domain.name)), {"vda": copy})
        self.taken.append(taken)
        (disk,) = taken.result.disks
        assert (disk.mode, disk.statistics is not None) == (mode, True), disk
        return t.cast(Statistics, disk.statistics)

    def untrue(self) -> list[str]:
        """What the points taken differ in from their witnesses' copies when restored."""
        out = self.workspace / "restored"
        out.mkdir()
        return [each for taken in self.taken for each in differences(self.domain.name, self.repository, taken, out)]


@contextlib.contextmanager
def _on(hypervisor: Hypervisor, workspace: Path, device: Path, fmt: str) -> t.Iterator[Device]:
    made = Device(hypervisor, workspace, device, fmt)
    with made.domain:
        yield made


def test_a_raw_device_is_scanned_running_and_shut_off_and_only_what_differs_is_stored(
    hypervisor: Hypervisor, workspace: Path, device: Path
) -> None:
    with _on(hypervisor, workspace, device, "raw") as it:
        it.domain.write_random("vda", MIB, 4 * MIB, 1)
        it.domain.write_zeroes("vda", 8 * MIB, MIB)
        it.domain.write("vda", SIZE - 512, 512, 0x77)
        first = it.backup("scan")
        assert (first.new_bytes, first.zero_bytes, first.unchanged_bytes) == (4 * MIB + 512, 12 * MIB, 0)

        it.domain.write("vda", 2 * MIB, 512, 0x11)
        it.domain.write("vda", 10 * MIB, BLOCK_SIZE, 0x22)
        it.domain.discard("vda", 4 * MIB, MIB)
        second = it.backup("scan")
        assert (second.new_bytes, second.zero_bytes, second.unchanged_bytes) == (
            2 * BLOCK_SIZE,
            13 * MIB - BLOCK_SIZE,
            3 * MIB - BLOCK_SIZE + 512,
        )

        it.domain.destroy()
        same = it.backup("scan")
        assert (same.new_bytes, same.stored_bytes) == (0, 0)
        run_tool(["qemu-io", "-f", "raw", "-c", "write -P 0x33 3M 512", "-c", f"write -z {SIZE - 512} 512", device])
        third = it.backup("scan")
        assert (third.new_bytes, third.zero_bytes) == (BLOCK_SIZE, second.zero_bytes + 512)

        it.domain.start()
        again = it.backup("scan")
        assert (again.new_bytes, again.stored_bytes) == (0, 0)
        assert it.untrue() == []


def test_a_device_with_qcow2_in_it_is_tracked_running_and_shut_off(
    hypervisor: Hypervisor, workspace: Path, device: Path
) -> None:
    with _on(hypervisor, workspace, device, "qcow2") as it:
        it.domain.write_random("vda", MIB, 4 * MIB, 1)
        it.backup("full")
        it.domain.write("vda", 2 * MIB, 512, 0x11)
        assert it.backup("incremental").dirty_bytes == BLOCK_SIZE
        it.domain.discard("vda", 4 * MIB, MIB)
        it.domain.destroy()
        assert it.backup("incremental").dirty_bytes == MIB
        it.domain.start()
        it.domain.write("vda", 6 * MIB, 512, 0x22)
        assert it.backup("incremental").dirty_bytes == BLOCK_SIZE
        assert it.untrue() == []
