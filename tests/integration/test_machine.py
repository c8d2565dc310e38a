# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole machines: saved with all their files, restored as they were or as copies beside the original."""

from __future__ import annotations

import contextlib
import json
import shutil
import typing as t
import uuid
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import libvirt_qemu
import pytest
from lab.base import UNDEFINE_ALL
from lab.disks import DiskSpec
from lab.guest import LinuxGuest
from lab.hypervisor import Hypervisor
from lab.process import run_tool, wait_until
from restored import new_name, removed
from witness import ask, session_of

from _cbt.errors import Refused
from _cbt.hypervisor.connection import Session
from _cbt.hypervisor.domain_xml.machine_files import TPM_FOLDER
from _cbt.operations.backup.backup import backup
from _cbt.operations.restore.restore import MachineOptions, RestoreRequest, restore
from _cbt.repository.repository import Repository

MIB = 1 << 20
COPY = MachineOptions(new_uuid=True, new_macs=True)


def _agent(domain: libvirt.virDomain, command: str, **arguments: t.Any) -> t.Any:
    answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps({"execute": command, "arguments": arguments}), 30, 0)
    return json.loads(answer)["return"]


def _answers(handle: libvirt.virDomain) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        _agent(handle, "guest-ping")
        return True
    return False


def _files(xml: str) -> set[str]:
    """Everything in a configuration that looks like the path of a file that is written to."""
    found = {
        text
        for element in ElementTree.fromstring(xml).iter()
        for text in (element.text, *element.attrib.values())
        if text and text.startswith("/")
    }
    return {path for path in found if path != "/machine" and not path.startswith(("/usr/", "/dev/"))}


def _identity(xml: str) -> set[str]:
    """Names, UUIDs and addresses that may be there once only."""
    root = ElementTree.fromstring(xml)
    return {
        str(root.findtext("name")),
        str(root.findtext("uuid")),
        *(mac.attrib["address"] for mac in root.iterfind("./devices/interface/mac")),
    }


def test_a_renamed_copy_runs_beside_the_original_and_shares_nothing_with_it(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, session: Session
) -> None:
    name = new_name()
    with (
        LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB), DiskSpec("vdb", 64 * MIB, format="raw")]) as guest,
        removed(session, name),
    ):
        guest.wait_ready()
        guest.write_file("/data/one", b"of the original")
        guest.sync()
        taken = backup(session_of(guest), repository, ask(guest.name, quiesce="required"))
        assert not [warning for warning in taken.warnings if "not saved" in warning]
        request = RestoreRequest(
            guest.name,
            dest=str(workspace),
            new_name=name,
            machine=MachineOptions(new_uuid=True, new_macs=True, start=True),
        )
        result = restore(repository, request, session)
        assert result.machine is not None and [file.saved.kind for file in result.machine.files] == ["kernel", "initrd"]
        copy = session.api.lookupByName(name)
        assert guest.running and copy.isActive()
        wait_until(lambda: _answers(copy), 120, f"agent of {name}", step=0.5)
        original_xml, copy_xml = guest.xml(inactive=True), copy.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        assert _files(original_xml) & _files(copy_xml) == set()
        assert _files(guest.xml()) & _files(copy.XMLDesc(0)) == set()
        assert _identity(original_xml) & _identity(copy_xml) == set()
        handle = _agent(copy, "guest-file-open", path="/disks/vda/one")
        content = _agent(copy, "guest-file-read", handle=handle)["buf-b64"]
        assert content == "b2YgdGhlIG9yaWdpbmFs"
        guest.check("echo changed > /data/one; sync")
        _agent(copy, "guest-file-close", handle=handle)
        handle = _agent(copy, "guest-file-open", path="/disks/vda/one")
        assert _agent(copy, "guest-file-read", handle=handle)["buf-b64"] == content
        # The copy is a machine of its own, with backups of its own.
        again = backup(session, repository, ask(name))
        assert again.point is not None and again.point.uuid == copy.UUIDString()
        assert [disk.mode for disk in again.disks] == ["full", "full"]


