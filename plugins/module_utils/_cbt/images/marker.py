# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The marker of a conversion: a link beside a new image to the one it was made of.

Until it is gone the conversion is not over. Its name ends in the format of the original, which is not guessed: a guest writes
every byte of a RAW disk. Markers of older versions do not record the format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat

SUFFIX = ".cbt-original"
FORMATS = ("raw", "qcow2")


@dataclasses.dataclass(frozen=True)
class Original:
    """The image that a new one was made of; ``format`` is None if the marker does not record it."""

    path: str
    format: str | None


def _name(image: str, fmt: str | None) -> str:
    return f"{image}{SUFFIX}" if fmt is None else f"{image}{SUFFIX}-{fmt}"


def _target(marker: str) -> str | None:
    """Where a marker leads to; None if there is none, or if another user made it: what it names may be deleted."""
    try:
        status = os.lstat(marker)
        ours = stat.S_ISLNK(status.st_mode) and status.st_uid in (0, os.geteuid())
        return os.readlink(marker) if ours else None
    except OSError:
        return None


def read(image: str) -> Original | None:
    """The original that the marker beside an image names; None if there is no marker."""
    found = ((fmt, _target(_name(image, fmt))) for fmt in (*FORMATS, None))
    return next((Original(path, fmt) for fmt, path in found if path is not None), None)


def there(image: str) -> bool:
    """Whether something has the name of a marker of an image."""
    return any(os.path.lexists(_name(image, fmt)) for fmt in (*FORMATS, None))


def make(image: str, original: Original) -> None:
    """Make the marker of an image that is about to be made. Raises OSError."""
    os.symlink(original.path, _name(image, original.format))


def remove(image: str) -> None:
    """Remove the markers of an image, as far as there are any."""
    for fmt in (*FORMATS, None):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_name(image, fmt))
