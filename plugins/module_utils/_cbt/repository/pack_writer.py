# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing blocks into packs from several threads. Private to the collection."""

from __future__ import annotations

import concurrent.futures
import threading
import typing as t

from . import packs
from .keys import Keys
from .packs import Encoded, PackRef
from .stores import Store, Upload


class Placement(t.NamedTuple):
    """Where consecutive blocks went: ``ordinal`` of the first in the pack with this id."""

    pack: bytes
    ordinal: int


class _OpenPack:
    """A pack being filled. ``pending`` counts writes under way; the last one out of a closed pack seals it."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.id = packs.new_id()
        self.keys = keys.pack(self.id)
        self.upload: Upload = store.upload(packs.object_name(self.id))
        self.directory = bytearray()
        self.end = packs.HEADER.size
        self.pending = 0
        self.closed = False

    @property
    def blocks(self) -> int:
        return len(self.directory) // packs.ENTRY.size

    @property
    def full(self) -> bool:
        return self.end >= packs.TARGET_SIZE or self.blocks >= packs.MAX_BLOCKS

    def seal(self) -> PackRef:
        ending = packs.ending(self.id, bytes(self.directory), self.end, self.keys)
        self.upload.write([packs.header(self.id)], 0)
        self.upload.write([ending], self.end)
        self.upload.commit()
        return PackRef(self.id, self.end + len(ending), self.blocks)


class PackWriter:
    """Appends blocks to packs. Threads reserve room under a lock, and seal and write side by side outside of it.

    One writer serves all disks of a run, so a small incremental makes one small pack and not one per disk. Full packs
    are sealed, which waits for the disk, by a thread of their own.
    """

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._lock = threading.Lock()
        self._open: t.Optional[_OpenPack] = None
        self._unsealed: t.Set[_OpenPack] = set()
        self._sealed: t.Dict[bytes, PackRef] = {}
        self._sealer = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._sealing: t.List[concurrent.futures.Future[None]] = []

    def append(self, blocks: t.Sequence[Encoded]) -> Placement:
        """Store blocks one after another in one pack. May be called from any thread.

        Raises RepositoryError if the store fails.
        """
        lines = b"".join(packs.entry(block, self._keys.overhead) for block in blocks)
        length = sum(len(block.payload) + self._keys.overhead for block in blocks)
        with self._lock:
            pack = self._open
            if pack is None:
                pack = self._open = _OpenPack(self._store, self._keys)
                self._unsealed.add(pack)
            placement, offset = Placement(pack.id, pack.blocks), pack.end
            pack.directory += lines
            pack.end += length
            pack.pending += 1
            if pack.full:
                pack.closed, self._open = True, None
        try:
            pack.upload.write(pack.keys.seal_blocks(placement.ordinal, [block.payload for block in blocks]), offset)
        finally:
            with self._lock:
                pack.pending -= 1
                last = pack.closed and pack.pending == 0
        if last:
            self._seal_later(pack)
        return placement

    def _seal_later(self, pack: _OpenPack) -> None:
        with self._lock:
            waiting = [each for each in self._sealing if not each.done()]
            for each in self._sealing:
                if each.done():
                    each.result()  # raises here what went wrong there
            self._sealing = [*waiting, self._sealer.submit(self._seal, pack)]

    def _seal(self, pack: _OpenPack) -> None:
        ref = pack.seal()
        with self._lock:
            self._sealed[ref.id] = ref
            self._unsealed.discard(pack)

    def finish(self) -> t.Mapping[bytes, PackRef]:
        """Seal what is open and return all packs written, by id. No thread may append any more."""
        if self._open is not None:
            pack, self._open = self._open, None
            self._seal_later(pack)
        for each in self._sealing:
            each.result()
        self._sealer.shutdown()
        return dict(self._sealed)

    def discard(self) -> None:
        """Delete everything this writer stored: nothing has named it yet."""
        self._sealer.shutdown(cancel_futures=True)
        for pack in list(self._unsealed):
            pack.upload.abandon()
        for ref in self._sealed.values():
            self._store.delete(ref.name)
