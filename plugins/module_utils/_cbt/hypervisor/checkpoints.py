# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates, lists, checks and removes the checkpoints of a domain.

A checkpoint is metadata in libvirt plus one bitmap of the same name in each tracked disk. Ours are named ``cbt-<first 8
digits of the repository's id>-<restore point id>``. Checkpoints of restore points have a second, empty bitmap in each
tracked disk, its identity bitmap: see ``disks.identity_bitmap``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
import typing as t
from xml.etree import ElementTree

from ..errors import HypervisorError, ProgramError
from .connection import Domain, explained, libvirt
from .domain import DomainFacts, monitor, read_domain
from .domain_xml.disks import GRANULARITY, Disk, identity_bitmap, with_image

_IDENTITY_GRANULARITY = 1 << 31  # bytes; the maximum, so that an identity bitmap takes almost no space
ANY_REPOSITORY = re.compile(r"cbt-[0-9a-f]{8}-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in libvirt. ``created`` is in seconds since 1970; ``disks`` are those with a bitmap."""

    name: str
    parent: str | None
    created: int
    disks: tuple[str, ...]


def prefix(repository_id: str) -> str:
    """Return the prefix of the names of a repository's checkpoints."""
    return f"cbt-{repository_id[:8]}-"


def checkpoint_xml(name: str, tracked: t.Collection[str], disks: t.Iterable[Disk]) -> str:
    """Return the XML of a checkpoint with a bitmap in the ``tracked`` targets only."""
    root = ElementTree.Element("domaincheckpoint")
    ElementTree.SubElement(root, "name").text = name
    listed = ElementTree.SubElement(root, "disks")
    for disk in disks:
        attributes = {"name": disk.target, "checkpoint": "bitmap" if disk.target in tracked else "no"}
        if disk.target in tracked:
            attributes["bitmap"] = name
        ElementTree.SubElement(listed, "disk", attributes)
    return ElementTree.tostring(root, encoding="unicode")


def parse_checkpoint(xml: str) -> Checkpoint:
    """Return the checkpoint that libvirt's XML describes."""
    root = ElementTree.fromstring(xml)
    return Checkpoint(
        name=root.findtext("name", ""),
        parent=root.findtext("parent/name"),
        created=int(root.findtext("creationTime", "0")),
        disks=tuple(disk.get("name", "") for disk in root.iterfind("disks/disk") if disk.get("checkpoint") == "bitmap"),
    )


def list_checkpoints(domain: Domain) -> list[Checkpoint]:
    """Return all checkpoints of a domain that libvirt knows, oldest first."""
    with explained(f"list the checkpoints of {domain.name}"):
        found = [
            parse_checkpoint(each.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))
            for each in domain.api.listAllCheckpoints()
        ]
    return sorted(found, key=lambda checkpoint: (checkpoint.created, checkpoint.name))


def read_xml(domain: Domain, name: str) -> str:
    """Return libvirt's XML of a checkpoint, without the configuration of the domain."""
    with explained(f"read checkpoint {name} of {domain.name}"):
        return t.cast(
            str, domain.api.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
        )


def why_unsound(disk: Disk, name: str) -> str | None:
    """Return why the bitmap ``name`` may lack changes; None if it is complete."""
    bitmap = disk.bitmap(name)
    if bitmap is None:
        return f"the bitmap {name} is missing from {disk.target}"
    if bitmap.inconsistent:
        return (
            f"the bitmap {name} of {disk.target} was not saved properly (QEMU was killed or crashed), so it may lack"
            " changes"
        )
    if not bitmap.recording:
        return f"the bitmap {name} of {disk.target} is not recording"
    return None


def named(prefix: str, known: t.Iterable[str], disks: t.Iterable[Disk]) -> list[str]:
    """Return the names of checkpoints that start with ``prefix``, sorted.

    ``known`` are the names in libvirt. Names of bitmaps in the disks are added. Names of our checkpoints contain the
    time, so the oldest is first.
    """
    return sorted(
        name for name in {*known, *(name for disk in disks for name in disk.checkpoints)} if name.startswith(prefix)
    )


def why_foreign(disk: Disk, name: str) -> str | None:
    """Return why the bitmap ``name`` may not be this disk's own; None if it is."""
    identities = disk.identities(name)
    if identities == (disk.target,):
        return None
    if identities:
        return (
            f"the bitmap {name} in the image of {disk.target} belongs to {' and '.join(identities)}:"
            " the image was replaced with that of another disk"
        )
    return (
        f"the bitmap {name} of {disk.target} lacks the mark of its disk (QEMU drops it in a snapshot, a mirror or a"
        " commit of an image)"
    )


def add_identity_bitmaps(domain: Domain, facts: DomainFacts, name: str, targets: t.Collection[str]) -> None:
    """Add identity bitmaps to the images of a running domain, before a new checkpoint."""
    added = [
        {
            "node": f"{disk.node}-format",
            "name": identity_bitmap(name, disk.target),
            "persistent": True,
            "disabled": True,
            "granularity": _IDENTITY_GRANULARITY,
        }
        for disk in facts.disks
        if disk.target in targets
    ]
    _transaction(domain, "block-dirty-bitmap-add", added)


