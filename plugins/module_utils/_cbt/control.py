# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control of a running operation: interruption at safe points, events and progress."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t

from .errors import CbtError, Interrupted

DEBUG = "debug"
INFO = "info"
WARNING = "warning"

Value = t.Union[None, bool, int, float, str]


@dataclasses.dataclass(frozen=True)
class Event:
    """An action, a decision or a wait of the engine.

    ``phase`` is the phase of the operation, empty outside of all phases. ``fields`` hold no secrets.
    """

    name: str
    level: str = INFO
    phase: str = ""
    fields: t.Mapping[str, Value] = dataclasses.field(default_factory=dict)


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
Listener = t.Callable[[Event], None]


class Control:
    """Lets an operation check whether to stop, and report its actions. Thread-safe.

    A signal handler only notes the request, and the engine stops at the next point where this is safe. An exception
    from the handler itself could come between a step and the note that it was taken, or during clean-up.
    A thread that watches a resource, such as free space, calls ``fail`` in the same way.
    """

    def __init__(self, observer: Observer | None = None, listener: Listener | None = None) -> None:
        """Progress goes to ``observer``, and events to ``listener``."""
        self._observer, self._listener = observer, listener
        self._reason: str | None = None
        self._cause: CbtError | None = None
        self._outcome = "Unfinished work was undone. Run it again."
        self._phase = ""

    def request(self, reason: str) -> None:
        """Ask the operation to end. ``reason`` is part of the message, such as ``SIGTERM``."""
        self._reason = self._reason or reason

    def fail(self, cause: CbtError) -> None:
        """End the operation at its next check with this error."""
        self._cause = self._cause or cause

    def reached(self, outcome: str) -> None:
        """Set what interruptions from here on leave, and what to do. Clears the error of ``fail``."""
        self._outcome, self._cause = outcome, None

    def check(self) -> None:
        """Raise Interrupted if a signal asked to stop, or the error of ``fail``."""
        if self._reason is not None:
            raise Interrupted(f"Ended by {self._reason}. {self._outcome}")
        if self._cause is not None:
            raise self._cause

    def progress(self, step: Progress) -> None:
        """Report a step of a long operation."""
        if self._observer is not None:
            self._observer(step)

    def note(self, event: str, /, **fields: Value) -> None:
        """Report an event."""
        self._report(event, INFO, fields)

    def detail(self, event: str, /, **fields: Value) -> None:
        """Report an event that may be very frequent."""
        self._report(event, DEBUG, fields)

    def warn(self, event: str, /, **fields: Value) -> None:
        """Report an event that needs attention."""
        self._report(event, WARNING, fields)

    def _report(self, event: str, level: str, fields: t.Mapping[str, Value]) -> None:
        if self._listener is not None:
            self._listener(Event(event, level, self._phase, fields))

    @contextlib.contextmanager
    def phase(self, name: str, /, **fields: Value) -> t.Iterator[dict[str, Value]]:
        """Report when the block begins and ends. The end has the seconds, and the fields put into the dictionary."""
        outer, self._phase = self._phase, name
        result: dict[str, Value] = {}
        outcome, report, began = "failed", self.warn, time.perf_counter()
        self.note("begun", **fields)
        try:
            yield result
            outcome, report = "ended", self.note
        finally:
            report(outcome, **{**fields, "seconds": round(time.perf_counter() - began, 3), **result})
            self._phase = outer
