# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The XML of lab domains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from lab.disks import DiskSpec

_EMULATOR = "/usr/bin/qemu-system-x86_64"


@dataclass(frozen=True)
class DirectBoot:
    """A kernel started by QEMU itself, its console in a file. The agent's channel connects to ``stub``, if given."""

    kernel: Path
    initramfs: Path
    arguments: str
    console: Path
    agent: bool
    stub: Path | None = None


def domain_xml(
    name: str,
    uuid: str,
    memory_mib: int,
    disks: Mapping[DiskSpec, Path | None],
    boot: DirectBoot | None = None,
) -> str:
    """XML of an emulated domain with these disks (None: no medium); see `DirectBoot`."""
    root = ElementTree.Element("domain", type="qemu")
    _add(root, "name", text=name)
    _add(root, "uuid", text=uuid)
    _add(root, "memory", text=str(memory_mib), unit="MiB")
    _add(root, "vcpu", text="1")
    _add_system(root, boot)
    _add(_add(root, "features"), "acpi")
    devices = _add(root, "devices")
    _add(devices, "emulator", text=_EMULATOR)
    for spec, image in disks.items():
        _add_disk(devices, spec, image)
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "memballoon", model="none")
    if boot is not None:
        _add_console(devices, boot)
    return ElementTree.tostring(root, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_system(root: ElementTree.Element, boot: DirectBoot | None) -> None:
    system = _add(root, "os")
    # pc, because its PCI bus takes hot-plugged disks without prepared ports.
    _add(system, "type", text="hvm", arch="x86_64", machine="pc")
    if boot is None:
        # The firmware must not run what a test wrote into the first sector of a disk.
        _add(system, "boot", dev="network")
        return
    _add(system, "kernel", text=str(boot.kernel))
    _add(system, "initrd", text=str(boot.initramfs))
    _add(system, "cmdline", text=boot.arguments)


def _add_disk(devices: ElementTree.Element, spec: DiskSpec, image: Path | None) -> None:
    device = image is not None and image.is_block_device()
    disk = _add(devices, "disk", type="block" if device else "file", device=spec.device)
    driver = _add(disk, "driver", name="qemu", type=spec.format)
    if spec.device == "disk":
        # Discards and zero writes must reach the image as they are.
        driver.set("discard", "unmap")
        driver.set("detect_zeroes", "off")
    if image is not None:
        _add(disk, "source", **{"dev" if device else "file": str(image)})
    _add(disk, "target", dev=spec.target, bus=spec.bus)
    sectors = {
        name: str(value)
        for name in ("logical_block_size", "physical_block_size")
        if (value := getattr(spec, name)) is not None
    }
    if sectors:
        _add(disk, "blockio", **sectors)
    if spec.readonly or spec.device == "cdrom":
        _add(disk, "readonly")


def _add_console(devices: ElementTree.Element, boot: DirectBoot) -> None:
    serial = _add(devices, "serial", type="file")
    _add(serial, "source", path=str(boot.console))
    _add(serial, "target", port="0")
    if boot.agent:
        channel = _add(devices, "channel", type="unix")
        if boot.stub is not None:
            _add(channel, "source", mode="connect", path=str(boot.stub))
        _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
