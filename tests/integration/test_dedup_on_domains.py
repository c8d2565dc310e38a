# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup adds to the repository: every byte below it is counted, maps, manifests and hooks among them."""

from __future__ import annotations

import contextlib
import random
import shutil
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from witness import Witnessed, ask, differences, disk_result, witnessed_backup

from _cbt.repository.repository import Repository

KIB, MIB = 1 << 10, 1 << 20
UNIT = 64 * KIB
DATA = 128 * MIB
SIZE = 192 * MIB
# What is read before the first hook is found, whatever the size. Several workers go on beside the one that finds it.
MISSED = 8 * MIB


@pytest.fixture
def image(workspace: Path) -> Path:
    """A disk two thirds full of bytes that do not compress."""
    raw, image = workspace / "image.raw", workspace / "image.qcow2"
    raw.write_bytes(random.Random(4).randbytes(DATA))
    with raw.open("r+b") as file:
        file.truncate(SIZE)
    run_tool(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image])
    raw.unlink()
    image.chmod(0o644)
    return image


def _occupied(repository: Repository) -> int:
    return sum(path.stat().st_size for path in Path(repository.store.location).rglob("*") if path.is_file())


@contextlib.contextmanager
def _added(repository: Repository, what: str) -> t.Iterator[t.Callable[[], int]]:
    """A function that tells how many bytes were added since; printed at the end."""
    before = _occupied(repository)

    def added() -> int:
        return _occupied(repository) - before

    yield added
    print(f"{what}: {added()} bytes added to a repository of {before}")


def _taken(domain: BlockDomain, repository: Repository, workspace: Path, **wanted: t.Any) -> Witnessed:
    """A backup without compression, so that every byte counts."""
    folder = workspace / f"copies-{random.getrandbits(64):x}"
    folder.mkdir()
    return witnessed_backup(domain, repository, folder, ask(domain.name, compression="none", **wanted))


def _untrue(domain: BlockDomain, repository: Repository, workspace: Path, taken: t.Sequence[Witnessed]) -> list[str]:
    folder = workspace / f"restored-{domain.name}"
    folder.mkdir()
    return [found for each in taken for found in differences(domain.name, repository, each, folder)]


def test_database_writes_cost_the_changed_64_kib_units_and_two_percent(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, image: Path
) -> None:
    chance = random.Random(5)
    offsets = [chance.randrange(SIZE // (8 * KIB)) * 8 * KIB for _write in range(500)]
    with BlockDomain(hypervisor, [DiskSpec("vda", source=image)]) as domain:
        taken = [_taken(domain, repository, workspace)]
        for number, offset in enumerate(offsets):
            domain.write_random("vda", offset, 8 * KIB, number)
        changed = len({offset // UNIT for offset in offsets}) * UNIT
        with _added(repository, f"{changed} bytes of 64 KiB units changed") as added:
            taken.append(_taken(domain, repository, workspace))
            assert disk_result(taken[1].result, "vda").mode == "incremental"
            assert changed <= added() <= changed * 1.02
        assert _untrue(domain, repository, workspace, taken) == []


def test_a_lost_bitmap_costs_reading_and_no_storage(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, image: Path
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", source=image)]) as domain:
        taken = [_taken(domain, repository, workspace)]
        domain.handle.checkpointLookupByName(domain.checkpoints()[0]).delete()
        with _added(repository, f"lost bitmap of a disk of {DATA} bytes of data") as added:
            taken.append(_taken(domain, repository, workspace))
            result = disk_result(taken[1].result, "vda")
            assert (result.mode, result.statistics.unchanged_bytes, result.statistics.new_bytes) == ("full", DATA, 0)
            assert added() < DATA / 100
        assert _untrue(domain, repository, workspace, taken) == []


def test_the_clone_of_a_domain_costs_little(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, image: Path
) -> None:
    copy = workspace / "clone.qcow2"
    shutil.copyfile(image, copy)
    copy.chmod(0o644)
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", source=image)]) as domain,
        BlockDomain(hypervisor, [DiskSpec("vda", source=copy)]) as clone,
    ):
        taken = [_taken(domain, repository, workspace)]
        with _added(repository, f"clone of a domain with {DATA} bytes of data") as added:
            cloned = [_taken(clone, repository, workspace, workers=1)]
            statistics = disk_result(cloned[0].result, "vda").statistics
            assert statistics.deduplicated_bytes + statistics.new_bytes == DATA
            assert added() < MISSED
        # The same new bytes at different places of both, as a package update makes.
        with _added(repository, f"the same {8 * MIB} bytes written to both") as added:
            for each, offset in ((domain, 16 * MIB), (clone, 40 * MIB)):
                each.write_random("vda", offset, 8 * MIB, seed=6)
            taken.append(_taken(domain, repository, workspace))
            cloned.append(_taken(clone, repository, workspace, workers=1))
            assert added() < 8 * MIB * 1.25
        assert _untrue(domain, repository, workspace, taken) == []
        assert _untrue(clone, repository, workspace, cloned) == []


def test_a_raw_disk_with_moved_content_stores_only_new_data(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    """Nothing tracks it, and nothing is at its place: the scan finds the blocks all the same."""
    raw = workspace / "disk.raw"
    data = random.Random(7).randbytes(DATA // 2)
    raw.write_bytes(data + bytes(SIZE - len(data)))
    raw.chmod(0o644)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=raw, format="raw")]) as domain:
        taken = [_taken(domain, repository, workspace)]
        domain.write_bytes("vda", DATA, data)
        domain.discard("vda", 0, len(data))
        with _added(repository, f"{len(data)} bytes moved") as added:
            taken.append(_taken(domain, repository, workspace, workers=1))
            assert disk_result(taken[1].result, "vda").mode == "scan"
            assert added() < MISSED
        assert _untrue(domain, repository, workspace, taken) == []


@pytest.mark.parametrize("scope", ["domain", "none"])
def test_blocks_of_another_domain_are_not_used_unless_asked_for(
    scope: str, hypervisor: Hypervisor, workspace: Path, repository: Repository, image: Path
) -> None:
    copy = workspace / "clone.qcow2"
    shutil.copyfile(image, copy)
    copy.chmod(0o644)
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", source=image)]) as domain,
        BlockDomain(hypervisor, [DiskSpec("vda", source=copy)]) as clone,
    ):
        _taken(domain, repository, workspace)
        taken = _taken(clone, repository, workspace, dedup=scope)
        statistics = disk_result(taken.result, "vda").statistics
        assert taken.result.point is not None and taken.result.point.dedup == scope
        assert (statistics.deduplicated_bytes, statistics.new_bytes) == (0, DATA)
