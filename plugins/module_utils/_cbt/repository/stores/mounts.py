# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a path lies on a share that is not mounted."""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

_FSTAB = "/etc/fstab"
_ESCAPED = re.compile(r"\\([0-7]{3})")


def unmounted(path: str, fstab: str, mounted: t.Callable[[str], bool] = os.path.ismount) -> str | None:
    """The mount point above a path, or the path itself, that a table of file systems names and that is not mounted; None if there is none."""
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        point = os.path.realpath(_ESCAPED.sub(lambda match: chr(int(match.group(1), 8)), fields[1]))
        if os.path.isabs(point) and point != "/" and f"{path}/".startswith(f"{point}/") and not mounted(point):
            return point
    return None


def missing_mount(path: str | None) -> str | None:
    """The mount point of this host that a directory lies below and that is not mounted; None if there is none, or if it is not a directory's path."""
    if path is None:
        return None
    with contextlib.suppress(OSError, ValueError), open(_FSTAB, encoding="utf-8", errors="surrogateescape") as table:
        return unmounted(os.path.realpath(path), table.read())
    return None


def advice(path: str | None) -> str:
    """What to check where a repository is missing from a directory, or is not the right one; of S3 if it is none."""
    if path is None:
        return "Check bucket, prefix and endpoint_url."
    point = missing_mount(path)
    if point is not None:
        return f"{point} is in {_FSTAB} but not mounted: mount it."
    return "If it is on a share, check that the right share is mounted."
