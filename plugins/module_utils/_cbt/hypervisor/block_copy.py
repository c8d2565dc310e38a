# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a disk of a running domain to another image while the guest writes, and going over to it."""

from __future__ import annotations

import contextlib
import time
import typing as t
from xml.etree import ElementTree

from ..errors import HypervisorError
from .connection import Domain, explained, libvirt
from .disks import GRANULARITY, disk_element
from .domain import monitor

_STEP = 0.2  # seconds


class Mirror(t.NamedTuple):
    """A copy that runs: where to, whether it has caught up, and QEMU's name of the new image."""

    path: str | None
    ready: bool
    node: str


def mirror(xml: str, target: str) -> Mirror | None:
    """The copy of a disk that runs, from the XML of the live domain; None if there is none. Pure."""
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
            f"Copying {target} of {domain.name} ended early. The guest continues to use its current image. See QEMU's log of this domain."
        )
    return found


def begin(domain: Domain, target: str, path: str, shallow: bool) -> None:
    """Begin to copy a disk to the image ``path``, which is there and empty. ``shallow`` leaves the backing file where it is."""
    root = ElementTree.Element("disk", type="file")
    ElementTree.SubElement(root, "driver", name="qemu", type="qcow2")
    ElementTree.SubElement(root, "source", file=path)
    # libvirt copies a disk of a persistent domain only if told that the job may be lost when the domain ends.
    flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    with explained(f"copy {target} of {domain.name}"):
        domain.api.blockCopy(
            target,
            ElementTree.tostring(root, encoding="unicode"),
            {},
            flags | (libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW if shallow else 0),
        )


def wait(domain: Domain, target: str, watch: t.Callable[[], None]) -> None:
    """Wait until the copy has caught up with the guest. Raises HypervisorError if it ends before, or what ``watch`` raises."""
    with explained(f"copy {target} of {domain.name}"):
        while True:
            if _of(domain, target).ready:
                return
            watch()
            time.sleep(_STEP)


def record_writes(domain: Domain, target: str, name: str) -> None:
    """Have the new image record in a bitmap what is written to it from now on. Does nothing if it does already."""
    with explained(f"record the writes to {target} of {domain.name}"):
        node = _of(domain, target).node
    nodes = {node["node-name"]: node for node in monitor(domain, "query-named-block-nodes")}
    if not any(bitmap.get("name") == name for bitmap in nodes.get(node, {}).get("dirty-bitmaps", ())):
        monitor(domain, "block-dirty-bitmap-add", node=node, name=name, persistent=True, granularity=GRANULARITY)


def pivot(domain: Domain, target: str) -> None:
    """Have the guest go on with the new image. Raises HypervisorError if it does not; it then goes on with the one it had."""
    with explained(f"change {target} of {domain.name} to its copy"):
        domain.api.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def abort(domain: Domain, target: str) -> None:
    """End the copy; the guest goes on with the image it has. No copy is no fault."""
    with contextlib.suppress(libvirt.libvirtError):
        if mirror(domain.api.XMLDesc(0), target) is not None:
            domain.api.blockJobAbort(target, 0)
