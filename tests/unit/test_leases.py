# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lease says of itself, renewed by its own thread and by the work at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from _cbt.repository import leases
from _cbt.repository.leases import PARTED, Lease
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


class Between:
    """In the place of the largest drift: when the first renewal compares with it, a second one comes in between."""

    def __init__(self, second: Callable[[], object]) -> None:
        self.settled = threading.Event()  # the second renewal is through, or waits for the first
        self._second = threading.Thread(target=lambda: (second(), self.settled.set()))
        self._met = False

    def __lt__(self, seconds: float) -> bool:
        if not self._met:
            self._met = True
            self._second.start()
            assert self.settled.wait(30)
        return seconds > PARTED

    def join(self) -> None:
        """Wait for the second renewal."""
        self._second.join(30)


@pytest.mark.parametrize(("jump", "steady"), [(10 * PARTED, False), (PARTED / 2, True)], ids=["parted", "together"])
def test_of_two_renewals_at_once_neither_undoes_what_the_other_found(
    jump: float, steady: bool, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(repository, "test")
    now = lease.now()
    between = Between(lambda: lease._compared(now + jump))
    lease._lock = Renewals(between.settled)  # type: ignore[assignment]
    monkeypatch.setattr(leases, "PARTED", between)
    lease._compared(now)
    between.join()
    assert lease.steady == steady
