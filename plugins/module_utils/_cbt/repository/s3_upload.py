# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An object on its way to S3. Private to the collection."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import threading
import typing as t
import zlib

from ..errors import RepositoryError
from ..files import Buffer
from .s3_client import code_of, exceptions

PART = 16 << 20  # bytes; an object that is larger goes in parts side by side
_THREADS = 4

Answer = t.Dict[str, t.Any]


def body(data: Buffer) -> Answer:
    """A request's content with a checksum which the server compares, where it knows it; a bucket with object lock asks for one."""
    return {"Body": data, "ChecksumCRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()}


class Bucket(t.Protocol):
    """What an upload needs of the store it goes to."""

    client: t.Any

    def put(self, name: str, data: Buffer, replace: bool = True) -> bool:
        """Store an object by one request."""

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""

    def object_at(self, name: str) -> t.Dict[str, str]:
        """How requests name an object."""

    def explained(self, what: str, name: str) -> t.ContextManager[None]:
        """Errors inside the block as errors of the repository, about this object."""


class SpooledUpload:
    """An object in the making, kept in memory until it is whole; what is not written yet of a part takes none."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name = bucket, name
        self._turn = threading.Lock()
        self._parts: t.List[bytearray] = []
        self._size = 0

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        with self._turn:
            for buffer in buffers:
                left = memoryview(buffer)
                while left:
                    index, start = divmod(offset, PART)
                    self._parts.extend(bytearray(PART) for _missing in range(len(self._parts), index + 1))
                    piece = left[: PART - start]
                    self._parts[index][start : start + len(piece)] = piece
                    offset += len(piece)
                    left = left[len(piece) :]
                self._size = max(self._size, offset)

    def commit(self, replace: bool = True) -> bool:
        if self._parts:
            del self._parts[-1][self._size - (len(self._parts) - 1) * PART :]
        if not replace or len(self._parts) < 2:
            return self._bucket.put(self._name, b"".join(self._parts), replace)
        with self._bucket.explained("write", self._name):
            self._put_in_parts()
        return True

    def abandon(self) -> None:
        self._parts = []

    def _put_in_parts(self) -> None:
        client, where = self._bucket.client, self._bucket.object_at(self._name)
        upload = {**where, "UploadId": client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32")["UploadId"]}
        try:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                parts = list(pool.map(lambda index: self._put_part(upload, index), range(len(self._parts))))
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException as error:
            # If the answer to a first attempt at completion was lost, the object stands.
            if isinstance(error, exceptions.ClientError) and code_of(error) == "NoSuchUpload" and self._bucket.exists(self._name):
                return
            with contextlib.suppress(RepositoryError), self._bucket.explained("write", self._name):
                client.abort_multipart_upload(**upload)
            raise

    def _put_part(self, upload: t.Dict[str, str], index: int) -> Answer:
        content = body(self._parts[index])
        answer = self._bucket.client.upload_part(**upload, **content, PartNumber=index + 1)
        self._parts[index] = bytearray()  # no need of its memory any more
        return {"PartNumber": index + 1, "ETag": answer["ETag"], "ChecksumCRC32": content["ChecksumCRC32"]}
