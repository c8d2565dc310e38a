# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows the links of a path, and detects a share that is not mounted."""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

_MOST_LINKS = 40  # in a path; the kernel's limit
FSTAB = "/etc/fstab"
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


def missing_mount(path: str) -> str | None:
    """Return the unmounted mount point at or above a directory, None if there is none."""
    with contextlib.suppress(OSError, ValueError), open(FSTAB, encoding="utf-8", errors="surrogateescape") as table:
        return unmounted(os.path.realpath(path), table.read())
    return None


def addresses(path: str) -> list[str]:
    """Return all paths of a directory.

    These are its path with no link followed, with the first one, with the first two and so on, and with all. On a
    share, the store can replace a folder of the path with a link.
    """
    found: list[str] = []
    following = os.path.abspath(path)
    while following and following not in found and len(found) < _MOST_LINKS:
        found.append(following)
        following = _first_link_followed(following)
    return [*found, os.path.realpath(path)]


def _first_link_followed(path: str) -> str:
    """Replace the first link of an absolute path with its target; empty without one."""
    parts = path.split("/")
    for count in range(2, len(parts) + 1):
        with contextlib.suppress(OSError):  # not a link
            target = os.readlink("/".join(parts[:count]))
            return os.path.normpath(os.path.join("/".join(parts[: count - 1]) or "/", target, *parts[count:]))
    return ""
