# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the disks of a domain, and decides whether changes can be tracked."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from xml.etree import ElementTree

from ...errors import Refused
from . import disk_kinds

GRANULARITY = 65536  # bytes, as in the bitmaps that libvirt creates

_IDENTITY = re.compile(r"\A(cbt-[0-9a-f]{8}-[^@]+)@(.+)\Z")

CONVERT = "Convert it with the kvm.cbt.qcow2_v3 role, or let it be backed up by full scan (scan_untracked: true)."


@dataclasses.dataclass(frozen=True)
class Selection:
    """Selects disks of a domain by target; ``include`` None selects all."""

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def check(self, known: t.Collection[str], whose: str) -> None:
        """Raise Refused if the selection names a disk that is not in ``known``."""
        unknown = [target for target in (*(self.include or ()), *self.exclude) if target not in known]
        if unknown:
            raise Refused(f"{whose} has no disk {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}.")

    def why_excluded(self, target: str) -> str | None:
        """Return why a disk is not selected; None if it is."""
        if target in self.exclude:
            return f"{target} is among exclude_disks."
        if self.include is not None and target not in self.include:
            return f"{target} is not among include_disks."
        return None


@dataclasses.dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap of one disk; sizes in bytes. ``dirty_bytes`` is None while the domain is shut off."""

    name: str
    granularity: int
    dirty_bytes: int | None
    inconsistent: bool = False
    recording: bool = True
    persistent: bool = True


@dataclasses.dataclass(frozen=True)
class Disk:
    """One disk of a domain, from its XML.

    ``compat``, ``virtual_size`` (bytes), ``bitmaps`` and ``image`` (QEMU's ``ImageInfo``) come from QEMU or the image;
    ``virtual_size`` is None if unknown. ``node`` is the stem of QEMU's node names while the domain runs. ``never``,
    ``layers``, ``backing`` and ``threaded`` (in an I/O thread) are from disk_kinds.py. ``chain`` is like ``backing``,
    but from the images of a domain that is shut off, without the empty pair. ``withheld`` is why it must not be opened.
    """

    target: str
    device: str = "disk"
    type: str = "file"
    format: str = "raw"
    source: str | None = None
    readonly: bool = False
    transient: bool = False
    shareable: bool = False
    threaded: bool = False
    never: str | None = None
    layers: tuple[str, ...] = ()
    backing: tuple[tuple[str, str], ...] = ()
    chain: tuple[tuple[str, str], ...] | None = None
    node: str | None = None
    compat: str | None = None
    virtual_size: int | None = None
    bitmaps: tuple[Bitmap, ...] = ()
    image: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    withheld: str | None = None

    def bitmap(self, name: str) -> Bitmap | None:
        """Return the bitmap of this name, or None."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)

    def identities(self, checkpoint: str) -> tuple[str, ...]:
        """Return the targets in a checkpoint's identity bitmaps (several after a merge)."""
        found = (_IDENTITY.match(bitmap.name) for bitmap in self.bitmaps)
        return tuple(match[2] for match in found if match is not None and match[1] == checkpoint)

    @property
    def below(self) -> list[str] | None:
        """The data file and the backing files of its image, with their formats; None if unknown."""
        chain = self.backing[:-1] if self.backing[-1:] == (("", ""),) else self.chain
        data = self.image.get("format-specific", {}).get("data", {}).get("data-file")
        return None if chain is None else [*filter(None, [data]), *(f"{fmt}:{path}" for fmt, path in chain)]

    @property
    def checkpoints(self) -> set[str]:
        """Names of the checkpoints to which its bitmaps and identity bitmaps belong."""
        return {_IDENTITY.sub(r"\1", bitmap.name) for bitmap in self.bitmaps}

    @property
    def why_unreadable(self) -> str | None:
        """Why a backup cannot or need not read this disk; None if it can."""
        if self.device in ("cdrom", "floppy"):
            return f"{self.target} is a {self.device}: removable media are not part of a backup."
        if self.device == "lun":
            return (
                f"{self.target} is a passed-through LUN, which QEMU cannot read for a backup. Back it up inside the"
                " guest."
            )
        if self.source is None:
            return f"{self.target} has no medium."
        if self.never is not None:
            return f"{self.target} {self.never}"
        if self.transient:
            return f"{self.target} is transient: its changes are discarded when the domain ends."
        return self.withheld

    @property
    def removable(self) -> bool:
        """Whether no data is lost if the disk is left out: a CD-ROM, or a floppy drive that no guest can write to."""
        return self.device == "cdrom" or (self.device == "floppy" and (self.readonly or self.source is None))

    @property
    def why_untrackable(self) -> str | None:
        """Why changes of this disk cannot be tracked, and what to do; None if they can."""
        if self.why_unreadable is not None:
            return self.why_unreadable
        if self.readonly:
            return (
                f"Cannot track {self.target}: it is read-only, so no bitmap can be stored in it. It is read in full"
                " each time."
            )
        if self.format != "qcow2":
            kind = "RAW" if self.format == "raw" else self.format
            advice = "It is read in full each time." if self.layers or self.shareable else CONVERT
            return f"Cannot track {self.target}: a {kind} image ({self.type}) holds no bitmaps. {advice}"
        if self.compat == "0.10":
            return f"Cannot track {self.target}: the image is qcow2 v2, which holds no bitmaps. {CONVERT}"
        return None


def disk_element(domain_xml: str, target: str) -> ElementTree.Element | None:
    """Return the disk of this target in a domain's XML; None if there is none."""
    for element in ElementTree.fromstring(domain_xml).iterfind("./devices/disk"):
        named = element.find("target")
        if named is not None and named.get("dev") == target:
            return element
    return None


def parse_disks(domain_xml: str) -> tuple[Disk, ...]:
    """Return the disks in a domain's XML, in the order of the XML."""
    found = []
    root = ElementTree.fromstring(domain_xml)
    for element in root.iterfind("./devices/disk"):
        parts = {child.tag: child.attrib for child in element}
        index = parts.get("source", {}).get("index")
        found.append(
            Disk(
                target=parts.get("target", {}).get("dev", ""),
                device=element.get("device", "disk"),
                type=element.get("type", "file"),
                format=parts.get("driver", {}).get("type", "raw"),
                source=disk_kinds.named_source(element),
                readonly="readonly" in parts,
                transient="transient" in parts,
                shareable="shareable" in parts,
                threaded=disk_kinds.in_thread(element, root),
                never=disk_kinds.why_never(element),
                layers=disk_kinds.layers(element),
                backing=disk_kinds.named_backing(element),
                node=f"libvirt-{index}" if index else None,
            )
        )
    return tuple(found)


def identity_bitmap(checkpoint: str, target: str) -> str:
    """Return the name of the empty bitmap that ties an image to its disk.

    A checkpoint's bitmap has the same name in all disks of a domain, as libvirt requires. If the image of one disk was
    copied over that of another, only the identity bitmap shows whose changes it holds.
    """
    return f"{checkpoint}@{target}"


def with_block_nodes(disks: t.Iterable[Disk], reply: t.Iterable[t.Mapping[str, t.Any]]) -> tuple[Disk, ...]:
    """Complete the disks of a running domain from QMP's ``query-named-block-nodes``.

    QEMU writes bitmaps to an image only when it closes it, so only QEMU knows those of a running domain. libvirt names
    the node of a disk ``libvirt-<index>-format``, or ``-slice-sto`` or ``-storage`` where no format layer is needed.
    """
    nodes = {node["node-name"]: node for node in reply}
    completed = []
    for disk in disks:
        names = (f"{disk.node}-{layer}" for layer in ("format", "slice-sto", "storage"))
        node = next((nodes[name] for name in names if name in nodes), None)
        if node is None:
            completed.append(disk)
            continue
        bitmaps = (
            Bitmap(
                raw["name"],
                raw["granularity"],
                raw["count"],
                inconsistent=raw.get("inconsistent", False),
                recording=raw.get("recording", False),
                persistent=raw.get("persistent", False),
            )
            for raw in node.get("dirty-bitmaps", ())
            if raw.get("name")
        )
        completed.append(_completed(disk, node.get("image", {}), bitmaps))
    return tuple(completed)


def _completed(disk: Disk, image: t.Mapping[str, t.Any], bitmaps: t.Iterable[Bitmap]) -> Disk:
    details = image.get("format-specific", {}).get("data", {})
    return dataclasses.replace(
        disk,
        compat=details.get("compat"),
        virtual_size=image.get("virtual-size"),
        bitmaps=tuple(bitmaps),
        image=image,
    )


def with_image(disk: Disk, info: t.Mapping[str, t.Any]) -> Disk:
    """Complete a disk of a shut-off domain from ``qemu-img info --output=json``.

    The flag ``in-use`` means that QEMU did not close the image properly, so the bitmap may lack changes.
    """
    bitmaps = (
        Bitmap(
            raw["name"],
            raw["granularity"],
            None,
            inconsistent="in-use" in raw["flags"],
            recording="auto" in raw["flags"],
        )
        for raw in info.get("format-specific", {}).get("data", {}).get("bitmaps", ())
    )
    return _completed(disk, info, bitmaps)
