# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The marker of a conversion: a link beside the new image to the original.

The conversion is unfinished until the marker is removed. The marker's name ends in the format of the original, which is
never guessed: a guest writes every byte of a RAW disk. Markers of older versions do not record the format.
"""

from __future__ import annotations

import dataclasses
import os
import stat

from ..files import delete

SUFFIX = ".cbt-original"
_FORMATS = ("raw", "qcow2", None)


@dataclasses.dataclass(frozen=True)
class Original:
    """The original of a conversion; ``format`` is None if the marker has none."""

    path: str
    format: str | None


def _name(image: str, fmt: str | None) -> str:
    return f"{image}{SUFFIX}" if fmt is None else f"{image}{SUFFIX}-{fmt}"


def _target(marker: str) -> str | None:
    """Return the target of a marker; None if there is no marker of this user or root.

    The target may be deleted, so a link of another user does not count.
    """
    try:
        status = os.lstat(marker)
        ours = stat.S_ISLNK(status.st_mode) and status.st_uid in (0, os.geteuid())
        return os.readlink(marker) if ours else None
    except OSError:
        return None


def read(image: str) -> Original | None:
    """Return the original of an image; None without a marker of this user or root."""
    found = ((fmt, _target(_name(image, fmt))) for fmt in _FORMATS)
    return next((Original(path, fmt) for fmt, path in found if path is not None), None)


def there(image: str) -> bool:
    """Whether a file has the name of a marker of an image (of any owner)."""
    return any(os.path.lexists(_name(image, fmt)) for fmt in _FORMATS)


def make(image: str, original: Original) -> None:
    """Create the marker of a new image. Raises OSError."""
    os.symlink(original.path, _name(image, original.format))


def remove(image: str) -> None:
    """Remove all markers of an image, if there are any."""
    for fmt in _FORMATS:
        delete(_name(image, fmt))
