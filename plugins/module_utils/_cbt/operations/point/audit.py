# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds blocks that changed although tracking did not mark them. Pure."""

from __future__ import annotations

import bisect
import itertools
import sys
import typing as t

from ...blocks.extents import BlockRange
from ...repository.format.maps import ExtentMap
from .parent_blocks import ParentBlocks
from .portion import KEPT, ZERO, Outcome


def unmarked_in(
    found: Outcome, claims: t.Sequence[BlockRange], base: ExtentMap | None, known: ParentBlocks
) -> t.Iterator[BlockRange]:
    """Yield the blocks of ``found`` that differ from ``base`` although no dirty range in ``claims`` covers them."""
    if found.state == KEPT or base is None:
        return
    stop = found.first + found.count
    if found.state == ZERO:
        changed = [(run.first, run.stop) for run in base.runs(found.first, stop)]
    else:
        unknown = {
            block
            for run in base.runs(found.first, stop)
            for block in range(run.first, run.stop)
            if known.is_unreadable(run, block)
        }
        changed = [(block, block + 1) for block in range(found.first, stop) if block not in unknown]
    for first, end in changed:
        index = max(0, bisect.bisect_right(claims, (first, sys.maxsize, True)) - 1)
        for claim in itertools.islice(claims, index, None):
            if claim.first >= end:
                break
            if claim.first > first:
                yield BlockRange(first, claim.first - first, False)
            first = max(first, min(end, claim.stop))
        if first < end:
            yield BlockRange(first, end - first, False)
