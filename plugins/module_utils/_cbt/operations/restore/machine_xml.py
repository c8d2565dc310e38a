# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Adapts a domain's configuration to its new host, paths and identity. Pure."""

from __future__ import annotations

import dataclasses
import typing as t
from xml.etree import ElementTree

from ...errors import Refused
from ...hypervisor.allowed.filtering import filtered
from ...hypervisor.allowed.values import Host, is_firmware
from ...hypervisor.domain_xml.machine_files import NVRAM_FOLDER, path_in, where

ElementTree.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")

# Devices that a copy would share with the original, or that exist only once.
_EXCLUSIVE = {
    "filesystem": "A filesystem",
    "shmem": "A shmem",
    "lease": "A lease",
    "memory[@model='nvdimm']": "A memory device kept in a file",
    "memory[@model='virtio-pmem']": "A memory device kept in a file",
    "interface[@type='vhostuser']": "An interface on a vhost-user socket",
}
_PASSED_THROUGH = ("hostdev", "vdpa")  # types of interfaces that pass through a device of the host
_CHARACTER_DEVICES = ("serial", "parallel", "console")
ANY_NETWORK = "*"
# Elements of an interface that belong to its original network.
_OF_THE_NETWORK = (
    "source",
    "virtualport",
    "vlan",
    "target",
    "teaming",
    "script",
    "downscript",
    "backend",
    "portForward",
    "ip",
    "route",
)


@dataclasses.dataclass(frozen=True)
class DiskTarget:
    """Where a restored disk is. ``device`` is whether it is a block device, not a file."""

    path: str
    format: str
    device: bool = False


@dataclasses.dataclass(frozen=True)
class TargetMachine:
    """The identity, disks and files of the restored machine, and what it may keep.

    ``disks`` are the restored disks by target, ``files`` the paths of restored files by kind. ``networks`` are the
    libvirt networks to connect interfaces to, by the original network, bridge or device; ``ANY_NETWORK`` stands for
    every other. A ``trusted`` definition is not filtered; it keeps passed-through devices of the host with
    ``keep_host_devices``. Of any other definition, only allowed elements stay, with ``firmware`` that the host
    describes.
    """

    name: str
    uuid: str
    disks: t.Mapping[str, DiskTarget]
    files: t.Mapping[str, str]
    new_macs: bool
    networks: t.Mapping[str, str]
    trusted: bool
    keep_host_devices: bool
    firmware: frozenset[str]


class AdaptedXml(t.NamedTuple):
    """The configuration to define, and a sentence for each change."""

    xml: str
    changes: tuple[str, ...]


def adapt(inactive_xml: str, machine: TargetMachine, exists: t.Callable[[str], bool]) -> AdaptedXml:
    """Adapt a persistent configuration. ``exists`` returns whether the host has a path.

    A machine with another UUID is a copy: it may run beside the original, so devices, sockets and files that both would
    use are removed or replaced. MAC addresses change only with ``new_macs``. Raises Refused if the definition is not
    trusted and the machine requires something that only a trusted definition may have.
    """
    return _Adaptation(inactive_xml, machine, exists).carry_out()


