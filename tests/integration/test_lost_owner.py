# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain that is shut off here and may run on another host: its devices are neither read nor written."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from lab.reference import same_bytes
from test_shared_device import loop_device
from witness import ask

from _cbt.errors import Refused
from _cbt.hypervisor.connection import Session
from _cbt.hypervisor.other_hosts import OtherHosts
from _cbt.operations.backup import run
from _cbt.operations.backup.backup import backup
from _cbt.operations.backup.result import BackupResult
from _cbt.operations.convert.convert import convert_disks
from _cbt.operations.convert.plan import ConversionOptions
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.tracking.reconcile import reconcile
from _cbt.operations.tracking.tracking import TrackingRequest, set_tracking
from _cbt.repository.repository import Repository

MIB = 1 << 20
SILENT = OtherHosts(silent=("kvm1",))


class Machine:
    """A domain that is shut off, with an image file and a device, whose last restore point names another host."""

    def __init__(self, session: Session, repository: Repository, domain: BlockDomain, device: Path) -> None:
        self.session, self.repository, self.domain, self.device = session, repository, domain, device

    def backup(self, others: OtherHosts, **wish: t.Any) -> BackupResult:
        return backup(self.session, self.repository, ask(self.domain.name, others=others, **wish))

    def held(self) -> tuple[bytes, bytes]:
        """The device, and the image file, which contains its bitmaps."""
        return self.device.read_bytes(), self.domain.image("vda").read_bytes()


@pytest.fixture
def machine(
    hypervisor: Hypervisor,
    workspace: Path,
    session: Session,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> t.Iterator[Machine]:
    with loop_device(workspace / "backing") as device:
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", device, str(4 * MIB)])
        disks = [DiskSpec("vda", 4 * MIB), DiskSpec("vdb", 4 * MIB, source=device)]
        with BlockDomain(hypervisor, disks) as domain, monkeypatch.context() as elsewhere:
            domain.write_random("vda", 0, MIB, 1)
            domain.write_random("vdb", 0, MIB, 2)
            domain.destroy()
            elsewhere.setattr(run, "host_name", lambda _session: "kvm1")
            it = Machine(session, repository, domain, device)
            assert it.backup(OtherHosts()).point is not None
            elsewhere.undo()
            yield it


def test_a_backup_is_refused_until_it_is_confirmed_that_no_other_host_runs_the_domain(
    machine: Machine, workspace: Path
) -> None:
    it, held = machine, machine.held()
    for wish in ({}, {"start_paused": True}, {"include_disks": None, "mode": "full"}):
        wish.pop("include_disks", None)
        with pytest.raises(
            Refused, match="vdb of .* may be in use on another host: .* kvm1 did not report .*offline_confirmed"
        ):
            it.backup(OtherHosts(), **wish)
    assert not it.domain.running and it.held() == held
    assert it.backup(OtherHosts(), offline="skip").skipped is not None
    result = it.backup(OtherHosts(confirmed=True))
    assert [(disk.target, disk.mode) for disk in result.disks] == [("vda", "incremental"), ("vdb", "incremental")]
    assert it.backup(OtherHosts()).point is not None  # the last restore point names this host now
    for disk in restore(it.repository, RestoreRequest(it.domain.name, dest=str(workspace))).disks:
        image = it.device if disk.target == "vdb" else it.domain.image("vda")
        assert same_bytes(Path(disk.path), image, "qcow2", "qcow2") is None


def test_disks_without_locks_are_left_out_while_a_host_is_silent(machine: Machine) -> None:
    it, (device, image) = machine, machine.held()
    for mode in ("auto", "full"):
        result = it.backup(SILENT, mode=mode)
        assert [disk.mode for disk in result.disks] == ["differential" if mode == "auto" else "copy", "skipped"]
        assert any("vdb of" in text and "kvm1 did not report" in text for text in result.warnings)
        assert result.point is not None and [disk.target for disk in result.point.disks] == ["vda"]
    assert it.held() == (device, image)  # nor is a bitmap removed
    result = it.backup(SILENT, start_paused=True)
    assert result.point is None and result.skipped is not None and result.warnings == (result.skipped,)
    assert not it.domain.running and it.held() == (device, image)
    result = it.backup(OtherHosts(answered=("kvm1",)))
    assert [disk.mode for disk in result.disks] == ["incremental", "incremental"]


def test_bitmaps_are_not_removed_while_a_host_is_silent(machine: Machine) -> None:
    it = machine
    run_tool(
        [
            "qemu-img",
            "bitmap",
            "--add",
            "-f",
            "qcow2",
            it.device,
            f"cbt-{it.repository.id[:8]}-20260101T000000Z-00000000",
        ]
    )
    held, name = it.held(), it.domain.name
    plan = reconcile(it.session, it.repository, name, SILENT)
    assert plan.steps == () and "kvm1 did not report" in (plan.skipped or "")
    for others in (SILENT, OtherHosts()):
        with pytest.raises(Refused, match="kvm1 did not report"):
            set_tracking(it.session, it.repository, TrackingRequest(name, False, others=others))
    with pytest.raises(Refused, match="kvm1 did not report"):
        reconcile(it.session, it.repository, name, OtherHosts())
    assert it.held() == held
    steps = reconcile(it.session, it.repository, name, OtherHosts(answered=("kvm1",))).steps
    assert [step.verb for step in steps] == ["remove"] and it.held() != held


def test_an_image_is_not_converted_while_a_host_is_silent(machine: Machine) -> None:
    it = machine
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", it.device, str(4 * MIB)])
    held, name = it.held(), it.domain.name
    result = convert_disks(it.session, name, None, ConversionOptions(others=SILENT))
    assert result.images == () and [target for target, _reason in result.left] == ["vdb"]
    assert "kvm1 did not report" in str(result.notes)
    with pytest.raises(Refused, match="kvm1 did not report"):
        convert_disks(it.session, name, ["vdb"], ConversionOptions(others=SILENT))
    assert it.held() == held
    assert len(convert_disks(it.session, name, None, ConversionOptions()).images) == 1
