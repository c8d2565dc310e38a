# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many small requests side by side: each waits for the storage, not for the others. Private to the collection."""

from __future__ import annotations

import concurrent.futures
import itertools
import typing as t

T = t.TypeVar("T")
R = t.TypeVar("R")

_WORKERS = 8
_PORTION = 1024  # requests noted at once, so that a million of them need no more memory than these


def side_by_side(action: t.Callable[[T], R], items: t.Iterable[T]) -> t.Iterator[R]:
    """What ``action`` makes of each item, in their order. Must be read to its end; raises what an action raised."""
    left = iter(items)
    with concurrent.futures.ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        while True:
            portion = list(itertools.islice(left, _PORTION))
            if not portion:
                return
            yield from pool.map(action, portion)
