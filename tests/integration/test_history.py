# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any history of writes and backups: every restore point restores to the bytes the disk had."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import soaks
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from witness import Witnessed, ask, differences, differing, disk_result, witnessed_backup

from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL

MIB = 1 << 20
SIZES = {"vda": 24 * MIB, "vdb": 10 * MIB + 512 * 3}


def _touch(domain: BlockDomain, chance: random.Random) -> None:
    """One guest request of random kind, place and length, aligned to sectors only."""
    target = chance.choice(sorted(SIZES))
    sectors = SIZES[target] // 512
    first = chance.randrange(sectors)
    length = min(sectors - first, chance.choice([1, 3, 8, 128, 129, 1000, 5000])) * 512
    kind = chance.choice(["pattern", "random", "zero", "unmap", "discard", "explicit zero"])
    if kind == "pattern":
        domain.write(target, first * 512, length, chance.randrange(1, 256))
    elif kind == "random":
        domain.write_random(target, first * 512, length, chance.randrange(1 << 30))
    elif kind == "explicit zero":
        domain.write(target, first * 512, length, 0)
    elif kind == "discard":
        domain.discard(target, first * 512, length)
    else:
        domain.write_zeroes(target, first * 512, length, unmap=kind == "unmap")


@pytest.mark.soak("histories")
@pytest.mark.parametrize("seed", range(1, soaks.count("histories") + 1))
def test_every_point_of_a_random_history_restores_to_the_bytes_it_had(
    seed: int, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    chance = random.Random(seed)
    taken: list[Witnessed] = []
    with BlockDomain(hypervisor, [DiskSpec(target, size) for target, size in SIZES.items()]) as domain:
        for step in range(8):
            for _touch_number in range(chance.randrange(8)):
                _touch(domain, chance)
            modes = ["auto", "auto", "incremental", "full", "copy"] if step else ["auto"]
            request = ask(
                domain.name,
                mode=chance.choice(modes),
                compression=chance.choice(["lz4", "none"]),
                workers=chance.choice([1, 2, 5]),
            )
            folder = workspace / f"step-{step}"
            folder.mkdir()
            taken.append(witnessed_backup(domain, repository, folder, request, lambda: _touch(domain, chance)))
            assert len(domain.checkpoints()) == 1
            assert not domain.job_running()
        name = domain.name
    found = []
    for each in taken:
        out = workspace / f"out-{each.id}"
        out.mkdir()
        found += differences(name, repository, each, out, chance.choice(["raw", "qcow2"]))
        shutil.rmtree(out)
    assert found == []
    assert [verdict.status for verdict in verify(repository, VerifyRequest(wanted=ALL))[0]] == ["ok"] * len(taken)


@pytest.mark.parametrize("unmap", [False, True], ids=["write zeroes", "write zeroes and unmap"])
def test_z1_data_that_the_guest_zeroed_after_the_full_backup_is_zero_in_the_restore(
    unmap: bool, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)]) as domain:
        domain.write("vda", 1 * MIB, 4 * MIB, 0xAA)
        witnessed_backup(domain, repository, workspace)
        domain.write_zeroes("vda", 2 * MIB, 1 * MIB, unmap=unmap)
        second = witnessed_backup(domain, repository, workspace)
        assert disk_result(second.result, "vda").mode == "incremental"
        restored = workspace / "restored"
        restored.mkdir()
        assert second.copies["vda"].read_bytes()[2 * MIB : 3 * MIB] == bytes(MIB)
        assert differences(domain.name, repository, second, restored) == []


def test_z1_a_discarded_range_is_restored_as_the_export_shows_it(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)]) as domain:
        domain.write("vda", 1 * MIB, 4 * MIB, 0xAA)
        witnessed_backup(domain, repository, workspace)
        domain.discard("vda", 2 * MIB, 1 * MIB)
        second = witnessed_backup(domain, repository, workspace)
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, second, restored, "qcow2") == []


def test_an_incremental_reads_only_what_is_dirty_and_not_zero(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 1 << 30)]) as domain:
        domain.write_random("vda", 0, 32 * MIB, 7)
        witnessed_backup(domain, repository, workspace)
        domain.write("vda", 4 * MIB, 2 * MIB, 0x11)
        domain.write_zeroes("vda", 20 * MIB, 3 * MIB)
        domain.discard("vda", 28 * MIB, 1 * MIB)
        second = witnessed_backup(domain, repository, workspace)
        counted = disk_result(second.result, "vda").statistics
        assert counted.read_bytes == 2 * MIB
        assert counted.dirty_bytes == 6 * MIB
        assert counted.zero_bytes == 4 * MIB
        assert differing(disk_result(second.result, "vda")) == 2 * MIB


def test_rewriting_the_same_bytes_stores_nothing(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 7)
        witnessed_backup(domain, repository, workspace)
        domain.write_random("vda", 0, 4 * MIB, 7)
        counted = disk_result(witnessed_backup(domain, repository, workspace).result, "vda").statistics
        assert (counted.unchanged_bytes, counted.stored_bytes) == (4 * MIB, 0)


def test_untracked_disks_are_scanned_and_only_what_differs_is_stored(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    disks = [DiskSpec("vda", 8 * MIB, format="raw"), DiskSpec("vdb", 8 * MIB, compat="0.10"), DiskSpec("vdc", 8 * MIB)]
    with BlockDomain(hypervisor, disks) as domain:
        for target in ("vda", "vdb", "vdc"):
            domain.write_random(target, 0, 4 * MIB, 3)
        witnessed_backup(domain, repository, workspace)
        for target in ("vda", "vdb", "vdc"):
            domain.write(target, MIB, 65536, 0x55)
        second = witnessed_backup(domain, repository, workspace)
        assert [disk.mode for disk in second.result.disks] == ["scan", "scan", "incremental"]
        assert [differing(disk) for disk in second.result.disks] == [65536] * 3
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, second, restored) == []
