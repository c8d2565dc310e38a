# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds stored blocks: of this run, or in packs of earlier runs.

Memory is bounded, independent of the repository's size: hooks, which are looked up on disk, select the packs whose
directories are worth loading, and only the blocks noted last are remembered.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import secrets
import threading
import typing as t

from ...errors import UnreadableObject
from ..format import hooks, names
from ..format.hooks import PackHooks
from ..format.manifests import RestorePoint
from ..format.packs import PackRef
from ..packs.writer import BlockAddress
from ..records.damage import Damages
from ..repository import Repository
from ..sharing import condemned
from .index import HookIndex

REPOSITORY = "repository"
DOMAIN = "domain"
NONE = "none"

REMEMBERED = 1 << 18  # blocks; about 40 MiB
_ORDINAL_BITS = 32
_NO_BLOCK = b""  # no block has this id

Lookup = t.Callable[[t.Collection[bytes]], dict[bytes, BlockAddress]]


class _AddressCache:
    """The addresses of the blocks noted last, at least ``REMEMBERED / 2`` of them.

    One thread at a time may note; any thread may get.
    """

    def __init__(self) -> None:
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}
        self._packs: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        self._loaded: set[bytes] = set()
        self._loaded_before: set[bytes] = set()

    def note(self, pack: bytes, first: int, block_ids: t.Sequence[bytes]) -> None:
        if len(self._young) >= REMEMBERED // 2:
            self._old, self._young = self._young, {}
            self._loaded, self._loaded_before = set(), self._loaded
        number = self._numbers.setdefault(pack, len(self._packs))
        if number == len(self._packs):
            self._packs.append(pack)
        start = (number << _ORDINAL_BITS) + first
        self._young.update(zip(block_ids, range(start, start + len(block_ids))))

    def begin_loading(self, pack: bytes) -> bool:
        """Whether to note the blocks of this pack. False while they are remembered."""
        if pack in self._loaded or pack in self._loaded_before:
            return False
        self._loaded.add(pack)
        return True

    def get(self, block_id: bytes) -> BlockAddress | None:
        address = self._young.get(block_id)
        if address is None:
            address = self._old.get(block_id)
            if address is None:
                return None
        return BlockAddress(self._packs[address >> _ORDINAL_BITS], address & (1 << _ORDINAL_BITS) - 1)


class Deduplicator:
    """Finds the addresses of blocks that are already stored. Thread-safe.

    ``packs`` are the packs of earlier runs whose directories were loaded. An extent map may name these and the packs of
    this run, and no others. Packs that are pending deletion are never among them. Damaged blocks are never found.
    """

    def __init__(self, repository: Repository, index: HookIndex, damages: Damages) -> None:
        self._repository = repository
        self._index = index
        self._damages = damages
        self._avoided = _pack_ids(condemned.pending_deletion(repository))
        self._changed = threading.Condition()
        self._loading: set[bytes] = set()
        self._addresses = _AddressCache()
        self.packs: dict[bytes, PackRef] = {}

    @property
    def failure(self) -> str | None:
        """Why the local index could not be used, or None."""
        return self._index.failure

    def stored(self, address: BlockAddress, block_ids: t.Sequence[bytes]) -> None:
        """Remember blocks that this run stored."""
        with self._changed:
            self._addresses.note(address.pack, address.ordinal, block_ids)

    @contextlib.contextmanager
    def finder(self) -> t.Iterator[Lookup]:
        """Yield a function for one thread that returns the addresses of known blocks.

        The function raises RepositoryError if the store fails.
        """
        with self._index.lookup() as lookup:

            def find(block_ids: t.Collection[bytes]) -> dict[bytes, BlockAddress]:
                for ref in lookup(filter(hooks.may_be_hook, block_ids)):
                    self._load(ref)
                get = self._addresses.get
                return {
                    block_id: address
                    for block_id, address in ((each, get(each)) for each in block_ids)
                    if address is not None
                }

            yield find

    def _load(self, ref: PackRef) -> None:
        """Note the blocks of a pack once. If another thread is loading it, wait for that thread."""
        with self._changed:
            if ref.id in self._avoided:
                return
            if not self._addresses.begin_loading(ref.id):
                self._changed.wait_for(lambda: ref.id not in self._loading)
                return
            self._loading.add(ref.id)
        try:
            self._note(ref)
        finally:
            with self._changed:
                self._loading.remove(ref.id)
                self._changed.notify_all()

    def _note(self, ref: PackRef) -> None:
        try:
            directory = self._repository.reader.directory(ref)
        except UnreadableObject:
            self._avoided.add(ref.id)
            return
        block_ids = [directory.digest(ordinal) for ordinal in range(len(directory))]
        damage = self._damages.get(ref.id)
        if damage is not None:
            block_ids = [
                _NO_BLOCK if damage.covers(ordinal) else block_id for ordinal, block_id in enumerate(block_ids)
            ]
        with self._changed:
            self.packs[ref.id] = ref
            self._addresses.note(ref.id, 0, block_ids)


