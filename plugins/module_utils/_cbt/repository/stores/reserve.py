# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reserve files that let retention start in a full directory.

Retention writes a lease, trash entries and condemned lists before it deletes anything. If there is no room for one of
them, parts of the reserve are deleted until there is. Each part frees some bytes and an inode. After the reserve,
expendable objects are deleted. The reserve is created again once there is room. Its content is random, so that no file
system compresses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ..format import names
from . import folders

PARTS = 32
SIZE = 32 << 10  # bytes of a part
FOR_COLLECTING = 0.5  # share that stays while restore points are removed, for reclaiming their space
FOR_DELETING = 0.25  # share that stays while packs are condemned, for deleting them

_NAMES = tuple(f"{number:02}" for number in range(PARTS))


def keep(root: str) -> None:
    """Create missing parts of the reserve, as far as there is room. Nothing is synced: a lost part is created again."""
    with contextlib.suppress(OSError), folders.opened(root, names.RESERVE, make=True) as folder:
        for name in sorted({*_NAMES} - {each.name for each in folders.contents(folder)}):
            _make(folder, name)


def _make(folder: int, name: str) -> None:
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        whole = os.write(handle, os.urandom(SIZE)) == SIZE
    except OSError:
        whole = False
    finally:
        os.close(handle)
    if not whole:
        os.unlink(name, dir_fd=folder)


def parts(root: str) -> list[str]:
    """Return the names of the existing parts."""
    with contextlib.suppress(OSError), folders.opened(root, names.RESERVE) as folder:
        return sorted({*_NAMES} & {each.name for each in folders.contents(folder) if each.file})
    return []


def release(root: str, part: str) -> None:
    """Delete a part, if possible."""
    with contextlib.suppress(OSError), folders.opened(root, names.RESERVE) as folder:
        os.unlink(part, dir_fd=folder)


@dataclasses.dataclass
class Reserve:
    """The reserve of a store; ``keep`` creates its missing parts, as far as there is room.

    While ``spare`` is not None, ``put`` may delete parts when the store is full, down to this share of them. It then
    sets ``was_used``.
    """

    keep: t.Callable[[], None]
    spare: float | None = None
    was_used: bool = False

    @contextlib.contextmanager
    def in_use(self) -> t.Iterator[None]:
        """Permit ``put`` to use the reserve inside the block, and create it again afterwards."""
        self.spare = 0
        try:
            yield
        finally:
            self.spare = None
            self.keep()

    def spare_for_collecting(self) -> None:
        """Leave a part for reclaiming the space of the restore points that are removed from now on."""
        self.spare = FOR_COLLECTING
