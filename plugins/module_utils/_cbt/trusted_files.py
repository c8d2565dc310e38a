# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens a file in a folder where other users may write, and walks up the folders that they could replace.

QEMU's user owns the folder of firmware variables, and the user of the emulated TPM owns the folder of its state. An
attacker who controls one of their processes can put a link there, so that root reads any file of the host into a
repository.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t

_MOST_LINKS = 40  # the kernel's limit
_LOOK = os.O_PATH | os.O_NOFOLLOW
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW  # opens a folder, but no link to one


@contextlib.contextmanager
def opened(path: str, flags: int, folder: int | None = None) -> t.Iterator[int]:
    """Yield a handle of a file or folder during the block. Raises OSError.

    ``path`` may be relative to the handle ``folder``. Only this user may access a file that is created.
    """
    handle = os.open(path, flags, 0o600, dir_fd=folder)
    try:
        yield handle
    finally:
        os.close(handle)


def upwards(folder: str) -> t.Iterator[tuple[str, os.stat_result]]:
    """Yield the path and the status of a folder, and of each folder above it, up to the root. Raises OSError.

    ``folder`` must be absolute and without links.
    """
    while True:
        yield folder, os.stat(folder)
        if folder == "/":
            return
        folder = os.path.dirname(folder)


def open_file(path: str) -> t.BinaryIO:
    """Open a regular file for reading. Follows only links of root and of this user. Raises OSError."""
    parts, links = path.split("/")[::-1], 0
    with contextlib.ExitStack() as handles:

        def look(name: str, folder: int | None = None) -> int:
            handle = os.open(name, _LOOK, dir_fd=folder)
            handles.callback(os.close, handle)
            return handle

        here = look("/")
        while parts:
            name = parts.pop()
            if not name:
                continue
            there = look(name, here)
            status = os.fstat(there)
            if not stat.S_ISLNK(status.st_mode):
                here = there
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if status.st_uid not in (0, os.geteuid()):
                raise OSError(errno.EPERM, "its path leads through a link of another user", path)
            target = os.readlink("", dir_fd=there)
            parts += target.split("/")[::-1]
            if target.startswith("/"):
                here = look("/")
        if not stat.S_ISREG(os.fstat(here).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        return open(f"/proc/self/fd/{here}", "rb")
