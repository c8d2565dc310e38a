# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes one restored disk to a new image, a block device or an NBD export."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import typing as t

from ...blocks.nbd_target import NbdTls
from ...errors import CbtError, Refused
from ...files import Buffer, lock
from ...grid import byte_range
from ...images import qcow2_layout
from ...repository.format.maps import ExtentMap
from .targets import open_target

# The head holds the partition table or the first superblock, by which programs recognize a disk.
_HEAD = 1 << 20


def partial_name(path: str) -> str:
    """Return a temporary name beside ``path``, for the image until it is complete."""
    return f"{path}.partial-{secrets.token_hex(4)}"


def sweep(path: str) -> None:
    """Remove images of killed restores to ``path``. Images that are being written are locked and stay."""
    for left in glob.glob(f"{glob.escape(path)}.partial-????????"):
        with (
            contextlib.suppress(OSError),
            # NFS locks only a file that is open for writing.
            open(os.open(left, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "r+b") as file,
        ):
            if lock(file.fileno(), wait=False):
                os.unlink(left)


def _stored_ranges(extents: ExtentMap) -> t.Iterator[tuple[int, int]]:
    """Yield the offset and length in bytes of each run of stored blocks."""
    for run in extents.runs():
        yield byte_range(run.first, run.count, extents.size)


def layout_of(extents: ExtentMap, image: t.Mapping[str, t.Any], preallocation: str) -> qcow2_layout.Layout:
    """Return the layout of a qcow2 image like the original. Raises Refused if its features do not allow its size."""
    ranges = _stored_ranges(extents) if preallocation == "none" else iter([(0, extents.size)])
    try:
        return qcow2_layout.plan(extents.size, ranges, qcow2_layout.features_like(image))
    except ValueError as error:
        raise Refused(
            f"Cannot make a qcow2 image of {extents.size} bytes like the original: {error}. Restore with format: raw."
        ) from error


class DiskWriter:
    """Writes blocks to an image, device or NBD export, from several threads. All other blocks read as zeroes."""

    def __init__(
        self,
        path: str,
        extents: ExtentMap,
        layout: qcow2_layout.Layout | None,
        preallocation: str,
        tls: NbdTls,
    ) -> None:
        """Open the target and write the metadata of the format: qcow2 with a layout, otherwise raw."""
        self._path, self._extents, self._layout = path, extents, layout
        self._size = layout.file_size if layout is not None else extents.size
        with self._explained():
            self._target = open_target(path, self._size, preallocation, tls)
            self._head = None if self._target.fresh else bytearray(min(_HEAD, self._size))
            try:
                self._begin()
            except BaseException:
                self._target.close()
                raise

    def _begin(self) -> None:
        metadata = [] if self._layout is None else self._layout.metadata()
        if self._head is not None:
            self._target.write([bytes(len(self._head))], 0)
            self._target.sync()  # until ``finish``, programs recognize no disk in it
            metadata = list(metadata)
            self._clear(metadata)
        for offset, data in metadata:
            self._put(offset, [data])

    def _clear(self, metadata: t.Iterable[tuple[int, bytes]]) -> None:
        """Zero the ranges to which nothing will be written: they hold previous content."""
        written = [(offset, len(data)) for offset, data in metadata]
        written += ((self._file_offset(start), length) for start, length in _stored_ranges(self._extents))
        reached = 0
        for offset, length in [*sorted(written), (self._size, 0)]:
            if offset > reached:
                self._target.zero(reached, offset)
            reached = max(reached, offset + length)

    def _file_offset(self, offset: int) -> int:
        return self._layout.file_offset(offset) if self._layout is not None else offset

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CbtError(
                f"Cannot write {self._path}: {error.strerror}. Free space there, or choose another place."
            ) from error

    def write(self, offset: int, buffers: t.Sequence[Buffer]) -> None:
        """Write consecutive blocks, starting at an offset of the disk."""
        with self._explained():
            self._put(self._file_offset(offset), buffers)

    def _put(self, position: int, buffers: t.Sequence[Buffer]) -> None:
        if self._head is None or position >= len(self._head):
            self._target.write(buffers, position)
            return
        data = b"".join(buffers)
        early = len(self._head) - position
        self._head[position : position + len(data)] = data[:early]
        if len(data) > early:
            self._target.write([data[early:]], position + early)

    def finish(self) -> None:
        """Flush all data, then write and flush the head of a device or export."""
        with self._explained():
            self._target.sync()
            if self._head is not None:
                self._target.write([self._head], 0)
                self._target.sync()

    def close(self) -> None:
        """Close the target."""
        self._target.close()
