# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client for S3, and explanations of its errors."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import typing as t

from ...control import Control
from ...errors import ObjectMissing, ReadOnly, RepositoryError, StorageFull
from . import s3_headers
from .s3_options import S3Options

try:
    import boto3
    from botocore import exceptions
    from botocore.config import Config
    from botocore.parsers import ResponseParserError
    from urllib3 import exceptions as http_exceptions
except ImportError:  # needed only for repositories on S3
    boto3 = exceptions = http_exceptions = None

ATTEMPTS = 6  # of a request, and of reading a response body; about half a minute with the pauses
# bytes of a response other than an object's content; a page of a listing is less than half of that
MOST_ANSWERED = 8 << 20
_CONNECTIONS = 64
_CONNECT_TIMEOUT = 10  # seconds
_READ_TIMEOUT = 60  # seconds without a byte
_REGION = "us-east-1"  # AWS accepts it for a bucket of any region, other servers as their only one

_KEYS = "Check access_key and secret_key, or the environment and SDK files that provide them."
_CLOCK = "Set the clock of this host, or of the server."
_ALLOWED = "Check what the policies of the key and of the bucket allow; docs/s3.md lists the required permissions."
_ENCRYPTED = " If the bucket requires it, set server_side_encryption and kms_key_id in s3."
_ENCRYPTION = (
    "Check server_side_encryption and kms_key_id in s3."
    " The server must accept the header x-amz-checksum-crc32 or Content-MD5."
)
_STYLE = "Set addressing_style to virtual in s3."
_WHERE = "Check endpoint_url, addressing_style, the network and whether the server runs."
_REGIONS = "Check region and endpoint_url."
_SPACE = "Free space there, or raise the quota."
_ADVICE = {
    "NoSuchBucket": "Create the bucket, or check its name and endpoint_url.",
    "InvalidBucketName": "Check the bucket's name.",
    "AccessDenied": _ALLOWED,
    "403": _ALLOWED,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": _KEYS,
    "ExpiredToken": _KEYS,
    "TokenRefreshRequired": _KEYS,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "InvalidObjectState": "Bring it back from the archive, and let no lifecycle rule archive objects of a repository.",
    "AuthorizationHeaderMalformed": _REGIONS,
    "PermanentRedirect": _REGIONS,
    "301": _REGIONS,
    "404": _WHERE,
    "500": _WHERE,  # S3 itself says InternalError; newer SDKs use 500 for a response they cannot parse
    "QuotaExceeded": _SPACE,
    "XMinioStorageFull": _SPACE,
    "507": _SPACE,
    "SecondLevelDomainForbidden": _STYLE,  # Alibaba Cloud
    "PathStyleDomainForbidden": _STYLE,  # Tencent Cloud
    "VirtualHostDomainRequired": _STYLE,  # Huawei Cloud
    "InvalidPathAccess": _STYLE,  # Volcano Engine
    "SlowDown": "Try again later, or with fewer workers.",
}

# Codes by which servers refuse a header of an upload.
_OF_HEADERS = ("InvalidArgument", "InvalidRequest", "NotImplemented", "InvalidEncryptionAlgorithmError", "400", "501")


def connect(options: S3Options, control: Control) -> t.Any:
    """Return a client that several threads may use. Raises RepositoryError if the options do not work."""
    if boto3 is None:
        raise RepositoryError(f"{sys.executable} has no module boto3, which S3 needs. Install python3-boto3.")
    # Older SDKs do not read these variables.
    endpoint = options.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    with explained("use", "S3"):
        session = boto3.session.Session(
            options.access_key, options.secret_key, region_name=options.region, profile_name=options.profile
        )
        client = session.client(
            "s3",
            region_name=session.region_name or _REGION,
            endpoint_url=endpoint,
            verify=options.ca_bundle if options.validate_certs else False,
            config=_config(options.addressing_style),
        )
    # TLS proves what is sent at no extra cost; SHA-256 would take as long as everything else.
    if client.meta.endpoint_url.startswith("https:"):
        client.meta.config.s3 = {"payload_signing_enabled": False, **(client.meta.config.s3 or {})}
    client.meta.events.register("before-send.s3", functools.partial(_send, client._endpoint.http_session))
    client.meta.events.register("needs-retry.s3", functools.partial(_report_retry, control))
    s3_headers.register(client.meta.events, options, control)
    return client


def _config(addressing_style: str | None) -> t.Any:
    # Newer SDKs add their own checksums in a way that servers other than AWS refuse. Every request has one of ours.
    newer = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=_CONNECTIONS,
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        s3={"addressing_style": addressing_style} if addressing_style else None,
        **{key: value for key, value in newer.items() if key in Config.OPTION_DEFAULTS},
    )


