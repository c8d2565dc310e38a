# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a repository on S3, without the client, which loads boto3."""

from __future__ import annotations

import dataclasses

S3_SCHEME = "s3://"


@dataclasses.dataclass(frozen=True)
class S3Options:
    """How to reach S3. For an option that is None, the environment and the files of the AWS SDK apply."""

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = dataclasses.field(default=None, repr=False)
    validate_certs: bool = True
    ca_bundle: str | None = None
    addressing_style: str | None = None  # auto, path or virtual
    server_side_encryption: str | None = None  # AES256, aws:kms or aws:kms:dsse; aws:kms if only a key is given
    kms_key_id: str | None = None
