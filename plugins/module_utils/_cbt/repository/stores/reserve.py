# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that hold nothing, with which retention begins in a directory that is full.

Retention writes a lease, entries of the trash and announcements before it deletes anything. Where there is no room for one of
them, parts of the reserve are deleted until there is: each frees some bytes and an inode. After them go objects that may be lost
at any time. The reserve is made anew once there is room. Its content is random, so that no file system makes less of it.
"""

from __future__ import annotations

import contextlib
import os

from ..format import names
from . import folders
from .folders import WrongKind

PARTS = 32
SIZE = 32 << 10  # bytes of a part
FOR_COLLECTING = 0.5  # share that is left while restore points are removed, for reclaiming their space
FOR_DELETING = 0.25  # share that is left while packs are announced, for deleting them

_NAMES = tuple(f"{number:02}" for number in range(PARTS))


def keep(root: str) -> None:
    """Make what is missing of the reserve, as far as there is room. Nothing is synced: what is lost is made anew."""
    with contextlib.suppress(OSError, WrongKind), folders.opened(root, names.RESERVE, make=True) as folder:
        for name in sorted({*_NAMES} - {each.name for each in folders.contents(folder)}):
            _make(folder, name)


def _make(folder: int, name: str) -> None:
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        whole = os.write(handle, os.urandom(SIZE)) == SIZE
    except OSError:
        whole = False
    finally:
        os.close(handle)
    if not whole:
        os.unlink(name, dir_fd=folder)


def parts(root: str) -> list[str]:
    """Names of the parts that are there."""
    with contextlib.suppress(OSError, WrongKind), folders.opened(root, names.RESERVE) as folder:
        return sorted({*_NAMES} & {each.name for each in folders.contents(folder) if each.file})
    return []


def release(root: str, part: str) -> None:
    """Delete a part, if it can be."""
    with contextlib.suppress(OSError, WrongKind), folders.opened(root, names.RESERVE) as folder:
        os.unlink(part, dir_fd=folder)
