# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schedule of a limited reading, on a clock that only sleeping moves."""

from __future__ import annotations

import threading

import pytest

from _cbt.blocks import throttle
from _cbt.blocks.throttle import Throttle
from _cbt.control import Control
from _cbt.errors import Interrupted

MIB = 1 << 20


class Clock:
    """What the throttle knows as ``time``."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throttle, "time", made)
    return made


def unwatched(rate: int | None) -> Throttle:
    return Throttle(rate, lambda: None)


def test_each_portion_waits_until_those_before_it_are_paid_for(clock: Clock) -> None:
    limited = unwatched(4 * MIB)
    moments = []
    for _number in range(5):
        limited.take(MIB)
        moments.append(clock.now - 100)
    assert moments == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_idle_time_earns_no_extra_bandwidth(clock: Clock) -> None:
    limited = unwatched(MIB)
    limited.take(MIB)
    clock.now += 60
    limited.take(MIB)
    assert not clock.sleeps
    limited.take(MIB)
    assert sum(clock.sleeps) == pytest.approx(1)


def test_workers_share_one_limit(clock: Clock) -> None:
    limited = unwatched(MIB)
    lock = threading.Lock()

    def take() -> None:
        with lock:
            limited.take(MIB)

    threads = [threading.Thread(target=take) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(clock.sleeps) == pytest.approx(3)


def test_nothing_sleeps_without_a_limit(clock: Clock) -> None:
    unwatched(None).take(1 << 50)
    assert not clock.sleeps


def test_a_waiting_worker_still_notices_an_interrupt(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control()

    def sleep(seconds: float) -> None:
        clock.now += seconds
        control.request("SIGTERM")

    monkeypatch.setattr(clock, "sleep", sleep)
    limited = Throttle(1, control.check)
    limited.take(MIB)
    with pytest.raises(Interrupted, match="SIGTERM"):
        limited.take(MIB)
    assert clock.now < 101
