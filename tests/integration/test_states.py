# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each state that a domain can be in is backed up as it is, or refused with the reason; none is changed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool, wait_until
from lab.qemu_nbd import qemu_nbd
from lab.reference import same_bytes
from witness import ask, differences, session_of, witnessed_backup

from _cbt.errors import Refused
from _cbt.hypervisor.domain_xml.disks import Selection
from _cbt.operations.backup.backup import backup
from _cbt.operations.domains import describe_domains
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.tracking.tracking import TrackingRequest, set_tracking
from _cbt.repository.repository import Repository

MIB = 1 << 20
_SUSPEND = "o /w 0x604 0x2400"  # PM1a control of the PIIX4: type 1 (suspend to memory) and enable
_POWER_OFF = "o /w 0x604 0x2000"  # type 0 (power off) and enable
_PANIC = "o /b 0x505 1"  # the port of the panic device


@pytest.fixture
def domain(hypervisor: Hypervisor) -> Iterator[BlockDomain]:
    """A running domain that is preserved if its guest panics."""
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 4 * MIB)], start=False) as made:
        xml = made.xml(inactive=True).replace("</devices>", "<panic model='isa'/></devices>")
        hypervisor.connection.defineXML(xml.replace("<on_crash>destroy</on_crash>", "<on_crash>preserve</on_crash>"))
        made.start()
        made.write_random("vda", 0, 4 * MIB, 1)
        yield made


def _state(domain: BlockDomain) -> int:
    return int(domain.handle.state()[0])


def _by_port(domain: BlockDomain, command: str, state: int) -> None:
    """Bring the domain into a state with a write to one of its ports, once its firmware has set up the device."""

    def reached() -> bool:
        if _state(domain) == libvirt.VIR_DOMAIN_RUNNING:
            with contextlib.suppress(libvirt.libvirtError):  # QEMU may end before it answers
                flags = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
                libvirt_qemu.qemuMonitorCommand(domain.handle, command, flags)
        return _state(domain) == state

    wait_until(reached, 30, f"state {state} of {domain.name}")


def _pause(domain: BlockDomain) -> None:
    domain.handle.suspend()


def _panic(domain: BlockDomain) -> None:
    _by_port(domain, _PANIC, libvirt.VIR_DOMAIN_CRASHED)


def _suspend(domain: BlockDomain) -> None:
    _by_port(domain, _SUSPEND, libvirt.VIR_DOMAIN_PMSUSPENDED)


def _shut_down(domain: BlockDomain) -> None:
    _by_port(domain, _POWER_OFF, libvirt.VIR_DOMAIN_SHUTOFF)


def _destroy(domain: BlockDomain) -> None:
    domain.destroy()


def _crash(domain: BlockDomain) -> None:
    domain.kill()


def _save(domain: BlockDomain) -> None:
    domain.handle.managedSave()


class Row(t.NamedTuple):
    """A state that is backed up: how it is reached, and what the backup says."""

    enter: t.Callable[[BlockDomain], None]
    mode: str = "incremental"
    consistency: str = "crash"
    warning: str | None = None


