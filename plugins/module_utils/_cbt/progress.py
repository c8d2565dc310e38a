# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operation tells while it works. Private to the collection."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Progress:
    """One step of a long operation.

    ``phase`` is one of freezing, reading, publishing, restoring, verifying, done; ``subject`` a disk target
    or a domain; ``done`` and ``total`` are bytes (``total`` 0 where it is not known beforehand).
    """

    phase: str
    subject: str = ""
    done: int = 0
    total: int = 0


Observer = t.Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """An observer that does not care."""
