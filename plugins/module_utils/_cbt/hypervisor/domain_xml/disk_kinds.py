# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of disks that libvirt knows, and how each can be read. Pure.

docs/reading-disks.md has the same tables. A backup job of a running domain returns the bytes that the guest sees. The
image of a shut-off domain holds those bytes only if no more than its format lies between it and the guest.
"""

from __future__ import annotations

import dataclasses
import typing as t
from xml.etree import ElementTree


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a disk can be read.

    ``shut_off`` is whether it is an image of the host, which is read without the domain. ``never`` is why no backup job
    can include it, and what to do.
    """

    shut_off: bool = False
    never: str | None = None


_THROUGH_DOMAIN = Kind()
_ELSEWHERE = Kind(never="is served by another process, so QEMU does not see its data. Back it up inside the guest.")
_PROTOCOLS = "ftp ftps gluster http https iscsi nbd nfs rbd sheepdog ssh tftp vxhs"

# By type of source, or by protocol if it is on the network. Kinds of a newer libvirt are read through the domain.
SOURCES: t.Mapping[str, Kind] = {
    "file": Kind(shut_off=True),
    "block": Kind(shut_off=True),
    "volume": _THROUGH_DOMAIN,  # unless it is a file or block device: domain.located
    "nvme": _THROUGH_DOMAIN,
    "dir": Kind(never="is a folder of the host, which no backup job includes. Back up the files in the folder."),
    "vhostuser": _ELSEWHERE,
    "vhostvdpa": _ELSEWHERE,
    **dict.fromkeys(_PROTOCOLS.split(), _THROUGH_DOMAIN),
}

_UNNAMED = Kind(
    never="has a format that no backup job includes. Convert its image to qcow2, or back it up inside the guest."
)

# By format of the image. QEMU reads the others while libvirt starts domains with them, running and shut off.
FORMATS: t.Mapping[str, Kind] = dict.fromkeys(("ploop", "vhd"), _UNNAMED)

ELSEWHERE = "elsewhere"  # in place of the path of a backing file that is not a file of the host

# What libvirt puts between an image and the guest, by its element or attribute in the definition.
LAYERS: t.Mapping[str, str] = {
    "encryption": "is encrypted",
    "slices": "is a slice of an image",
    "dataStore": "has its data in another image",
    "fdgroup": "is opened by another program",
}


def why_never(element: ElementTree.Element) -> str | None:
    """Return why no backup job can include a disk of a definition, and what to do; None if one can."""
    driver, target = element.find("driver"), element.find("target")
    if target is not None and target.get("bus") == "sd":
        return "is an SD card, which no backup job includes. Connect it to another bus, or back it up inside the guest."
    kinds = (
        SOURCES.get(element.get("type", "file")),
        FORMATS.get(driver.get("type", "") if driver is not None else ""),
    )
    return next((kind.never for kind in kinds if kind is not None and kind.never is not None), None)


def layers(element: ElementTree.Element) -> tuple[str, ...]:
    """Return the keys of LAYERS that a disk of a definition has, also those of its backing files."""
    names = {name for part in element.iter() for name in (part.tag, *part.attrib)}
    return tuple(layer for layer in LAYERS if layer in names)


CRASHES = (
    "is in an I/O thread, and QEMU before 8.2.3 can crash while such a disk is read. Update QEMU and restart the"
    " domain, take the disk out of the I/O thread, or shut the domain down for its backup."
)


def in_thread(element: ElementTree.Element, root: ElementTree.Element) -> bool:
    """Whether QEMU runs a disk of a definition, or its SCSI controller, in an I/O thread."""
    target, address = element.find("target"), element.find("address")
    if address is None or target is None or target.get("bus") != "scsi":
        return _has_thread(element)
    controllers = root.iterfind("./devices/controller[@type='scsi']")
    return any(_has_thread(each) for each in controllers if each.get("index") == address.get("controller"))


def _has_thread(device: ElementTree.Element) -> bool:
    driver = device.find("driver")
    return driver is not None and ("iothread" in driver.attrib or driver.find("iothreads") is not None)


def named_source(element: ElementTree.Element) -> str | None:
    """Return a text that names the source of a disk; None if the disk has no medium.

    A source need not have a name, such as the default export of an NBD server.
    """
    source = element.find("source")
    if source is None:
        return None
    kind, given = element.get("type", "file"), source.attrib
    if kind == "volume":
        return f"{given.get('pool')}/{given['volume']}" if given.get("volume") else None
    path = next((given[name] for name in ("file", "dev", "dir", "path") if given.get(name)), None)
    if path is not None or kind in ("file", "block"):
        return path
    where = [text for child in source if child.tag in ("host", "address") for text in child.attrib.values()]
    name = given.get("name") or ":".join((*where, *filter(None, [given.get("namespace")])))
    return f"{given.get('protocol', kind)}:{name}"


def named_backing(element: ElementTree.Element) -> tuple[tuple[str, str], ...]:
    """Return format and path of each backing file that a definition names; an empty pair ends the chain.

    Without that pair, the lowest image names the rest.
    """
    found: list[tuple[str, str]] = []
    below = element.find("backingStore")
    while below is not None:
        source, fmt = below.find("source"), below.find("format")
        if source is None:
            return (*found, ("", ""))
        path = source.get("file") or source.get("dev") or ""
        found.append((fmt.get("type", "raw") if fmt is not None else "raw", path or ELSEWHERE))
        below = below.find("backingStore")
    return tuple(found)
