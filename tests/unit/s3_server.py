"""Servers of S3 that misbehave, and what tests of them share. The one here is over a store in memory, and misbehaves as it is told."""

from __future__ import annotations

import email.utils
import hashlib
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

import pytest
from stores_for_tests import MemoryStore

from _cbt.repository.location import RepositoryLocation, open_store
from _cbt.repository.stores.base import Store
from _cbt.repository.stores.s3_options import S3Options

PREFIX = "/bucket/p/"
# Busy, the SDK asks again; refused, it does not. Lost is a request or its answer, once; gone is the server, for good.
FAULTS = ("busy", "request lost", "answer lost", "half an answer", "refused", "gone")

Answer = tuple[int, dict[str, str], bytes]


def refusal(code: str, message: str = "Because") -> bytes:
    """How a server says that it refuses."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine reach the SDK, which makes no pauses between attempts."""
    for name in ("AWS_PROFILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


def store_on(endpoint: str, **options: Any) -> Store:
    """s3://bucket/p on a server."""
    return open_store(
        RepositoryLocation(
            "s3://bucket/p", S3Options(endpoint_url=endpoint, access_key="KEY", secret_key="SECRET", **options)
        )
    )


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """The endpoint of a server, which serves while the block lasts."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class S3Server(ThreadingHTTPServer):
    """Serves ``store`` as s3://bucket/p."""

    daemon_threads = True

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store
        self.turn = threading.Lock()
        self.uploads: dict[str, dict[int, bytes]] = {}
        # What this server demands of a request: it returns an answer that refuses, or None.
        self.demand: Callable[[str, str, dict[str, str], bytes], Answer | None] = lambda *_request: None
        self.seen: list[tuple[str, dict[str, str]]] = []  # each request, with its headers
        self.arm("", -1)

    def arm(self, fault: str, at: int) -> None:
        """Count anew, and misbehave at the request with this number."""
        self.fault, self.at, self.requests, self.met = fault, at, 0, ""

    def fault_of(self, request: str) -> str:
        """What is to go wrong with a request."""
        with self.turn:
            self.requests += 1
            if self.requests == self.at:
                self.met = request
                return self.fault
            return self.fault if self.met and self.fault == "gone" else ""

    def carry_out(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Do what is asked for."""
        place, _mark, query = path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        with self.turn:
            self.seen.append((f"{method} {path}", headers))
            refused = self.demand(method, path, headers, body)
            if refused is not None:
                return refused
            if "list-type" in asked:
                return self._list(asked["prefix"])
            name = urllib.parse.unquote(place)[len(PREFIX) :]
            if method == "POST" or "uploadId" in asked:
                return self._in_parts(name, query, body)
            if method == "PUT":
                there = name in self.store.objects
                if headers.get("if-none-match") == "*" and there:
                    return 412, {}, refusal("PreconditionFailed")
                condition = headers.get("if-match")
                if condition is not None and not (there and condition == _etag(self.store.objects[name])):
                    return 412, {}, refusal("PreconditionFailed")
                self.store.put(name, body)
                return 200, {"ETag": _etag(body)}, b""
            if method == "DELETE":
                self.store.delete(name)
                return 204, {}, b""
            if name not in self.store.objects:
                return 404, {}, refusal("NoSuchKey")
            return self._get(name, headers.get("range"))

    def _in_parts(self, name: str, query: str, body: bytes) -> Answer:
        asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if "uploads" in asked:
            upload = f"upload{len(self.uploads)}"
            self.uploads[upload] = {}
            return 200, {}, f"<R><UploadId>{upload}</UploadId></R>".encode()
        parts = self.uploads[asked["uploadId"]]
        if "partNumber" in asked:
            parts[int(asked["partNumber"])] = body
            return 200, {"ETag": _etag(body)}, b""
        self.store.put(name, b"".join(parts[number] for number in sorted(parts)))
        return 200, {}, b"<R><ETag>e</ETag></R>"

    def _get(self, name: str, wanted: str | None) -> Answer:
        data = self.store.objects[name]
        head = {
            "ETag": _etag(data),
            "Last-Modified": email.utils.formatdate(self.store.times.get(name, 0.0), usegmt=True),
        }
        if wanted is None:
            return 200, head, data
        first, _dash, last = wanted.partition("=")[2].partition("-")
        if int(first) >= len(data):
            return 416, {}, refusal("InvalidRange")
        part = data[int(first) : int(last) + 1]
        return 206, {**head, "Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"}, part

    def _list(self, prefix: str) -> Answer:
        found = "".join(
            f"<Contents><Key>p/{escape(name)}</Key><Size>{len(self.store.objects[name])}</Size>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.store.times.get(name, 0.0)))}</LastModified></Contents>"
            for name in sorted(self.store.objects)
            if f"p/{name}".startswith(prefix)
        )
        return (
            200,
            {},
            f"<?xml version='1.0'?><ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode(),
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the acknowledgement of its head
    server: S3Server

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault_of(f"{self.command} {self.path}")
        if fault in ("request lost", "gone"):
            self.close_connection = True
            return
        if fault in ("busy", "refused"):
            status, headers, answer = (
                (503, {}, refusal("SlowDown")) if fault == "busy" else (403, {}, refusal("AccessDenied"))
            )
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            path = f"/bucket{self.path}" if headers["host"].startswith("bucket.") else self.path
            status, headers, answer = self.server.carry_out(self.command, path, headers, body)
        if fault == "answer lost":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer[: len(answer) // 2] if fault == "half an answer" else answer)
        self.close_connection = fault == "half an answer"

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = serve  # noqa: N815

    def log_message(self, *_words: object) -> None:
        pass
