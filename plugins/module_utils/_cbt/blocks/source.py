# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read: a disk of a domain, or something that stands for one."""

from __future__ import annotations

import typing as t

from .extents import Extent


class DiskConnection(t.Protocol):
    """Reads a disk. Not to be shared between threads."""

    def read(self, offset: int, length: int) -> bytearray:
        """``length`` bytes from ``offset``."""


class DiskSource(t.Protocol):
    """A disk of ``size`` bytes and the extents to look at."""

    size: int

    def connect(self) -> t.ContextManager[DiskConnection]:
        """Something to read data with."""

    def allocation(self) -> t.Iterator[Extent]:
        """The whole disk in order, flagged by whether it reads as zero."""

    def extents(self) -> t.Iterator[Extent]:
        """All extents to look at, ordered, flagged by whether they read as zero."""
