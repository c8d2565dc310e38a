# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates the network for a copy that must not reach anything but other copies."""

from __future__ import annotations

import typing as t
from xml.etree import ElementTree

from ...errors import Refused
from ...hypervisor.connection import Session, explained, libvirt


def check_isolated(session: Session, name: str) -> t.Any:
    """Return libvirt's network of this name; None if it does not exist. Raise Refused if it leads out of the host."""
    with explained(f"look up the network {name}"):
        network = next((each for each in session.api.listAllNetworks() if each.name() == name), None)
        flags = (0, libvirt.VIR_NETWORK_XML_INACTIVE)
        definitions = [] if network is None else [network.XMLDesc(each) for each in flags]
    if any(ElementTree.fromstring(each).find("forward") is not None for each in definitions):
        raise Refused(
            f"The network {name} leads out of the host, so a copy could reach the original. Set isolated_network to an"
            " isolated network, or to a name that is not in use."
        )
    return network


def ensure_isolated(session: Session, name: str) -> None:
    """Define and start the network unless it is active. Raises Refused, or HypervisorError."""
    network = check_isolated(session, name)
    definition = ElementTree.Element("network")
    ElementTree.SubElement(definition, "name").text = name
    with explained(f"start the network {name}"):
        if network is None:
            network = session.api.networkDefineXML(ElementTree.tostring(definition, "unicode"))
        if not network.isActive():
            network.create()
