# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Detect a path on a share that is not mounted."""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

_FSTAB = "/etc/fstab"
_ESCAPED = re.compile(r"\\([0-7]{3})")


def unmounted(path: str, fstab: str, mounted: t.Callable[[str], bool] = os.path.ismount) -> str | None:
    """Return the unmounted mount point at or above a path, None if there is none.

    ``fstab`` is the content of the table of file systems.
    """
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        point = os.path.realpath(_ESCAPED.sub(lambda match: chr(int(match.group(1), 8)), fields[1]))
        if os.path.isabs(point) and point != "/" and f"{path}/".startswith(f"{point}/") and not mounted(point):
            return point
    return None


def missing_mount(path: str | None) -> str | None:
    """Return the unmounted mount point at or above a directory, None if there is none."""
    if path is None:
        return None
    with contextlib.suppress(OSError, ValueError), open(_FSTAB, encoding="utf-8", errors="surrogateescape") as table:
        return unmounted(os.path.realpath(path), table.read())
    return None


def advice(path: str | None) -> str:
    """Return what to check if the expected repository is not at ``path`` (None: S3)."""
    if path is None:
        return "Check bucket, prefix and endpoint_url."
    point = missing_mount(path)
    if point is not None:
        return f"{point} is in {_FSTAB} but not mounted: mount it."
    return "If it is on a share, check that the right share is mounted."
