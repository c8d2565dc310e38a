# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Uploads to S3."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import io
import mmap
import threading
import typing as t
import zlib

from ...errors import RepositoryError
from ...files import Buffer
from .s3_client import code_of, exceptions

PART = 16 << 20  # bytes; on a far server, a larger object is uploaded in parts of this size in parallel
_PIECE = 1 << 18  # bytes passed to the network at once
_THREADS = 4
_SPOOL = 72 << 20  # bytes; slightly more than the largest pack

Answer = dict[str, t.Any]


class Content:
    """The content of a request as a file for the SDK, which reads it in pieces.

    Each piece has the time limit of a connection to itself; a bytes object would have one limit for all of it. The SDK
    asks for 8 KiB at a time, and each read switches threads: so a piece is larger.
    """

    def __init__(self, data: Buffer) -> None:
        self.data = memoryview(data)
        self._position = 0

    def __len__(self) -> int:
        return len(self.data)

    def read(self, size: int | None = -1) -> memoryview:
        """Return the next piece, at least ``size`` bytes; the rest if None or negative."""
        start = self._position
        self._position = len(self.data) if size is None or size < 0 else min(start + max(size, _PIECE), len(self.data))
        return self.data[start : self._position]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, as in any file."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.data)}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position, as in any file."""
        return self._position


def body(data: Buffer) -> Answer:
    """Return the body of a request with a CRC32 that the server verifies.

    A bucket with object lock requires a checksum.
    """
    return {"Body": Content(data), "ChecksumCRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()}


class Bucket(t.Protocol):
    """The operations an upload needs of its store."""

    client: t.Any
    spools: Spools

    def put(self, name: str, data: Buffer, replace: bool = True) -> bool:
        """Store an object with one request."""

    def is_far(self) -> bool:
        """Whether one connection cannot use the full bandwidth."""

    def exists(self, name: str) -> bool:
        """Whether the object exists."""

    def object_at(self, name: str) -> dict[str, str]:
        """Return the request parameters that name an object."""

    def explained(self, what: str, name: str) -> t.ContextManager[None]:
        """Turn errors inside the block into errors of the repository about this object."""


class Spools:
    """Reused upload buffers: fresh memory costs as much time as hashing its content."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> mmap.mmap:
        """Return a buffer of at least ``size`` bytes with arbitrary content. Untouched pages use no memory."""
        with contextlib.suppress(IndexError):
            found = self._free.pop()
            if len(found) >= size:
                return found
        return mmap.mmap(-1, max(size, _SPOOL), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def give(self, memory: mmap.mmap) -> None:
        """Return a buffer that is no longer used."""
        self._free.append(memory)


class SpooledUpload:
    """An object being written, kept in memory until it is complete."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name = bucket, name
        self._lock = threading.Lock()
        self._memory = bucket.spools.take(0)
        self._length = 0

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        with self._lock:
            end = offset + sum(map(len, buffers))
            if end > len(self._memory):
                small, self._memory = self._memory, self._bucket.spools.take(2 * end)
                self._memory[: self._length] = small[: self._length]
            if offset > self._length:
                self._memory[self._length : offset] = bytes(offset - self._length)
            self._length = max(self._length, end)
            for buffer in buffers:
                self._memory[offset : offset + len(buffer)] = buffer
                offset += len(buffer)

    def commit(self, replace: bool = True) -> bool:
        data = memoryview(self._memory)[: self._length]
        if not replace or len(data) <= PART or not self._bucket.is_far():
            stored = self._bucket.put(self._name, data, replace)
        else:
            with self._bucket.explained("write", self._name):
                self._put_in_parts([data[start : start + PART] for start in range(0, len(data), PART)])
            stored = True
        self._bucket.spools.give(self._memory)
        return stored

    def abandon(self) -> None:
        self._length = 0  # nothing was sent; the buffer is not reused, because a failed request may still refer to it

    def _put_in_parts(self, parts: t.Sequence[memoryview]) -> None:
        client, where = self._bucket.client, self._bucket.object_at(self._name)
        upload = {**where, "UploadId": client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32")["UploadId"]}
        try:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                done = list(pool.map(lambda each: self._put_part(upload, *each), enumerate(parts, 1)))
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})
        except BaseException as error:
            # If the response to a first attempt at completion was lost, the object exists.
            if (
                isinstance(error, exceptions.ClientError)
                and code_of(error) == "NoSuchUpload"
                and self._bucket.exists(self._name)
            ):
                return
            with contextlib.suppress(RepositoryError), self._bucket.explained("write", self._name):
                client.abort_multipart_upload(**upload)
            raise

    def _put_part(self, upload: dict[str, str], number: int, part: memoryview) -> Answer:
        answer = self._bucket.client.upload_part(**upload, **body(part), PartNumber=number)
        # A server that does not support the checksum returns none.
        return {"PartNumber": number, **{key: answer[key] for key in ("ETag", "ChecksumCRC32") if key in answer}}
