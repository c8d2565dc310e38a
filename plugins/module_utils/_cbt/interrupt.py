# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a signal, or a danger, ends an operation in order. Private to the collection."""

from __future__ import annotations

import time
import typing as t

from .errors import Interrupted

WATCH_EVERY = 0.25  # seconds


class Interrupt:
    """A wish to stop, noted by a signal handler and honoured at points where stopping is safe.

    Raising from the handler itself could strike between a step and the note that it was taken,
    or in the middle of clean-up. So the handler only notes, and the engine asks. While it asks, it also looks at what
    has to be watched during the work, such as free space.
    """

    def __init__(self) -> None:
        self._reason: t.Optional[str] = None
        self._watchers: t.List[t.Callable[[], None]] = []
        self._watched = 0.0

    def request(self, reason: str) -> None:
        """Note that the operation should end. ``reason`` goes into the message, such as ``SIGTERM``."""
        self._reason = self._reason or reason

    @property
    def requested(self) -> bool:
        """True once somebody asked to stop."""
        return self._reason is not None

    def watch(self, look: t.Callable[[], None]) -> None:
        """Have ``look`` called now and then; it raises if the operation must end."""
        self._watchers.append(look)

    def check(self) -> None:
        """Raise Interrupted if somebody asked to stop, or what a watcher raises."""
        if self._reason is not None:
            raise Interrupted(f"Ended by {self._reason}: everything begun was undone, nothing was published. Run it again.")
        now = time.monotonic()
        if self._watchers and now - self._watched >= WATCH_EVERY:
            self._watched = now
            for look in self._watchers:
                look()
