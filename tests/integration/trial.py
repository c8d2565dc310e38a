# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain with two disks and a repository to which an accident happens between two backups."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
import typing as t
from pathlib import Path
from xml.etree import ElementTree

import libvirt
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import end_process, run_tool, wait_until
from witness import Witnessed, ask, differences, session_of, witnessed_backup

from _cbt.hypervisor import checkpoints
from _cbt.operations.backup.backup import backup
from _cbt.operations.backup.result import BackupResult
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository

MIB = 1 << 20
SIZE = 8 * MIB

Decision = tuple[str, str, str]


def _decisions(result: BackupResult) -> list[Decision]:
    return [(disk.target, disk.mode, disk.reason) for disk in result.disks]


class Trial:
    """A running domain with disks vda and vdb of the same size. Every backup is predicted by check mode and has a witness."""

    def __init__(self, hypervisor: Hypervisor, workspace: Path, name: str = "repository") -> None:
        self.workspace = workspace
        self.domain = BlockDomain(hypervisor, [DiskSpec("vda", SIZE), DiskSpec("vdb", SIZE)])
        made = open_or_create(str(workspace / name))
        assert made is not None
        self.repository: Repository = made
        self.taken: list[tuple[Repository, Witnessed]] = []
        self._chance = random.Random(17)
        self._folders = 0

    # What happens to it.

    def write(self, *targets: str) -> None:
        """Requests of the guest to these disks, or to all of them: data, zeroes and discards, of odd lengths at odd places."""
        for target in targets or self.targets:
            sectors = self._size(target) // 512
            for kind in ("data", "data", "zero", "unmap", "discard"):
                length = self._chance.choice([1, 130, 700])
                first = self._chance.randrange(sectors - length)
                if kind == "data":
                    self.domain.write_random(target, first * 512, length * 512, self._chance.randrange(1 << 30))
                elif kind == "discard":
                    self.domain.discard(target, first * 512, length * 512)
                else:
                    self.domain.write_zeroes(target, first * 512, length * 512, unmap=kind == "unmap")

    def fill(self) -> None:
        """Give all disks data of their own, from their begin to their end."""
        for target in self.targets:
            self.domain.write_random(target, 0, 2 * MIB, self._chance.randrange(1 << 30))
            self.domain.write_random(target, self._size(target) - MIB, MIB, self._chance.randrange(1 << 30))

    def backup(self, repository: Repository | None = None, **wanted: t.Any) -> Witnessed:
        """A backup with a witness; the mode and the reason of each disk are those that check mode told before."""
        repository = repository or self.repository
        request = ask(self.domain.name, **wanted)
        predicted = backup(session_of(self.domain), repository, request, check_only=True)
        self._folders += 1
        folder = self.workspace / f"taken-{self._folders}"
        folder.mkdir()
        if self.domain.running:
            taken = witnessed_backup(self.domain, repository, folder, request)
        else:
            copies = {target: folder / f"{target}.raw" for target in self.targets}
            for target, copy in copies.items():
                run_tool(["qemu-img", "convert", "-O", "raw", self.domain.image(target), copy])
            taken = Witnessed(backup(session_of(self.domain), repository, request), copies)
        assert _decisions(taken.result) == _decisions(predicted)
        assert not self.domain.running or not self.domain.job_running()
        self.taken.append((repository, taken))
        return taken

    def survives(self, modes: str | t.Mapping[str, str], reason: str = "") -> Witnessed:
        """Assert what the accident comes to: the modes of the next backup, the reason of the disks that are read in full.

        The backup after it must be incremental again, all points true, and one checkpoint left.
        """
        after = self.backup()
        expected = {target: modes for target in self.targets} if isinstance(modes, str) else dict(modes)
        assert {disk.target: disk.mode for disk in after.result.disks} == expected, _decisions(after.result)
        for disk in after.result.disks:
            assert disk.mode == "incremental" or re.search(reason, disk.reason), disk.reason
        if self.domain.running:
            self.write()
        again = self.backup()
        assert {disk.mode for disk in again.result.disks} == {"incremental"}, _decisions(again.result)
        self.in_order(again)
        return after

    # What is to hold.

    def in_order(self, last: Witnessed) -> None:
        """Assert that every point restores to its witness's bytes, and that the last one's checkpoint is the only one of ours."""
        assert last.result.point is not None
        ours = checkpoints.prefix(self.repository.id)
        checkpoint = last.result.point.checkpoint
        assert [name for name in self.domain.checkpoints() if name.startswith(ours)] == [checkpoint]
        if self.domain.running:
            for target in self.targets:
                bitmaps = {
                    each["name"] for each in self.domain.bitmaps(target, marks=True) if each["name"].startswith(ours)
                }
                assert bitmaps == {checkpoint, f"{checkpoint}@{target}"}
        found = self.untrue()
        assert found == [], found

    def untrue(self) -> list[str]:
        """What the points taken differ in from their witnesses' copies when restored."""
        found = []
        for number, (repository, taken) in enumerate(self.taken):
            folder = self.workspace / f"restored-{number}"
            folder.mkdir()
            found += differences(self.domain.name, repository, taken, folder)
            shutil.rmtree(folder)
        return found

    # The domain.

    @property
    def targets(self) -> list[str]:
        """The disks it has at this moment."""
        return [_target(disk) for disk in self._disks()]

    @property
    def checkpoint(self) -> str:
        """Name of the newest point's checkpoint."""
        point = self.taken[-1][1].result.point
        assert point is not None and point.checkpoint is not None
        return point.checkpoint

    def off_and_on(self, meanwhile: t.Callable[[], object]) -> None:
        """Shut the domain off in order, do something, and start it."""
        self.domain.destroy()
        meanwhile()
        self.domain.start()

    def redefine(self, change: t.Callable[[str], str] = str) -> None:
        """Undefine the domain, the metadata of its checkpoints with it, and define it again, changed or not."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
        xml = self.domain.handle.XMLDesc(flags)
        undefine = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        self.domain.handle.undefineFlags(undefine)
        self.domain.hypervisor.connection.defineXML(change(xml))

    def use(self, target: str, image: Path) -> None:
        """Define the domain, which is shut off, with another image as one of its disks."""
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
        root = ElementTree.fromstring(self.domain.handle.XMLDesc(flags))
        disk = next(each for each in root.iterfind("devices/disk") if _target(each) == target)
        for chain in disk.findall("backingStore"):  # what libvirt remembers of the image before
            disk.remove(chain)
        disk.find("source").set("file", str(image))  # type: ignore[union-attr]
        self.domain.hypervisor.connection.defineXML(ElementTree.tostring(root, encoding="unicode"))

    def plug(self, target: str, image: Path) -> None:
        """Add a disk, to the running domain and to its definition."""
        self.domain.handle.attachDeviceFlags(
            _disk_xml(target, image), libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        )

    def unplug(self, target: str) -> Path:
        """Take a disk away, from the running domain and from its definition; returns its image."""
        image = self.domain.image(target)
        handle = self.domain.handle
        alias = next(disk.find("alias") for disk in self._disks() if _target(disk) == target)
        assert alias is not None
        handle.detachDeviceFlags(_disk_xml(target, image), libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        handle.detachDeviceAlias(alias.attrib["name"], libvirt.VIR_DOMAIN_AFFECT_LIVE)
        # Without a guest that lets go of it, QEMU takes it away at the next reset.
        self.domain.qmp("system_reset")
        wait_until(lambda: target not in self.targets, 30, f"removal of {target}")
        return image

    def new_image(self, name: str, size: int = SIZE) -> Path:
        """An empty image."""
        path = self.domain.folder / f"{name}.qcow2"
        run_tool(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)])
        path.chmod(0o644)
        return path

    def _disks(self) -> list[ElementTree.Element]:
        return ElementTree.fromstring(self.domain.xml()).findall("devices/disk")

    def _size(self, target: str) -> int:
        return int(self.domain.handle.blockInfo(target)[0])


@contextlib.contextmanager
def fresh(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Trial]:
    """A trial before its first backup, with data on all disks."""
    made = Trial(hypervisor, workspace)
    made.fill()
    try:
        yield made
    finally:
        # libvirt takes its time to destroy a domain, so QEMU is ended here and the hypervisor of the lab removes the rest at its end.
        if made.domain.running:
            end_process(made.domain.qemu_pid, signal.SIGKILL)


@contextlib.contextmanager
def begun(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Trial]:
    """A trial after its first backup and some writes."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(fresh(hypervisor, workspace))
        made.backup()
        made.write()
        yield made


def _target(disk: ElementTree.Element) -> str:
    target = disk.find("target")
    assert target is not None
    return target.attrib["dev"]


def _disk_xml(target: str, image: Path) -> str:
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap' detect_zeroes='off'/>"
        f"<source file='{image}'/><target dev='{target}' bus='virtio'/></disk>"
    )
