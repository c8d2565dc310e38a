# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a repository readable: block ids and the seal around its objects. Private to the collection."""

from __future__ import annotations

import hashlib
import typing as t

from ..files import Buffer


class Keys(t.Protocol):
    """How blocks are named and small objects are sealed in one repository. May be used from several threads."""

    def block_id(self, data: Buffer) -> bytes:
        """What names a block by its content: 32 bytes, equal for equal blocks of one repository only if it is encrypted."""

    def seal(self, name: str, data: bytes) -> bytes:
        """The bytes to be stored under ``name``."""

    def unseal(self, name: str, stored: bytes) -> bytes:
        """What was sealed under ``name``. Raises DamagedObject if the bytes are not what was stored under it."""


class PlainKeys:
    """Of a repository that is not encrypted: SHA-256, and objects as they are."""

    def block_id(self, data: Buffer) -> bytes:
        return hashlib.sha256(data).digest()

    def seal(self, _name: str, data: bytes) -> bytes:
        return data

    def unseal(self, _name: str, stored: bytes) -> bytes:
        return stored