UNKNOWN_END = "libvirt does not report that the guest shut down properly"
ROWS = {
    "paused": Row(_pause),
    "crashed": Row(_panic),
    "pmsuspended": Row(_suspend),
    "shut off by its guest": Row(_shut_down, consistency="filesystem"),
    "destroyed": Row(_destroy, warning=UNKNOWN_END),
    "shut off by the end of QEMU": Row(_crash, mode="full", warning=UNKNOWN_END),
    "saved to disk": Row(_save, warning="its memory is saved to disk, and a restored machine starts without it"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_domain_is_backed_up_in_its_state(
    name: str, domain: BlockDomain, repository: Repository, workspace: Path
) -> None:
    row = ROWS[name]
    backup(session_of(domain), repository, ask(domain.name))
    domain.write("vda", MIB, 65536, 0x5A)
    domain.flush("vda")
    row.enter(domain)
    state, saved = _state(domain), domain.handle.hasManagedSaveImage()
    planned = backup(session_of(domain), repository, ask(domain.name), check_only=True)
    result = backup(session_of(domain), repository, ask(domain.name))
    assert result.point is not None
    assert [disk.mode for disk in planned.disks] == [row.mode] * 2
    assert [disk.mode for disk in result.disks] == [row.mode] * 2
    assert result.point.consistency == row.consistency
    assert row.warning is None or any(row.warning in each for each in result.warnings)
    assert (_state(domain), domain.handle.hasManagedSaveImage()) == (state, saved)
    if domain.running:
        domain.destroy()
    for disk in restore(repository, RestoreRequest(domain.name, dest=str(workspace), format="raw")).disks:
        assert same_bytes(domain.image(disk.target), Path(disk.path), "qcow2", "raw") is None


def test_a_domain_saved_to_disk_continues_after_its_backup(
    domain: BlockDomain, repository: Repository, workspace: Path
) -> None:
    backup(session_of(domain), repository, ask(domain.name))
    domain.handle.managedSave()
    for check_only in (True, False):
        with pytest.raises(Refused, match="its memory is saved to disk, and would be lost.*managedsave-remove"):
            backup(
                session_of(domain),
                repository,
                ask(domain.name, start_paused=True, offline="start_paused"),
                check_only=check_only,
            )
        assert domain.handle.hasManagedSaveImage()
        over = RestoreRequest(
            domain.name, disk_map={disk: str(domain.image(disk)) for disk in ("vda", "vdb")}, force=True
        )
        with pytest.raises(Refused, match=f"the memory of {domain.name} is saved to disk"):
            restore(repository, over, session_of(domain), check_only=check_only)
    assert backup(session_of(domain), repository, ask(domain.name)).point is not None
    assert domain.handle.hasManagedSaveImage()
    domain.start()
    assert domain.handle.state() == [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_RESTORED]
    domain.write("vda", 2 * MIB, 65536, 0x77)
    taken = witnessed_backup(domain, repository, workspace)
    assert [disk.mode for disk in taken.result.disks] == ["incremental"] * 2
    assert differences(domain.name, repository, taken, workspace) == []


@pytest.fixture
def shutting_down(hypervisor: Hypervisor, workspace: Path) -> Iterator[BlockDomain]:
    """A domain whose guest has powered off, while QEMU waits for the server of a disk and cannot end."""
    raw, socket = workspace / "served.raw", workspace / "served.sock"
    run_tool(["truncate", "--size=1M", raw])
    with qemu_nbd(raw, "raw", socket), BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)], start=False) as made:
        socket.chmod(0o777)
        server = int(socket.with_suffix(".pid").read_text())
        made.handle.attachDeviceFlags(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd'>"
            f"<host transport='unix' socket='{socket}'/></source><target dev='vdb' bus='virtio'/></disk>",
            libvirt.VIR_DOMAIN_AFFECT_CONFIG,
        )
        made.start()
        made.write("vdb", 0, 65536, 0x44)
        uri, name = hypervisor.uri, made.name
        os.kill(server, signal.SIGSTOP)

        def power_off() -> None:
            with contextlib.closing(libvirt.open(uri)) as own, contextlib.suppress(libvirt.libvirtError):
                libvirt_qemu.qemuMonitorCommand(own.lookupByName(name), '{"execute": "quit"}', 0)

        asking = threading.Thread(target=power_off)
        asking.start()
        try:
            wait_until(lambda: _state(made) == libvirt.VIR_DOMAIN_SHUTDOWN, 30, f"shutdown of {name}")
            yield made
        finally:
            os.kill(server, signal.SIGCONT)
            asking.join(60)


def test_a_domain_that_is_shutting_down_is_refused(shutting_down: BlockDomain, repository: Repository) -> None:
    """QEMU answers nothing until it ends, so it is not queried."""
    session, name = session_of(shutting_down), shutting_down.name
    for check_only in (True, False):
        with pytest.raises(Refused, match=f"Cannot back up {name}: it is shutting down"):
            backup(session, repository, ask(name), check_only=check_only)
    with pytest.raises(Refused, match="a shutdown is running on it"):
        set_tracking(session, repository, TrackingRequest(name, True))
    assert [facts.job for facts, _known in describe_domains(session) if facts.name == name] == ["shutdown"]


def _copy(domain: BlockDomain, **limits: int) -> None:
    copy = f"<disk type='file'><driver type='qcow2'/><source file='{domain.folder / 'copy.qcow2'}'/></disk>"
    domain.handle.blockCopy("vda", copy, limits, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)


def _slow_copy(domain: BlockDomain) -> None:
    _copy(domain, bandwidth=1)
    assert "ready='yes'" not in domain.xml()


def _ready_copy(domain: BlockDomain) -> None:
    _copy(domain)
    wait_until(lambda: "ready='yes'" in domain.xml(), 30, "the end of the copy")


def _snapshot(domain: BlockDomain) -> None:
    overlay = f"<disk name='vda' snapshot='external'><source file='{domain.folder / 'overlay.qcow2'}'/></disk>"
    domain.handle.snapshotCreateXML(
        f"<domainsnapshot><disks>{overlay}<disk name='vdb' snapshot='no'/></disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
    )


def _pull(domain: BlockDomain) -> None:
    _snapshot(domain)
    domain.handle.blockPull("vda", 1, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)


def _commit(domain: BlockDomain) -> None:
    _snapshot(domain)
    domain.handle.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)


@pytest.mark.parametrize("begin", [_slow_copy, _ready_copy, _pull, _commit])
def test_a_disk_with_a_block_job_is_refused(
    begin: t.Callable[[BlockDomain], None], domain: BlockDomain, repository: Repository
) -> None:
    begin(domain)
    for check_only in (True, False):
        with pytest.raises(Refused, match=r"a block job \(copy, commit or pull\) is running on vda.*exclude the disk"):
            backup(session_of(domain), repository, ask(domain.name), check_only=check_only)
    others = ask(domain.name, selection=Selection(exclude=("vda",)))
    assert backup(session_of(domain), repository, others).point is not None
    assert domain.handle.blockJobInfo("vda", 0)
    domain.handle.blockJobAbort("vda", 0)
    assert backup(session_of(domain), repository, ask(domain.name)).point is not None
