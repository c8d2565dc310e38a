# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies a disk of a running domain to another image, and switches to that image."""

from __future__ import annotations

import contextlib
import time
import typing as t
from xml.etree import ElementTree

from ..errors import HypervisorError
from .connection import Domain, explained, libvirt
from .domain import monitor
from .domain_xml.disks import GRANULARITY, disk_element

_STEP = 0.2  # seconds


class Mirror(t.NamedTuple):
    """A running copy job: ``ready`` is whether it has caught up with the guest.

    ``path`` is the new image, ``node`` its node name in QEMU. ``path`` is None for a job of another kind.
    """

    path: str | None
    ready: bool
    node: str


def mirror(xml: str, target: str) -> Mirror | None:
    """Return the copy job of a disk from the XML of a live domain, or None. Pure."""
    disk = disk_element(xml, target)
    found = disk.find("mirror") if disk is not None else None
    if found is None:
        return None
    source = found.find("source")
    if source is None or found.get("job") != "copy":
        return Mirror(None, False, "")
    return Mirror(source.get("file"), found.get("ready") == "yes", f"libvirt-{source.get('index')}-format")


def _of(domain: Domain, target: str) -> Mirror:
    found = mirror(domain.api.XMLDesc(0), target)
    if found is None:
        raise HypervisorError(
            f"Copying {target} of {domain.name} ended early. The guest continues to use its current image. See QEMU's"
            " log of this domain."
        )
    return found


def begin(domain: Domain, target: str, path: str, shallow: bool) -> None:
    """Begin to copy a disk to the image ``path``, which exists and is empty.

    ``shallow`` copies the top image only and keeps the backing file. Raises HypervisorError.
    """
    root = ElementTree.Element("disk", type="file")
    ElementTree.SubElement(root, "driver", name="qemu", type="qcow2")
    ElementTree.SubElement(root, "source", file=path)
    # Without VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB libvirt copies no disk of a persistent domain: the job ends with QEMU.
    flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    with explained(f"copy {target} of {domain.name}"):
        domain.api.blockCopy(
            target,
            ElementTree.tostring(root, encoding="unicode"),
            {},
            flags | (libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW if shallow else 0),
        )


def wait(domain: Domain, target: str, watch: t.Callable[[], None]) -> None:
    """Wait until the copy has caught up with the guest.

    Raises HypervisorError if the copy ends early, or the exception of ``watch``.
    """
    with explained(f"copy {target} of {domain.name}"):
        while not _of(domain, target).ready:
            watch()
            time.sleep(_STEP)


def record_writes(domain: Domain, target: str, name: str) -> None:
    """Add a bitmap to the new image that records all writes from now on.

    Does nothing if the image already has a bitmap ``name``.
    """
    with explained(f"record the writes to {target} of {domain.name}"):
        new = _of(domain, target).node
    nodes = monitor(domain, "query-named-block-nodes")
    bitmaps = [bitmap for node in nodes if node["node-name"] == new for bitmap in node.get("dirty-bitmaps", ())]
    if not any(bitmap.get("name") == name for bitmap in bitmaps):
        monitor(domain, "block-dirty-bitmap-add", node=new, name=name, persistent=True, granularity=GRANULARITY)


def pivot(domain: Domain, target: str) -> None:
    """Switch the guest to the new image.

    Raises HypervisorError if that fails. The guest then continues with its current image.
    """
    with explained(f"change {target} of {domain.name} to its copy"):
        domain.api.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def abort(domain: Domain, target: str) -> None:
    """Abort the copy, if there is one. The guest continues with its current image."""
    with contextlib.suppress(libvirt.libvirtError):
        if mirror(domain.api.XMLDesc(0), target) is not None:
            domain.api.blockJobAbort(target, 0)
