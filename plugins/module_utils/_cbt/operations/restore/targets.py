# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets of restored disks: new image files, block devices, NBD exports."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct

from ...blocks.nbd_target import NbdTarget, NbdTls, is_nbd
from ...files import ParallelFile, lock

_ZERO_RANGE = 0x127F  # BLKZEROOUT, see linux/fs.h
_ALIGNED = 4096  # bytes, the alignment that works on every device
_ZEROES = bytes(1 << 20)


def is_device(path: str) -> bool:
    """Whether the path is a block device."""
    with contextlib.suppress(OSError):
        return stat.S_ISBLK(os.stat(path).st_mode)
    return False


def in_place(path: str) -> bool:
    """Whether the path is written without a temporary name: a device, or an NBD export."""
    return is_nbd(path) or is_device(path)


def open_target(path: str, size: int, preallocation: str, tls: NbdTls) -> ImageFile | BlockDevice | NbdTarget:
    """Open a path or URI. An image file must not exist yet; any other target must.

    ``size`` is that of an image file in bytes. Several threads may write to the target. Bytes that were not written
    read as zeroes only if it is ``fresh``. Its methods raise CbtError or OSError.
    """
    if is_nbd(path):
        return NbdTarget(path, tls)
    return BlockDevice(path) if is_device(path) else ImageFile(path, size, preallocation)


class _File(ParallelFile):
    def __init__(self, path: str, flags: int = 0) -> None:
        super().__init__(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_EXCL | flags, 0o600))

    def zero(self, start: int, stop: int) -> None:
        """Write zeroes between two offsets."""
        for offset in range(start, stop, len(_ZEROES)):
            self.write([memoryview(_ZEROES)[: stop - offset]], offset)

    def sync(self) -> None:
        """Flush all data to disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the target."""
        os.close(self._handle)


class ImageFile(_File):
    """A new image file, locked (flock) while it is open."""

    fresh = True

    def __init__(self, path: str, size: int, preallocation: str) -> None:
        """Create the file. ``preallocation`` is as in qemu-img; ``metadata`` is the caller's task."""
        super().__init__(path, os.O_CREAT)
        try:
            lock(self._handle, wait=False)
            os.ftruncate(self._handle, size)
            if preallocation == "falloc":
                os.posix_fallocate(self._handle, 0, size)
            elif preallocation == "full":
                self.zero(0, size)
        except BaseException:
            self.close()
            raise


class BlockDevice(_File):
    """An unused device: opening fails if it is mounted or in a volume group."""

    fresh = False

    def zero(self, start: int, stop: int) -> None:
        """Make the range between two offsets read as zeroes."""
        first, last = -(-start // _ALIGNED) * _ALIGNED, stop // _ALIGNED * _ALIGNED
        if first >= last:
            super().zero(start, stop)
            return
        super().zero(start, first)
        fcntl.ioctl(self._handle, _ZERO_RANGE, struct.pack("QQ", first, last - first))
        super().zero(last, stop)
