# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of a disk to read."""

from __future__ import annotations

import typing as t

from .extents import Extent


class DiskConnection(t.Protocol):
    """Reads a disk. Do not share it between threads."""

    def read(self, offset: int, length: int) -> bytearray:
        """Read ``length`` bytes from ``offset``."""


class DiskSource(t.Protocol):
    """A disk of ``size`` bytes and the extents to read."""

    size: int

    def connect(self) -> t.ContextManager[DiskConnection]:
        """Open a connection to read data."""

    def allocation(self) -> t.Iterator[Extent]:
        """Return extents of the whole disk in order."""

    def extents(self) -> t.Iterator[Extent]:
        """Return the extents to process in order."""
