# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all domains of the lab share: life, monitor and checkpoints."""

from __future__ import annotations

import json
import shutil
import signal
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from lab.closing import Closing
from lab.disks import DiskSpec, create_image
from lab.domain_xml import DirectBoot, domain_xml
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.process import end_process, wait_until

_LOG_FOLDER = Path("/var/log/libvirt/qemu")
_PID_FILES = Path("/run/libvirt/qemu")
UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
)


class Domain(Closing):
    """A persistent, emulated domain which is removed with its images at the end."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        disks: Sequence[DiskSpec],
        name: str | None = None,
        memory_mib: int = 64,
        start: bool = True,
    ) -> None:
        self.hypervisor = hypervisor
        self.name = name or f"lab-{uuid.uuid4().hex[:12]}"
        # Chosen here: an interrupt may come between the definition and its answer.
        self.uuid = str(uuid.uuid4())
        self.folder = hypervisor.folder()
        self.disks = tuple(disks)
        hypervisor.adopt(self)
        try:
            images = {spec: self._prepare_image(spec) for spec in disks}
            xml = domain_xml(self.name, self.uuid, memory_mib, images, self._direct_boot())
            hypervisor.connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            if start:
                self.start()
        except BaseException:
            self.close()
            raise

    # Hooks for other kinds of domains.

    def _direct_boot(self) -> DirectBoot | None:
        return None

    def _make_image(self, spec: DiskSpec, path: Path) -> None:
        create_image(spec, path)

    # Life.

    @property
    def handle(self) -> libvirt.virDomain:
        """The libvirt domain on the connection of now, also after a daemon restart."""
        return self.hypervisor.connection.lookupByUUIDString(self.uuid)

    @property
    def running(self) -> bool:
        """Whether a QEMU process serves the domain (it may be paused)."""
        return bool(self.handle.isActive())

    def start(self) -> None:
        """Start the domain."""
        self.handle.create()

    def destroy(self) -> None:
        """Power off through libvirt; QEMU closes its images, so bitmaps reach them."""
        self.handle.destroy()

    def shutdown_hard(self) -> None:
        """Let QEMU quit in order by itself, as if the guest had switched off."""
        # QEMU may be gone before its answer is read; whether it went is seen next.
        with suppress(libvirt.libvirtError):
            self.qmp("quit")
        self._wait_for_end()

    def kill(self) -> None:
        """End QEMU with SIGKILL, as a crash of it would: images are left open."""
        end_process(self.qemu_pid, signal.SIGKILL)
        self._wait_for_end()

    @property
    def qemu_pid(self) -> int:
        """Process id of the domain's QEMU."""
        return self.hypervisor.process(int(self.hypervisor.path(_PID_FILES / f"{self.name}.pid").read_text()))

    @property
    def qemu_log(self) -> Path:
        """Where QEMU's own output goes."""
        return self.hypervisor.path(_LOG_FOLDER / f"{self.name}.log")

    def moved_to(self, hypervisor: Hypervisor) -> None:
        """Go on with the domain on another hypervisor, to which somebody moved it; see moving.py."""
        hypervisor.adopt(self)
        self.hypervisor.disown(self)
        self.hypervisor = hypervisor

    def close(self) -> None:
        """Destroy, undefine and delete the domain's images. May be called twice."""
        self._remove()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.hypervisor.disown(self)

    # Questions.

    def xml(self, inactive: bool = False) -> str:
        """The live XML, or the persistent one."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        return str(self.handle.XMLDesc(flags))

    def image(self, target: str) -> Path:
        """The image which the disk uses now."""
        source = self._disk(target).find("source")
        if source is None:
            raise LabError(f"{self.name}: {target} has no medium")
        return Path(source.get("file") or source.attrib["dev"])

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a monitor command and return its value; LabError with QEMU's text."""
        request = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(self.handle, request, 0))
        if "error" in answer:
            raise LabError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def checkpoints(self) -> list[str]:
        """Names of the domain's checkpoints, parents before children."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
        return [checkpoint.getName() for checkpoint in self.handle.listAllCheckpoints(flags)]

    def bitmaps(self, target: str, marks: bool = False) -> list[dict[str, Any]]:
        """Dirty bitmaps of the disk's top image as running QEMU knows them; ``marks`` takes those along that only mark which disk it is."""
        source = self._disk(target).find("source")
        if source is None:
            raise LabError(f"{self.name}: {target} has no medium")
        wanted = f"libvirt-{source.attrib['index']}-format"
        for node in self.qmp("query-named-block-nodes", flat=True):
            if node["node-name"] == wanted:
                return [bitmap for bitmap in node.get("dirty-bitmaps", []) if "@" not in bitmap["name"] or marks]
        raise LabError(f"{self.name}: QEMU knows no node {wanted}")

    def backup_xml(self) -> str | None:
        """XML of the running backup job, None when there is none."""
        try:
            return str(self.handle.backupGetXMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
                return None
            raise

    def job_running(self) -> bool:
        """Whether a backup job runs."""
        return self.backup_xml() is not None

    def abort_job(self) -> None:
        """End the backup job and wait until libvirt has let go of it."""
        self.handle.abortJob()
        wait_until(lambda: not self.job_running(), 30, f"end of the backup job of {self.name}")

    # Within.

    def _prepare_image(self, spec: DiskSpec) -> Path | None:
        if spec.source is not None or spec.empty:
            return spec.source
        path = self.folder / f"{spec.target}.{spec.format}"
        self._make_image(spec, path)
        return path

    def _disk(self, target: str) -> ElementTree.Element:
        for disk in ElementTree.fromstring(self.xml()).iterfind("devices/disk"):
            if disk.find("target[@dev]").attrib["dev"] == target:  # type: ignore[union-attr]
                return disk
        raise LabError(f"{self.name} has no disk {target}")

    def _wait_for_end(self) -> None:
        wait_until(lambda: not self.running, 30, f"end of {self.name}")

    def _remove(self) -> None:
        try:
            handle = self.handle
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return  # never defined, closed before or undefined by a test
            raise
        # It may end by itself between question and order.
        with suppress(libvirt.libvirtError):
            handle.destroy()
        if handle.isActive():
            raise LabError(f"{self.name} cannot be destroyed")
        if handle.isPersistent():
            handle.undefineFlags(UNDEFINE_ALL)
        for rotation in ("", ".0", ".1", ".2"):
            Path(f"{self.qemu_log}{rotation}").unlink(missing_ok=True)
