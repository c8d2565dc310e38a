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
import struct

from ..errors import Refused
from ..trusted_files import opened

_FIRST, _LENGTH = 100, 200  # bytes
_LOCK = struct.Struct("hhqqi4x")  # struct flock
# A file system or kernel without these locks. QEMU then works without them, too.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def in_use(path: str) -> bool:
    """Whether a QEMU process has the image open. Follows links.

    Locks and changes nothing, and reads no byte of the image. Returns False if the file system has no locks. Raises
    Refused if the image cannot be opened.
    """
    try:
        with opened(path, os.O_RDONLY | os.O_NONBLOCK) as handle:
            answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST, _LENGTH, 0))
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise Refused(
            f"Cannot determine whether {path} is in use: {error.strerror}. Run the task as a user who can read it."
        ) from error
    return bool(_LOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def require_free(path: str, what: str) -> None:
    """Raise Refused if an image is in use. ``what`` names the action for the message."""
    if in_use(path):
        raise Refused(
            f"Cannot {what}: {path} is in use by a running process. Shut its domain down, or end the process."
        )
