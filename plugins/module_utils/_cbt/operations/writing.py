# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing one restored disk to a new image or onto a block device. Private to the collection."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import stat
import struct
import typing as t

from ..errors import CbtError, Refused
from ..files import Buffer, ParallelFile
from ..grid import BLOCK_SIZE
from ..hypervisor import qcow2
from ..repository.maps import ExtentMap

PREALLOCATIONS = ("none", "metadata", "falloc", "full")
_ZERO_RANGE = 0x127F  # BLKZEROOUT, see linux/fs.h
_ALIGNED = 4096  # what it takes on every device
_HEAD = 1 << 20  # bytes by which a partition table, a file system or an image is known; its first superblock lies in them
_ZEROES = bytes(1 << 20)


def is_device(path: str) -> bool:
    """True if a block device is there."""
    with contextlib.suppress(OSError):
        return stat.S_ISBLK(os.stat(path).st_mode)
    return False


def partial_name(path: str) -> str:
    """A name beside ``path`` for what is to appear there."""
    return f"{path}.partial-{secrets.token_hex(4)}"


def sweep(path: str) -> None:
    """Remove images that killed restores to ``path`` left under partial names; those that are being written are locked."""
    for left in glob.glob(f"{glob.escape(path)}.partial-????????"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(left)


def layout_of(extents: ExtentMap, image: t.Mapping[str, t.Any], preallocation: str) -> qcow2.Layout:
    """The layout of a qcow2 image like the original one. Raises Refused if its features do not go with its size."""
    runs = ((run.first * BLOCK_SIZE, min(run.count * BLOCK_SIZE, extents.size - run.first * BLOCK_SIZE)) for run in extents.runs())
    ranges = runs if preallocation == "none" else iter([(0, extents.size)])
    try:
        return qcow2.plan(extents.size, ranges, qcow2.features_like(image))
    except ValueError as error:
        raise Refused(f"Cannot make a qcow2 image of {extents.size} bytes like the original: {error}. Restore with format: raw.") from error


class DiskWriter:
    """An image or device that blocks are written into, from several threads. What is not written reads as zeroes."""

    def __init__(self, path: str, extents: ExtentMap, layout: t.Optional[qcow2.Layout], preallocation: str = "none") -> None:
        """Begin with all that belongs to the format: qcow2 with a layout, else raw. An image file must not exist yet, a device must."""
        self._path, self._extents, self._layout = path, extents, layout
        self._size = layout.file_size if layout is not None else extents.size
        self._head: t.Optional[bytearray] = bytearray(min(_HEAD, self._size)) if is_device(path) else None
        with self._explained():
            flags = os.O_CREAT | os.O_EXCL if self._head is None else os.O_EXCL  # which fails for a device that is mounted or in a volume group
            self._handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
            try:
                if self._head is None:
                    fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see sweep
                self._begin(preallocation)
            except BaseException:
                os.close(self._handle)
                raise

    def _begin(self, preallocation: str) -> None:
        self._file = ParallelFile(self._handle)
        metadata = [] if self._layout is None else self._layout.metadata()
        if self._head is None:
            os.ftruncate(self._handle, self._size)
            if preallocation == "falloc":
                os.posix_fallocate(self._handle, 0, self._size)
            elif preallocation == "full":
                self._fill(0, self._size)
        else:
            self._file.write([bytes(len(self._head))], 0)
            os.fsync(self._handle)  # from here on until the end it holds nothing that anybody would take for a disk
            metadata = list(metadata)
            self._clear(metadata)
        for offset, data in metadata:
            self._put(offset, [data])

    def _clear(self, metadata: t.Iterable[t.Tuple[int, bytes]]) -> None:
        """Zero what nothing will be written to: a device holds what was there before."""
        written = [(offset, len(data)) for offset, data in metadata]
        for run in self._extents.runs():
            start = run.first * BLOCK_SIZE
            written.append((self._place(start), min(run.count * BLOCK_SIZE, self._extents.size - start)))
        reached = 0
        for offset, length in [*sorted(written), (self._size, 0)]:
            if offset > reached:
                self._zero(reached, offset)
            reached = max(reached, offset + length)

    def _zero(self, start: int, stop: int) -> None:
        first, last = -(-start // _ALIGNED) * _ALIGNED, stop // _ALIGNED * _ALIGNED
        if first >= last:
            self._fill(start, stop)
            return
        self._fill(start, first)
        fcntl.ioctl(self._handle, _ZERO_RANGE, struct.pack("QQ", first, last - first))
        self._fill(last, stop)

    def _fill(self, start: int, stop: int) -> None:
        for offset in range(start, stop, len(_ZEROES)):
            self._file.write([memoryview(_ZEROES)[: stop - offset]], offset)

    def _place(self, offset: int) -> int:
        return self._layout.place(offset) if self._layout is not None else offset

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CbtError(f"Cannot write {self._path}: {error.strerror}. Free space there, or choose another place.") from error

    def write(self, offset: int, buffers: t.Sequence[Buffer]) -> None:
        """Write consecutive blocks from an offset of the disk on."""
        with self._explained():
            self._put(self._place(offset), buffers)

    def _put(self, place: int, buffers: t.Sequence[Buffer]) -> None:
        if self._head is None or place >= len(self._head):
            self._file.write(buffers, place)
            return
        data = b"".join(buffers)
        early = len(self._head) - place
        self._head[place : place + len(data)] = data[:early]
        if len(data) > early:
            self._file.write([data[early:]], place + early)

    def finish(self) -> None:
        """Bring everything onto the disk; what a device is known by comes last."""
        with self._explained():
            os.fsync(self._handle)
            if self._head is not None:
                self._file.write([self._head], 0)
                os.fsync(self._handle)

    def close(self) -> None:
        """Close it."""
        os.close(self._handle)
