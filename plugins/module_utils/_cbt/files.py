# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files in large pieces. Private to the collection."""

from __future__ import annotations

import os
import typing as t

Buffer = t.Union[bytes, bytearray, memoryview]

_VECTORS = 512  # buffers handed to the kernel at once; its limit is 1024
_FLUSH_FROM = 1 << 16  # bytes; for less it is not worth a call


def write_all(handle: int, buffers: t.Sequence[Buffer], offset: int) -> None:
    """Write buffers one after another at ``offset`` of an open file; may be called from several threads.

    The kernel begins to write them to the disk at once, so that an fsync at the end has little left to wait for.
    Raises OSError.
    """
    left = list(buffers)
    start = offset
    while left:
        written = os.pwritev(handle, left[:_VECTORS], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = memoryview(left[0])[written:]
    if offset - start >= _FLUSH_FROM:
        os.posix_fadvise(handle, start, offset - start, os.POSIX_FADV_DONTNEED)
