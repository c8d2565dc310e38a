# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a module on another host leaves the action's own task as it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import _delegated
import pytest


@pytest.fixture
def alarm() -> Iterator[Any]:
    """The alarm of a task with a time limit, which no test reaches."""

    def handler(*_arguments: Any) -> None:
        raise AssertionError("the alarm went off")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield handler
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("limit", [0, 3600])
def test_the_time_limit_of_the_task_holds_again_afterwards(alarm: Any, limit: int) -> None:
    signal.alarm(limit)
    with _delegated._without_alarm():
        assert (signal.alarm(0), signal.getsignal(signal.SIGALRM)) == (0, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGALRM) is alarm
    assert limit - 60 <= signal.alarm(0) <= limit


def test_a_host_outside_the_inventory_is_a_failure_and_no_error() -> None:
    task_vars = {"hostvars": {"kvm1": {}}}
    result = _delegated.run_on("kvm2", None, "kvm.cbt.cbt_domain_info", {}, (task_vars, 60))
    assert result == {"failed": True, "msg": "kvm2 is not in the inventory"}
