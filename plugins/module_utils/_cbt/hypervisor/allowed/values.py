# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks single values of a definition. Pure."""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t

LONGEST = 4096  # characters of a value that is not free text

# Compiled on first use, because each restore pays for the code that it loads.
_PATTERNS: t.Mapping[str, str] = {
    "WORD": r"[^/\x00-\x1f\x7f-\x9f]*",  # no slash, so no path
    "NUMBER": r"-?[0-9]*",
    "BASE64": r"[A-Za-z0-9+/=\s]*",
    "ZONE": r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*",
    "ADDRESS": r"[0-9A-Za-z.:_-]*(/[0-9.]+)?",  # also with a netmask
    "LOOPBACK": r"|localhost|::1|127\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}",
    "RANDOM": r"|/dev/u?random|/dev/hwrng",
    "SLICE": r"/machine",
    "FWCFG": r"opt/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*",
}
_OF_QEMU = r"[A-Za-z0-9_-]+\.(bin|rom|fd|elf)"  # firmware that QEMU finds by its name
_EMULATOR = r"/usr/(?:s?bin|libexec)/(?:qemu-system-[a-z0-9_]+|qemu-kvm|kvm)"
_FIRMWARE_FOLDER = (
    r"/usr/share/(?:OVMF|AAVMF|ovmf|qemu|qemu-kvm|seabios|edk2[a-z0-9.-]*|qemu-ovmf[a-z0-9-]*|qemu-efi[a-z0-9-]*)/"
)


@dataclasses.dataclass(frozen=True)
class Host:
    """The paths that a definition may name on a host.

    ``paths`` are the machine's own files, ``firmware`` those with a descriptor. ``exists`` is whether a path exists.
    """

    paths: frozenset[str]
    firmware: frozenset[str]
    exists: t.Callable[[str], bool]


def is_firmware(path: str, described: t.Collection[str]) -> bool:
    """Whether ``path`` is ``described``, or in a firmware folder of a distribution. Pure."""
    return path in described or (os.path.normpath(path) == path and re.match(_FIRMWARE_FOLDER, path) is not None)


def fits(kind: str, value: str, host: Host) -> bool:
    """Whether a value is of ``kind``: a name in capitals, or words separated by ``|``."""
    if kind == "TEXT":
        return True
    if kind == "NONE" or (len(value) > LONGEST and kind != "BASE64"):
        return False
    if kind == "OWN":
        return value in host.paths
    if kind == "LOADER":
        return value in host.paths or is_firmware(value, host.firmware) or re.fullmatch(_OF_QEMU, value) is not None
    if kind == "TEMPLATE":
        return is_firmware(value, host.firmware)
    if kind == "EMULATOR":
        return re.fullmatch(_EMULATOR, value) is not None and host.exists(value)
    if kind in _PATTERNS:
        return re.fullmatch(_PATTERNS[kind], value) is not None
    return value in kind.split("|")
