# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The location of a repository, and the store for it."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ..control import Control
from ..errors import RepositoryError
from .stores.base import Store
from .stores.directory import DirectoryStore
from .stores.s3_options import S3_SCHEME, S3Options


@dataclasses.dataclass(frozen=True)
class RepositoryLocation:
    """The address of a repository, and its passphrase if it is encrypted.

    ``location`` is an absolute path or ``s3://bucket/prefix``. Repeated requests are reported to ``control``.
    """

    location: str
    s3: S3Options = S3Options()
    passphrase: str | None = dataclasses.field(default=None, repr=False)
    control: Control = dataclasses.field(default_factory=Control, repr=False, compare=False)


def as_location(where: str | RepositoryLocation) -> RepositoryLocation:
    """Return the location; ``where`` may be a path or URL alone."""
    return RepositoryLocation(where) if isinstance(where, str) else where


def open_store(where: str | RepositoryLocation) -> Store:
    """Open the store at a location, or at a path or URL. Raises RepositoryError if the location is invalid."""
    where = as_location(where)
    if where.location.startswith(S3_SCHEME):
        from .stores.s3_store import S3Store  # imported on demand: the SDK loads slowly

        return S3Store(where.location, where.s3, where.control)
    if not os.path.isabs(where.location):
        raise RepositoryError(f"The repository {where.location} is not an absolute path.")
    return DirectoryStore(where.location)


# Variables that lead to an object store, or that its client reads.
_VARIABLES = ("HOME", "PATH", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_FAMILIES = ("AWS_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def handed_on(where: RepositoryLocation) -> dict[str, t.Any]:
    """Return a location, with its secrets and what the environment adds to it, as JSON can carry it."""
    environment = {
        name: value for name, value in os.environ.items() if name in _VARIABLES or name.upper().startswith(_FAMILIES)
    }
    return {
        "location": where.location,
        "s3": dataclasses.asdict(where.s3),
        "passphrase": where.passphrase,
        "environment": environment,
    }


def received(data: t.Mapping[str, t.Any]) -> RepositoryLocation:
    """Return the location that another process handed on, and set the variables that belong to it."""
    os.environ.update(data["environment"])
    return RepositoryLocation(data["location"], S3Options(**data["s3"]), data["passphrase"])
