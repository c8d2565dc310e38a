# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files in large pieces."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import typing as t

from .trusted_files import opened

Buffer = t.Union[bytes, bytearray, memoryview]

_LIBC = ctypes.CDLL(None, use_errno=True)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin to write without waiting; a hint, so failures do not matter
_WRITE_AND_WAIT = 7  # wait for writes in progress, write the rest, and wait for it
_BEHIND = 32 << 20  # bytes after which written data leaves the page cache
_VECTORS = 512  # buffers passed to the kernel in one call; its limit is 1024
_FLUSH_FROM = 1 << 16  # bytes; smaller writes are not worth a call


def sync(path: str) -> None:
    """Flush a file's data, or the names in a folder, to the disk. Raises OSError."""
    with opened(path, os.O_RDONLY) as handle:
        os.fsync(handle)


def delete(path: str) -> None:
    """Delete a file, if it exists. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class ParallelFile:
    """A file written in pieces from several threads.

    The kernel lets one thread at a time write to a file, and the others spin. Here they wait for a lock, which leaves
    the processor to threads that compute.
    """

    def __init__(self, handle: int) -> None:
        """``handle`` is the handle of an open file. The caller closes it."""
        self._handle = handle
        self._lock = threading.Lock()
        self._written = 0  # bytes since the cache was last emptied, and their range
        self._lowest, self._highest = sys.maxsize, 0

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        """Write buffers one after another at ``offset``. Raises OSError."""
        with self._lock:
            written = _write_all(self._handle, buffers, offset)
            self._written += written
            self._lowest, self._highest = min(self._lowest, offset), max(self._highest, offset + written)
            behind = (self._lowest, self._highest) if self._written >= _BEHIND else None
            if behind is not None:
                self._written, self._lowest, self._highest = 0, sys.maxsize, 0
        if written >= _FLUSH_FROM:
            # The kernel begins to write to the disk now, so that an fsync at the end has little left to wait for.
            self._sync(offset, offset + written, _WRITE)
        if behind is not None:
            # A hypervisor's page cache is for its guests: written data makes room for the next data.
            if self._sync(*behind, _WRITE_AND_WAIT):
                number = ctypes.get_errno()  # the kernel reports an error once: a later fsync would succeed
                raise OSError(number, os.strerror(number))
            os.posix_fadvise(self._handle, behind[0], behind[1] - behind[0], os.POSIX_FADV_DONTNEED)

    def _sync(self, start: int, end: int, flags: int) -> int:
        return t.cast(
            int, _LIBC.sync_file_range(self._handle, ctypes.c_int64(start), ctypes.c_int64(end - start), flags)
        )


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