def _transaction(domain: Domain, kind: str, arguments: t.Iterable[t.Mapping[str, t.Any]]) -> None:
    monitor(domain, "transaction", actions=[{"type": kind, "data": each} for each in arguments])


def add_bitmaps(facts: DomainFacts, name: str, targets: t.Collection[str]) -> dict[str, str]:
    """Begin to track the changes of a shut-off domain's disks. Return by target why that failed.

    Call this before the disks are read. If the domain is started in between, its writes are recorded. The next backup
    may then read a block twice, but it misses no change. After a failure, older bitmaps of the disk may be lost, too.
    Raises HypervisorError if an image is in use.
    """
    found = ((disk, _why_not_added(disk, name, facts.name)) for disk in facts.disks if disk.target in targets)
    return {disk.target: reason for disk, reason in found if reason is not None}


def _why_not_added(disk: Disk, name: str, domain: str) -> str | None:
    from ..images import qemu_img  # loaded only for a domain that is shut off

    source, identity = disk.source or "", identity_bitmap(name, disk.target)
    try:
        qemu_img.add_bitmap(source, identity, _IDENTITY_GRANULARITY, recording=False)
        qemu_img.add_bitmap(source, name, GRANULARITY, recording=True)
        # qemu-img succeeds even if there is no space for the bitmaps when it closes the image.
        added = with_image(disk, qemu_img.info(source, disk.format))
        reason = why_unsound(added, name) or why_foreign(added, name)
    except ProgramError as error:
        if '" lock' in str(error):
            raise HypervisorError(
                f"Cannot track {disk.target} of {domain}: {error}. If an image is in use, wait until it is free."
            ) from error
        reason = str(error)
    if reason is None:
        return None
    for bitmap in (identity, name):
        with contextlib.suppress(ProgramError):
            qemu_img.remove_bitmap(source, bitmap)
    return (
        f"its changes cannot be tracked, because {source} cannot store bitmaps ({reason})."
        " Check that its file system has free space and is writable."
    )


def create(domain: Domain, facts: DomainFacts, name: str, tracked: t.Collection[str]) -> None:
    """Create a checkpoint on the ``tracked`` disks of a running domain."""
    with explained(f"create checkpoint {name} on {facts.name}"):
        domain.api.checkpointCreateXML(checkpoint_xml(name, tracked, facts.disks), 0)


def redefine(domain: Domain, facts: DomainFacts, name: str, targets: t.Collection[str]) -> None:
    """Define a checkpoint in libvirt again; its bitmaps are in the ``targets``.

    libvirt checks the bitmaps only while the domain runs. Raises HypervisorError if libvirt refuses.
    """
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
    if facts.active:
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    with explained(f"redefine checkpoint {name} of {facts.name}"):
        domain.api.checkpointCreateXML(_redefinition(name, targets, facts.disks), flags)


def remove(domain: Domain, name: str) -> None:
    """Remove a checkpoint and its bitmaps, as far as they exist, running or shut off.

    Raises HypervisorError if a part of it cannot be removed.
    """
    facts = read_domain(domain)
    with explained(f"remove checkpoint {name} of {facts.name}"):
        known = next((each for each in domain.api.listAllCheckpoints() if each.getName() == name), None)
        if facts.active:
            _remove_running(domain, facts, name, known)
        else:
            _remove_shut_off(facts, name, known)


def _remove_running(domain: Domain, facts: DomainFacts, name: str, known: t.Any) -> None:
    holders = {disk.target for disk in facts.disks if disk.bitmap(name) is not None}
    if known is not None and set(parse_checkpoint(read_xml(domain, name)).disks) != holders:
        # libvirt refuses to delete a checkpoint that lacks some of its bitmaps, so its metadata is made to match first.
        known.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        known = None
    if known is None and holders:
        xml = _redefinition(name, holders, facts.disks)
        known = domain.api.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
    if known is not None:
        known.delete(0)
    identities = [
        {"node": f"{disk.node}-format", "name": identity_bitmap(name, target)}
        for disk in facts.disks
        for target in disk.identities(name)
    ]
    if identities:
        _transaction(domain, "block-dirty-bitmap-remove", identities)


def _redefinition(name: str, tracked: t.Collection[str], disks: t.Iterable[Disk]) -> str:
    root = ElementTree.fromstring(checkpoint_xml(name, tracked, disks))
    ElementTree.SubElement(root, "creationTime").text = str(int(time.time()))  # required by libvirt, not checked
    return ElementTree.tostring(root, encoding="unicode")


def _remove_shut_off(facts: DomainFacts, name: str, known: t.Any) -> None:
    from ..images import qemu_img  # loaded only for a domain that is shut off

    for disk in facts.disks:
        held = [name] if disk.bitmap(name) is not None else []
        for bitmap in (*held, *(identity_bitmap(name, target) for target in disk.identities(name))):
            advice = "Start the domain, paused if necessary." if disk.layers else ""
            with explained(f"remove bitmap {bitmap} from {disk.target} of {facts.name}", advice):
                qemu_img.remove_bitmap(disk.source or "", bitmap)
    if known is not None:
        known.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
