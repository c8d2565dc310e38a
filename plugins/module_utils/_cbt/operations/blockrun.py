# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Walking the stored blocks of a map in portions. Pure. Private to the collection."""

from __future__ import annotations

import typing as t

from ..repository.maps import ExtentMap, Run

PORTION = 16  # blocks read from a pack, and written, at once: 1 MiB


def portions(extents: ExtentMap) -> t.Iterator[Run]:
    """The runs of a map cut to at most PORTION blocks each."""
    for run in extents.runs():
        for first in range(run.first, run.stop, PORTION):
            yield run.part(first, min(first + PORTION, run.stop))