class Firmware:
    """A domain with UEFI firmware and an emulated TPM; it never boots anything."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.folder = session, folder
        self.name, self.uuid = new_name(), str(uuid.uuid4())
        self.image = folder / f"{self.name}.qcow2"
        self.nvram = folder / f"{self.name}-variables.fd"
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", self.image, "8M"])
        self.image.chmod(0o666)
        shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", self.nvram)
        session.api.defineXML(self.xml())
        self.handle.create()
        wait_until(self.tpm.exists, 30, "state of the TPM")
        self.handle.suspend()  # so that the firmware changes neither variables nor TPM while they are compared

    def xml(self) -> str:
        return f"""<domain type='qemu'><name>{self.name}</name><uuid>{self.uuid}</uuid><memory unit='MiB'>128</memory><vcpu>1</vcpu><genid/>
        <os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
        <nvram>{self.nvram}</nvram></os><features><acpi/></features><devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{self.image}'/><target dev='vda' bus='virtio'/></disk>
        <graphics type='vnc' port='5999' autoport='no' passwd='secret'/><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
        </devices></domain>"""

    @property
    def handle(self) -> libvirt.virDomain:
        return self.session.api.lookupByUUIDString(self.uuid)

    @property
    def tpm(self) -> Path:
        return tpm_state(self.uuid)

    def gone(self) -> None:
        """The host is lost: domain, image, firmware variables and TPM."""
        with contextlib.suppress(libvirt.libvirtError):
            self.handle.destroy()
        self.handle.undefineFlags(UNDEFINE_ALL | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        self.image.unlink()
        assert not self.nvram.exists() and not self.tpm.exists()


def tpm_state(of: str) -> Path:
    return Path(TPM_FOLDER, of, "tpm2", "tpm2-00.permall")


@pytest.fixture
def firmware(session: Session, workspace: Path) -> t.Iterator[Firmware]:
    made = Firmware(session, workspace)
    with removed(session, made.name):
        yield made


def test_firmware_variables_and_tpm_come_back_with_the_machine(
    firmware: Firmware, session: Session, workspace: Path, repository: Repository
) -> None:
    taken = backup(session, repository, ask(firmware.name))
    assert taken.warnings == ()
    variables, state, owner = firmware.nvram.read_bytes(), firmware.tpm.read_bytes(), firmware.tpm.stat().st_uid
    firmware.gone()
    request = RestoreRequest(firmware.name, dest=str(workspace), machine=MachineOptions())
    predicted = restore(repository, request, session, check_only=True)
    result = restore(repository, request, session)
    assert result.machine == predicted.machine
    assert (workspace / f"{firmware.name}-nvram").read_bytes() == variables
    assert (firmware.tpm.read_bytes(), firmware.tpm.stat().st_uid, firmware.tpm.stat().st_mode & 0o777) == (
        state,
        owner,
        0o600,
    )
    assert "passwd='secret'" in result.domain_xml
    firmware.handle.create()
    assert firmware.handle.isActive()
    again = backup(session, repository, ask(firmware.name))
    assert not [warning for warning in again.warnings if "not saved" in warning]


def test_a_copy_of_a_machine_with_firmware_has_its_own_variables_and_tpm(
    firmware: Firmware, session: Session, workspace: Path, repository: Repository
) -> None:
    backup(session, repository, ask(firmware.name))
    name = new_name()
    with removed(session, name):
        result = restore(
            repository, RestoreRequest(firmware.name, dest=str(workspace), new_name=name, machine=COPY), session
        )
        copy = session.api.lookupByName(name)
        assert (workspace / f"{name}-nvram").read_bytes() == firmware.nvram.read_bytes()
        assert tpm_state(copy.UUIDString()).read_bytes() == firmware.tpm.read_bytes()
        copy.create()
        assert firmware.handle.isActive() and copy.isActive()
        assert _files(firmware.handle.XMLDesc(0)) & _files(copy.XMLDesc(0)) == set()
        assert result.machine is not None and not result.machine.autostart


def test_firmware_that_libvirt_chose_keeps_its_variables(
    session: Session, workspace: Path, repository: Repository
) -> None:
    name, copy = new_name(), new_name()
    image = workspace / "a.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"])
    with removed(session, name, copy):
        domain = session.api.defineXML(f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
        <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features><devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/><target dev='vda' bus='virtio'/></disk>
        </devices></domain>""")
        domain.create()
        variables = Path("/var/lib/libvirt/qemu/nvram", f"{name}_VARS.fd")
        backup(session, repository, ask(name))
        domain.destroy()
        content = bytearray(variables.read_bytes())
        content[-16:] = b"of this machine!"
        variables.write_bytes(content)
        backup(session, repository, ask(name))  # shut off: libvirt does not tell where they are
        restore(
            repository,
            RestoreRequest(name, dest=str(workspace), new_name=copy, machine=MachineOptions(new_uuid=True, start=True)),
            session,
        )
        live = ElementTree.fromstring(session.api.lookupByName(copy).XMLDesc(0))
        assert live.findtext("./os/nvram") == str(workspace / f"{copy}-nvram")
        assert (workspace / f"{copy}-nvram").read_bytes() == content


