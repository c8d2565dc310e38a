"""What an S3 store makes of a server that misbehaves: a server of the test answers as told."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest

pytest.importorskip("boto3")

import s3_server
import urllib3
from lab.certificates import self_signed
from s3_server import refusal
from store_contract import LEASE, OTHER_PACK, PACK

from _cbt.control import Control, Event
from _cbt.errors import ObjectMissing, RepositoryError
from _cbt.repository.location import RepositoryLocation, open_store
from _cbt.repository.stores import s3_client, s3_upload
from _cbt.repository.stores.s3_client import ATTEMPTS
from _cbt.repository.stores.s3_options import S3Options
from _cbt.repository.stores.s3_store import S3Store
from _cbt.repository.stores.s3_upload import PART, SpooledUpload

pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 40
_PAUSES = threading.Event()  # never set: time.sleep is not to be had here


class Script:
    """Requests that came, and the answers still to be given: status, headers, body, and how much of the body is sent."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str], bytes, int | None]] = []
        self.last: tuple[int, dict[str, str], bytes, int | None] = (200, {}, b"", None)
        self.pause = 0.0  # seconds between one piece of a large request and the next
        self.delay = 0.0  # seconds until an answer

    def answer(self, status: int, body: bytes = b"", sent: int | None = None, **headers: str) -> Script:
        self.answers.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, body, sent))
        return self

    def receive(self, stream: BinaryIO, length: int) -> bytes:
        """What a request carries, as slowly as told."""
        pieces = []
        while length:
            pieces.append(stream.read(min(length, 1 << 20)))
            length -= len(pieces[-1])
            _PAUSES.wait(self.pause)
        _PAUSES.wait(self.delay)
        return b"".join(pieces)

    def next(self) -> tuple[int, dict[str, str], bytes, int | None]:
        if self.answers:
            self.last = self.answers.pop(0)
        return self.last  # the last one for ever


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    s3_server.alone(monkeypatch)
    return Script()


