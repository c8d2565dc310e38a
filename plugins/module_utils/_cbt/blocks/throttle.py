# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits the read rate."""

from __future__ import annotations

import threading
import time
import typing as t

_LOOK_EVERY = 0.2  # seconds


class Throttle:
    """Limits all workers together to ``rate`` bytes per second, None for no limit."""

    def __init__(self, rate: int | None, check: t.Callable[[], None]) -> None:
        """``check`` is called during a wait, and may raise to end it."""
        self._rate, self._check = rate, check
        self._lock = threading.Lock()
        self._due = 0.0

    def take(self, amount: int) -> None:
        """Wait until ``amount`` bytes may be read. Unused allowance does not accumulate."""
        if self._rate is None:
            return
        with self._lock:
            start = max(self._due, time.monotonic())
            self._due = start + amount / self._rate
        while True:
            left = start - time.monotonic()
            if left <= 0:
                return
            self._check()
            time.sleep(min(left, _LOOK_EVERY))