class _Bounded:
    """The body of a response that the SDK reads as a whole, limited in size."""

    def __init__(self, raw: t.Any, url: str) -> None:
        self._raw, self._url = raw, url

    def __getattr__(self, name: str) -> t.Any:
        return getattr(self._raw, name)

    def stream(self) -> t.Iterator[bytes]:
        """Yield the body in pieces.

        Raises RepositoryError if the body is too large. If it breaks off, raises the SDK's exceptions, which the SDK
        retries.
        """
        size = 0
        try:
            for piece in self._raw.stream():
                size += len(piece)
                if size > MOST_ANSWERED:
                    self._raw.close()
                    raise RepositoryError(
                        f"Cannot use S3: the server sent an answer of more than {MOST_ANSWERED >> 20} MiB. {_WHERE}"
                    )
                yield piece
        except http_exceptions.ReadTimeoutError as error:
            raise exceptions.ReadTimeoutError(endpoint_url=self._url, error=error) from error
        except (http_exceptions.HTTPError, OSError) as error:
            raise exceptions.ConnectionClosedError(endpoint_url=self._url, error=error) from error


def _send(session: t.Any, request: t.Any, **_event: t.Any) -> t.Any:
    """Send a request as the SDK does, but refuse an oversized response. The content of an object is read elsewhere."""
    is_content, request.stream_output = request.stream_output, True
    answer = session.send(request)
    if not is_content or answer.status_code >= 300:
        answer.raw = _Bounded(answer.raw, request.url)
        answer.content  # noqa: B018 # reads the body, as the SDK would
    return answer


def _report_retry(control: Control, operation: t.Any, attempts: int, **event: t.Any) -> None:
    """Log a request that failed and that the SDK retries."""
    error, answer = event.get("caught_exception"), event.get("response")
    status = answer[0].status_code if answer is not None else 0
    if attempts < ATTEMPTS and (error is not None or status == 429 or (status >= 500 and status != 501)):
        why = str(error) if error is not None else f"HTTP {status}"
        control.note("retry", request=operation.name, attempt=attempts, error=why)


def _kind(what: str, code: str) -> tuple[type[RepositoryError], str]:
    """Return the error for a refusal by the server, and advice."""
    advice = _ADVICE.get(code, "Check the server.")
    if code.startswith("KMS.") or (what == "write" and code in _OF_HEADERS):
        return RepositoryError, _ENCRYPTION
    if what == "write" and advice == _ALLOWED:
        return ReadOnly, advice + _ENCRYPTED
    return StorageFull if advice == _SPACE else RepositoryError, advice


@contextlib.contextmanager
def explained(what: str, where: str) -> t.Iterator[None]:
    """Turn SDK errors into RepositoryError; only NoSuchKey becomes ObjectMissing."""
    try:
        yield
    except exceptions.ClientError as error:
        code = code_of(error)
        if code == "NoSuchKey":
            raise ObjectMissing(f"Cannot {what} {where}: it does not exist.") from error
        message = error.response.get("Error", {}).get("Message") or "the server refused"
        kind, advice = _kind(what, code)
        raise kind(f"Cannot {what} {where}: {message.rstrip('.')} ({code}). {advice}") from error
    except RecursionError as error:  # older SDKs follow redirects without end
        raise RepositoryError(f"Cannot {what} {where}: the server redirects repeatedly. {_REGIONS}") from error
    except RuntimeError as error:  # raised by the SDK when renewed credentials are expired as well
        raise RepositoryError(f"Cannot {what} {where}: {str(error).rstrip('.')}. {_KEYS}") from error
    except KeyError as error:
        raise RepositoryError(
            f"Cannot {what} {where}: the answer lacks {error}, so it is not from an S3 server. {_WHERE}"
        ) from error
    except (exceptions.BotoCoreError, ResponseParserError, OSError, ValueError) as error:
        raise RepositoryError(f"Cannot {what} {where}: {str(error).rstrip('.')}. {_advice(error)}") from error


def refuses_header(error: t.Any) -> bool:
    """Whether the server may have refused a request because it does not support a header."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"] in s3_headers.REFUSED


def code_of(error: t.Any) -> str:
    """Return the server's error code, or the HTTP status if there is none."""
    return str(error.response.get("Error", {}).get("Code") or error.response["ResponseMetadata"]["HTTPStatusCode"])


def _advice(error: Exception) -> str:
    if isinstance(error, exceptions.SSLError):
        return "Check the server's certificate and ca_bundle."
    credentials = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.SSOError,
    )
    if isinstance(error, (*credentials, exceptions.ProfileNotFound, exceptions.ConfigParseError)):
        return _KEYS
    return _WHERE
