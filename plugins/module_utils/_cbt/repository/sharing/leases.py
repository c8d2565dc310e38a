# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases: who is at work on a repository.

A lease spares objects that appeared since it began from condemnation, and makes stuck sessions visible. One that lapsed
while its session still works costs that session work, never data. All times are by the store's own clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import socket
import threading
import time
import typing as t

from ...errors import DamagedObject, ObjectMissing, RepositoryError
from ..format import envelope, names
from ..repository import Repository
from ..stores.base import LATEST

KIND = "lease"
VERSION = 1
_SHAPE = {"host": str, "process": int, "operation": str, "since": t.Union[None, int, float]}
LAPSE = 1800.0  # seconds without a sign of life after which a session counts as dead
STEADY = 240.0  # seconds, less than the shortest grace period of a repository that several hosts share: a longer request is looked at again
# Seconds by which clocks may be wrong, at the most: what decides about the order of requests stays that much longer.
ASTRAY = 3 * 3600.0
RENEWAL = 120.0  # seconds between two signs of life


def boot_clock() -> float:
    """Seconds of this machine's life, those in which it was suspended among them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_clock() -> float:
    """Seconds since 1970 by this host's clock, which may be set at any time."""
    return time.time()


class Moment(t.NamedTuple):
    """A moment by this host's clocks, in seconds."""

    boot: float
    wall: float

    def elapsed(self) -> float:
        """Seconds since then, by the clock that says most: one may have stood still, or have been set."""
        return max(boot_clock() - self.boot, abs(wall_clock() - self.wall))


def moment() -> Moment:
    """The moment it is."""
    return Moment(boot_clock(), wall_clock())


@dataclasses.dataclass(frozen=True)
class LeaseHolder:
    """A process that works on the repository: since when, and its last sign of life, in seconds by the store's clock."""

    id: str
    host: str
    process: int
    operation: str
    since: float
    renewed: float

    def lapsed(self, now: float) -> bool:
        """True if nothing was heard of it for too long."""
        return now - self.renewed > LAPSE


class Lease:
    """The lease of this session. ``since`` is when it began, by the store's clock."""

    def __init__(self, repository: Repository, operation: str) -> None:
        self.repository = repository
        self.id = secrets.token_hex(8)
        self.since: float | None = None
        self._operation = operation
        self._lock = threading.Lock()  # the renewing thread and the caller renew at once
        self.since = self.now()

    @property
    def _name(self) -> str:
        return names.lease(self.id)

    def renew(self) -> float | None:
        """Give a sign of life. Returns the time by the store's clock, None if the lease is gone again."""
        body = {"host": socket.gethostname(), "process": os.getpid(), "operation": self._operation, "since": self.since}
        self.repository.put_object(self._name, envelope.encode(KIND, VERSION, body))
        with contextlib.suppress(ObjectMissing):  # a collector that took it for dead was faster
            return self._noted(self.repository.store.modified(self._name))
        return None

    def _noted(self, now: float) -> float:
        """The time by the store's clock. What is stored from now on may be older than ``since``, if that clock was set back."""
        with self._lock:
            self.since = min(now, self.since) if self.since is not None else None
        return now

    def now(self) -> float:
        """The time by the store's clock, that of a freshly written object."""
        for _attempt in range(3):
            now = self.renew()
            if now is not None:
                return now
        raise RepositoryError(
            f"Cannot determine the time of {self.repository.store.location}: an object that was just written does not exist. Check the storage."
        )

    def release(self) -> None:
        """The work is done."""
        self.repository.discard(self._name)


@contextlib.contextmanager
def held(repository: Repository, operation: str) -> t.Iterator[Lease]:
    """Hold a lease during the block, with a sign of life every now and then."""
    lease = Lease(repository, operation)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWAL):
            with contextlib.suppress(RepositoryError):  # tried again in time; should it lapse, that costs work only
                lease.renew()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(RepositoryError):  # it lapses
            lease.release()


def lease_holders(repository: Repository) -> list[LeaseHolder]:
    """Who is at work, the longest first. Of a lease that cannot be read only the last sign of life is known."""
    found = []
    for entry in repository.store.entries(names.LEASES):
        taken = names.parsed(entry.name)
        lease_id = taken.parts["session"] if taken is not None else ""
        try:
            body = envelope.decode(KIND, VERSION, repository.get_object(entry.name), entry.name, _SHAPE)
            since = entry.modified if body.get("since") is None else body["since"]
            if not 0 <= since <= LATEST:
                raise DamagedObject(f"{entry.name} is damaged: its start time is not a valid time")
            found.append(LeaseHolder(lease_id, body["host"], body["process"], body["operation"], since, entry.modified))
        except ObjectMissing:
            continue  # ended since it was listed
        except DamagedObject:
            found.append(LeaseHolder(lease_id, "", 0, "unknown", 0.0, entry.modified))
    return sorted(found, key=lambda holder: (holder.since, holder.id))