@pytest.fixture
def server(script: Script) -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            body = script.receive(self.rfile, int(self.headers.get("Content-Length", 0)))
            script.requests.append((self.command, self.path, dict(self.headers), body))
            status, headers, answer, sent = script.next()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer[:sent])
            self.close_connection = sent is not None

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = serve  # noqa: N815

        def log_message(self, *_words: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with s3_server.serving(made):
        yield made


@pytest.fixture
def store(server: ThreadingHTTPServer) -> S3Store:
    return store_on(f"http://127.0.0.1:{server.server_address[1]}")


def store_on(endpoint: str, **options: Any) -> S3Store:
    store = s3_server.store_on(endpoint, **options)
    assert isinstance(store, S3Store)
    return store


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(RepositoryError) as caught:
        call()
    assert not isinstance(caught.value, ObjectMissing)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


def test_a_body_that_breaks_off_is_read_again(store: S3Store, script: Script) -> None:
    script.answer(200, DATA, sent=100).answer(200, DATA, sent=0).answer(200, DATA)
    assert store.get("collected.json") == DATA
    assert len(script.requests) == 3


def test_a_body_that_always_breaks_off_is_an_error(store: S3Store, script: Script) -> None:
    script.answer(200, DATA, sent=100)
    assert "Cannot read s3://bucket/p/collected.json: " in failure(lambda: store.get("collected.json"))
    assert len(script.requests) == ATTEMPTS


def test_an_object_larger_than_it_may_be_is_not_read(store: S3Store, script: Script) -> None:
    script.answer(200, DATA)
    told = "s3://bucket/p/collected.json is damaged: it has 10240 bytes and cannot have more than 100"
    assert failure(lambda: store.get("collected.json", 100)) == told
    script.answer(200, bytes(70_000))
    assert "it has 70000 bytes and cannot have more than 65576" in failure(lambda: store.get("collected.json"))
    assert len(script.requests) == 2, "it is not asked for again"


@pytest.mark.parametrize(
    ("status", "call"), [(200, "list"), (200, "put"), (200, "delete"), (403, "list"), (403, "get"), (404, "put")]
)
def test_an_oversized_answer_is_not_read(
    status: int, call: str, store: S3Store, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "MOST_ANSWERED", 1 << 20)
    calls: dict[str, Callable[[], object]] = {
        "list": lambda: list(store.list("leases")),
        "get": lambda: store.get("collected.json"),
        "put": lambda: store.put("collected.json", b"x"),
        "delete": lambda: store.delete("collected.json"),
    }
    for more in range(2):
        if call == "delete":
            script.answer(200)  # to the question whether it is there
        script.answer(status, PAGE[:-1].ljust((1 << 20) - 1 + 2 * more) + b">")
        requests = len(script.requests)
        if more:
            assert "the server sent an answer of more than 1 MiB. Check endpoint_url" in failure(calls[call])
            assert len(script.requests) == requests + (2 if call == "delete" else 1), "it is not asked for again"
        elif status == 200:
            calls[call]()
        else:
            assert "an answer of more" not in failure(calls[call])


def test_an_answer_that_breaks_off_or_stalls_is_retried(
    store: S3Store, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in the body the connection fails, as the SDK has it: its own error, which it retries."""
    faults = [
        urllib3.exceptions.ProtocolError("gone"),
        urllib3.exceptions.ReadTimeoutError(None, None, "late"),
        ConnectionResetError(),
    ]
    streamed = urllib3.response.HTTPResponse.stream

    def stream(self: urllib3.response.HTTPResponse, *arguments: Any) -> Iterator[bytes]:
        pieces = streamed(self, *arguments)
        yield next(iter(pieces), b"")[:10]
        if left:
            raise left.pop()
        yield from pieces

    monkeypatch.setattr(urllib3.response.HTTPResponse, "stream", stream)
    left = list(faults)
    script.answer(403, refusal("AccessDenied"))
    assert "Cannot list" in failure(lambda: list(store.list("leases")))
    assert len(script.requests) == 1 + len(faults)


def test_a_file_without_an_object_name_is_reported_and_not_listed(store: S3Store, script: Script) -> None:
    page = b"".join(
        b"<Contents><Key>p/%s</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        % key.encode()
        for key in [LEASE, "leases/../../etc/passwd", "leases/..", "leases/x"]
    )
    script.answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated>%s</ListBucketResult>" % page)
    assert list(store.list("leases")) == [LEASE]
    told = ["leases/..", "leases/../../etc/passwd", "leases/x"]
    assert store.foreign.words() == [
        f"'{name}' in s3://bucket/p is not an object of a repository and was skipped. Remove it." for name in told
    ]


def test_an_endless_listing_is_an_error(store: S3Store, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_cbt.repository.stores.base.MOST_LISTED", 20)
    for kind, tag, call in (
        ("Contents", "Key", lambda: list(store.list("leases"))),
        ("CommonPrefixes", "Prefix", store.occupants),
    ):
        script.requests.clear()
        items = "".join(
            f"<{kind}><{tag}>p/{number}</{tag}><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></{kind}>"
            for number in range(3)
        )
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>more</NextContinuationToken>"
        script.answer(200, f"<ListBucketResult>{more}{items}</ListBucketResult>".encode())
        assert "in s3://bucket/p: more than 20 objects are there" in failure(call)
        assert len(script.requests) == 7


def test_a_request_to_a_busy_server_is_retried(store: S3Store, script: Script) -> None:
    script.answer(503, refusal("SlowDown")).answer(500, refusal("InternalError")).answer(200, DATA)
    assert store.get("collected.json") == DATA


def test_requests_that_are_repeated_are_reported(server: ThreadingHTTPServer, script: Script) -> None:
    events: list[Event] = []
    options = S3Options(f"http://127.0.0.1:{server.server_port}", access_key="KEY", secret_key="SECRET")
    store = S3Store("s3://bucket/p", options, Control(listener=events.append))
    script.answer(503, refusal("SlowDown")).answer(200, DATA, sent=5).answer(404, refusal("NoSuchKey"))
    with pytest.raises(ObjectMissing):
        store.get("collected.json")
    assert [(each.name, dict(each.fields)) for each in events] == [
        ("retry", {"request": "GetObject", "attempt": 1, "error": "HTTP 503"}),
        ("retry", {"request": "GetObject", "attempt": 1, "error": "the answer broke off"}),
    ]


def test_a_server_that_stays_busy_is_an_error_that_says_so(store: S3Store, script: Script) -> None:
    script.answer(503, refusal("SlowDown", "Reduce your request rate."))
    assert (
        failure(lambda: store.get("collected.json"))
        == "Cannot read s3://bucket/p/collected.json: Reduce your request rate (SlowDown). Try again later, or with fewer workers."
    )


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, refusal("NoSuchBucket"), "Create the bucket"),
        (404, b"<html>not found</html>", "Check endpoint_url"),
        (403, refusal("AccessDenied"), "Check what the policies"),
        (403, refusal("RequestTimeTooSkewed"), "Set the clock"),
        (301, refusal("PermanentRedirect"), "Check region"),
        (400, refusal("AuthorizationHeaderMalformed"), "Check region"),
        (200, b"<html><p>a web site</html>", "Check endpoint_url"),
        (507, refusal("QuotaExceeded"), "Free space"),
        (403, refusal("InvalidObjectState"), "Bring it back from the archive"),
        (403, refusal("RequestExpired"), "Set the clock"),
    ],
)
def test_a_refused_listing_says_what_to_do(store: S3Store, script: Script, status: int, body: bytes, told: str) -> None:
    script.answer(status, body)
    assert told in failure(lambda: list(store.list("points")))


@pytest.mark.parametrize("code", ["NoSuchBucket", "AccessDenied", "MethodNotAllowed", "404"])
def test_only_the_servers_word_makes_an_object_missing(store: S3Store, script: Script, code: str) -> None:
    script.answer(404, refusal(code))
    for call in (store.get, store.size, store.modified, store.locked_until, store.delete):
        failure(lambda call=call: call("collected.json"))  # type: ignore[misc]
    script.answer(404, refusal("NoSuchKey"))
    with pytest.raises(ObjectMissing):
        store.size("collected.json")


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [(400, "ExpiredToken", "Check access_key"), (403, "AccessDenied", "Check what the policies")],
)
def test_the_reason_for_a_refusal_without_a_body_is_requested(
    store: S3Store, script: Script, status: int, code: str, told: str
) -> None:
    script.answer(status, refusal(code, "It is over."))
    for call in (store.size, store.modified, store.delete):
        assert failure(lambda call=call: call("collected.json")).startswith(
            f"Cannot read s3://bucket/p/collected.json: It is over ({code}). {told}"
        )  # type: ignore[misc]
    script.requests.clear()
    script.answer(status).answer(200, DATA)
    assert f"({status})" in failure(lambda: store.size("collected.json"))
    assert [method for method, _path, _headers, _body in script.requests].count("GET") == 1


def test_an_answer_without_a_required_s3_field_is_an_error(store: S3Store, script: Script) -> None:
    script.answer(200)
    assert "the answer lacks 'LastModified', so it is not from an S3 server. Check endpoint_url" in failure(
        lambda: store.modified("collected.json")
    )
    store._answered_within = 1
    assert "the answer lacks 'UploadId'" in failure(lambda: filled_upload(store, PART + 1).commit())


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (
            """echo '{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "SECRET", "Expiration": "2020-01-01T00:00:00Z"}'""",
            "are still expired",
        ),
        ("echo No ticket >&2; exit 1", "No ticket"),
    ],
    ids=["expired", "none"],
)
def test_credentials_that_the_sdk_cannot_renew_are_an_error_that_says_so(
    script: Script,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    program: str,
    told: str,
) -> None:
    script.answer(200, DATA)
    (tmp_path / "program").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "program").chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {tmp_path}/program\n")
    for name, value in (("AWS_CONFIG_FILE", tmp_path / "config"), ("AWS_SHARED_CREDENTIALS_FILE", tmp_path / "none")):
        monkeypatch.setenv(name, str(value))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    place = RepositoryLocation("s3://bucket/p", S3Options(endpoint_url=f"http://127.0.0.1:{server.server_address[1]}"))
    message = failure(lambda: open_store(place).get("collected.json"))
    assert told in message and "Check access_key and secret_key" in message


def test_a_truncated_listing_without_a_continuation_is_an_error(store: S3Store, script: Script) -> None:
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>p/leases/0000000000000000</Key><Size>1</Size>"
    )
    script.answer(200, page + b"<LastModified>2026-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>")
    assert "does not report how the listing continues" in failure(lambda: list(store.list("leases")))


PAGE = (
    b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p/leases/0000000000000000</Key><Size>1</Size>"
    b"<LastModified>2026-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>"
)


@pytest.mark.parametrize("sent", [0, 1, len(PAGE) // 2, len(PAGE) - 1])
def test_a_listing_that_breaks_off_is_read_again_and_never_a_short_list(
    store: S3Store, script: Script, sent: int
) -> None:
    script.answer(200, PAGE, sent=sent).answer(200, PAGE, sent=sent).answer(200, PAGE)
    assert list(store.list("leases")) == [LEASE]
    script.answer(200, PAGE, sent=sent)
    assert "Cannot list s3://bucket/p: " in failure(lambda: list(store.list("leases")))
    assert len(script.requests) == 3 + ATTEMPTS


@pytest.mark.parametrize("body", [b"", b"<html><body>Back in a minute</body></html>"], ids=["nothing", "page"])
def test_an_invalid_listing_never_passes_for_an_empty_one(store: S3Store, script: Script, body: bytes) -> None:
    script.answer(200, body)
    for call in (lambda: list(store.list("trash")), lambda: list(store.entries("drafts")), store.occupants):
        assert "the response of the server is not a listing. Check endpoint_url" in failure(call)
    script.answer(200, x_amz_version_id="v1").answer(200, body)
    assert "the response of the server is not a listing" in failure(lambda: store.delete("collected.json"))
    assert "DELETE" not in [method for method, _path, _headers, _body in script.requests]


def test_a_folder_marker_made_by_a_console_is_not_an_object(store: S3Store, script: Script) -> None:
    folder = b"<Contents><Key>p/leases/</Key><Size>0</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
    script.answer(200, PAGE.replace(b"<Contents>", folder + b"<Contents>"))
    assert list(store.list("leases")) == [LEASE]


def test_other_bytes_than_asked_for_are_an_error_and_all_bytes_are_cut(store: S3Store, script: Script) -> None:
    script.answer(206, DATA[:10], Content_Range=f"bytes 0-9/{len(DATA)}")
    assert "another range than requested" in failure(lambda: store.get_range("collected.json", 10, 10))
    script.answer(206, DATA[10:15], Content_Range=f"bytes 10-14/{len(DATA)}")
    assert "another range than requested" in failure(lambda: store.get_range("collected.json", 10, 10))
    for told in ("bytes 10-19/*", "bytes 10-19", "", "bytes 10-19/-5", "bytes 10-19/\xb2", f"bytes 10-19/{'9' * 5000}"):
        script.answer(206, DATA[10:20], Content_Range=told)
        assert "another range than requested" in failure(lambda: store.get_range("collected.json", 10, 10)), told
    script.answer(200, DATA)
    assert store.get_range("collected.json", 10, 10) == DATA[10:20]


def test_an_object_found_in_place_after_a_lost_answer_counts_as_stored(store: S3Store, script: Script) -> None:
    for content, won in ((DATA, True), (b"of another one", False)):
        script.answer(404).answer(404, refusal("NoSuchKey"))  # it is not there
        script.answer(500, refusal("InternalError")).answer(412, refusal("PreconditionFailed")).answer(200, content)
        assert store.put("collected.json", DATA, replace=False) is won
    condition = [headers.get("If-None-Match") for method, _path, headers, _body in script.requests if method == "PUT"]
    assert condition == ["*"] * 4


def test_a_server_without_conditional_writes_gets_an_unconditional_put(store: S3Store, script: Script) -> None:
    script.answer(404).answer(404, refusal("NoSuchKey"))
    script.answer(501, refusal("NotImplemented")).answer(501, refusal("NotImplemented")).answer(
        200
    )  # 2: another checksum
    assert store.put("collected.json", DATA, replace=False)
    puts = [(headers.get("If-None-Match"), body) for method, _path, headers, body in script.requests if method == "PUT"]
    assert puts[-1] == (None, DATA)


@pytest.fixture
def secured(server: ThreadingHTTPServer, tmp_path: Path) -> tuple[str, Path]:
    """The server speaks TLS: its endpoint and its certificate."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    self_signed(key, certificate, "lab", "subjectAltName=IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return f"https://127.0.0.1:{server.server_address[1]}", certificate


def test_an_untrusted_certificate_is_refused_unless_verification_is_off(
    secured: tuple[str, Path], script: Script
) -> None:
    endpoint, certificate = secured
    script.answer(200, DATA)
    told = failure(lambda: store_on(endpoint).get("collected.json"))
    assert "certificate" in told and "Check the server's certificate and ca_bundle" in told
    assert store_on(endpoint, ca_bundle=str(certificate)).get("collected.json") == DATA
    with pytest.warns(Warning, match="Unverified HTTPS"):
        assert store_on(endpoint, validate_certs=False).get("collected.json") == DATA


def test_what_is_sent_is_hashed_for_the_signature_only_where_tls_does_not_prove_it(
    store: S3Store, script: Script, server: ThreadingHTTPServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store.put("collected.json", DATA)
    endpoint, certificate = request.getfixturevalue("secured")
    store_on(endpoint, ca_bundle=str(certificate)).put("collected.json", DATA)
    assert [body for _method, _path, _headers, body in script.requests] == [DATA, DATA]
    signed, unsigned = [headers["X-Amz-Content-SHA256"] for _method, _path, headers, _body in script.requests]
    assert (signed, unsigned) == (hashlib.sha256(DATA).hexdigest(), "UNSIGNED-PAYLOAD")
    checksum = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()
    assert [headers["x-amz-checksum-crc32"] for _method, _path, headers, _body in script.requests] == [
        checksum,
        checksum,
    ]


@pytest.mark.parametrize("wanted", [True, False])
def test_the_profile_may_say_whether_what_is_sent_is_hashed_for_the_signature(
    server: ThreadingHTTPServer,
    script: Script,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool,
) -> None:
    (tmp_path / "config").write_text(f"[default]\ns3 =\n    payload_signing_enabled = {str(wanted).lower()}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store_on(f"http://127.0.0.1:{server.server_address[1]}").put("collected.json", DATA)
    endpoint, certificate = request.getfixturevalue("secured")
    store_on(endpoint, ca_bundle=str(certificate)).put("collected.json", DATA)
    expected = hashlib.sha256(DATA).hexdigest() if wanted else "UNSIGNED-PAYLOAD"
    assert [headers["X-Amz-Content-SHA256"] for _method, _path, headers, _body in script.requests] == [
        expected,
        expected,
    ]


@pytest.mark.parametrize("location", ["s3://", "s3:///"])
def test_a_location_without_bucket_is_refused(location: str) -> None:
    with pytest.raises(RepositoryError, match="names no bucket"):
        open_store(location)


def filled_upload(store: S3Store, size: int) -> SpooledUpload:
    upload = store.upload(PACK)
    for start in reversed(range(0, size, 1 << 20)):  # in any order
        upload.write([DATA[:1] * min(1 << 20, size - start)], start)
    return upload


def test_nothing_of_an_earlier_upload_shows_through_in_a_later_one(
    store: S3Store, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_upload, "_SPOOL", 1000)
    writes = [
        [(0, b"a" * 2500)],
        [(7, b"x"), (3, b"yz")],
        [(0, b"b" * 900)],
        [(2000, b"c"), (4900, b"d"), (10, b"e")],
        [(5, b"f")],
    ]
    for each in writes:
        upload, expected = store.upload(PACK), bytearray()
        for offset, data in each:
            upload.write([data[:1], data[1:]], offset)
            expected = expected.ljust(offset + len(data), b"\0")
            expected[offset : offset + len(data)] = data
        store._answered_within = 0
        assert upload.commit()
        assert script.requests[-1][3] == expected


def test_a_slow_line_may_exceed_every_time_limit_for_an_object_without_an_error(
    server: ThreadingHTTPServer, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 3  # seconds
    # What the buffers of the two ends hold when all is sent must be read well within the limit: keep them small.
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    monkeypatch.setattr(s3_client, "_CONNECT_TIMEOUT", limit)
    monkeypatch.setattr(s3_client, "_READ_TIMEOUT", limit)
    store = store_on(f"http://127.0.0.1:{server.server_address[1]}")
    store._answered_within = 0
    script.pause = 0.3
    began = time.monotonic()
    assert filled_upload(store, PART).commit()
    assert time.monotonic() - began > limit, "the line was not slow"
    ((_method, _path, _headers, body),) = script.requests
    assert len(body) == PART


@pytest.mark.parametrize("size", [1, PART, PART + 1, 3 * PART], ids=["a byte", "a part", "more", "three parts"])
def test_near_by_an_object_goes_by_one_request(store: S3Store, script: Script, size: int) -> None:
    store.exists(OTHER_PACK)
    store._answered_within = min(store._answered_within, 0.009)  # whatever else this machine does
    assert filled_upload(store, size).commit()
    puts = [(path, len(body)) for method, path, _headers, body in script.requests if method != "HEAD"]
    assert puts == [(f"/bucket/p/{PACK}", size)]


def test_far_away_an_object_goes_in_parts(store: S3Store, script: Script) -> None:
    script.delay = 0.02
    store.exists(OTHER_PACK)
    script.requests.clear()
    script.answer(200, b"<R><UploadId>u1</UploadId></R>")
    script.last = (200, {"ETag": "e"}, b"<R><ETag>e</ETag></R>", None)
    script.answer(200, b"<R><ETag>e</ETag></R>", ETag="e")
    assert filled_upload(store, 2 * PART + 5).commit()
    parts = {
        re.sub(r".*partNumber=(\d+).*", r"\1", path): len(body)
        for method, path, _headers, body in script.requests
        if method == "PUT"
    }
    assert parts == {"1": PART, "2": PART, "3": 5}
