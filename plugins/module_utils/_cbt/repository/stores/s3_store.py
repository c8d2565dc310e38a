# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects in a bucket of S3 or of a compatible server."""

from __future__ import annotations

import builtins
import concurrent.futures
import contextlib
import math
import random
import re
import time
import typing as t
import urllib.parse

from ...control import Control
from ...errors import ObjectLocked, ObjectMissing, RepositoryError
from ...files import Buffer
from ...printable import utc_time
from ..format import names
from . import s3_client
from .base import Entry, Foreign, Upload, check_size, counted
from .reserve import Reserve
from .s3_client import code_of, exceptions, explained, refuses_header
from .s3_options import S3_SCHEME, S3Options
from .s3_upload import SpooledUpload, Spools, body

_ASKING_THREADS = 16
_FORSAKEN = 7 * 86400  # seconds after which an unfinished multipart upload is considered abandoned
_OPEN_UPLOADS = 4
_RANGE = re.compile("bytes ([0-9]+-[0-9]+)/([0-9]{1,18})")
_FAR = 0.01  # seconds until a response without content; above that, a server is far

Answer = dict[str, t.Any]


class S3Store:
    """Objects below a prefix in an existing bucket. Several threads may use it."""

    local_path: str | None = None
    open_uploads: int | None = _OPEN_UPLOADS

    def __init__(self, location: str, options: S3Options, control: Control | None = None) -> None:
        bucket, *folders = [part for part in location[len(S3_SCHEME) :].split("/") if part] or [""]
        if not bucket:
            raise RepositoryError(f"The repository {location} names no bucket. Write it as s3://bucket/prefix.")
        self.location = S3_SCHEME + "/".join([bucket, *folders])
        self._bucket = bucket
        self._prefix = "".join(f"{folder}/" for folder in folders)
        self._answered_within = math.inf  # seconds of the fastest response
        self.foreign = Foreign(self.location)
        self.reserve = Reserve(keep=lambda: None)
        self._control = control or Control()
        self.client = s3_client.connect(options, self._control)
        self.spools = Spools()

    @property
    def endpoint(self) -> str:
        """The server that distinguishes buckets of the same name. All regions of AWS share their names."""
        url = urllib.parse.urlsplit(self.client.meta.endpoint_url)
        if f".{url.hostname}".endswith(".amazonaws.com"):
            return "AWS"
        return f"{url.hostname}:{url.port or (80 if url.scheme == 'http' else 443)}{url.path.rstrip('/')}"

    # Writing.

    def upload(self, name: str) -> Upload:
        return SpooledUpload(self, names.check_object(name))

    def put(self, name: str, data: Buffer, replace: bool = True) -> bool:
        if replace:
            with self.explained("write", name):
                self.client.put_object(**self.object_at(name), **body(data))
            return True
        # Not every server knows or honours the condition below.
        return not self.exists(name) and self._put_new(name, data)

    def _put_new(self, name: str, data: Buffer) -> bool:
        with self.explained("write", name):
            try:
                self.client.put_object(**self.object_at(name), **body(data), IfNoneMatch="*")
            except exceptions.ClientError as error:
                code = code_of(error)
                if code in ("PreconditionFailed", "412"):
                    # If the response to a first attempt was lost, the existing object is our own.
                    return bool(error.response["ResponseMetadata"].get("RetryAttempts")) and self.get(name) == bytes(
                        data
                    )
                if code in ("ConditionalRequestConflict", "409"):
                    return not self.exists(name) and self._put_new(name, data)
                if not refuses_header(error):
                    raise
                self.client.put_object(**self.object_at(name), **body(data))
        return True

    def swap(self, name: str, before: bytes, after: bytes) -> bool:
        try:
            answer, data = self._read(name)
        except ObjectMissing:
            return False
        if data != before:
            return False
        tag = answer.get("ETag", "")
        with self.explained("write", name):
            # Ceph compares with the tag without its quotes.
            for each in filter(None, dict.fromkeys((tag, tag.strip('"')))):
                done = self._put_if(name, after, each)
                if done is not None:
                    return done
                now = self.get(name)
                if now != before:
                    return now == after  # the response to a first attempt may have been lost
            self.client.put_object(**self.object_at(name), **body(after))
        return True

    def _put_if(self, name: str, data: bytes, tag: str) -> bool | None:
        """Replace an object if it has this tag. Return False if a concurrent request won.

        Returns None if the tag differs, or if the server does not support conditions.
        """
        try:
            self.client.put_object(**self.object_at(name), **body(data), IfMatch=tag)
        except exceptions.ClientError as error:
            if code_of(error) in ("PreconditionFailed", "412") or refuses_header(error):
                return None
            if code_of(error) in ("ConditionalRequestConflict", "409", "NoSuchKey"):
                return False
            raise
        return True

    def is_far(self) -> bool:
        """Whether latency keeps one connection from using the full bandwidth."""
        return self._answered_within > _FAR

    # Reading.

    def get(self, name: str, most: int | None = None) -> bytes:
        return self._read(name, most)[1]

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if not length:
            self.size(name)
            return b""
        try:
            answer, data = self._read(name, Range=f"bytes={offset}-{offset + length - 1}")
        except _BeyondEnd:
            return b""
        if "ContentRange" not in answer:  # the server does not support ranges
            return data[offset : offset + length]
        found = _RANGE.fullmatch(answer["ContentRange"])
        if (
            found is None
            or found[1] != f"{offset}-{offset + len(data) - 1}"
            or len(data) != min(length, int(found[2]) - offset)
        ):
            sent = names.shown(answer["ContentRange"])
            raise RepositoryError(
                f"Cannot read {self._path(name)}: the server sent another range than requested ({sent}). Check the"
                " server."
            )
        return data

    def _read(self, name: str, most: int | None = None, **which: str) -> tuple[Answer, bytes]:
        """Return response and body, of at most ``most`` bytes.

        The SDK retries requests, but not the reading of a body that breaks off.
        """
        with self.explained("read", name):
            for attempt in range(s3_client.ATTEMPTS):
                try:
                    answer = self.client.get_object(**self.object_at(name), **which)
                except exceptions.ClientError as error:
                    if code_of(error) in ("InvalidRange", "416"):
                        raise _BeyondEnd() from error
                    raise
                length = answer["ContentLength"]
                try:
                    limit = check_size(self._path(name), name, length, most)
                    data = answer["Body"].read(limit + 1)
                    if len(data) == length:
                        return answer, data
                except (exceptions.BotoCoreError, OSError):
                    if attempt + 1 == s3_client.ATTEMPTS:
                        raise
                self._control.note("retry", request="GetObject", attempt=attempt + 1, error="the answer broke off")
                _pause(attempt)
        raise RepositoryError(
            f"Cannot read {self._path(name)}: the server repeatedly sent less than it announced. Check the server."
        )

    def size(self, name: str) -> int:
        with self.explained("read", name):
            return int(self._head(name)["ContentLength"])

    def modified(self, name: str) -> float:
        with self.explained("read", name):
            return float(self._head(name)["LastModified"].timestamp())

    def exists(self, name: str) -> bool:
        """Whether the object exists."""
        try:
            self._head(name)
        except ObjectMissing:
            return False
        return True

    def _head(self, name: str, **which: str) -> Answer:
        began = time.monotonic()
        with self.explained("read", name):
            try:
                return t.cast(Answer, self.client.head_object(**self.object_at(name), **which))
            except exceptions.ClientError as error:
                if code_of(error) not in ("400", "403", "404"):
                    raise
                refusal = error
            finally:
                self._answered_within = min(self._answered_within, time.monotonic() - began)
            # A HEAD response has no body that says why, or which of object, bucket and server is missing.
            with contextlib.suppress(_BeyondEnd):
                self._read(name, None, Range="bytes=0-0", **which)
            if code_of(refusal) != "404":
                raise refusal
        return self._head(name, **which)  # it has appeared since

    # Listing.

    def list(self, prefix: str) -> t.Iterator[str]:
        return (entry.name for entry in self.entries(prefix))

    def entries(self, prefix: str) -> t.Iterator[Entry]:
        return self._entries(names.check_folder(prefix))

    def _entries(self, prefix: str) -> t.Iterator[Entry]:
        found = (each for page in self._pages(Prefix=f"{self._prefix}{prefix}/") for each in page.get("Contents", []))
        for each in counted(found, prefix, self.location):
            if each["Key"].endswith("/"):
                continue  # consoles and file system bridges make an empty object for a folder
            name = each["Key"][len(self._prefix) :]
            if names.is_object(name):
                yield Entry(name, each["Size"], each["LastModified"].timestamp())
            else:
                self.foreign.add(name)

    def occupants(self) -> set[str]:
        pages = self._pages(Prefix=self._prefix, Delimiter="/")
        keys = (
            each.get("Key") or each["Prefix"]
            for page in pages
            for kind in ("Contents", "CommonPrefixes")
            for each in page.get(kind, [])
        )
        found = {name[len(self._prefix) :].rstrip("/") for name in counted(keys, "objects", self.location)}
        return found - {""}  # consoles create an empty object for a folder

    def _pages(self, **which: str) -> t.Iterator[Answer]:
        """Yield all pages of a listing. Raises RepositoryError rather than ending early."""
        more: dict[str, str] = {}
        while True:
            page = self._page(**which, **more)
            yield page
            if not page["IsTruncated"]:
                return
            if not page.get("NextContinuationToken"):
                raise RepositoryError(
                    f"Cannot list {self.location}: the server does not report how the listing continues. Check the"
                    " server."
                )
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, **which: str) -> Answer:
        """Return one page of a listing. The SDK does not retry a request whose response breaks off."""
        for attempt in range(s3_client.ATTEMPTS):
            with explained("list", self.location):
                try:
                    page: Answer = self.client.list_objects_v2(Bucket=self._bucket, **which)
                    if "IsTruncated" in page:
                        break
                except s3_client.ResponseParserError:
                    if attempt + 1 == s3_client.ATTEMPTS:
                        raise
            self._control.note("retry", request="ListObjectsV2", attempt=attempt + 1, error="the answer broke off")
            _pause(attempt)
        _check_listing(page, self.location)
        return page

    # Deleting.

    def delete(self, name: str) -> None:
        try:
            head = self._head(name)
        except ObjectMissing:
            return
        if head.get("VersionId") is None:
            with self.explained("delete", name):
                self.client.delete_object(**self.object_at(name))
        else:
            self._delete_versions(name)

    def _delete_versions(self, name: str) -> None:
        """Delete versions oldest first: an interrupted delete never exposes an older one."""
        for version in reversed(self._versions(name)):
            try:
                with self.explained("delete", name):
                    self.client.delete_object(**self.object_at(name), VersionId=version)
            except RepositoryError as error:
                until = self.locked_until(name, VersionId=version)
                if until is None:
                    raise
                day = utc_time(until) if until < math.inf else "its legal hold ends"
                raise ObjectLocked(
                    f"Cannot delete {self._path(name)}: the bucket's object lock keeps it until {day}."
                ) from error

    def _versions(self, name: str) -> builtins.list[str]:
        """Return the ids of an object's versions and delete markers, newest first."""
        key = self._prefix + name
        found: list[Answer] = []
        with self.explained("list the versions of", name):
            for page in self.client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=key):
                _check_listing(page, self.location)
                found += [
                    each for kind in ("Versions", "DeleteMarkers") for each in page.get(kind, []) if each["Key"] == key
                ]
        found.sort(key=lambda each: (each["IsLatest"], each["LastModified"]), reverse=True)
        return [each["VersionId"] for each in found]

    def check_creatable(self) -> None:
        pass

    def try_out(self) -> t.Sequence[str]:
        return ()  # the first request shows what the server refuses

    def addresses(self) -> builtins.list[str]:
        return [f"{self.location} at {self.endpoint}"]

    def advice(self) -> str:
        return "Check bucket, prefix and endpoint_url."

    def sweep(self) -> None:
        before = time.time() - _FORSAKEN
        with contextlib.suppress(RepositoryError), explained("list", self.location):
            for each in self.client.list_multipart_uploads(
                Bucket=self._bucket, Prefix=f"{self._prefix}{names.PACKS}/"
            ).get("Uploads", []):
                if each["Initiated"].timestamp() < before:
                    self.client.abort_multipart_upload(Bucket=self._bucket, Key=each["Key"], UploadId=each["UploadId"])

    # Object lock.

    def locked_until(self, name: str, **which: str) -> float | None:
        head = self._head(name, **which)
        if head.get("ObjectLockLegalHoldStatus") == "ON":
            return math.inf
        until = head.get("ObjectLockRetainUntilDate")
        return float(until.timestamp()) if until is not None and until.timestamp() > time.time() else None

    def protect(self, objects: t.Iterable[str], like: str) -> None:
        head = self._head(like)
        mode, until = head.get("ObjectLockMode"), head.get("ObjectLockRetainUntilDate")
        if mode is None or until is None:
            return

        def lock(name: str) -> None:
            present = self._head(name)
            known = present.get("ObjectLockRetainUntilDate")
            if known is None or known < until:
                # Anyone may extend a lock, but not everyone may change its mode, and the bucket's default mode may have
                # changed.
                retention = {"Mode": present.get("ObjectLockMode", mode), "RetainUntilDate": until}
                with self.explained("lock", name):
                    self.client.put_object_retention(**self.object_at(name), Retention=retention)

        with concurrent.futures.ThreadPoolExecutor(_ASKING_THREADS) as pool:
            for _done in pool.map(lock, objects):
                pass

    # Helpers.

    def object_at(self, name: str) -> dict[str, str]:
        """Return the request parameters that name an object. Raises DamagedObject if the name is not an object's."""
        return {"Bucket": self._bucket, "Key": self._prefix + names.check_object(name)}

    def _path(self, name: str) -> str:
        return f"{self.location}/{name}"

    def explained(self, what: str, name: str) -> t.ContextManager[None]:
        """Turn errors inside the block into errors of the repository about this object."""
        return explained(what, self._path(name))


def _check_listing(page: Answer, location: str) -> None:
    """Raise RepositoryError unless a page is a listing by S3.

    The SDK parses any XML as a listing, and an empty response as an empty one.
    """
    if "IsTruncated" not in page:
        raise RepositoryError(
            f"Cannot list {location}: the response of the server is not a listing. Check endpoint_url, and proxies on"
            " the way to the server."
        )


def _pause(attempt: int) -> None:
    """Wait after an attempt, counted from 0, longer each time."""
    time.sleep(random.uniform(0, 2**attempt / 4))


class _BeyondEnd(Exception):
    """A range begins beyond the end of its object."""
