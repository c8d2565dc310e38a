# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes blocks into packs from several threads."""

from __future__ import annotations

import array
import concurrent.futures
import contextlib
import threading
import typing as t

from ...busy import ENCRYPTING, STORING, Stopwatch
from ...errors import RepositoryError
from ..crypto.keys import Keys
from ..format import hooks, names, packs
from ..format.hooks import PackHooks
from ..format.packs import Encoded, PackRef
from ..stores.base import Store, Upload

_MOST_UNFINISHED = (
    64  # packs, where the store sets no limit: each is an open file, and a process often may open only 1024
)


class BlockAddress(t.NamedTuple):
    """The address of consecutive blocks: the id of the pack, and the ordinal of the first block in it."""

    pack: bytes
    ordinal: int


class _OpenPack:
    """A pack being filled. ``pending`` counts writes in progress; the last one of a closed pack finalizes it."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.id = packs.new_id()
        self.keys = keys.pack(self.id)
        self.upload: Upload = store.upload(names.pack(self.id))
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

    @property
    def block_ids(self) -> t.Iterator[bytes]:
        return (bytes(self.directory[start : start + 32]) for start in range(0, len(self.directory), packs.ENTRY.size))

    def finalize(self) -> PackRef:
        ending = packs.ending(self.id, bytes(self.directory), self.end, self.keys)
        self.upload.write([packs.header(self.id)], 0)
        self.upload.write([ending], self.end)
        self.upload.commit()
        return PackRef(self.id, self.end + len(ending), self.blocks)


class PackWriter:
    """Appends blocks to packs. Threads reserve room under a lock, then encrypt and write in parallel.

    One writer serves all disks of a run, so that a small incremental makes one small pack, not one for each disk.
    Separate threads finalize full packs, which waits for the store. The number of unfinished packs is limited, because
    they are open files or take memory. After an error, ``append`` and ``finish`` raise it.
    """

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._changed = threading.Condition()
        self._open: _OpenPack | None = None
        self._unfinished: set[_OpenPack] = set()
        self._finished: dict[bytes, PackRef] = {}
        self._begun: list[bytes] = []
        self._hooks: dict[bytes, array.array[int]] = {}  # as tuples, the hooks of a disk of 20 TiB took 400 MiB
        self._error: BaseException | None = None
        self._most = store.open_uploads or _MOST_UNFINISHED
        self._finalizer = concurrent.futures.ThreadPoolExecutor(max_workers=(store.open_uploads or 2) - 1)

    def append(self, blocks: t.Sequence[Encoded], watch: Stopwatch | None = None) -> BlockAddress:
        """Store blocks one after another in one pack, and return the address of the first.

        Any thread may call it, with its own ``watch``. Raises RepositoryError if the store fails.
        """
        watch = watch or Stopwatch()
        lines = b"".join(packs.entry(block, self._keys.overhead) for block in blocks)
        length = sum(len(block.payload) + self._keys.overhead for block in blocks)
        with self._changed:
            pack = self._pack_with_room()
            address, offset = BlockAddress(pack.id, pack.blocks), pack.end
            pack.directory += lines
            pack.end += length
            pack.pending += 1
            if pack.full:
                pack.closed, self._open = True, None
        watch.lap(STORING)  # _pack_with_room waits for the store
        try:
            sealed = pack.keys.seal_blocks(address.ordinal, [block.payload for block in blocks])
            watch.lap(ENCRYPTING)
            pack.upload.write(sealed, offset)
            watch.lap(STORING)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            with self._changed:
                pack.pending -= 1
                last = pack.closed and pack.pending == 0
        if last:
            self._finalizer.submit(self._finalize, pack)
        return address

    def _pack_with_room(self) -> _OpenPack:
        while self._error is None and self._open is None and len(self._unfinished) >= self._most:
            self._changed.wait()
        if self._error is not None:
            raise self._error
        if self._open is None:
            self._open = _OpenPack(self._store, self._keys)
            self._unfinished.add(self._open)
            self._begun.append(self._open.id)
        return self._open

    def _finalize(self, pack: _OpenPack) -> None:
        try:
            ref = pack.finalize()
            keys = array.array("Q", hooks.choose(pack.block_ids))
        except BaseException as error:
            self._fail(error)
            return
        with self._changed:
            self._finished[ref.id] = ref
            self._hooks[ref.id] = keys
            self._unfinished.discard(pack)
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def finish(self) -> t.Mapping[bytes, PackRef]:
        """Finalize the open pack and return all packs written, by id. Call it when no thread appends any more."""
        if self._open is not None:
            self._finalizer.submit(self._finalize, self._open)
            self._open = None
        self._finalizer.shutdown()
        if self._error is not None:
            raise self._error
        return dict(self._finished)

    def hooks(self) -> t.Iterator[PackHooks]:
        """Return the hooks of all packs written, in the order of their begin. Call it after ``finish``."""
        return (PackHooks(self._finished[pack], tuple(self._hooks[pack])) for pack in self._begun)

    def discard(self) -> None:
        """Delete all packs of this writer, which no object names yet. The collector deletes what remains."""
        self._finalizer.shutdown(cancel_futures=True)
        for pack in list(self._unfinished):
            pack.upload.abandon()
        for ref in self._finished.values():
            with contextlib.suppress(RepositoryError):
                self._store.delete(ref.name)
