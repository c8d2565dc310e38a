# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images outside of a running domain, by QEMU's own tools. Private to the collection."""

from __future__ import annotations

import typing as t

from .. import programs
from ..errors import ProgramError


def info(path: str, share: bool = False, fmt: t.Optional[str] = None) -> t.Mapping[str, t.Any]:
    """What ``qemu-img info`` says of an image. ``share`` reads it even while a domain has it open for writing; ``fmt`` None probes."""
    arguments = ["qemu-img", "info", "--output=json", *(["-U"] if share else []), *(["-f", fmt] if fmt else []), "--", path]
    return t.cast("t.Mapping[str, t.Any]", programs.run_json(arguments))


def in_use(path: str) -> bool:
    """True if some process, such as a running domain, holds the image open for writing."""
    try:
        info(path)
    except ProgramError as error:
        return "lock" in str(error)
    return False


def remove_bitmap(path: str, name: str) -> None:
    """Remove a bitmap from the image of a shut-off domain."""
    programs.run(["qemu-img", "bitmap", "--remove", "--", path, name])


def add_bitmap(path: str, name: str, granularity: int, recording: bool) -> None:
    """Add a bitmap to the image of a shut-off domain; ``granularity`` in bytes."""
    programs.run(["qemu-img", "bitmap", "--add", *([] if recording else ["--disable"]), "-g", str(granularity), "--", path, name])