def _pack_ids(found: t.Iterable[str]) -> set[bytes]:
    """Return the ids of the packs among these object names."""
    return {taken.pack for _name, taken in names.of_kind(found, names.PACK_KIND)}


def deduplicator(repository: Repository, scope: str, domain: str, damages: Damages) -> Deduplicator | None:
    """Return the deduplicator for a backup of the domain with this UUID.

    ``scope`` is repository, domain or none; None is returned for none. Raises RepositoryError.
    """
    if scope == NONE:
        return None
    index = HookIndex(repository, domain if scope == DOMAIN else None)
    index.refresh()
    return Deduplicator(repository, index, damages)


def store_hooks(repository: Repository, name: t.Callable[[int], str], written: t.Iterable[PackHooks]) -> int:
    """Store the hooks of new packs, in the order of their begin, and count the packs.

    ``name`` returns the name of an object from its number: see ``of_backup`` and ``of_compaction``. Raises
    RepositoryError.
    """
    left, count = iter(written), 0
    for number in itertools.count():
        some = list(itertools.islice(left, hooks.PACKS_PER_OBJECT))
        if not some:
            break
        repository.put_object(name(number), hooks.encode(some))
        count += len(some)
    return count


def of_backup(uuid: str, point_id: str) -> t.Callable[[int], str]:
    """Return names for the hooks of packs that were written with a restore point."""
    return functools.partial(names.hooks_of_run, uuid, point_id)


def of_compaction() -> t.Callable[[int], str]:
    """Return new names for the hooks of packs with blocks of many domains."""
    return functools.partial(names.hooks_of_compaction, secrets.token_hex(8))


def tidy(repository: Repository, points: t.Iterable[RestorePoint]) -> tuple[int, int]:
    """Store missing hooks for packs of restore points, and delete hooks without packs.

    Returns the number of packs that got hooks, and of objects deleted. Only space depends on it, and it may run beside
    any operation. Raises RepositoryError if the store fails.
    """
    index = HookIndex(repository)
    index.refresh()
    without = _pack_ids(repository.store.list(names.PACKS))  # hooks
    idle: dict[str, bool] = {}
    for name, pack in index.packs():
        idle[name] = idle.get(name, True) and pack not in without
        without.discard(pack)  # an object whose packs are all in other objects is idle, too
    if index.failure is not None:
        return 0, 0
    gone = [name for name, nothing in idle.items() if nothing]
    for name in gone:
        repository.discard(name)
    added = sum(
        store_hooks(
            repository,
            of_backup(point.uuid, f"{point.id}-{secrets.token_hex(4)}"),
            _hooks_of(repository, point, without),
        )
        for point in points
    )
    return added, len(gone)


def _hooks_of(repository: Repository, point: RestorePoint, without: set[bytes]) -> t.Iterator[PackHooks]:
    """Yield the hooks of a point's packs in ``without``, and remove these packs from it."""
    for disk in point.disks:
        try:
            refs = repository.read_packs(point, disk)
        except UnreadableObject:
            continue
        for ref in refs:
            if ref.id not in without:
                continue
            without.discard(ref.id)
            with contextlib.suppress(UnreadableObject):
                directory = repository.reader.directory(ref)
                yield PackHooks(ref, hooks.choose(directory.digest(ordinal) for ordinal in range(len(directory))))
