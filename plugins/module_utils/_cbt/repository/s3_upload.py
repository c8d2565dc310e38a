# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An object on its way to S3. Private to the collection."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import io
import threading
import typing as t
import zlib

from ..errors import RepositoryError
from ..files import Buffer
from .s3_client import code_of, exceptions

PART = 16 << 20  # bytes; where parts help, a larger object goes in such parts side by side
_PIECE = 1 << 18  # bytes handed to the network at once
_THREADS = 4

Answer = t.Dict[str, t.Any]


class Content(io.BytesIO):
    """What a request carries, sent in pieces: each has the time limit of a connection to itself, and costs a turn of the interpreter.

    The SDK asks for 8 KiB at a time, which is too many turns; of what it is given at once, all has to be sent within the one time limit.
    """

    def read(self, size: t.Optional[int] = -1) -> bytes:
        """What is left if ``size`` is None or negative, else a piece of at least that many bytes."""
        return super().read(size if size is None or size < 0 else max(size, _PIECE))


def body(content: Content) -> Answer:
    """A request's content with a checksum which the server compares, where it knows it; a bucket with object lock asks for one."""
    with content.getbuffer() as data:
        checksum = zlib.crc32(data)
    content.seek(0)
    return {"Body": content, "ChecksumCRC32": base64.b64encode(checksum.to_bytes(4, "big")).decode()}


class Bucket(t.Protocol):
    """What an upload needs of the store it goes to."""

    client: t.Any

    def put_content(self, name: str, content: Content, replace: bool) -> bool:
        """Store an object by one request."""

    def is_far(self) -> bool:
        """Whether one connection would not fill the line."""

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""

    def object_at(self, name: str) -> t.Dict[str, str]:
        """How requests name an object."""

    def explained(self, what: str, name: str) -> t.ContextManager[None]:
        """Errors inside the block as errors of the repository, about this object."""


class SpooledUpload:
    """An object in the making, kept in memory until it is whole."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name = bucket, name
        self._turn = threading.Lock()
        self._content = Content()

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        with self._turn:
            self._content.seek(offset)
            for buffer in buffers:
                self._content.write(buffer)

    def commit(self, replace: bool = True) -> bool:
        size = self._content.seek(0, io.SEEK_END)
        if not replace or size <= PART or not self._bucket.is_far():
            return self._bucket.put_content(self._name, self._content, replace)
        with self._bucket.explained("write", self._name):
            self._put_in_parts(size)
        return True

    def abandon(self) -> None:
        self._content = Content()

    def _put_in_parts(self, size: int) -> None:
        client, where = self._bucket.client, self._bucket.object_at(self._name)
        upload = {**where, "UploadId": client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32")["UploadId"]}
        try:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                parts = list(pool.map(lambda start: self._put_part(upload, start), range(0, size, PART)))
            client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException as error:
            # If the answer to a first attempt at completion was lost, the object stands.
            if isinstance(error, exceptions.ClientError) and code_of(error) == "NoSuchUpload" and self._bucket.exists(self._name):
                return
            with contextlib.suppress(RepositoryError), self._bucket.explained("write", self._name):
                client.abort_multipart_upload(**upload)
            raise

    def _put_part(self, upload: t.Dict[str, str], start: int) -> Answer:
        with self._content.getbuffer() as data:
            content = body(Content(data[start : start + PART]))
        number = start // PART + 1
        answer = self._bucket.client.upload_part(**upload, **content, PartNumber=number)
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": content["ChecksumCRC32"]}
