# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making the configuration of a repository again that was lost, from what its manifests tell. Private to the collection."""

from __future__ import annotations

import contextlib
import typing as t

from ..errors import DamagedObject, ObjectMissing, Refused
from . import configuration, encryption, points
from .configuration import Configuration
from .format import names
from .stores import Store


def lost(store: Store) -> bool:
    """True if there is no configuration, or if it is damaged. Raises RepositoryError if the store fails or it is of a newer format."""
    try:
        configuration.decode(store.get(configuration.NAME), store.location)
    except (DamagedObject, ObjectMissing):
        return True
    return False


def rebuilt(store: Store) -> Configuration:
    """The configuration that the manifests in a store belong to. Raises Refused if they do not tell."""
    ids: t.Set[str] = set()
    for name, _taken in names.of_kind(store.list(names.POINTS), names.MANIFEST_KIND):
        with contextlib.suppress(DamagedObject, ObjectMissing):  # any other tells the same
            data = store.get(name)
            if data.startswith(encryption.MAGIC):
                raise Refused(
                    f"The repository {store.location} is encrypted. Its {configuration.NAME} held the only copies of its key and cannot be made"
                    " again: put a copy of that file back."
                )
            ids.add(points.decode(data, name).repository)
    if len(ids) != 1:
        what = f"its restore points come from different ones ({', '.join(sorted(ids))})" if ids else "no restore point can be read that tells its id"
        raise Refused(f"Cannot make {configuration.NAME} of the repository {store.location} again: {what}. Put a copy of that file back.")
    return configuration.decode(Configuration(ids.pop()).encode(), store.location)
