# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damage in the repository is found, recorded, and healed from the disks of a real domain: tracked and untracked, running and shut off."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from module_process import run_module
from witness import Witnessed, ask, differences, session_of, witnessed_backup

from _cbt.control import Control
from _cbt.errors import DamagedObject
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.backup.backup import backup
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.selecting import ALL

MIB = 1 << 20
FORMATS = {"vda": "qcow2", "vdb": "raw"}  # tracked and not
KEPT, CHANGING = 17, 0  # blocks


class Patient:
    """A domain with a tracked and an untracked disk, two points in a repository, and a block of each that changes from point to point."""

    def __init__(self, domain: BlockDomain, workspace: Path, running: bool) -> None:
        self.domain, self.workspace, self.running = domain, workspace, running
        self.taken: list[Witnessed] = []
        open_or_create(str(workspace / "repository"))
        for seed, target in enumerate(FORMATS):  # content of their own, or both would be stored as one
            domain.write_random(target, 0, 4 * MIB, seed)
        self.backup()
        self.backup()

    @property
    def repository(self) -> Repository:
        """As another process finds it."""
        return open_repository(str(self.workspace / "repository"))

    def backup(self, **wanted: t.Any) -> Witnessed:
        """The guest writes, and a backup with a witness; it does what check mode told."""
        for number, target in enumerate(FORMATS):
            self.domain.write_random(target, CHANGING * BLOCK_SIZE, BLOCK_SIZE, 100 + 2 * len(self.taken) + number)
        folder = self.workspace / f"taken-{len(self.taken)}"
        folder.mkdir()
        request = ask(self.domain.name, **wanted)
        if not self.running:
            self.domain.destroy()
        predicted = backup(session_of(self.domain), self.repository, request, check_only=True)
        if self.running:
            taken = witnessed_backup(self.domain, self.repository, folder, request)
        else:
            copies = {target: folder / f"{target}.raw" for target in FORMATS}
            for target, copy in copies.items():
                run_tool(["qemu-img", "convert", "-f", FORMATS[target], "-O", "raw", self.domain.image(target), copy])
            taken = Witnessed(backup(session_of(self.domain), self.repository, request), copies)
            self.domain.start()
        assert [(disk.mode, disk.reason) for disk in taken.result.disks] == [
            (disk.mode, disk.reason) for disk in predicted.disks
        ]
        self.taken.append(taken)
        return taken

    def pack(self, number: int, target: str, block: int) -> tuple[Path, int]:
        """The file of the pack that holds a block at a point, and where in it the block's payload is."""
        repository = self.repository
        point = repository.point(self.domain.handle.UUIDString(), self.taken[number].id)
        run = next(repository.read_map(point, target).runs(block, block + 1))
        start, length = repository.reader.directory(run.pack).span(run.ordinal, 1)
        return self.workspace / "repository" / run.pack.name, start + length // 2

    def flip(self, number: int, target: str, block: int) -> None:
        """Change one bit of what is stored of a block."""
        path, offset = self.pack(number, target, block)
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 16]))

    def statuses(self) -> list[str]:
        """What verification finds of each point, oldest first."""
        return [verdict.status for verdict in verify(self.repository, VerifyRequest(wanted=ALL))[0]]

    def untrue(self) -> list[str]:
        """What points restore to that is not their witness's; one that cannot be restored says so and is ``damaged``."""
        found = []
        for number, taken in enumerate(self.taken):
            folder = self.workspace / f"restored-{number}"
            folder.mkdir()
            try:
                found += differences(self.domain.name, self.repository, taken, folder)
            except DamagedObject:
                found.append(f"point {number} is damaged")
            assert list(folder.iterdir()) == []
            shutil.rmtree(folder)
        return found


@pytest.fixture
def patient(request: pytest.FixtureRequest, hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Patient]:
    """Two points of a domain."""
    with BlockDomain(hypervisor, [DiskSpec(target, 8 * MIB, image) for target, image in FORMATS.items()]) as domain:
        yield Patient(domain, workspace, getattr(request, "param", "running") == "running")


def _modes(taken: Witnessed) -> list[str]:
    return [disk.mode for disk in taken.result.disks]


both = pytest.mark.parametrize("patient", ["running", "shut off"], indirect=True)


@both
def test_flipped_bits_are_healed_by_the_next_backup_in_all_points(patient: Patient) -> None:
    for target in FORMATS:
        patient.flip(0, target, KEPT)
    assert patient.statuses() == ["damaged", "damaged"]
    healing = patient.backup()
    assert _modes(healing) == ["incremental", "scan"]
    assert [disk.healed_blocks for disk in healing.result.disks] == [1, 1]
    # Two blocks of each disk were stored: the one the guest wrote, and the damaged one it did not touch.
    assert [disk.statistics.new_bytes for disk in healing.result.disks if disk.statistics] == [2 * BLOCK_SIZE] * 2
    assert (
        healing.result.disks[0].statistics is not None
        and healing.result.disks[0].statistics.read_bytes == 2 * BLOCK_SIZE
    )
    assert patient.statuses() == ["ok", "ok", "ok"]
    assert patient.untrue() == []
    assert [disk.healed_blocks for disk in patient.backup().result.disks] == [0, 0]


