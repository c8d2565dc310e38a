# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The permission of /dev/kvm, on which the speed of libvirtd depends.

Emulated domains do not use KVM, but libvirt looks whether it could: as root when it probes
QEMU, as the QEMU user when it asks whether the last probe still holds. Where root alone may
open the device (no udev), the answers differ for ever, every call probes again and defining a
domain takes half a minute. So while a lab is used, the device has the group and mode which
udev gives it on Debian.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

_DEVICE = Path("/dev/kvm")
_GROUP = "kvm"
_MODE = 0o660


def open_to_qemu(record: Path) -> None:
    """Let the QEMU user's group open the device; what it was goes to `record`."""
    if not _DEVICE.exists():
        return
    found = _DEVICE.stat()
    for_group = _DEVICE.group() == _GROUP and found.st_mode & 0o060 == 0o060
    for_all = found.st_mode & 0o006 == 0o006
    if for_group or for_all:
        return
    if not record.exists():
        record.write_text(json.dumps({"gid": found.st_gid, "mode": stat.S_IMODE(found.st_mode)}))
    shutil.chown(_DEVICE, group=_GROUP)
    _DEVICE.chmod(_MODE)


def restore(record: Path) -> None:
    """Give the device back the permission it had."""
    if record.exists():
        before = json.loads(record.read_text())
        os.chown(_DEVICE, -1, before["gid"])
        _DEVICE.chmod(before["mode"])
        record.unlink()
