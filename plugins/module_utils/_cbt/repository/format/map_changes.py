# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares the addresses of blocks in two extent maps. Pure."""

from __future__ import annotations

import typing as t

from ...grid import block_count
from .maps import ExtentMap, Run


class Change(t.NamedTuple):
    """Blocks from ``first`` to before ``stop`` with different addresses in two maps.

    ``before`` and ``after`` are None where the blocks are zero.
    """

    first: int
    stop: int
    before: Run | None
    after: Run | None


class _Cursor:
    """Walks the runs of a map forward."""

    def __init__(self, extents: ExtentMap) -> None:
        self._runs = extents.runs()
        self._run = next(self._runs, None)

    def piece(self, first: int, stop: int) -> tuple[Run | None, int]:
        """Return the run at ``first``, or None, and the block where that changes.

        The block is ``stop`` at the latest.
        """
        while self._run is not None and self._run.stop <= first:
            self._run = next(self._runs, None)
        if self._run is None or self._run.first >= stop:
            return None, stop
        if self._run.first > first:
            return None, self._run.first
        return self._run, min(self._run.stop, stop)


def changes(old: ExtentMap, new: ExtentMap) -> t.Iterator[Change]:
    """Yield the blocks that have other addresses in ``new``, in order.

    Their content may be the same.
    """
    befores, afters = _Cursor(old), _Cursor(new)
    first, end = 0, block_count(max(old.size, new.size))
    while first < end:
        before, stop = befores.piece(first, end)
        after, stop = afters.piece(first, stop)
        before = before.part(first, stop) if before is not None else None
        after = after.part(first, stop) if after is not None else None
        if before != after:
            yield Change(first, stop, before, after)
        first = stop
