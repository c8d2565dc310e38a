# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An audit finds what changed without being marked, names it exactly, and never cries wolf."""

from __future__ import annotations

import json
import random
import typing as t
from pathlib import Path

import pytest
import soaks
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from module_process import created, run_module
from witness import Witnessed, ask, differences, disk_result, session_of, witnessed_backup

from _cbt.operations.backup.backup import backup
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository

MIB = 1 << 20
BLOCK = 1 << 16
SIZE = 16 * MIB


def _tamper(domain: BlockDomain, changes: t.Mapping[int, bytes]) -> None:
    """Change bytes of vda behind QEMU's back: in the data clusters of its image, the domain shut off meanwhile, so that no bitmap tells."""
    image = domain.image("vda")
    domain.destroy()
    clusters = json.loads(run_tool(["qemu-img", "map", "--output=json", image]))
    with image.open("r+b") as file:
        for offset, data in changes.items():
            place = next(
                each
                for each in clusters
                if each["start"] <= offset and offset + len(data) <= each["start"] + each["length"]
            )
            file.seek(place["offset"] + offset - place["start"])
            file.write(data)
    domain.start()


def _untrue(domain: BlockDomain, repository: Repository, taken: Witnessed, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    return differences(domain.name, repository, taken, folder)


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_an_audit_names_exactly_what_changed_unmarked_and_makes_history_sound_again(
    running: bool, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE), DiskSpec("vdb", 4 * MIB)]) as domain:
        domain.write_random("vda", 0, 10 * MIB, 1)
        first = witnessed_backup(domain, repository, workspace)
        domain.write("vda", MIB, MIB, 0x11)
        tampered = {
            MIB + 5: b"marked",
            # Where no spot check looks, as one does before every incremental backup.
            3 * MIB + 3 * BLOCK + 100: b"unmarked",
            6 * MIB + 5 * BLOCK - 1: b"in two blocks",
            8 * MIB + 7 * BLOCK: bytes(BLOCK),
        }
        _tamper(domain, tampered)

        # Without an audit the change is missed: it is truly unmarked.
        missed = witnessed_backup(domain, repository, workspace, ask(domain.name, mode="differential"))
        assert _untrue(domain, repository, missed, workspace / "out") != []

        if running:
            found = witnessed_backup(domain, repository, workspace, ask(domain.name, audit=True))
            copies = found.copies
        else:
            copies = witnessed_backup(domain, repository, workspace, ask(domain.name, mode="copy")).copies
            domain.destroy()
            found = Witnessed(backup(session_of(domain), repository, ask(domain.name, audit=True)), copies)
            domain.start()
        expected = [(3 * MIB + 3 * BLOCK, BLOCK), (6 * MIB + 4 * BLOCK, 2 * BLOCK), (8 * MIB + 7 * BLOCK, BLOCK)]
        assert [list(disk.unmarked) for disk in found.result.disks] == [expected, []]
        assert disk_result(found.result, "vda").mode == "full"
        assert [warning for warning in found.result.warnings if "Audit" in warning and f"{4 * BLOCK} bytes" in warning]
        assert _untrue(domain, repository, found, workspace / "out") == []
        assert found.result.point is not None and first.result.point is not None
        assert found.result.point.incremental_set == first.result.point.incremental_set

        domain.write("vda", 9 * MIB, BLOCK, 0x22)
        after = witnessed_backup(domain, repository, workspace)
        assert [disk.mode for disk in after.result.disks] == ["incremental", "incremental"]
        assert _untrue(domain, repository, after, workspace / "out") == []
        again = witnessed_backup(domain, repository, workspace, ask(domain.name, audit=True))
        assert [disk.unmarked for disk in again.result.disks] == [(), ()] and again.result.warnings == ()


def test_the_module_returns_what_an_audit_found(hypervisor: Hypervisor, workspace: Path) -> None:
    arguments = {"repository": created(workspace, workspace / "repository"), "audit": True}
    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB)]) as domain:
        domain.write_random("vda", 0, MIB, 1)
        first = run_module(workspace, "cbt_backup", domain=domain.name, **arguments)
        assert first["disks"][0]["unmarked"] == [] and "Audited" not in first["disks"][0]["reason"]
        _tamper(domain, {3 * BLOCK: b"unmarked"})
        second = run_module(workspace, "cbt_backup", domain=domain.name, **arguments)
        assert second["disks"][0]["unmarked"] == [{"offset": 3 * BLOCK, "length": BLOCK}]
        assert "Audited" in second["disks"][0]["reason"]
        assert "65536 bytes changed without being marked" in str(second["warnings"])
        assert "warnings" not in run_module(workspace, "cbt_backup", domain=domain.name, **arguments)


@pytest.mark.soak("histories")
@pytest.mark.parametrize("seed", range(1, soaks.count("histories") // 2 + 1))
def test_an_audit_of_a_random_history_finds_nothing(
    seed: int, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    chance = random.Random(seed)
    size = SIZE + 512 * 3
    with BlockDomain(hypervisor, [DiskSpec("vda", size)]) as domain:

        def touch() -> None:
            first = chance.randrange(size // 512)
            length = min(size // 512 - first, chance.choice([1, 127, 1000, 5000])) * 512
            kind = chance.randrange(5)
            if kind == 0:
                domain.write_random("vda", first * 512, length, chance.randrange(1 << 30))
            elif kind == 1:
                domain.write("vda", first * 512, length, chance.randrange(2))
            elif kind == 2:
                domain.discard("vda", first * 512, length)
            else:
                domain.write_zeroes("vda", first * 512, length, unmap=kind == 3)

        domain.write_random("vda", 0, 8 * MIB, seed)
        witnessed_backup(domain, repository, workspace)
        for _number in range(6):
            for _touch in range(chance.randrange(6)):
                touch()
            if chance.random() < 0.3:
                domain.write_random("vda", 0, 8 * MIB, seed)  # the same bytes again
            if chance.random() < 0.3:
                domain.destroy()
                domain.start()
            mode = chance.choice(["auto", "auto", "differential"])
            taken = witnessed_backup(
                domain, repository, workspace, ask(domain.name, mode=mode, audit=chance.random() < 0.7), touch
            )
            assert (disk_result(taken.result, "vda").unmarked, taken.result.warnings) == ((), ())
            assert _untrue(domain, repository, taken, workspace / "out") == []


@pytest.mark.parametrize("damage", ["directory", "missing"])
def test_a_damaged_pack_of_the_base_is_not_taken_for_an_unmarked_change(
    damage: str, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        witnessed_backup(domain, repository, workspace)
        pack = Path(repository.store.location) / next(iter(repository.store.list("packs")))
        if damage == "missing":
            pack.unlink()
        else:
            with pack.open("r+b") as file:
                file.seek(-100, 2)
                file.write(b"damaged")
        fresh = open_or_create(repository.store.location)
        assert fresh is not None
        domain.write("vda", MIB, BLOCK, 0x11)
        taken = witnessed_backup(domain, fresh, workspace, ask(domain.name, audit=True))
        disk = disk_result(taken.result, "vda")
        assert (disk.mode, disk.unmarked, disk.statistics.new_bytes) == ("full", (), 4 * MIB)
        assert not any("Audit" in warning for warning in taken.result.warnings)
        assert _untrue(domain, fresh, taken, workspace / "out") == []
