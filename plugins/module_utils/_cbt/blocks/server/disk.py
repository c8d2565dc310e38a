# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of a disk that is served."""

from __future__ import annotations

import typing as t

from ...files import Buffer

Piece = tuple[int, t.Sequence[Buffer]]  # a number of bytes, and the bytes in buffers; none if they are all zero


class Disk(t.Protocol):
    """A disk of ``size`` bytes. Several threads may read it at once."""

    size: int

    def extents(self, offset: int, length: int) -> t.Iterator[tuple[int, bool]]:
        """Yield length in bytes and whether it may hold data, of the parts of a range. The rest is zero."""

    def read(self, offset: int, length: int) -> t.Iterator[Piece]:
        """Yield the bytes of a range. Raises CbtError or OSError at the first byte that cannot be read."""


@t.runtime_checkable
class WritableDisk(Disk, t.Protocol):
    """A disk that clients may write to."""

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes. Raises CbtError or OSError."""

    def zero(self, offset: int, length: int) -> None:
        """Write zeroes. Raises CbtError or OSError."""
