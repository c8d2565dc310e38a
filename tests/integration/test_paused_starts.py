# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup with start_paused is killed: the next run shuts the domain off, but never a guest that has run."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import wait_until
from lab.reference import same_bytes
from module_process import ModuleProcess
from witness import ask, session_of, unfinished

from _cbt.control import Control, Progress
from _cbt.errors import HypervisorError
from _cbt.hypervisor import paused_start, scratch
from _cbt.hypervisor.other_hosts import OtherHosts
from _cbt.operations.backup.backup import backup
from _cbt.operations.backup.result import BackupResult
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.tracking.changed_blocks import changed_until_now
from _cbt.operations.tracking.reconcile import Step, reconcile
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository

MIB = 1 << 20

# Where the run is killed: after the start of the domain, after the begin of the backup job, before its end.
_KILLED = """
import os, signal, libvirt
def killed(kind, name, before):
    real = getattr(kind, name)
    def call(*arguments):
        if not before:
            real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(kind, name, call)
"""
MOMENTS = {
    "started": _KILLED + "killed(libvirt.virConnect, 'createXML', False)",
    "job begun": _KILLED + "killed(libvirt.virDomain, 'backupBegin', False)",
    "published": _KILLED + "killed(libvirt.virDomain, 'destroyFlags', True)",
}
_WHILE_IT_STARTS = """
import os, signal, threading, libvirt
real = libvirt.virConnect.createXML
def call(*arguments):
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return real(*arguments)
libvirt.virConnect.createXML = call
"""


class Machine(t.NamedTuple):
    """A domain that is shut off, with a first restore point."""

    domain: BlockDomain
    repository: Repository
    workspace: Path
    scratch: Path

    def run(self, check_only: bool = False, **wanted: t.Any) -> BackupResult:
        request = ask(self.domain.name, scratch_dir=str(self.scratch), **wanted)
        return backup(session_of(self.domain), self.repository, request, check_only=check_only)

    def reconcile(self, check_only: bool = False) -> tuple[Step, ...]:
        session = session_of(self.domain)
        return reconcile(session, self.repository, self.domain.name, OtherHosts(), check_only=check_only).steps

    def kill_a_run(self, before: str) -> None:
        arguments = {
            "domain": self.domain.name,
            "repository": self.repository.store.location,
            "scratch_dir": str(self.scratch),
            "offline": "start_paused",
        }
        assert ModuleProcess(self.workspace, "cbt_backup", arguments, before=before).result_if_any() is None

    def leave_started(self) -> None:
        """Leave the domain as a run does that is killed after it has started it."""
        paused_start.start(session_of(self.domain).domain(self.domain.name))
        assert self.domain.handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED

    def defined(self) -> str:
        return str(self.domain.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE))


@pytest.fixture(scope="module")
def made(hypervisor: Hypervisor) -> Iterator[Machine]:
    workspace = hypervisor.folder()
    folder = workspace / "scratch"
    folder.mkdir()
    repository = open_or_create(str(workspace / "repository"))
    assert repository is not None
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        domain.write_random("vda", 0, MIB, 1)
        domain.shutdown_hard()
        it = Machine(domain, repository, workspace, folder)
        assert it.run().point is not None
        yield it


@pytest.fixture
def machine(made: Machine) -> Iterator[Machine]:
    """The domain, shut off again after the test, with nothing left of it."""
    before = made.defined()
    yield made
    if made.domain.running:
        made.domain.destroy()
    assert made.defined() == before
    assert (list(made.scratch.iterdir()), unfinished(made.repository)) == ([], [])


def _ended(result: BackupResult) -> bool:
    return any("a run that was killed had started it" in warning for warning in result.warnings)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_next_backup_shuts_the_domain_off_and_is_incremental(moment: str, machine: Machine) -> None:
    it, again = machine, moment == "job begun"
    it.kill_a_run(MOMENTS[moment])
    assert it.domain.handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED
    result = it.run(start_paused=again)
    assert result.point is not None and [disk.mode for disk in result.disks] == ["incremental"]
    assert _ended(result) and not it.domain.running
    assert not _ended(it.run(start_paused=again))
    (disk,) = restore(it.repository, RestoreRequest(it.domain.name, dest=str(it.workspace))).disks
    assert same_bytes(it.domain.image("vda"), Path(disk.path), "qcow2", "qcow2") is None
    Path(disk.path).unlink()


def test_a_run_killed_while_libvirt_starts_the_domain_leaves_nothing(machine: Machine) -> None:
    it = machine
    it.kill_a_run(_WHILE_IT_STARTS)
    assert it.run().point is not None
    assert it.run().point is not None  # the first may come before libvirt has begun to start the domain
    assert not it.domain.running


@pytest.mark.parametrize("wanted", [{"offline": "skip"}, {}, {"start_paused": True}])
def test_check_mode_predicts_the_end_of_the_domain(wanted: dict[str, t.Any], machine: Machine) -> None:
    it = machine
    it.leave_started()
    planned = it.run(check_only=True, **wanted)
    assert it.domain.running
    done = it.run(**wanted)
    assert _ended(planned) and not it.domain.running
    assert [disk.mode for disk in planned.disks] == [disk.mode for disk in done.disks]
    assert planned.skipped == done.skipped and set(planned.warnings) <= set(done.warnings)


