# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects in a bucket of S3 or of a server compatible with it. Private to the collection."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import datetime
import random
import threading
import time
import typing as t
import zlib

from ..errors import ObjectLocked, ObjectMissing, RepositoryError
from ..files import Buffer
from . import s3_client
from .places import S3_SCHEME, S3Options
from .s3_client import code_of, exceptions, explained
from .stores import Entry, Upload

PART = 16 << 20  # bytes; what is larger goes in parts side by side
_PART_THREADS = 4
_ASKING_THREADS = 16
_FORSAKEN = 7 * 86400  # seconds after which an upload in parts that did not end is of a killed process
_OPEN_UPLOADS = 4

Answer = t.Dict[str, t.Any]


class S3Store:
    """Objects below a prefix in a bucket, which must exist. May be used from several threads."""

    local_path: t.Optional[str] = None
    open_uploads: t.Optional[int] = _OPEN_UPLOADS

    def __init__(self, location: str, options: S3Options) -> None:
        bucket, *folders = [part for part in location[len(S3_SCHEME) :].split("/") if part] or [""]
        if not bucket:
            raise RepositoryError(f"The repository {location} names no bucket. Write it as s3://bucket/prefix.")
        self.location = S3_SCHEME + "/".join([bucket, *folders])
        self._bucket = bucket
        self._prefix = "".join(f"{folder}/" for folder in folders)
        self._client = s3_client.connect(options)

    # Writing.

    def upload(self, name: str) -> Upload:
        return _Spooled(self, name)

    def put(self, name: str, data: Buffer, replace: bool = True) -> bool:
        if replace and len(data) > PART:
            self._put_in_parts(name, data)
            return True
        if replace:
            with self._explained("write", name):
                self._client.put_object(**self._object(name), **_body(data))
            return True
        # Not every server knows or heeds the condition below.
        return not self._exists(name) and self._put_new(name, data)

    def _put_new(self, name: str, data: Buffer) -> bool:
        with self._explained("write", name):
            try:
                self._client.put_object(**self._object(name), **_body(data), IfNoneMatch="*")
            except exceptions.ClientError as error:
                code = code_of(error)
                if code in ("PreconditionFailed", "412"):
                    # If the answer to a first attempt was lost, it is this very object that stands in the way.
                    return bool(error.response["ResponseMetadata"].get("RetryAttempts")) and self.get(name) == bytes(data)
                if code in ("ConditionalRequestConflict", "409"):
                    return not self._exists(name) and self._put_new(name, data)
                if code not in ("NotImplemented", "501"):
                    raise
                self._client.put_object(**self._object(name), **_body(data))
        return True

    def _put_in_parts(self, name: str, data: Buffer) -> None:
        where = self._object(name)
        with self._explained("write", name), memoryview(data) as view:
            upload = self._client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32")["UploadId"]

            def put(number: int) -> Answer:
                content = _body(bytes(view[(number - 1) * PART : number * PART]))
                answer = self._client.upload_part(**where, **content, UploadId=upload, PartNumber=number)
                return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": content["ChecksumCRC32"]}

            try:
                with concurrent.futures.ThreadPoolExecutor(_PART_THREADS) as pool:
                    parts = list(pool.map(put, range(1, -(-len(data) // PART) + 1)))
                self._client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
            except BaseException as error:
                # If the answer to a first attempt at completion was lost, the object stands.
                if isinstance(error, exceptions.ClientError) and code_of(error) == "NoSuchUpload" and self._exists(name):
                    return
                with contextlib.suppress(RepositoryError), self._explained("write", name):
                    self._client.abort_multipart_upload(**where, UploadId=upload)
                raise

    # Reading.

    def get(self, name: str) -> bytes:
        return self._read(name)[1]

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if not length:
            self.size(name)
            return b""
        try:
            answer, data = self._read(name, Range=f"bytes={offset}-{offset + length - 1}")
        except _BeyondEnd:
            return b""
        if "ContentRange" not in answer:  # a server that knows no ranges
            return data[offset : offset + length]
        span, _slash, total = answer["ContentRange"].partition(" ")[2].partition("/")
        if span != f"{offset}-{offset + len(data) - 1}" or len(data) != min(length, int(total) - offset):
            raise RepositoryError(f"Cannot read {self._path(name)}: the server sent other bytes than asked for ({answer['ContentRange']}).")
        return data

    def _read(self, name: str, **which: str) -> t.Tuple[Answer, bytes]:
        """Answer and body. The SDK repeats requests but not the reading of a body that breaks off."""
        with self._explained("read", name):
            for attempt in range(s3_client.ATTEMPTS):
                try:
                    answer = self._client.get_object(**self._object(name), **which)
                except exceptions.ClientError as error:
                    if code_of(error) in ("InvalidRange", "416"):
                        raise _BeyondEnd() from error
                    raise
                try:
                    data = answer["Body"].read()
                    if len(data) == answer["ContentLength"]:
                        return answer, data
                except (exceptions.BotoCoreError, OSError):
                    if attempt + 1 == s3_client.ATTEMPTS:
                        raise
                time.sleep(random.uniform(0, 2**attempt / 4))
        raise RepositoryError(f"Cannot read {self._path(name)}: the server sent less than it announced, again and again. Check the server.")

    def size(self, name: str) -> int:
        return int(self._head(name)["ContentLength"])

    def modified(self, name: str) -> float:
        return float(self._head(name)["LastModified"].timestamp())

    def _exists(self, name: str) -> bool:
        try:
            self._head(name)
        except ObjectMissing:
            return False
        return True

    def _head(self, name: str, **which: str) -> Answer:
        with self._explained("read", name):
            try:
                return t.cast(Answer, self._client.head_object(**self._object(name), **which))
            except exceptions.ClientError as error:
                if code_of(error) != "404":
                    raise
        # The answer has no body that would tell what is missing: object, bucket or server.
        with contextlib.suppress(_BeyondEnd):
            self._read(name, Range="bytes=0-0", **which)
        return self._head(name, **which)  # it has come meanwhile

    # Listing.

    def list(self, prefix: str) -> t.Iterator[str]:
        return (entry.name for entry in self.entries(prefix))

    def entries(self, prefix: str) -> t.Iterator[Entry]:
        for page in self._pages(Prefix=f"{self._prefix}{prefix}/"):
            for each in page.get("Contents", []):
                yield Entry(each["Key"][len(self._prefix) :], each["Size"], each["LastModified"].timestamp())

    def occupants(self) -> t.Set[str]:
        found: t.Set[str] = set()
        for page in self._pages(Prefix=self._prefix, Delimiter="/"):
            names = [each["Key"] for each in page.get("Contents", [])] + [each["Prefix"] for each in page.get("CommonPrefixes", [])]
            found.update(name[len(self._prefix) :].rstrip("/") for name in names)
        return found - {""}  # consoles make an empty object for a folder

    def _pages(self, **which: str) -> t.Iterator[Answer]:
        """All pages of a listing. Raises RepositoryError rather than ending early."""
        more: t.Dict[str, str] = {}
        while True:
            with explained("list", self.location):
                page = self._client.list_objects_v2(Bucket=self._bucket, **which, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            if not page.get("NextContinuationToken"):
                raise RepositoryError(f"Cannot list {self.location}: the server does not tell how the listing goes on. Check the server.")
            more = {"ContinuationToken": page["NextContinuationToken"]}

    # Deleting.

    def delete(self, name: str) -> None:
        try:
            head = self._head(name)
        except ObjectMissing:
            return
        if head.get("VersionId") is None:
            with self._explained("delete", name):
                self._client.delete_object(**self._object(name))
        else:
            self._delete_versions(name)

    def _delete_versions(self, name: str) -> None:
        """Delete from the oldest version to the newest: wherever it ends, no older one comes to light."""
        for version in reversed(self._versions(name)):
            try:
                with self._explained("delete", name):
                    self._client.delete_object(**self._object(name), VersionId=version)
            except RepositoryError as error:
                until = self._locked_until(name, VersionId=version)
                if until is None:
                    raise
                day = datetime.datetime.fromtimestamp(until, datetime.timezone.utc).isoformat(timespec="seconds") if until < _FOREVER else "its legal hold ends"
                raise ObjectLocked(f"Cannot delete {self._path(name)}: the bucket's object lock keeps it until {day}.") from error

    def _versions(self, name: str) -> t.List[str]:
        """The ids of an object's versions and delete markers, newest first."""
        key = self._prefix + name
        found: t.List[Answer] = []
        with self._explained("list the versions of", name):
            for page in self._client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=key):
                found += [each for kind in ("Versions", "DeleteMarkers") for each in page.get(kind, []) if each["Key"] == key]
        found.sort(key=lambda each: (each["IsLatest"], each["LastModified"]), reverse=True)
        return [each["VersionId"] for each in found]

    def sweep(self) -> None:
        before = time.time() - _FORSAKEN
        with contextlib.suppress(RepositoryError), explained("list", self.location):
            for each in self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=f"{self._prefix}packs/").get("Uploads", []):
                if each["Initiated"].timestamp() < before:
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=each["Key"], UploadId=each["UploadId"])

    # Object lock.

    def locked_until(self, name: str) -> t.Optional[float]:
        return self._locked_until(name)

    def _locked_until(self, name: str, **which: str) -> t.Optional[float]:
        head = self._head(name, **which)
        if head.get("ObjectLockLegalHoldStatus") == "ON":
            return _FOREVER
        until = head.get("ObjectLockRetainUntilDate")
        return float(until.timestamp()) if until is not None and until.timestamp() > time.time() else None

    def protect(self, names: t.Iterable[str], like: str) -> None:
        head = self._head(like)
        mode, until = head.get("ObjectLockMode"), head.get("ObjectLockRetainUntilDate")
        if mode is None or until is None:
            return

        def lock(name: str) -> None:
            known = self._head(name).get("ObjectLockRetainUntilDate")
            if known is None or known < until:
                with self._explained("lock", name):
                    self._client.put_object_retention(**self._object(name), Retention={"Mode": mode, "RetainUntilDate": until})

        with concurrent.futures.ThreadPoolExecutor(_ASKING_THREADS) as pool:
            for _done in pool.map(lock, names):
                pass

    # Within.

    def _object(self, name: str) -> t.Dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def _path(self, name: str) -> str:
        return f"{self.location}/{name}"

    def _explained(self, what: str, name: str) -> t.ContextManager[None]:
        return explained(what, self._path(name))


_FOREVER = float("inf")


class _BeyondEnd(Exception):
    """A range begins behind the end of its object."""


class _Spooled:
    """An object in the making, kept in memory until it is whole."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._store, self._name = store, name
        self._turn = threading.Lock()
        self._data = bytearray()

    def write(self, buffers: t.Sequence[Buffer], offset: int) -> None:
        with self._turn:
            for buffer in buffers:
                end = offset + len(buffer)
                if end > len(self._data):
                    self._data.extend(bytes(end - len(self._data)))
                self._data[offset:end] = buffer
                offset = end

    def commit(self, replace: bool = True) -> bool:
        appeared = self._store.put(self._name, self._data, replace)
        self.abandon()
        return appeared

    def abandon(self) -> None:
        self._data = bytearray()


def _body(data: Buffer) -> Answer:
    """A request's content with a checksum which the server compares, where it knows it; a bucket with object lock asks for one."""
    return {"Body": data, "ChecksumCRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()}
