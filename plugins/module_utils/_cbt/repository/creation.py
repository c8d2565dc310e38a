# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates a repository in an empty location."""

from __future__ import annotations

from .format import configuration
from .format.configuration import Configuration
from .location import RepositoryLocation, as_location, open_store
from .repository import Repository, Watch, Watching, find_repository, open_repository
from .stores.base import Store


def open_or_create(
    where: str | RepositoryLocation, check_only: bool = False, watching: Watching | None = None
) -> Repository | None:
    """Open the repository at a location, or create it if the location is empty.

    It is encrypted if the location has a passphrase. With ``check_only``, return None instead of creating it. Raises as
    ``open_repository`` does, and if other files are there or a share is not mounted.
    """
    where = as_location(where)
    repository = find_repository(where, watching)
    if repository is not None:
        return repository
    store = open_store(where)
    store.check_creatable()
    created = configuration.create(where.passphrase)
    if check_only:
        return None
    put_first(store, created, watching(store) if watching is not None else None)
    return open_repository(where, watching)


def put_first(store: Store, created: Configuration, watch: Watch | None) -> bool:
    """Create a repository where the store permits it. Return False if another process created one first.

    Raises Refused if the store cannot hold a repository.
    """
    for warning in store.try_out():
        if watch is not None:
            watch.warn(warning)
    first = store.put(configuration.NAME, created.encode(), replace=False)
    store.reserve.keep()
    return first
