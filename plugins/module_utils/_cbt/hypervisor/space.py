# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free space of file systems a backup depends on. Private to the collection."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ..errors import HypervisorError

_KEEP_SHARE = 0.05
_KEEP_MOST = 512 << 20


@dataclasses.dataclass(frozen=True)
class Space:
    """Free and total bytes of the file system holding ``path``."""

    path: str
    free: int
    total: int

    @property
    def short(self) -> bool:
        """True if less is free than must be kept: 5 percent, but not more than 512 MiB."""
        return self.free < min(self.total * _KEEP_SHARE, _KEEP_MOST)


def look(path: str) -> Space:
    """The space of the file system holding ``path``."""
    usage = os.statvfs(path)
    return Space(path, usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize)


def guard(path: str, what: str, option: str) -> t.Callable[[], None]:
    """A function that raises HypervisorError once the file system holding ``path`` runs short.

    QEMU gives the guest an I/O error when the scratch file cannot grow (its default ``on-cbw-error`` is
    ``break-guest-write``), so the job must end before that.
    """

    def check() -> None:
        space = look(path)
        if space.short:
            raise HypervisorError(
                f"The backup was ended because {what} {path} runs out of space ({space.free >> 20} MiB of {space.total >> 20} MiB are free)."
                f" The guest was not affected. Free space there, or choose another place with {option}."
            )

    return check
