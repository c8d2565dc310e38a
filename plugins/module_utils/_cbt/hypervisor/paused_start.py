# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts a domain with paused virtual CPUs for a backup, and shuts it off, also after a run that was killed.

libvirt can destroy a domain when the connection that started it closes, but it would also destroy a guest that has been
resumed. Therefore the definition of the running domain contains a mark from its start, which says who started it. The
persistent definition does not contain it.
"""

from __future__ import annotations

import os
from xml.etree import ElementTree

from . import scratch
from .connection import Domain, explained, libvirt
from .definition import ending
from .domain import monitor

_NAMESPACE = "urn:kvm.cbt:started-paused"


def _this_user() -> str:
    """Return what the mark holds for runs of this user on this host. The lock of a domain excludes other runs."""
    return f"{scratch.reader()}-{os.geteuid()}"


def start(domain: Domain) -> None:
    """Start a domain with paused virtual CPUs. Raises HypervisorError."""
    with explained(f"start {domain.name} paused"):
        xml = domain.api.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
        root = ElementTree.fromstring(xml)
        metadata = root.find("metadata")
        if metadata is None:
            metadata = ElementTree.SubElement(root, "metadata")
        ElementTree.SubElement(metadata, f"{{{_NAMESPACE}}}run", user=_this_user())
        marked = ElementTree.tostring(root, encoding="unicode")
        domain.session.api.createXML(marked, libvirt.VIR_DOMAIN_START_PAUSED)


def _never_ran(domain: Domain) -> bool:
    """Whether the guest of a paused domain has never run. Raises libvirtError or HypervisorError."""
    if any(domain.api.blockStats("")[:4]):  # waits until libvirt has started it; QEMU's status alone misses a reset
        return False
    # A guest that was restored from a file or a snapshot is paused for another reason.
    paused = domain.api.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
    return bool(paused and monitor(domain, "query-status")["status"] == "prelaunch")


def left(domain: Domain) -> bool | None:
    """Whether a run of this user left the domain started, with a guest that never ran; None if other runs did.

    Raises libvirtError or HypervisorError.
    """
    try:
        mark = domain.api.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, _NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return False
        raise
    if not _never_ran(domain):
        return False
    return True if ElementTree.fromstring(mark).get("user") == _this_user() else None


def shut_off(domain: Domain) -> None:
    """Shut a domain off that a run of this user left. A guest that has run continues. Raises HypervisorError."""
    with ending(domain, f"shut off {domain.name} again"):
        if left(domain):
            domain.api.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
