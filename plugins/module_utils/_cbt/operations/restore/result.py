# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of a restore, or of its plan."""

from __future__ import annotations

import dataclasses
import typing as t
from xml.etree import ElementTree

from ...busy import RESTORE_NAMES, limited_by
from ...repository.format.manifests import RestorePoint
from .plan import DiskRestore

if t.TYPE_CHECKING:
    from .machine import MachinePlan

ElementTree.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")


@dataclasses.dataclass(frozen=True)
class RestoreResult:
    """The result of a restore, or of its plan, and the seconds it took.

    ``domain_xml`` is the original's definition, or that of the defined ``machine``. ``warnings`` name what could not be
    restored as it was.
    """

    point: RestorePoint
    disks: tuple[DiskRestore, ...]
    domain_xml: str
    machine: MachinePlan | None
    duration: float
    warnings: tuple[str, ...]

    @property
    def shown_xml(self) -> str:
        """The XML without the passwords of graphics and the cookies of disks."""
        root = ElementTree.fromstring(self.domain_xml)
        for element in root.iterfind("./devices/graphics"):
            element.attrib.pop("passwd", None)
        for source in root.iterfind(".//cookies/.."):
            source.remove(t.cast("ElementTree.Element", source.find("cookies")))
        return ElementTree.tostring(root, encoding="unicode")

    @property
    def limited_by(self) -> str | None:
        """One sentence that says what limited the writing of the disks."""
        return limited_by((disk.busy for disk in self.disks), RESTORE_NAMES)
