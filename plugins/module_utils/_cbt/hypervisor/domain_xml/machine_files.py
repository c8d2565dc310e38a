# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists a machine's files other than disks: firmware, NVRAM, kernel, TPM state."""

from __future__ import annotations

import dataclasses
import os
from xml.etree import ElementTree

NVRAM_FOLDER = "/var/lib/libvirt/qemu/nvram"
TPM_FOLDER = "/var/lib/libvirt/swtpm"

# Elements below ``os`` in a domain's XML, and the names of their content in a restore point.
_KINDS = ("loader", "nvram", "kernel", "initrd", "dtb")

_DESCRIBE = ("type", "protocol", "dev", "name", "path")


@dataclasses.dataclass(frozen=True)
class MachineFile:
    """A file and its kind: loader, nvram, kernel, initrd, dtb or tpm.

    ``certain`` is whether the file must exist. ``unsaved`` is why it cannot be saved, and what to do.
    """

    kind: str
    path: str
    certain: bool = True
    unsaved: str | None = None


def tpm_path(uuid: str, tpm: ElementTree.Element) -> str | None:
    """Return the path where libvirt's emulator keeps the state of a domain's TPM.

    Returns None if the TPM is not emulated, or if the XML names another path.
    """
    backend = tpm.find("backend")
    if backend is None or backend.get("type") != "emulator" or backend.find("source") is not None:
        return None
    old = backend.get("version") == "1.2"
    return os.path.join(TPM_FOLDER, uuid, "tpm1.2" if old else "tpm2", "tpm-00.permall" if old else "tpm2-00.permall")


def path_in(element: ElementTree.Element | None) -> str | None:
    """Return the path that an element of ``os`` names in its text or ``source``, or None."""
    if element is None:
        return None
    source = element.find("source")
    if source is not None:
        return source.get("file")
    return (element.text or "").strip() or None


def machine_files(domain_xml: str) -> list[MachineFile]:
    """Return the files that a domain's XML names or implies."""
    root = ElementTree.fromstring(domain_xml)
    found = []
    for kind in _KINDS:
        element = root.find(f"./os/{kind}")
        path = path_in(element)
        if path is not None and os.path.isabs(path):  # a loader such as "bios.bin" belongs to QEMU
            found.append(MachineFile(kind, path))
        elif element is not None and element.find("source") is not None:
            found.append(MachineFile(kind, "", unsaved=f"it is not a file ({where(element)}). Save it yourself."))
        elif kind == "nvram" and root.find("./os[@firmware='efi']") is not None:
            # Only the XML of a running domain names this file.
            found.append(MachineFile(kind, f"{NVRAM_FOLDER}/{root.findtext('name')}_VARS.fd", certain=False))
    for tpm in root.findall("./devices/tpm"):
        state, backend = tpm_path(root.findtext("uuid") or "", tpm), tpm.find("backend")
        if state is not None:
            found.append(MachineFile("tpm", state, certain=False))  # it exists from the first start on
        elif backend is not None:
            unsaved = f"libvirt does not keep its state ({where(backend)}). Save it yourself."
            found.append(MachineFile("tpm", "", unsaved=unsaved))
    return found


def where(element: ElementTree.Element) -> str:
    """Describe the source of an element by its attributes."""
    parts = (element, *element.iter("source"), *element.iter("device"))
    return " ".join(text for part in parts for name, text in part.attrib.items() if name in _DESCRIBE)
