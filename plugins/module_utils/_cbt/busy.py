# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures the time of each kind of work, and which one limited an operation.

Workers read, compute and store in turn. The share of a kind of work is the seconds that the workers spent in it,
divided by the duration times the number of workers that had work. In the rest of the time they waited for each other or
for more work. A worker that waits for a processor during its work counts as busy with it.
"""

from __future__ import annotations

import dataclasses
import time
import typing as t

from .control import Value

READING = "reading"
HASHING = "hashing"
SEARCHING = "searching"
COMPRESSING = "compressing"
ENCRYPTING = "encrypting"
STORING = "storing"
PROVING = "proving"
WRITING = "writing"
THROTTLED = "throttled"

_MOSTLY = 0.5  # share from which a kind of work counts as the limit

Names = t.Mapping[str, str]  # by kind of work: its name in a sentence
BACKUP_NAMES: Names = {
    READING: "reading the disk",
    HASHING: "hashing and comparing blocks",
    SEARCHING: "looking for stored blocks",
    COMPRESSING: "compressing",
    ENCRYPTING: "encrypting",
    STORING: "storing in the repository",
    THROTTLED: "waiting for rate_limit",
}
COPY_NAMES: Names = {**BACKUP_NAMES, READING: "reading the source repository", STORING: "storing in the destination"}
RESTORE_NAMES: Names = {
    READING: "reading the repository",
    PROVING: "decompressing and proving blocks",
    WRITING: "writing the disk",
}
VERIFY_NAMES: Names = {READING: RESTORE_NAMES[READING], PROVING: RESTORE_NAMES[PROVING]}


class Stopwatch:
    """Seconds that one worker spends in each kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Restart the measurement: the time since the last call does not count."""
        self._since = time.perf_counter()

    def lap(self, work: str) -> None:
        """Count the time since the last call as this kind of work."""
        now = time.perf_counter()
        self.seconds[work] = self.seconds.get(work, 0.0) + now - self._since
        self._since = now


class Watches:
    """The stopwatches of all workers of one step of an operation, from its beginning on."""

    def __init__(self) -> None:
        self._watches: list[Stopwatch] = []
        self._began = time.perf_counter()

    def new(self) -> Stopwatch:
        """Return the stopwatch of one more worker."""
        self._watches.append(Stopwatch())
        return self._watches[-1]

    def busy(self) -> Busy:
        """Return what they measured until now. Workers without work do not count."""
        worked = [watch.seconds for watch in self._watches if watch.seconds]
        kinds = {kind for seconds in worked for kind in seconds}
        total = {kind: sum(seconds.get(kind, 0.0) for seconds in worked) for kind in kinds}
        return Busy(total, time.perf_counter() - self._began, len(worked))


@dataclasses.dataclass(frozen=True)
class Busy:
    """Seconds of all ``workers`` by kind of work, during ``duration`` seconds."""

    seconds: t.Mapping[str, float]
    duration: float
    workers: int

    def shares(self, names: Names) -> dict[str, float]:
        """Return the share of each kind of work, from 0 to 1."""
        whole = self.duration * self.workers
        return {kind: round(min(1.0, self.seconds.get(kind, 0.0) / whole), 3) if whole else 0.0 for kind in names}

    def summary(self, names: Names) -> dict[str, Value]:
        """Return the shares for the log, with the number of workers."""
        return {"workers": self.workers, **{f"{kind}_busy": share for kind, share in self.shares(names).items()}}


def limited_by(parts: t.Iterable[Busy | None], names: Names) -> str | None:
    """Return a sentence on what limited the operation; None without measurements. Pure."""
    measured = [part for part in parts if part is not None]
    whole = sum(part.duration * part.workers for part in measured)
    if not whole:
        return None
    shares = {kind: sum(part.seconds.get(kind, 0.0) for part in measured) / whole for kind in names}
    first, second = sorted(names, key=lambda kind: -shares[kind])[:2]
    if shares[first] >= _MOSTLY:
        return f"{names[first][0].upper()}{names[first][1:]}: busy {_percent(shares[first])} of the time."
    return (
        f"No single kind of work: {names[first]} was busy {_percent(shares[first])} of the time,"
        f" {names[second]} {_percent(shares[second])}."
    )


def _percent(share: float) -> str:
    return f"{min(100, round(share * 100))} %"
