# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of lab domains: what they are and how their images are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab.errors import LabError
from lab.process import run_tool

_BUSES = {"vd": "virtio", "sd": "sata", "hd": "ide"}


@dataclass(frozen=True)
class DiskSpec:
    """One disk of a lab domain; sizes in bytes.

    With `source` an existing image is used in place and kept at the end; otherwise an image
    of `size` bytes is made. A cdrom without source and size is an empty drive.
    """

    target: str
    size: int = 0
    format: str = "qcow2"
    compat: str = "1.1"
    cluster_size: int | None = None
    source: Path | None = None
    readonly: bool = False
    device: Literal["disk", "cdrom"] = "disk"
    logical_block_size: int | None = None
    physical_block_size: int | None = None

    @property
    def bus(self) -> str:
        """The bus that goes with the target's name."""
        try:
            return _BUSES[self.target[:2]]
        except KeyError:
            raise LabError(f"no bus known for disk target {self.target!r}") from None

    @property
    def empty(self) -> bool:
        """Whether this is a drive without medium."""
        return self.source is None and self.size == 0

    def image_options(self) -> list[str]:
        """The `-o` arguments with which qemu-img makes the image."""
        if self.format != "qcow2":
            return []
        options = [f"compat={self.compat}"]
        if self.cluster_size is not None:
            options.append(f"cluster_size={self.cluster_size}")
        return ["-o", ",".join(options)]


def create_image(spec: DiskSpec, path: Path) -> None:
    """Make an empty image for `spec`."""
    run_tool(["qemu-img", "create", "-q", "-f", spec.format, *spec.image_options(), path, str(spec.size)])
    path.chmod(0o644)


def create_ext4_image(spec: DiskSpec, path: Path) -> None:
    """Make an image for `spec` which holds one journaling ext4 file system, no partitions."""
    raw = path.with_suffix(".mkfs")
    with raw.open("wb") as file:
        file.truncate(spec.size)
    try:
        # Without lazy initialisation the kernel does not write in the background later,
        # so tests see their own dirty blocks only.
        lazy_off = "lazy_itable_init=0,lazy_journal_init=0"
        run_tool(["/sbin/mkfs.ext4", "-q", "-F", "-E", lazy_off, raw])
        run_tool(["qemu-img", "convert", "-f", "raw", "-O", spec.format, *spec.image_options(), raw, path])
    finally:
        raw.unlink()
    path.chmod(0o644)