@pytest.mark.parametrize("hostile", [False, True], ids=["alone", "with a backing file"])
def test_variables_in_qcow2_come_back_unless_they_name_another_file(
    hostile: bool, session: Session, workspace: Path, repository: Repository
) -> None:
    name, copy, variables, secret = new_name(), new_name(), workspace / "v.qcow2", workspace / "secret"
    secret.write_bytes(b"secret" * 1000)
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", workspace / "a.qcow2", "8M"])
    below = ["-b", secret, "-F", "raw"] if hostile else []
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", *below, variables, "528K"])
    with removed(session, name, copy):
        session.api.defineXML(f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
        <nvram>{variables}</nvram></os><features><acpi/></features><devices>
        <disk type='file'><driver name='qemu' type='qcow2'/><source file='{workspace}/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
        </devices></domain>""")
        backup(session, repository, ask(name))
        request = RestoreRequest(name, dest=str(workspace), new_name=copy, machine=COPY)
        if hostile:
            for check in (True, False):
                with pytest.raises(Refused, match="firmware variables .* names another file .* trust_definition"):
                    restore(repository, request, session, check_only=check)
            assert not list(workspace.glob(f"{copy}*"))
            trusted = MachineOptions(new_uuid=True, new_macs=True, trust_definition=True)
            request = RestoreRequest(name, dest=str(workspace), new_name=copy, machine=trusted)
        restore(repository, request, session)
        assert (workspace / f"{copy}-nvram").read_bytes() == variables.read_bytes()


KEPT_ELSEWHERE = {  # what the definition names, the warning at the backup, and the change in a copy
    "variables on a device": (
        "<nvram type='block'><source dev='/dev/loop-none'/></nvram>",
        "",
        "nvram of the machine was not saved: it is not a file (block /dev/loop-none). Save it yourself.",
        "The firmware variables block /dev/loop-none were not saved: the firmware starts with new ones.",
    ),
    "variables over the network": (
        "<nvram type='network'><source protocol='nbd' name='v'><host name='h' port='10809'/></source></nvram>",
        "",
        "nvram of the machine was not saved: it is not a file (network nbd v). Save it yourself.",
        "The firmware variables network nbd v were not saved: the firmware starts with new ones.",
    ),
    "TPM of the host": (
        "",
        "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        "tpm of the machine was not saved: libvirt does not keep its state (passthrough /dev/tpm0). Save it yourself.",
        "A device passed through from the host (tpm) was removed.",
    ),
    "TPM of another program": (
        "",
        "<tpm model='tpm-tis'><backend type='external'><source type='unix' path='/run/t' mode='connect'/></backend></tpm>",
        "tpm of the machine was not saved: libvirt does not keep its state (external unix /run/t). Save it yourself.",
        "A device passed through from the host (tpm) was removed.",
    ),
}


@pytest.mark.parametrize(("system", "device", "warning", "change"), KEPT_ELSEWHERE.values(), ids=KEPT_ELSEWHERE.keys())
def test_firmware_variables_and_tpms_that_are_not_files_are_in_the_warnings(
    system: str, device: str, warning: str, change: str, session: Session, workspace: Path, repository: Repository
) -> None:
    name, copy = new_name(), new_name()
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", workspace / "a.qcow2", "8M"])
    with removed(session, name, copy):
        session.api.defineXML(f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
        {system}</os><features><acpi/></features><devices>
        <disk type='file'><driver name='qemu' type='qcow2'/><source file='{workspace}/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
        {device}</devices></domain>""")
        taken = backup(session, repository, ask(name))
        assert warning in taken.warnings
        request = RestoreRequest(name, dest=str(workspace), new_name=copy, machine=COPY)
        predicted = restore(repository, request, session, check_only=True).machine
        made = restore(repository, request, session).machine
        assert made is not None and predicted is not None and change in made.changes
        assert made.changes == predicted.changes and session.api.lookupByName(copy)
