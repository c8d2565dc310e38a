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

import fcntl
import json
import os
import shutil
import stat
from pathlib import Path

_DEVICE = Path("/dev/kvm")
_GROUP = "kvm"
_MODE = 0o660
# What it was before. In /dev, since labs with a private /run share the device too.
_RECORD = Path("/dev/shm/kvm-cbt-lab-device")


class KvmDevice:
    """The share of one lab user in the device's permission."""

    def __init__(self) -> None:
        self._users: int | None = None

    def open_to_qemu(self) -> None:
        """Let the QEMU user's group open the device, if there is one."""
        if not _DEVICE.exists():
            return
        self._users = os.open(_RECORD, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._users, fcntl.LOCK_SH)
        # This order: a state which another user made is seen only after its record.
        found = _DEVICE.stat()
        if not _usable(found) and _RECORD.stat().st_size == 0:
            before = {"gid": found.st_gid, "mode": stat.S_IMODE(found.st_mode)}
            os.write(self._users, json.dumps(before).encode())
        if not _usable(found):
            shutil.chown(_DEVICE, group=_GROUP)
            _DEVICE.chmod(_MODE)

    def release(self) -> None:
        """The last user gives the device back the permission it had. May be called twice."""
        users, self._users = self._users, None
        if users is None:
            return
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _RECORD.stat().st_size > 0:
                before = json.loads(_RECORD.read_text())
                os.chown(_DEVICE, -1, before["gid"])
                _DEVICE.chmod(before["mode"])
                os.truncate(users, 0)
        except BlockingIOError:
            pass
        finally:
            os.close(users)


def _usable(found: os.stat_result) -> bool:
    for_group = _DEVICE.group() == _GROUP and found.st_mode & 0o060 == 0o060
    return for_group or found.st_mode & 0o006 == 0o006
