# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The headers of requests to S3 that not every server accepts: conditions, checksums and encryption."""

from __future__ import annotations

import base64
import functools
import hashlib
import typing as t

from ...control import Control
from .s3_options import S3Options

# The HTTP status by which servers refuse a header. The error codes differ, and so does what they say.
REFUSED = (400, 501)
CREATING = ("PutObject", "CreateMultipartUpload")

_CONDITIONS = {"IfNoneMatch": "If-None-Match", "IfMatch": "If-Match"}
_CHECKSUMS = ("x-amz-checksum-", "x-amz-sdk-checksum-")
_REPLACED = "kvm_cbt_replaced"

Request = dict[str, t.Any]


def register(events: t.Any, options: S3Options, control: Control) -> None:
    """Have the SDK send the headers that the options and the server demand."""
    checksums = _Checksums(control)
    events.register("before-call.s3", checksums.prepare)
    events.register("needs-retry.s3", checksums.retry)
    events.register("provide-client-params.s3.PutObject", _take_condition)
    events.register("before-call.s3.PutObject", _set_condition)
    for operation in CREATING:
        events.register(f"provide-client-params.s3.{operation}", functools.partial(_encrypt, encryption(options)))


def encryption(options: S3Options) -> dict[str, str]:
    """Return the parameters of a request that have the server encrypt an object as the options demand."""
    key = {"SSEKMSKeyId": options.kms_key_id} if options.kms_key_id else {}
    method = options.server_side_encryption or ("aws:kms" if key else None)
    return {"ServerSideEncryption": method, **key} if method else {}


def _encrypt(parameters: dict[str, str], params: Request, **_event: t.Any) -> None:
    params.update(parameters)


def _take_condition(params: Request, context: Request, **_event: t.Any) -> None:
    # The SDK of Debian 12 and RHEL 9 rejects conditions on this request, so they bypass its checks.
    context["kvm_cbt_conditions"] = {header: params.pop(name) for name, header in _CONDITIONS.items() if name in params}


def _set_condition(params: Request, context: Request, **_event: t.Any) -> None:
    params["headers"].update(context.get("kvm_cbt_conditions", {}))


class _Checksums:
    """Sends Content-MD5, which every server knows, to a server that refuses newer checksums."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._refused = False

    def prepare(self, params: Request, **_event: t.Any) -> None:
        if self._refused:
            _replace(params)

    def retry(self, response: t.Any, request_dict: Request, **_event: t.Any) -> int | None:
        """Return 0 if the SDK is to repeat the request at once, which then has another checksum."""
        status = response[0].status_code if response is not None else 0
        if status in REFUSED and _replace(request_dict):
            request_dict["context"][_REPLACED] = True
            return 0
        # Until a request succeeds without it, the checksum may not be the reason.
        if 200 <= status < 300 and request_dict["context"].get(_REPLACED) and not self._refused:
            self._refused = True
            self._control.warn("checksum_refused", header="x-amz-checksum-crc32", instead="Content-MD5")
        return None


def _replace(request: Request) -> bool:
    """Replace the checksums of a request. Return False if it has none."""
    headers = request["headers"]
    found = [name for name in headers if name.lower().startswith(_CHECKSUMS)]
    for name in found:
        del headers[name]
    checksum = request["context"].get("checksum", {})
    later = isinstance(checksum.get("request_algorithm"), dict)  # a newer SDK adds one afterwards
    if later:
        del checksum["request_algorithm"]
    if not found and not later:
        return False
    content = getattr(request["body"], "data", request["body"])
    if content:
        headers["Content-MD5"] = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    return True
