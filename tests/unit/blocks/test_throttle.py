# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schedule of a limited reading, on a clock that only sleeping moves."""

from __future__ import annotations

import threading

import pytest

from _cbt.blocks.throttle import Throttle
from _cbt.control import Control
from _cbt.errors import Interrupted

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_each_portion_waits_until_those_before_it_are_paid_for() -> None:
    clock = Clock()
    throttle = Throttle(4 * MIB, clock=lambda: clock.now, sleep=clock.sleep)
    moments = []
    for _number in range(5):
        throttle.take(MIB)
        moments.append(clock.now - 100)
    assert moments == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_idle_time_earns_no_extra_bandwidth() -> None:
    clock = Clock()
    throttle = Throttle(MIB, clock=lambda: clock.now, sleep=clock.sleep)
    throttle.take(MIB)
    clock.now += 60
    throttle.take(MIB)
    assert not clock.sleeps
    throttle.take(MIB)
    assert sum(clock.sleeps) == pytest.approx(1)


def test_workers_share_one_limit() -> None:
    clock = Clock()
    throttle = Throttle(MIB, clock=lambda: clock.now, sleep=clock.sleep)
    lock = threading.Lock()

    def take() -> None:
        with lock:
            throttle.take(MIB)

    threads = [threading.Thread(target=take) for _number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(clock.sleeps) == pytest.approx(3)


def test_nothing_sleeps_without_a_limit() -> None:
    clock = Clock()
    Throttle(None, clock=lambda: clock.now, sleep=clock.sleep).take(1 << 50)
    assert not clock.sleeps


def test_a_waiting_worker_still_notices_an_interrupt() -> None:
    clock = Clock()
    control = Control()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        control.request("SIGTERM")

    throttle = Throttle(1, control.check, lambda: clock.now, sleep)
    throttle.take(MIB)
    with pytest.raises(Interrupted, match="SIGTERM"):
        throttle.take(MIB)
    assert sum(clock.sleeps) < 1
