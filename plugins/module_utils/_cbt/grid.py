# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fixed grid of blocks.

Blocks start at multiples of BLOCK_SIZE from offset 0 of a disk; the last one may be short.
The size equals the granularity of QEMU's dirty bitmaps, so a changed bit costs one block.
"""

from __future__ import annotations

BLOCK_SIZE = 65536
ZERO_BLOCK = bytes(BLOCK_SIZE)


def block_count(size: int) -> int:
    """Number of blocks of a disk of ``size`` bytes, a short last one included."""
    return -(-size // BLOCK_SIZE)


def block_length(block: int, size: int) -> int:
    """Bytes of ``block`` on a disk of ``size`` bytes."""
    return min(BLOCK_SIZE, size - block * BLOCK_SIZE)
