# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An object on its way to S3."""

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

PART = 16 << 20  # bytes; where parts help, a larger object goes in such parts side by side
_PIECE = 1 << 18  # bytes handed to the network at once
_THREADS = 4
_SPOOL = 72 << 20  # bytes; what a pack takes at most, and a little more

Answer = dict[str, t.Any]


class Content:
    """What a request carries, as a file for the SDK: read in pieces, each of which has the time limit of a connection to itself.

    The SDK asks for 8 KiB at a time, and each time the interpreter changes hands; of bytes all have to be sent within one time limit.
    """

    def __init__(self, data: Buffer) -> None:
        self.data = memoryview(data)
        self._position = 0

    def __len__(self) -> int:
        return len(self.data)

    def read(self, size: int | None = -1) -> memoryview:
        """What is left if ``size`` is None or negative, else a piece of at least that many bytes."""
        start = self._position
        self._position = len(self.data) if size is None or size < 0 else min(start + max(size, _PIECE), len(self.data))
        return self.data[start : self._position]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.data)}[whence]
        return self._position

    def tell(self) -> int:
        """As of any file."""
        return self._position


def body(data: Buffer) -> Answer:
    """A request's content with a checksum which the server compares, where it knows it; a bucket with object lock asks for one."""
    return {"Body": Content(data), "ChecksumCRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()}


class Bucket(t.Protocol):
    """What an upload needs of the store it goes to."""

    client: t.Any
    spools: Spools

    def put(self, name: str, data: Buffer, replace: bool = True) -> bool:
        """Store an object by one request."""

    def is_far(self) -> bool:
        """Whether one connection would not fill the line."""

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""

    def object_at(self, name: str) -> dict[str, str]:
        """How requests name an object."""

    def explained(self, what: str, name: str) -> t.ContextManager[None]:
        """Errors inside the block as errors of the repository, about this object."""


class Spools:
    """Memory in which uploads gather what they carry, used again by later ones: fresh memory costs as much as hashing what is put there."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> mmap.mmap:
        """Memory of at least ``size`` bytes, with whatever stands in it. What is not written to costs nothing."""
        with contextlib.suppress(IndexError):
            found = self._free.pop()
            if len(found) >= size:
                return found
        return mmap.mmap(-1, max(size, _SPOOL), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def give(self, memory: mmap.mmap) -> None:
        """Memory that nobody uses any more."""
        self._free.append(memory)


class SpooledUpload:
    """An object in the making, kept in memory until it is whole."""

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
        self._length = (
            0  # nothing was sent; the memory goes with this object, for a request that failed may still hold it
        )

    def _put_in_parts(self, parts: t.Sequence[memoryview]) -> None:
        client, where = self._bucket.client, self._bucket.object_at(self._name)
        upload = {**where, "UploadId": client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32")["UploadId"]}
        try:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                done = list(pool.map(lambda each: self._put_part(upload, *each), enumerate(parts, 1)))
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})
        except BaseException as error:
            # If the answer to a first attempt at completion was lost, the object stands.
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
        content = body(part)
        answer = self._bucket.client.upload_part(**upload, **content, PartNumber=number)
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": content["ChecksumCRC32"]}
