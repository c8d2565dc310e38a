# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decoded blocks in memory, each decoded once for all who ask at the same time."""

from __future__ import annotations

import collections
import threading
import typing as t
from concurrent.futures import Executor, Future

from ...files import Buffer

BLOCKS = 1024  # that are kept: 64 MiB
_MOST_AHEAD = 64  # blocks that wait to be decoded ahead

Key = tuple[int, int]  # the number of the view, and the block
Load = t.Callable[[], Buffer]


class BlockCache:
    """Keeps the blocks that were used last. Decodes others in the caller's thread, or ahead in those of ``pool``."""

    def __init__(self, pool: Executor, blocks: int = BLOCKS) -> None:
        self._pool, self._limit = pool, blocks
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[Key, Future[Buffer]] = collections.OrderedDict()
        self._ahead = 0

    def get(self, key: Key, load: Load) -> Buffer:
        """Return a block, from ``load`` if it is not there. Raises what ``load`` raises."""
        future, new = self._claimed(key)
        if new:
            self._fill(key, future, load)
        return future.result()

    def ahead(self, key: Key, load: Load) -> None:
        """Begin to decode a block that may be asked for soon."""
        with self._lock:
            if key in self._blocks or self._ahead >= _MOST_AHEAD:
                return
            self._ahead += 1
        future, new = self._claimed(key)
        self._pool.submit(self._fill_ahead, key, future if new else None, load)

    def _claimed(self, key: Key) -> tuple[Future[Buffer], bool]:
        """Return the future of a block, and whether the caller must fill it."""
        with self._lock:
            known = self._blocks.get(key)
            if known is not None:
                self._blocks.move_to_end(key)
                return known, False
            made = self._blocks[key] = Future()
            while len(self._blocks) > self._limit:
                self._blocks.popitem(last=False)
            return made, True

    def _fill(self, key: Key, future: Future[Buffer], load: Load) -> None:
        try:
            future.set_result(load())
        except BaseException as error:  # the next one who asks tries again
            with self._lock:
                if self._blocks.get(key) is future:
                    del self._blocks[key]
            future.set_exception(error)

    def _fill_ahead(self, key: Key, future: Future[Buffer] | None, load: Load) -> None:
        if future is not None:
            self._fill(key, future, load)
        with self._lock:
            self._ahead -= 1
