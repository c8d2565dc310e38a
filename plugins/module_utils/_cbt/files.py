# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files in large pieces. Private to the collection."""

from __future__ import annotations

import ctypes
import os
import threading
import typing as t

Buffer = t.Union[bytes, bytearray, memoryview]

_LIBC = ctypes.CDLL(None)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin to write, wait for nothing; a hint, so that its failure does not matter
_VECTORS = 512  # buffers handed to the kernel at once; its limit is 1024
_FLUSH_FROM = 1 << 16  # bytes; for less it is not worth a call


class ParallelFile:
    """A file written in pieces from several threads.

    The kernel lets one of them write to a file at a time and has the others spin; here they wait in turn, so that the
    processor is left to those that compute.
    """

    def __init__(self, handle: int) -> None:
        """``handle`` is an open file's; it is not closed here."""
        self._handle = handle
        self._turn = threading.Lock()

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        """Write buffers one after another at ``offset``. Raises OSError."""
        with self._turn:
            written = _write_all(self._handle, buffers, offset)
        if written >= _FLUSH_FROM:
            # Has the kernel begin to write to the disk at once, so that an fsync at the end has little left to wait for.
            _LIBC.sync_file_range(self._handle, ctypes.c_int64(offset), ctypes.c_int64(written), _WRITE)


def _write_all(handle: int, buffers: t.Sequence[Buffer], offset: int) -> int:
    left = list(buffers)
    start = offset
    while left:
        written = os.pwritev(handle, left[:_VECTORS], offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = memoryview(left[0])[written:]
    return offset - start