class _Adaptation:
    def __init__(self, inactive_xml: str, machine: TargetMachine, exists: t.Callable[[str], bool]) -> None:
        self._root = ElementTree.fromstring(inactive_xml)
        devices = self._root.find("devices")
        self._devices = devices if devices is not None else ElementTree.SubElement(self._root, "devices")
        self._machine, self._exists = machine, exists
        self._copy = self._root.findtext("uuid") != machine.uuid
        self._changes: list[str] = []
        for more in self._root.findall("devices")[1:]:  # libvirt reads devices from all of them
            self._devices.extend(more)
            self._root.remove(more)

    def carry_out(self) -> AdaptedXml:
        self._identity()
        self._system()
        self._shared_firmware()
        for disk in self._devices.findall("disk"):
            self._disk(disk)
        for interface in self._devices.findall("interface"):
            self._connect(interface)
            if self._machine.new_macs:
                _drop(interface, "mac")
        self._host_devices()
        self._emulator()
        if self._copy:
            self._unshare()
        root = self._root if self._machine.trusted else self._allowed()
        return AdaptedXml(ElementTree.tostring(root, encoding="unicode"), tuple(self._changes))

    def _allowed(self) -> ElementTree.Element:
        """Return the allowed part of the definition.

        Raises Refused, which lists everything that the machine requires and may not have.
        """
        disks = (restored.path for restored in self._machine.disks.values())
        paths = frozenset((*disks, *self._machine.files.values(), self._own_variables))
        found = filtered(self._root, Host(paths, self._machine.firmware, self._exists))
        if found.refused:
            raise Refused(
                f"Cannot define {self._machine.name}: its definition in the repository requires access to this host:"
                f" {'; '.join(found.refused)}. Connect interfaces with networks, restore a copy with uuid: new, which"
                " has no devices of the host, restore the disks without define, or set trust_definition: true if you"
                " trust everyone who can write to the repository as you trust root."
            )
        self._changes += found.changes
        return found.root

    @property
    def _own_variables(self) -> str:
        """The path at which libvirt keeps the firmware variables of a machine by default; it shows their format.

        A guest writes every byte of RAW variables, which another format would let name any file of the host.
        """
        nvram = self._root.find("./os/nvram")
        ending = "qcow2" if nvram is not None and nvram.get("format") == "qcow2" else "fd"
        return f"{NVRAM_FOLDER}/{self._machine.name}_VARS.{ending}"

    def _remove(self, device: ElementTree.Element, why: str) -> None:
        self._devices.remove(device)
        self._changes.append(why)

    def _identity(self) -> None:
        self._root.attrib.pop("id", None)
        for tag, text in (("name", self._machine.name), ("uuid", self._machine.uuid)):
            element = self._root.find(tag)
            if element is None:
                element = ElementTree.SubElement(self._root, tag)
            element.text = text
        for entry in self._root.iterfind("./sysinfo/system/entry[@name='uuid']"):
            entry.text = self._machine.uuid  # libvirt refuses another one
        genid = self._root.find("genid")
        if genid is not None:
            genid.text = None  # libvirt generates a new one, which shows the guest that its state is from the past

    def _system(self) -> None:
        system = self._root.find("os")
        if system is None:
            return
        for kind in ("loader", "nvram", "kernel", "initrd", "dtb"):
            element, path = system.find(kind), self._machine.files.get(kind)
            if element is None:
                if kind != "nvram" or path is None:
                    continue
                element = ElementTree.SubElement(system, kind)
            if kind == "loader" and element.get("format", "raw") != "raw" and not self._machine.trusted:
                path = None  # an image of another format can name any file of the host as its backing file
            if path is not None:
                _drop(element, "source")
                element.text = path
                if kind == "nvram":
                    element.attrib.pop("type", None)
                    if element.get("format") not in ("raw", "qcow2"):  # libvirt has no others
                        element.attrib.pop("format", None)
            elif kind == "nvram":
                if not self._keeps_variables(element):
                    # They are those of the original, or any file of the host. libvirt creates others from the template.
                    system.remove(element)
                    self._changes.append(
                        f"The firmware variables {path_in(element) or where(element)} were not saved: the firmware"
                        " starts with new ones."
                    )
            elif not self._found(element):
                self._changes.append(
                    f"The {kind} {path_in(element)} was not saved and is not on this host: the domain will not start"
                    " without it."
                )

    def _shared_firmware(self) -> None:
        """Open firmware that machines of the host share read-only: libvirt does not by default."""
        for loader in () if self._machine.trusted else self._root.findall("./os/loader[@type='pflash']"):
            path = path_in(loader) or ""
            if is_firmware(path, self._machine.firmware) and loader.get("readonly") != "yes":
                loader.set("readonly", "yes")
                self._changes.append(f"The loader {path} belongs to the host and is opened for reading only.")

    def _keeps_variables(self, element: ElementTree.Element) -> bool:
        if path_in(element) is None and element.find("source") is None:
            return True  # it names no variables
        return not self._copy and (self._machine.trusted or path_in(element) in (None, self._own_variables))

    def _found(self, element: ElementTree.Element) -> bool:
        path = path_in(element) or ""
        if not self._machine.trusted and not is_firmware(path, self._machine.firmware):
            return True  # it is refused later; the host is not asked about any path
        return not path.startswith("/") or self._exists(path)

    def _disk(self, disk: ElementTree.Element) -> None:
        element = disk.find("target")
        target = element.get("dev", "") if element is not None else ""
        restored = self._machine.disks.get(target)
        if restored is not None:
            self._retarget(disk, target, restored)
        elif disk.get("device") in ("cdrom", "floppy"):
            self._medium(disk, target)
        else:
            self._remove(disk, f"{target} is not part of this restore and was removed.")

    def _retarget(self, disk: ElementTree.Element, target: str, restored: DiskTarget) -> None:
        if disk.find(".//encryption") is not None:
            self._changes.append(f"{target} was an encrypted image and is a plain one now.")
        for tag in ("source", "backingStore", "mirror", "auth", "encryption", "shareable", "transient"):
            _drop(disk, tag)
        disk.set("type", "block" if restored.device else "file")
        source = ElementTree.Element("source", {"dev" if restored.device else "file": restored.path})
        driver = disk.find("driver")
        if driver is None:
            driver = ElementTree.Element("driver", name="qemu")
            disk.insert(0, driver)
        driver.set("type", restored.format)
        if restored.format != "qcow2":
            _drop(driver, "metadata_cache")
        disk.insert(list(disk).index(driver) + 1, source)

    def _medium(self, disk: ElementTree.Element, target: str) -> None:
        _drop(disk, "backingStore")
        source = disk.find("source")
        if source is None:
            return
        path = source.get("file") or source.get("dev") or ""
        medium = path or source.get("volume") or source.get("name") or source.get("dir")
        if medium is None:
            return
        here = self._machine.trusted and (disk.get("type") == "network" or self._exists(path))
        if here and (disk.get("device") == "cdrom" or not self._copy):
            return
        _drop(disk, "source")
        disk.set("type", "file")
        why = (
            "stays with the original"
            if here
            else "is not on this host"
            if self._machine.trusted
            else "is inserted only with trust_definition: true"
        )
        self._changes.append(f"{target} is empty: {medium} {why}.")

    def _connect(self, interface: ElementTree.Element) -> None:
        source = interface.find("source")
        names = ("network", "bridge", "dev")
        was = next((source.attrib[name] for name in names if name in source.attrib), "") if source is not None else ""
        network = self._machine.networks.get(was, self._machine.networks.get(ANY_NETWORK))
        if network is None:
            return
        for tag in _OF_THE_NETWORK:
            _drop(interface, tag)
        interface.attrib.pop("managed", None)
        if interface.get("type") in _PASSED_THROUGH:
            _drop(interface, "driver")
        self._changes.append(
            f"An interface was connected to the network {network} in place of {was or interface.get('type')}."
        )
        interface.set("type", "network")
        interface.insert(0, ElementTree.Element("source", network=network))

    def _host_devices(self) -> None:
        if not self._copy and (self._machine.keep_host_devices or not self._machine.trusted):
            return
        passed = self._devices.findall("hostdev")
        passed += [each for each in self._devices.findall("interface") if each.get("type") in _PASSED_THROUGH]
        passed += filter(_passed_through, self._devices.findall("tpm"))
        for device in passed:
            self._remove(device, f"A device passed through from the host ({device.tag}) was removed.")

    def _emulator(self) -> None:
        emulator = self._devices.find("emulator")
        if emulator is not None and self._machine.trusted and not self._exists(emulator.text or ""):
            self._remove(emulator, f"The emulator {emulator.text} is not on this host: libvirt chooses one.")

    def _unshare(self) -> None:
        for path, what in _EXCLUSIVE.items():
            for device in self._devices.findall(path):
                self._remove(device, f"{what} was removed: the copy would share it with the original.")
        for vsock in self._devices.findall("vsock/cid"):
            vsock.attrib.clear()
            vsock.set("auto", "yes")
        for graphics in self._devices.findall("graphics"):
            for attribute in ("port", "tlsPort", "websocket"):
                if graphics.attrib.pop(attribute, None) is not None:
                    graphics.set("autoport", "yes")
        if self._machine.trusted:  # an untrusted definition may have none of these
            self._unshare_consoles()
            self._unshare_names()
            self._unshare_tpm()

    def _unshare_consoles(self) -> None:
        for channel in self._devices.findall("channel"):
            _drop(channel, "log")
            if channel.find("source") is not None:
                if channel.get("type") != "unix":
                    self._changes.append(f"A channel of type {channel.get('type')} became a socket that libvirt names.")
                channel.set("type", "unix")
                _drop(channel, "source")
        for tag in _CHARACTER_DEVICES:
            for device in self._devices.findall(tag):
                _drop(device, "log")
                if device.get("type") not in ("pty", "null", "vc", "stdio", "spicevmc", "qemu-vdagent"):
                    self._changes.append(
                        f"A {tag} of type {device.get('type')} became a pty: the copy would share it with the original."
                    )
                    device.set("type", "pty")
                _drop(device, "source")
                _drop(device, "protocol")

    def _unshare_names(self) -> None:
        """Let libvirt choose the names of network devices and of sockets of displays."""
        for interface in self._devices.findall("interface"):
            _drop(interface, "target")
        for named in (*self._devices.findall("graphics[@socket]"), *self._devices.findall("graphics/listen[@socket]")):
            del named.attrib["socket"]

    def _unshare_tpm(self) -> None:
        """Let libvirt choose the path of the state of an emulated TPM."""
        for backend in self._devices.findall("tpm/backend"):
            source = backend.find("source")
            if source is not None:
                self._changes.append(f"The TPM starts with a new state: {source.get('path')} stays with the original.")
                backend.remove(source)


def _passed_through(tpm: ElementTree.Element) -> bool:
    backend = tpm.find("backend")
    return backend is not None and backend.get("type") != "emulator"


def _drop(parent: ElementTree.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)
