# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's locks on disk images, which show whether an image is in use.

Each process that opens an image with QEMU's block layer locks single bytes of the file: from 100 on, one for each
permission it uses, and from 200 on, one for each that it denies others (QEMU's block/file-posix.c). The format of the
image does not matter.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import typing as t

from ..errors import Refused
from ..trusted_files import opened

_LOCAL = frozenset({"nolock", "local_lock=all", "local_lock=posix", "localflocks", "localflock"})  # NFS, GFS2, Lustre
_FIRST, _LENGTH = 100, 200  # bytes
_LOCK = struct.Struct("hhqqi4x")  # struct flock
# A file system or kernel without these locks. QEMU then works without them, too.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def _locked(path: str) -> bool:
    """Whether a process has a lock on the image. Raises OSError."""
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as handle:
        answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST, _LENGTH, 0))
    return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def in_use(path: str) -> bool:
    """Whether a QEMU process has the image open. Follows links.

    Locks and changes nothing, and reads no byte of the image. Returns False if the file system has no locks. Raises
    Refused if the image cannot be opened.
    """
    try:
        return _locked(path)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise Refused(
            f"Cannot determine whether {path} is in use: {error.strerror}. Run the task as a user who can read it."
        ) from error


def shared(path: str) -> bool:
    """Whether all hosts that can open the image see each other's locks on it.

    They do not on a device, and on a file system without locks or with locks of each host for itself.
    """
    real = os.path.realpath(path)
    try:
        if not stat.S_ISREG(os.stat(real).st_mode):
            return False
        _locked(real)
    except OSError as error:
        return error.errno not in _NO_LOCKS  # an image that cannot be opened is not read either
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return not locked_locally(mounts, real)


def locked_locally(mounts: t.Iterable[str], path: str) -> bool:
    """Whether the file system of a path was mounted with locks of this host only.

    ``mounts`` are lines of ``/proc/self/mountinfo``.
    """
    longest, local = "", False
    for line in mounts:
        fields = line.split()
        folder = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4]).rstrip("/")
        if path.startswith(f"{folder}/") and len(folder) >= len(longest):  # of two at one place, the later one is seen
            longest, local = folder, not _LOCAL.isdisjoint(f"{fields[5]},{fields[-1]}".split(","))
    return local


def require_free(path: str, what: str) -> None:
    """Raise Refused if an image is in use. ``what`` names the action for the message."""
    if in_use(path):
        raise Refused(
            f"Cannot {what}: {path} is in use by a running process. Shut its domain down, or end the process."
        )
