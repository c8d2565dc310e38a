# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describes a machine by its definition, for a listing."""

from __future__ import annotations

import dataclasses
import typing as t
from xml.etree import ElementTree

from .disks import Disk, parse_disks


@dataclasses.dataclass(frozen=True)
class Description:
    """Texts and disks of a definition. ``metadata`` is the XML of each element below ``metadata``, by its namespace."""

    title: str
    description: str
    metadata: t.Mapping[str, str]
    disks: tuple[Disk, ...]


def describe(domain_xml: str) -> Description:
    """Return the description of a machine. A missing text is empty."""
    root = ElementTree.fromstring(domain_xml)
    return Description(
        root.findtext("title", ""),
        root.findtext("description", ""),
        dict(map(_metadata, root.iterfind("./metadata/*"))),
        parse_disks(domain_xml),
    )


def _metadata(element: ElementTree.Element) -> tuple[str, str]:
    """Return the namespace of an element and its XML, in which this namespace is left out, as virsh prints it."""
    namespace = element.tag[1:].partition("}")[0] if element.tag.startswith("{") else ""
    for each in element.iter():
        each.tag = each.tag.replace(f"{{{namespace}}}", "", 1)
    element.tail = None  # the white space before the next element
    return namespace, ElementTree.tostring(element, encoding="unicode")