def test_a_signal_after_publication_says_that_the_point_is_published_and_what_was_left_undone(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient.flip(0, "vda", KEPT)
    assert patient.statuses() == ["damaged", "damaged"]
    control, publish = Control(), Repository.publish

    def publish_and_signal(repository: Repository, point: RestorePoint, replace: bool = True) -> bool:
        done = publish(repository, point, replace)
        control.request("SIGTERM")
        return done

    with monkeypatch.context() as patched:
        patched.setattr(Repository, "publish", publish_and_signal)
        result = backup(session_of(patient.domain), patient.repository, ask(patient.domain.name), control)
    assert result.point is not None
    (warning,) = [each for each in result.warnings if "SIGTERM" in each]
    assert warning.startswith(
        f"Damaged blocks of earlier restore points of {patient.domain.name} were not healed: Ended by SIGTERM."
    )
    assert f"Restore point {result.point.id} of {patient.domain.name} is published and complete." in warning
    assert patient.statuses() == ["damaged", "damaged", "ok"]
    patient.backup()
    assert patient.statuses() == ["ok"] * 4


def test_a_block_the_guest_has_overwritten_stays_damaged_where_it_was(patient: Patient) -> None:
    patient.flip(1, "vda", CHANGING)
    assert patient.statuses() == ["ok", "damaged"]
    healing = patient.backup()
    assert [disk.healed_blocks for disk in healing.result.disks] == [0, 0]
    assert any("stay damaged" in warning for warning in healing.result.warnings)
    assert patient.statuses() == ["ok", "damaged", "ok"]
    assert patient.untrue() == ["point 1 is damaged"]


@pytest.mark.parametrize("harm", ["missing", "truncated", "directory"])
def test_a_lost_pack_costs_the_reading_of_what_was_in_it_and_the_new_point_is_true(harm: str, patient: Patient) -> None:
    path, _offset = patient.pack(0, "vda", KEPT)
    aside = patient.workspace / "aside"
    shutil.copy(path, aside)
    if harm == "missing":
        path.unlink()
    else:
        with path.open("r+b") as file:
            if harm == "truncated":
                file.truncate(aside.stat().st_size // 2)
            else:
                file.seek(-100, 2)
                file.write(b"damaged")
    if harm == "directory":  # the others are noticed by the next backup itself
        assert set(patient.statuses()) == {"damaged"}
    after = patient.backup()
    assert _modes(after) == ["incremental", "scan"]
    assert "are damaged in the repository and are read again" in after.result.disks[0].reason
    expected = "incomplete" if harm == "missing" else "damaged"
    assert patient.statuses() == [expected, expected, "ok"]
    # Without the directory nothing tells whether the content is still the same.
    shutil.copy(aside, path)
    assert patient.statuses() == ["ok", "ok", "ok"]
    assert patient.untrue() == []


def test_damage_to_one_disk_does_not_affect_the_other(patient: Patient) -> None:
    patient.flip(0, "vdb", KEPT)
    out = patient.workspace / "out"
    out.mkdir()
    given = {"domain": patient.domain.name, "repository": str(patient.workspace / "repository"), "dest": str(out)}
    assert "vdb" in run_module(patient.workspace, "cbt_restore", **given)["msg"]
    assert not run_module(patient.workspace, "cbt_restore", include_disks=["vda"], **given).get("failed")


@both
def test_the_modules_find_tell_and_heal(patient: Patient) -> None:
    place = {"repository": str(patient.workspace / "repository")}

    def healths() -> list[tuple[t.Any, bool]]:
        points = run_module(patient.workspace, "cbt_backup_info", **place)["restore_points"]
        return [
            (point["verified"] and (point["verified"]["status"], point["verified"]["percent"]), point["damaged"])
            for point in points
        ]

    patient.flip(0, "vda", KEPT)
    assert healths() == [(None, False), (None, False)]
    run_module(patient.workspace, "cbt_verify", check=True, restore_points=["all"], **place)
    assert healths() == [(None, False), (None, False)]
    found = [
        run_module(patient.workspace, "cbt_verify", restore_points=["all"], sample=50, fail_on_damage=False, **place)
        for _run in range(2)
    ]
    assert not any(each["changed"] for each in found)
    assert healths() == [(("damaged", 50), True)] * 2
    if not patient.running:
        patient.domain.destroy()
    healing = run_module(patient.workspace, "cbt_backup", domain=patient.domain.name, **place)
    assert [disk["healed_blocks"] for disk in healing["disks"]] == [1, 0]
    assert "2 earlier restore points were healed" in str(healing["warnings"])
    assert [damaged for _verified, damaged in healths()] == [False] * 3
    assert not run_module(patient.workspace, "cbt_verify", restore_points=["all"], **place).get("failed")
    assert healths() == [(("ok", 100), False)] * 3
