# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks a repository against this host's memory, and updates the memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
import typing as t

from ...errors import CbtError, Refused
from ..format.configuration import Configuration
from ..format.manifests import Key, RestorePoint
from ..repository import Repository
from ..sharing import removals
from ..stores.base import Store
from . import host_state, known_repositories
from .known_repositories import KnownRepository


@dataclasses.dataclass(frozen=True)
class Terms:
    """Whether a run accepts a repository that is new or went back, and keeps what it sees.

    ``option`` is the option that messages name for accepting; ``warn`` receives warnings.
    """

    accept: bool = False
    keep: bool = True
    option: str = "accept_repository"
    warn: t.Callable[[str], None] = lambda _warning: None


def _file_of(location: str) -> str:
    return f"{hashlib.sha256(os.fsencode(location)).hexdigest()[:32]}.json"


def _is_remembered(location: str) -> bool:
    with contextlib.suppress(OSError):  # reading it again causes the warning
        return host_state.read(_file_of(location)) is not None
    return False


class Memory:
    """What this host knows of the repository in a store. Thread-safe."""

    def __init__(self, store: Store, terms: Terms) -> None:
        self._store, self._terms = store, terms
        known_as = store.addresses()
        self._address = next((each for each in known_as[:-1] if _is_remembered(each)), known_as[-1])
        self._file = _file_of(self._address)
        self._lock = threading.RLock()
        self._newest: dict[str, RestorePoint] = {}  # as a list showed them
        self._published = self._warned = False
        self._kept = self._known = self._recalled()

    def check_identity(self, found: Configuration | None) -> None:
        """Raise Refused if the repository found, None for none, is not the known one.

        Keeps one that is new to this host.
        """
        now = KnownRepository(found.id, found.encrypted) if found is not None else None
        reason = known_repositories.objection(self._known, now, self._store.location)
        if reason is not None:
            self._object(reason)
        if reason is not None or (self._known is None and now is not None):
            self._replace(now)

    def warn(self, text: str) -> None:
        """Report what the user must know of the store."""
        self._terms.warn(text)

    def check_last(self, repository: Repository) -> None:
        """Raise Refused if the point that this host wrote or saw last vanished."""
        if self._known is not None and self._known.last is not None:
            self._check(repository, [self._known.last])

    def listed(self, repository: Repository, found: t.Sequence[RestorePoint], uuid: str | None) -> None:
        """Check a list of all restore points, or of one domain's, against the known ones.

        Raises Refused if a known point vanished.
        """
        with self._lock:
            if self._known is None:
                return
            self._check(repository, known_repositories.absent(self._known, found, uuid))
            self._newest.update((point.uuid, point) for point in found)
            after = known_repositories.after_listing(self._known, found, uuid)
            self._learn(dataclasses.replace(after, last=self._known.last) if self._published else after)

    def published(self, point: RestorePoint) -> None:
        """Note a restore point that this run published."""
        with self._lock:
            if self._known is not None:
                self._published = True
                self._learn(known_repositories.after_publishing(self._known, point, self._newest.get(point.uuid)))

    def _check(self, repository: Repository, keys: t.Iterable[Key]) -> None:
        for key in keys:
            if removals.vanished(repository, key):
                self._object(known_repositories.went_back(key, self._store.location))
                self._replace(self._known.without_points() if self._known is not None else None)
                return

    def _object(self, reason: str) -> None:
        if self._terms.accept:
            return
        raise Refused(
            f"{reason} {self._store.advice()} If this state is intended, accept it once with {self._terms.option}:"
            " true."
        )

    def _learn(self, after: KnownRepository) -> None:
        """Keep new knowledge, merged with that of other runs on this host."""
        if after == self._known:
            return
        before, self._known = self._kept, after
        self._keep(lambda kept: known_repositories.merged(kept, before, after))
        if self._terms.keep and self._kept is not None and self._kept.id == after.id:
            self._known = self._kept

    def _replace(self, now: KnownRepository | None) -> None:
        """Keep this state instead of the known one."""
        self._known = now
        self._keep(lambda _kept: now)

    def _keep(self, change: t.Callable[[KnownRepository | None], KnownRepository | None]) -> None:
        if not self._terms.keep:
            return

        def changed(data: bytes | None) -> bytes | None:
            kept = None
            with contextlib.suppress(CbtError):  # the first reading caused a warning
                kept = known_repositories.decode(data, self._file)
            self._kept = change(kept)
            return known_repositories.encode(self._kept, self._address) if self._kept is not None else None

        try:
            host_state.update(self._file, changed)
        except OSError as error:
            self._warn("keep", error)

    def _recalled(self) -> KnownRepository | None:
        try:
            return known_repositories.decode(host_state.read(self._file), self._file)
        except (OSError, CbtError) as error:
            self._warn("read", error)
            return None

    def _warn(self, what: str, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        self._terms.warn(
            f"Cannot {what} the known state of the repository {self._store.location} in {host_state.shown_folder()}:"
            f" {why.rstrip('.')}. Until this works, a repository that was replaced or went back is not detected. Check"
            " the owner, mode and space of that folder."
        )
