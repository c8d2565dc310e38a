# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Switches on incremental backup in definitions, for libvirt 7.0 to 7.5.

In these versions, it is switched off by default.
"""

from __future__ import annotations

import typing as t
from xml.etree import ElementTree

from ...hypervisor.connection import Domain, Session, explained, libvirt
from ...patterns import matches, missing

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_LIST, _ADD, _NAME = f"{{{_QEMU}}}capabilities", f"{{{_QEMU}}}add", "incremental-backup"


def switched(xml: str, on: bool) -> str | None:
    """Return the definition with the switch added or removed; None if unchanged.

    Without the switch, libvirt's default holds. Pure.
    """
    ElementTree.register_namespace("qemu", _QEMU)
    root = ElementTree.fromstring(xml)
    found = root.find(_LIST)
    added = [
        each for each in (found if found is not None else ()) if each.tag == _ADD and each.get("capability") == _NAME
    ]
    if bool(added) == on:
        return None
    if found is None:
        found = ElementTree.SubElement(root, _LIST)
    if on:
        ElementTree.SubElement(found, _ADD, capability=_NAME)
    for each in added:
        found.remove(each)
    if len(found) == 0:
        root.remove(found)
    return ElementTree.tostring(root, encoding="unicode")


def _definition(domain: Domain, on: bool) -> str | None:
    with explained(f"read the definition of {domain.name}"):
        if not domain.api.isPersistent():
            return None
        return switched(domain.api.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE), on)


def set_capability(
    session: Session, patterns: t.Sequence[str], on: bool, check_only: bool = False
) -> tuple[list[str], list[str]]:
    """Return the names of the domains that were, or would be, changed, and names that match no domain.

    Changes persistent domains whose name or UUID matches one of ``patterns``. Raises HypervisorError if libvirt
    refuses.
    """
    changed = []
    domains = session.domains()
    for domain in domains:
        if not matches((domain.name, domain.uuid), patterns):
            continue
        xml = _definition(domain, on)
        if xml is None:
            continue
        if not check_only:
            with explained(f"change the definition of {domain.name}"):
                session.api.defineXML(xml)
        changed.append(domain.name)
    return changed, missing(patterns, [(domain.name, domain.uuid) for domain in domains])
