"""S3 servers that refuse a header which others accept, or that require one, or another address."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("boto3")

import s3_server
from s3_server import Answer, S3Server, refusal
from store_contract import LEASE, PACK
from stores_for_tests import MemoryStore

from _cbt.control import Control, Event
from _cbt.errors import ReadOnly, RepositoryError
from _cbt.repository.creation import open_or_create
from _cbt.repository.location import RepositoryLocation, open_store
from _cbt.repository.stores.s3_options import S3Options
from _cbt.repository.stores.s3_store import S3Store
from _cbt.repository.stores.s3_upload import PART

pytestmark = pytest.mark.slow

CRC = "x-amz-checksum-crc32"
Demand = Callable[[str, str, dict[str, str], bytes], "Answer | None"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    s3_server.alone(monkeypatch)
    made = S3Server(MemoryStore())
    with s3_server.serving(made):
        yield made


def options(server: S3Server, host: str = "127.0.0.1", **more: Any) -> S3Options:
    endpoint = f"http://{host}:{server.server_address[1]}"
    return S3Options(endpoint_url=endpoint, access_key="KEY", secret_key="SECRET", **more)


def store_on(server: S3Server, listener: Callable[[Event], None] | None = None, **more: Any) -> S3Store:
    place = RepositoryLocation("s3://bucket/p", options(server, **more), control=Control(listener=listener))
    store = open_store(place)
    assert isinstance(store, S3Store)
    return store


def refusing(status: int, code: str, message: str, *headers: str) -> Demand:
    """A server that refuses requests with one of these headers."""

    def demand(_method: str, _path: str, given: dict[str, str], _body: bytes) -> Answer | None:
        found = next((each for each in given for header in headers if each.startswith(header)), None)
        return (status, {}, refusal(code, message.format(found))) if found else None

    return demand


REFUSALS = {
    "Backblaze": (400, "InvalidArgument", "Unsupported header '{}' received for this API call."),
    "R2": (501, "NotImplemented", "Header '{}' with value 'CRC32' not implemented"),
    "s3proxy": (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
    "Scality": (400, "BadDigest", "The Content-MD5 you specified did not match what we received."),
    "old gateway": (400, "InvalidRequest", "Missing required header for this request: Content-MD5"),
    "no reason": (400, "", ""),
}


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


class TestServerThatRefusesChecksums:
    @pytest.fixture(autouse=True, params=["s3proxy"])
    def refuse(self, server: S3Server, request: pytest.FixtureRequest) -> None:
        server.demand = refusing(*REFUSALS[request.param], "x-amz-checksum-", "x-amz-sdk-checksum-")

    @pytest.mark.parametrize("refuse", REFUSALS, indirect=True)
    def test_an_upload_continues_with_content_md5_and_the_refusal_is_reported_once(self, server: S3Server) -> None:
        events: list[Event] = []
        store = store_on(server, events.append)
        store.put(LEASE, b"data")
        store.put(LEASE, b"more")
        assert server.store.get(LEASE) == b"more"
        puts = [headers for request, headers in server.seen if request.startswith("PUT")]
        assert [CRC in headers for headers in puts] == [True, False, False]
        assert [headers.get("content-md5") for headers in puts] == [None, md5(b"data"), md5(b"more")]
        assert [(each.name, dict(each.fields)) for each in events] == [
            ("checksum_refused", {"header": CRC, "instead": "Content-MD5"})
        ]

    def test_an_object_in_parts_is_stored(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        store = store_on(server)
        monkeypatch.setattr(store, "is_far", lambda: True)
        data = bytes(range(256)) * (PART // 256) + b"end"
        upload = store.upload(PACK)
        upload.write([data], 0)
        assert upload.commit()
        assert server.store.get(PACK) == data

    def test_a_repository_is_created_and_objects_are_created_once_and_swapped(self, server: S3Server) -> None:
        assert open_or_create(RepositoryLocation("s3://bucket/p", options(server))) is not None
        store = store_on(server)
        assert store.put(LEASE, b"one", replace=False)
        assert not store.put(LEASE, b"two", replace=False)
        assert store.swap(LEASE, b"one", b"two")
        assert not store.swap(LEASE, b"one", b"three")
        assert server.store.get(LEASE) == b"two"

    def test_a_lock_is_extended(self, server: S3Server) -> None:
        """A newer SDK sends a checksum with this request by itself."""
        until = "2099-01-01T00:00:00Z"
        locked: list[bytes] = []
        demanded = server.demand

        def demand(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
            if method == "HEAD":
                known = until if LEASE in path else "2098-01-01T00:00:00Z"
                lock = {"x-amz-object-lock-mode": "GOVERNANCE", "x-amz-object-lock-retain-until-date": known}
                return 200, lock, b""
            refused = demanded(method, path, headers, body)
            if refused is None and path.endswith("?retention"):
                assert headers["content-md5"] == md5(body)
                locked.append(body)
                return 200, {}, b""
            return refused

        server.demand = demand
        store_on(server).protect([PACK], like=LEASE)
        assert len(locked) == 1


@pytest.mark.parametrize("who", ["Backblaze", "s3proxy", "no reason"])
@pytest.mark.parametrize("also", [(), ("x-amz-checksum-",)], ids=["conditions", "checksums too"])
def test_a_server_that_refuses_conditions_gets_none(server: S3Server, who: str, also: tuple[str, ...]) -> None:
    server.demand = refusing(*REFUSALS[who], "if-none-match", "if-match", *also)
    store = store_on(server)
    assert store.put(LEASE, b"one", replace=False)
    assert not store.put(LEASE, b"two", replace=False)
    assert store.swap(LEASE, b"one", b"two")
    assert server.store.get(LEASE) == b"two"


def test_an_upload_refused_for_another_reason_keeps_its_checksum(server: S3Server) -> None:
    server.demand = lambda method, *_request: (400, {}, refusal("EntityTooLarge", "No.")) if method == "PUT" else None
    store = store_on(server)
    with pytest.raises(RepositoryError, match=re.escape(f"Cannot write s3://bucket/p/{LEASE}: No (EntityTooLarge)")):
        store.put(LEASE, b"x")
    assert len(server.seen) == 2
    server.demand = lambda *_request: None
    store.put(LEASE, b"x")
    assert CRC in server.seen[-1][1]


def test_a_refusal_of_every_checksum_names_both_headers(server: S3Server) -> None:
    server.demand = refusing(501, "NotImplemented", "A header is not implemented.", "x-amz-checksum-", "content-md5")
    with pytest.raises(RepositoryError) as caught:
        store_on(server).put(LEASE, b"x")
    assert CRC in str(caught.value) and "Content-MD5" in str(caught.value)


# Addresses.

STYLES = {
    "SecondLevelDomainForbidden": "Please use virtual hosted style to access.",
    "PathStyleDomainForbidden": "The bucket you are attempting to access must be addressed using COS virtual-styled domain.",
    "VirtualHostDomainRequired": "Virtual host domain is required when accessing a specific bucket.",
    "InvalidPathAccess": "Forbidden path to access server.",
}


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names below s3.test are this machine."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith("s3.test") else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("resolved")
def test_a_server_that_wants_virtual_hosted_addresses_gets_them_and_the_error_says_how(server: S3Server) -> None:
    code = ""

    def demand(_method: str, _path: str, headers: dict[str, str], _body: bytes) -> Answer | None:
        return None if headers["host"].startswith("bucket.") else (403, {}, refusal(code, STYLES[code]))

    server.demand = demand
    by_path = store_on(server, host="s3.test")
    for code in STYLES:
        for call in (lambda: by_path.put(LEASE, b"x"), lambda: by_path.size(LEASE), lambda: list(by_path.list("leases"))):  # fmt: skip
            with pytest.raises(
                RepositoryError, match=rf"\({code}\)\. Set addressing_style to virtual in s3\."
            ) as caught:
                call()
            assert not isinstance(caught.value, ReadOnly)
    store = store_on(server, host="s3.test", addressing_style="virtual")
    store.put(LEASE, b"x")
    assert store.get(LEASE) == b"x"
    assert list(store.list("leases")) == [LEASE]
    store.delete(LEASE)
    assert not store.exists(LEASE)
    assert store.endpoint == by_path.endpoint, "the repository is the same one"


@pytest.mark.usefixtures("resolved")
def test_path_style_is_used_if_chosen_or_with_an_endpoint_of_your_own(server: S3Server) -> None:
    for style in (None, "auto", "path"):
        store_on(server, host="s3.test", addressing_style=style).put(LEASE, b"x")
        assert server.seen[-1][1]["host"].startswith("s3.test")


def test_a_virtual_hosted_address_without_a_name_suggests_path_style(server: S3Server) -> None:
    store = store_on(server, host="s3.invalid", addressing_style="virtual")
    with pytest.raises(RepositoryError, match=r"bucket\.s3\.invalid.*Check endpoint_url, addressing_style"):
        store.get(LEASE)


# Encryption by the server.

ENCRYPTION_CODES = (
    (400, "KMS.NotFoundException"),
    (400, "KMS.DisabledException"),
    (400, "KMS.KMSInvalidStateException"),
    (400, "InvalidEncryptionAlgorithmError"),
    (400, "InvalidArgument"),
    (501, "NotImplemented"),
)
SSE, KEY = "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id"


@pytest.mark.parametrize(
    ("given", "headers"),
    [
        ({}, {}),
        ({"server_side_encryption": "AES256"}, {SSE: "AES256"}),
        ({"server_side_encryption": "aws:kms"}, {SSE: "aws:kms"}),
        ({"server_side_encryption": "aws:kms:dsse", "kms_key_id": "k"}, {SSE: "aws:kms:dsse", KEY: "k"}),
        ({"kms_key_id": "arn:aws:kms:eu:1:key/2"}, {SSE: "aws:kms", KEY: "arn:aws:kms:eu:1:key/2"}),
    ],
    ids=["none", "SSE-S3", "SSE-KMS", "with a key", "key alone"],
)
def test_every_object_is_stored_with_the_chosen_encryption(
    server: S3Server, given: dict[str, str], headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(server, **given)
    store.put("collected.json", b"x")
    store.put(LEASE, b"x", replace=False)
    assert store.swap(LEASE, b"x", b"y")
    monkeypatch.setattr(store, "is_far", lambda: True)
    upload = store.upload(PACK)
    upload.write([bytes(PART + 1)], 0)
    upload.commit()
    creating = [each for request, each in server.seen if re.fullmatch(r"PUT [^?]*|POST .*\?uploads", request)]
    assert len(creating) == 4
    for each in creating:
        assert {name: value for name, value in each.items() if name.startswith(SSE)} == headers
    for request, each in server.seen:  # AWS refuses these headers on every other request
        assert re.fullmatch(r"PUT [^?]*|POST .*\?uploads", request) or SSE not in each


def test_a_bucket_that_denies_unencrypted_objects_is_served_and_its_refusal_names_the_option(server: S3Server) -> None:
    def demand(method: str, _path: str, headers: dict[str, str], _body: bytes) -> Answer | None:
        denied = method == "PUT" and (headers.get(SSE), headers.get(KEY)) != ("aws:kms", "k")
        return (403, {}, refusal("AccessDenied", "Access Denied")) if denied else None

    server.demand = demand
    with pytest.raises(ReadOnly, match=r"\(AccessDenied\).*If the bucket requires it, set server_side_encryption"):
        store_on(server).put(LEASE, b"x")
    store_on(server, kms_key_id="k").put(LEASE, b"x")
    assert server.store.get(LEASE) == b"x"


def test_a_refused_encryption_names_the_options(server: S3Server) -> None:
    store = store_on(server, server_side_encryption="aws:kms")
    for status, code in ENCRYPTION_CODES:
        answer = status, {}, refusal(code, "Not this key.")
        server.demand = lambda *_request, answer=answer: answer  # type: ignore[misc]
        with pytest.raises(RepositoryError, match=rf"Not this key \({code}\)\..*server_side_encryption and kms_key_id"):
            store.put(LEASE, b"x")
