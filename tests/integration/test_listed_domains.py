# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cbt_domain_info returns of domains on a real libvirt."""

from __future__ import annotations

import os
from pathlib import Path

import libvirt
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from module_process import run_module

MIB = 1 << 20
NAMESPACE = "https://example.com/backup"


def test_details_of_a_running_domain_are_listed_without_opening_its_disks(
    hypervisor: Hypervisor, workspace: Path
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)]) as domain:
        api = hypervisor.connection.lookupByName(domain.name)
        for kind, text, key, uri in (
            (libvirt.VIR_DOMAIN_METADATA_TITLE, "A title", None, None),
            (libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<plan name='gold'/>", "backup", NAMESPACE),
        ):
            api.setMetadata(kind, text, key, uri, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        api.setAutostart(1)
        image = Path(domain.image("vda"))
        moved = image.with_suffix(".moved")
        image.rename(moved)  # QEMU holds it open
        os.mkfifo(image)  # opening it blocks
        try:
            found = run_module(workspace, "cbt_domain_info", domains=[domain.name])
            short = run_module(workspace, "cbt_domain_info", domains=[domain.name], details=False)
        finally:
            moved.replace(image)
        (listed,) = found["domains"]
        assert listed == {
            "name": domain.name,
            "uuid": api.UUIDString(),
            "state": "running",
            "title": "A title",
            "description": "",
            "metadata": {NAMESPACE: '<plan name="gold" />'},
            "persistent": True,
            "autostart": True,
            "disks": [{"target": "vda", "device": "disk", "type": "file", "source": str(image), "format": "qcow2"}],
        }
        assert short["domains"] == [{key: listed[key] for key in ("name", "uuid", "state")}]
