# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lease says of itself, renewed by its own thread and by the work at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from _cbt.repository.repository import Repository
from _cbt.repository.sharing.leases import Lease


class Renewals:
    """A lock that notes when it has to wait, so that a test can wait for that instead of a span of time."""

    def __init__(self, settled: threading.Event) -> None:
        self._lock, self._settled = threading.Lock(), settled

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._settled.set()
            self._lock.acquire()

    def __exit__(self, *_exception: object) -> None:
        self._lock.release()


class Between(float):
    """A time that was asked for: when it is compared with the beginning, a second renewal comes in between."""

    def __new__(cls, now: float, _second: Callable[[], object]) -> Between:
        return super().__new__(cls, now)

    def __init__(self, _now: float, second: Callable[[], object]) -> None:
        self.settled = threading.Event()  # the second renewal is through, or waits for the first
        self._second = threading.Thread(target=lambda: (second(), self.settled.set()))

    def __gt__(self, other: float) -> bool:
        self._second.start()
        assert self.settled.wait(30)
        return super().__gt__(other)

    def join(self) -> None:
        """Wait for the second renewal."""
        self._second.join(30)


def test_concurrent_lease_renewals_do_not_undo_each_other(repository: Repository) -> None:
    lease = Lease(repository, "test")
    began = lease.now()
    between = Between(began - 10, lambda: lease._lower_since(began - 3600))
    lease._lock = Renewals(between.settled)  # type: ignore[assignment]
    lease._lower_since(between)
    between.join()
    assert lease.since == began - 3600
