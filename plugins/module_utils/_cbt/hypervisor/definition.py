# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes the image of a disk in a domain's definition; starts and stops domains."""

from __future__ import annotations

import contextlib
import time
import typing as t
from xml.etree import ElementTree

from ..errors import HypervisorError
from .connection import Domain, Session, explained, libvirt
from .domain import located
from .domain_xml.disks import Disk, disk_element, parse_disks

_SEEN_FOR = 2.0  # seconds that a started domain must keep running


def disk_xml(domain: Domain, target: str) -> str:
    """Return the XML of a disk in the domain's definition. Raises HypervisorError."""
    with explained(f"read the definition of {domain.name}"):
        xml = domain.api.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    found = disk_element(xml, target)
    if found is None:
        raise HypervisorError(f"The domain has no disk {target} any more.")
    return ElementTree.tostring(found, encoding="unicode")


def with_source(xml: str, path: str) -> str:
    """Return a disk's XML with a qcow2 image file as its source. Other settings stay. Pure."""
    disk = ElementTree.fromstring(xml)
    for chain in disk.findall("backingStore"):  # libvirt's record of the previous image's backing files
        disk.remove(chain)
    driver, source = disk.find("driver"), disk.find("source")
    if driver is None:
        driver = ElementTree.SubElement(disk, "driver", name="qemu")
    if source is None:
        source = ElementTree.SubElement(disk, "source")
    disk.set("type", "file")
    driver.set("type", "qcow2")
    source.attrib.clear()
    source.set("file", path)
    return ElementTree.tostring(disk, encoding="unicode")


def define_disk(domain: Domain, xml: str) -> None:
    """Replace the disk of the same target in the domain's definition. Raises HypervisorError."""
    with explained(f"change a disk in the definition of {domain.name}"):
        domain.api.updateDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def defined_sources(session: Session) -> list[tuple[str, str]]:
    """Return (domain UUID, path) of all disks, of running domains and of definitions."""
    found = []
    for domain in session.domains():
        xmls = [domain.xml(flags) for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)]
        disks = [disk for xml in xmls if xml is not None for disk in parse_disks(xml)]
        found += [(domain.uuid, path) for path in (disk_path(session, disk) for disk in disks) if path is not None]
    return found


def disk_path(session: Session, disk: Disk) -> str | None:
    """Return the path of a disk's image; None if it is not a file or block device."""
    found = located(session, disk)
    return found.source if found.type in ("file", "block") else None


def obstacles(domain: Domain) -> list[str]:
    """Return what depends on the names of a domain's images: a saved state, snapshots."""
    with explained(f"read domain {domain.name}"):
        found = ["a saved state"] if domain.api.hasManagedSaveImage() else []
        return found + (["snapshots"] if domain.api.snapshotNum() else [])


@contextlib.contextmanager
def ending(domain: Domain, action: str) -> t.Iterator[None]:
    """Raise HypervisorError for an error of libvirt in the block, unless the domain does not run any more.

    A guest can power off at any moment, also while libvirt waits for the answer of its agent.
    """
    with explained(action):
        try:
            yield
        except libvirt.libvirtError:
            if domain.exists and domain.api.isActive():
                raise


def shut_down(domain: Domain, within: float, watch: t.Callable[[], None]) -> None:
    """Ask the guest to shut down and wait for it.

    Raises HypervisorError if the domain still runs after ``within`` seconds, or the exception of ``watch``.
    """
    with ending(domain, f"shut down {domain.name}"):
        domain.api.shutdown()
        deadline = time.monotonic() + within
        while domain.api.isActive():
            watch()
            if time.monotonic() > deadline:
                raise HypervisorError(
                    f"{domain.name} did not shut down within {within:.0f} s, so nothing was changed. Check its guest,"
                    " or allow more time."
                )
            time.sleep(0.2)


def start(domain: Domain) -> None:
    """Start a domain and check for 2 s that it runs. Raises HypervisorError if it does not."""
    with explained(f"start {domain.name}"):
        domain.api.create()
        deadline = time.monotonic() + _SEEN_FOR
        while time.monotonic() < deadline:
            if domain.api.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                raise HypervisorError(
                    f"{domain.name} was started but did not keep running. See libvirt's and QEMU's log of this domain."
                )
            time.sleep(0.2)


def stop(domain: Domain) -> None:
    """Power off a domain, if it runs. Raises HypervisorError."""
    with ending(domain, f"stop {domain.name}"):
        domain.api.destroy()
