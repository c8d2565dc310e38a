# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a repository is, and the store for it."""

from __future__ import annotations

import dataclasses
import os

from ..control import Control
from ..errors import RepositoryError
from .stores.base import Store
from .stores.directory import DirectoryStore
from .stores.s3_options import S3_SCHEME, S3Options


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a repository is, an absolute path or ``s3://bucket/prefix``, and what opens it if it is encrypted.

    Requests that have to be repeated are reported to ``control``.
    """

    location: str
    s3: S3Options = S3Options()
    passphrase: str | None = dataclasses.field(default=None, repr=False)
    control: Control = dataclasses.field(default_factory=Control, repr=False, compare=False)


def as_place(place: str | Place) -> Place:
    """A place that may be given as its location alone."""
    return Place(place) if isinstance(place, str) else place


def store_at(place: str | Place) -> Store:
    """The store at a place, which may be given as its location alone. Raises RepositoryError if there can be none."""
    place = as_place(place)
    if place.location.startswith(S3_SCHEME):
        from .stores.s3_store import S3Store  # only then: the SDK takes its time to be imported

        return S3Store(place.location, place.s3, place.control)
    if not os.path.isabs(place.location):
        raise RepositoryError(f"The repository {place.location} is not an absolute path.")
    return DirectoryStore(place.location)
