"""What a lease says of itself, renewed by its own thread and by the work at once."""

from __future__ import annotations

import threading

from _cbt.repository.leases import LAPSE, Lease
from _cbt.repository.repository import Repository


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


class Suspended(Lease):
    """A lease of a host that was suspended: when the first of two renewals takes its decision, the second one comes in between."""

    at = 0.0

    def __init__(self, repository: Repository) -> None:
        self._settled = threading.Event()  # the second renewal is through, or waits for the first
        self._between = -1  # readings of the clock until then
        super().__init__(repository, "test")
        self._lock = Renewals(self._settled)  # type: ignore[assignment]

    def clock(self) -> float:
        self._between -= 1
        if self._between == 0:
            self.second = threading.Thread(target=self._renew_too)
            self.second.start()
            assert self._settled.wait(30)
        return self.at

    def _renew_too(self) -> None:
        self.renew()
        self._settled.set()

    def renew_at_once(self) -> None:
        """Renew by two threads; the second begins while the first has read ``steady`` and not yet when it renewed last."""
        self._between = 2  # the first reading is the beginning of the renewal
        self.renew()
        self.second.join()


def test_a_lease_that_two_threads_renew_after_a_suspend_is_not_steady(repository: Repository) -> None:
    lease = Suspended(repository)
    assert lease.steady
    lease.at = LAPSE
    lease.renew_at_once()
    assert not lease.steady


def test_a_lease_that_two_threads_renew_in_time_stays_steady(repository: Repository) -> None:
    lease = Suspended(repository)
    lease.at = LAPSE / 4
    lease.renew_at_once()
    assert lease.steady