def test_other_modules_shut_the_domain_off(machine: Machine) -> None:
    it = machine
    it.leave_started()
    steps = it.reconcile(check_only=True)
    assert it.domain.running and "a run that was killed had started it" in steps[0].text
    assert it.reconcile() == steps and not it.domain.running
    it.leave_started()
    last = it.repository.points_of().points[-1].id
    changed_until_now(session_of(it.domain), it.repository, "vda", last, str(it.scratch))
    assert not it.domain.running


def _resumed(domain: BlockDomain) -> None:
    domain.handle.resume()
    domain.write("vda", 2 * MIB, 65536, 0x33)


def _paused(domain: BlockDomain) -> None:
    _resumed(domain)
    domain.handle.suspend()


def _reset(domain: BlockDomain) -> None:
    """QEMU then reports the status of a guest that never ran."""
    domain.handle.resume()
    wait_until(lambda: any(domain.handle.blockStats("")[:4]), 30, "a read of the guest's firmware")
    domain.handle.suspend()
    domain.handle.reset(0)
    assert domain.qmp("query-status")["status"] == "prelaunch"


def _saved(domain: BlockDomain) -> None:
    _resumed(domain)
    domain.handle.managedSave(libvirt.VIR_DOMAIN_SAVE_PAUSED)
    domain.handle.create()


def _by_a_user(domain: BlockDomain) -> None:
    domain.destroy()
    domain.handle.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


TAKEN_OVER = {
    "resumed": _resumed,
    "resumed and paused": _paused,
    "resumed, paused and reset": _reset,
    "saved and restored": _saved,
    "started paused by a user": _by_a_user,
}


@pytest.mark.parametrize("how", TAKEN_OVER)
def test_a_domain_that_is_in_use_stays_as_it_is(how: str, machine: Machine) -> None:
    it = machine
    it.leave_started()
    TAKEN_OVER[how](it.domain)
    state, number = it.domain.handle.state(), it.domain.handle.ID()
    result = it.run(start_paused=True)
    assert result.point is not None and not _ended(result)
    assert it.reconcile() == ()
    assert (it.domain.handle.state(), it.domain.handle.ID()) == (state, number)


def test_a_guest_that_was_reverted_to_a_snapshot_stays_on(machine: Machine) -> None:
    """It continues in a process that has not run, so QEMU reports the status of a guest that never ran."""
    it = machine
    with BlockDomain(it.domain.hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        one = session_of(domain).domain(domain.name)
        paused_start.start(one)
        assert paused_start.left(one)
        domain.handle.resume()
        snapshot = domain.handle.snapshotCreateXML("<domainsnapshot/>", 0)
        domain.handle.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED)
        snapshot.delete(0)
        assert domain.qmp("query-status")["status"] == "prelaunch"
        assert paused_start.left(one) is False


def test_a_guest_that_is_paused_again_during_its_backup_stays_on(machine: Machine) -> None:
    it = machine

    def take_over(progress: Progress) -> None:
        if progress.phase == "publishing":
            it.domain.handle.resume()
            it.domain.handle.suspend()

    request = ask(it.domain.name, start_paused=True, scratch_dir=str(it.scratch))
    result = backup(session_of(it.domain), it.repository, request, control=Control(take_over))
    assert result.point is not None and it.domain.running


def test_a_restart_of_libvirtd_does_not_hide_the_domain(machine: Machine) -> None:
    it = machine
    if not it.domain.hypervisor.may_restart:
        pytest.skip("libvirtd is not the lab's")
    it.leave_started()
    it.domain.hypervisor.restart_daemon()
    assert _ended(it.run(offline="skip")) and not it.domain.running


def test_a_domain_that_another_host_started_is_reported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    it = machine
    it.leave_started()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(scratch, "reader", lambda: "another")
        result = it.run()
        assert any(f"virsh destroy {it.domain.name}" in warning for warning in result.warnings)
        assert result.point is not None and it.domain.running
    assert _ended(it.run()) and not it.domain.running


def test_a_domain_is_started_with_all_of_its_definition(machine: Machine) -> None:
    it, qemu = machine, "http://libvirt.org/schemas/domain/qemu/1.0"
    metadata = "<metadata><of:owner xmlns:of='urn:owner'>us</of:owner></metadata>"
    commandline = f"<q:commandline xmlns:q='{qemu}'><q:env name='OURS' value='1'/></q:commandline>"
    plain = it.defined()
    own = plain.replace("<devices>", f"{metadata}<devices>").replace("</devices>", f"</devices>{commandline}")
    it.domain.hypervisor.connection.defineXML(own)
    try:
        it.leave_started()
        live = ElementTree.fromstring(it.domain.xml())
        assert live.findtext("./metadata/{urn:owner}owner") == "us"
        assert live.find(f"./{{{qemu}}}commandline/{{{qemu}}}env[@name='OURS']") is not None
        assert _ended(it.run()) and "urn:kvm.cbt" not in it.defined() and "urn:owner" in it.defined()
    finally:
        it.domain.hypervisor.connection.defineXML(plain)


def test_a_start_that_fails_leaves_the_definition_as_it_was(machine: Machine) -> None:
    it, defined = machine, machine.defined()
    image = it.domain.image("vda")
    moved = image.with_suffix(".moved")
    image.rename(moved)
    try:
        with pytest.raises(HypervisorError, match="Cannot start"):
            it.leave_started()
    finally:
        moved.rename(image)
    assert it.defined() == defined
