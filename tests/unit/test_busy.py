# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What kept workers busy, and the sentence that says what limited an operation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from _cbt import busy
from _cbt.busy import BACKUP_NAMES, COPY_NAMES, RESTORE_NAMES, Busy, Names, Watches, limited_by


@pytest.mark.parametrize(
    ("parts", "names", "expected"),
    [
        ([], BACKUP_NAMES, None),
        ([Busy({}, 0.0, 0)], BACKUP_NAMES, None),
        ([Busy({}, 1.0, 0)], BACKUP_NAMES, None),
        ([Busy({"reading": 3.72}, 1.0, 4)], BACKUP_NAMES, "Reading the disk: busy 93 % of the time."),
        ([Busy({"reading": 1.0, "storing": 1.0}, 1.0, 2)], BACKUP_NAMES, "Reading the disk: busy 50 % of the time."),
        ([Busy({"throttled": 0.9}, 1.0, 1)], BACKUP_NAMES, "Waiting for rate_limit: busy 90 % of the time."),
        ([Busy({"storing": 9.0}, 10.0, 1)], COPY_NAMES, "Storing in the destination: busy 90 % of the time."),
        ([Busy({"writing": 1.1}, 1.0, 1)], RESTORE_NAMES, "Writing the disk: busy 100 % of the time."),
        (
            [Busy({"reading": 0.4, "hashing": 0.2, "storing": 0.3}, 1.0, 1)],
            BACKUP_NAMES,
            "No single kind of work: reading the disk was busy 40 % of the time, storing in the repository 30 %.",
        ),
        # A large disk counts for more than a small one.
        (
            [Busy({"reading": 1.0}, 1.0, 1), Busy({"compressing": 36.0}, 10.0, 4)],
            BACKUP_NAMES,
            "Compressing: busy 88 % of the time.",
        ),
    ],
)
def test_the_sentence_names_what_was_busy_most(parts: Sequence[Busy], names: Names, expected: str | None) -> None:
    assert limited_by(parts, names) == expected


def test_workers_that_had_nothing_to_do_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(busy.time, "perf_counter", lambda: now[0])
    watches = Watches()
    one, two, _idle = (watches.new() for _worker in range(3))
    for watch, work, seconds in [(one, "reading", 2.0), (one, "hashing", 1.0), (two, "reading", 3.0)]:
        watch.start()
        now[0] += seconds
        watch.lap(work)
    now[0] += 2.0
    one.start()  # what passed before does not count
    one.lap("reading")
    result = watches.busy()
    assert result == Busy({"reading": 5.0, "hashing": 1.0}, 8.0, 2)
    assert result.shares(RESTORE_NAMES) == {"reading": 0.312, "proving": 0.0, "writing": 0.0}
    assert result.summary({"hashing": ""}) == {"workers": 2, "hashing_busy": 0.062}
