# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases of the sessions that work on a repository.

While a lease exists, objects stored since it began are not condemned. Leases also make stuck sessions visible. If one
lapses while its session is still running, the session loses work, but never data. All times are by the store's clock.
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
LAPSE = 1800.0  # seconds without a renewal after which a session counts as dead
# Seconds, less than the shortest grace period of a repository that several hosts share. After a longer request, objects
# are checked again.
STEADY = 240.0
# Seconds by which clocks may be wrong at most. Objects that decide about the order of requests stay that much longer.
ASTRAY = 3 * 3600.0
RENEWAL = 120.0  # seconds between two renewals


def boot_clock() -> float:
    """Return the seconds since this machine started, including those in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_clock() -> float:
    """Return the seconds since 1970 by this host's clock, which may be set anytime."""
    return time.time()


class Moment(t.NamedTuple):
    """A moment by this host's clocks, in seconds."""

    boot: float
    wall: float

    def elapsed(self) -> float:
        """Return the seconds since then by the clock that shows more.

        One of the clocks may have stood still, or have been set.
        """
        return max(boot_clock() - self.boot, abs(wall_clock() - self.wall))


def moment() -> Moment:
    """Return the present moment."""
    return Moment(boot_clock(), wall_clock())


@dataclasses.dataclass(frozen=True)
class LeaseHolder:
    """A process that works on the repository.

    ``since`` is its start and ``renewed`` its last renewal, in seconds by the store's clock.
    """

    id: str
    host: str
    process: int
    operation: str
    since: float
    renewed: float

    def lapsed(self, now: float) -> bool:
        """Return True if the last renewal is too long ago."""
        return now - self.renewed > LAPSE


class Lease:
    """The lease of this session. ``since`` is when it began, by the store's clock."""

    def __init__(self, repository: Repository, operation: str) -> None:
        self.repository = repository
        self.id = secrets.token_hex(8)
        self._name = names.lease(self.id)
        self.since: float | None = None
        self._operation = operation
        self._lock = threading.Lock()  # the renewing thread and the caller may renew at the same time
        self.since = self.now()

    def renew(self) -> float | None:
        """Renew the lease. Returns the store's time, or None if the lease is gone again."""
        body = {"host": socket.gethostname(), "process": os.getpid(), "operation": self._operation, "since": self.since}
        self.repository.put_object(self._name, envelope.encode(KIND, VERSION, body))
        with contextlib.suppress(ObjectMissing):  # a collector that took it for dead has deleted it
            return self._lower_since(self.repository.store.modified(self._name))
        return None

    def _lower_since(self, now: float) -> float:
        """Return ``now``; lower ``since`` to it if the store's clock was set back.

        Objects stored from now on would be older than ``since`` otherwise.
        """
        with self._lock:
            self.since = min(now, self.since) if self.since is not None else None
        return now

    def now(self) -> float:
        """Return the time by the store's clock, that of a freshly written object.

        Raises RepositoryError if that object does not exist in each of three attempts.
        """
        for _attempt in range(3):
            now = self.renew()
            if now is not None:
                return now
        raise RepositoryError(
            f"Cannot determine the time of {self.repository.store.location}: an object that was just written does not"
            " exist. Check the storage."
        )

    def release(self) -> None:
        """Delete the lease."""
        self.repository.discard(self._name)


@contextlib.contextmanager
def held(repository: Repository, operation: str) -> t.Iterator[Lease]:
    """Hold a lease during the block, and renew it every RENEWAL seconds."""
    lease = Lease(repository, operation)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWAL):
            with contextlib.suppress(RepositoryError):  # retried in time; if it lapses, that costs only work
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
    """Return the holders of all leases, the longest-running first.

    Only the last renewal of a damaged lease is known.
    """
    found = []
    for entry in repository.store.entries(names.LEASES):
        lease_id = entry.name.rpartition("/")[2]
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
