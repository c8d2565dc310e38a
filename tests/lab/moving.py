# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving a domain from one node to another, over storage which both have."""

from __future__ import annotations

import libvirt

from lab.base import UNDEFINE_ALL, Domain
from lab.nodes import Node

# UNSAFE: libvirt does not take a bind-mounted folder for shared storage.
_LIVE = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE


def move_cold(domain: Domain, destination: Node, start: bool = True) -> None:
    """Destroy and undefine the domain where it is, define it on `destination` and start it there.

    Checkpoints stay behind in their metadata; the bitmaps are in the images, so they come along.
    """
    if domain.running:
        domain.destroy()
    xml = domain.handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    domain.handle.undefineFlags(UNDEFINE_ALL)
    destination.hypervisor.connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    domain.moved_to(destination.hypervisor)
    if start:
        domain.start()


def migrate_live(domain: Domain, destination: Node, keep_source: bool = False) -> None:
    """Migrate the running domain and make it persistent on `destination`, as a cluster manager does.

    libvirt (9 and 11) migrates a domain with checkpoints without a word. The bitmaps go along in
    the images and keep recording; the destination knows no checkpoint until it is redefined there.
    With `keep_source` the source keeps the definition and the checkpoints, which it shows again,
    usable, when the domain comes back; otherwise it forgets both.
    """
    flags = _LIVE | (0 if keep_source else libvirt.VIR_MIGRATE_UNDEFINE_SOURCE)
    # Without this libvirt would have the source find the destination by its host name.
    where = {libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{destination.address}"}
    domain.handle.migrate3(destination.hypervisor.connection, where, flags)
    domain.moved_to(destination.hypervisor)
