# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit to how fast is read. Private to the collection."""

from __future__ import annotations

import threading
import time
import typing as t


class Throttle:
    """Hands out ``rate`` bytes per second, None for no limit, to all workers together."""

    def __init__(self, rate: t.Optional[int]) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._due = time.monotonic()

    def take(self, amount: int) -> None:
        """Wait until ``amount`` bytes may be read. An idle time is not made up for."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._due, now)
            self._due = start + amount / self._rate
        time.sleep(max(0.0, start - now))
