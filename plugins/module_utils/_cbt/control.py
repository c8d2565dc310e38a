# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control of a running operation: interruption at safe points, and progress."""

from __future__ import annotations

import dataclasses
import typing as t

from .errors import CbtError, Interrupted


class Interrupt:
    """A wish to stop, noted by a signal handler and honoured at points where stopping is safe.

    Raising from the handler itself could strike between a step and the note that it was taken,
    or in the middle of clean-up. So the handler only notes, and the engine asks. A thread that watches over something,
    such as free space, notes in the same way.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._cause: CbtError | None = None
        self._outcome = "Unfinished work was undone. Run it again."

    def request(self, reason: str) -> None:
        """Note that the operation should end. ``reason`` goes into the message, such as ``SIGTERM``."""
        self._reason = self._reason or reason

    def fail(self, cause: CbtError) -> None:
        """Note that the operation has to end, and why."""
        self._cause = self._cause or cause

    def reached(self, outcome: str) -> None:
        """Note what an interruption leaves from here on, and what to do. A danger that was noted before is over."""
        self._outcome, self._cause = outcome, None

    def check(self) -> None:
        """Raise Interrupted if a signal asked to stop, or the cause why the operation has to end."""
        if self._reason is not None:
            raise Interrupted(f"Ended by {self._reason}. {self._outcome}")
        if self._cause is not None:
            raise self._cause


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
