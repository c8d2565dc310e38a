# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A store that locks every object for days, leases and announcements included: nothing fails for it, and all space comes back in the end."""

from __future__ import annotations

import pytest
from engine_history import EngineHistory
from histories import KEYS, use_small_disks
from samples import UUID

from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import leases, publishing, removals

DAY = 86400.0


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    use_small_disks(monkeypatch)
    made = EngineHistory(KEYS[request.param])
    made.store.lock_for = 3 * DAY
    made.store.clock = 1_800_000_000.0  # later than the points it makes
    return made


def day(history: EngineHistory, number: int, request: RetentionRequest) -> dict[str, tuple[str, ...]]:
    """A day with a backup and retention; the rules that keep each point."""
    history.disk.write(number % 8, 10 + number)
    history.backup()
    history.store.clock += leases.LAPSE * 2
    result = retention(history.fresh(), request)
    assert not history.wrong()
    assert not shorter(history)
    assert [
        verdict.damage for verdict in verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))[0] if verdict.damage
    ] == []
    history.store.clock += DAY
    return {verdict.point.id: verdict.rules for verdict in result.kept}


def shorter(history: EngineHistory) -> set[str]:
    """What restore points rest on that is not locked as long as they are."""
    store, repository = history.store, history.fresh()
    return {
        name
        for point in repository.points_of().points
        for name in publishing.needed(repository, point)
        if store.locks.get(name, 0.0) < store.locks.get(f"{point.folder}/manifest.json", 0.0)
    }


@pytest.mark.parametrize("grace", [0.0, DAY])
def test_days_of_backups_and_retention_keep_what_is_locked_and_reclaim_it_afterwards(
    history: EngineHistory, grace: float
) -> None:
    request = RetentionRequest(Rules(last=1), grace=grace, compact_below=50)
    for number in range(10):
        rules = list(day(history, number, request).values())
        assert rules == [*[("locked",)] * min(number, 2), ("last",)]
    for _later in range(3):
        history.store.clock += 5 * DAY
        retention(history.fresh(), request)
    assert not history.wrong()
    assert {name for name in history.store.objects if name.startswith(("packs/", "points/"))} == history.needed()
    left = {name.split("/")[0] for name in history.store.objects} - {
        "packs",
        "points",
        "hooks",
        "verified",
        "repository.json",
    }
    assert left <= {"leases", "collected.json", "condemned", "doomed", "removed"}
    recorded = [each for name in history.store.list("removed") for each in removals._ids(history.fresh(), name)]
    assert len(recorded) == len(set(recorded)) > 0, "what the lock keeps in the trash is recorded once, when it goes"


def test_a_point_whose_entry_in_the_trash_is_locked_is_brought_back_and_stays(history: EngineHistory) -> None:
    history.store.lock_for = 0.0
    made = history.backup()
    history.disk.write(1, 5)
    history.backup()
    history.store.lock_for = 3 * DAY
    assert [point.id for point in retention(history.fresh(), RetentionRequest(Rules(last=1))).removed] == [made.id]
    assert [point.id for point in retention(history.fresh(), RetentionRequest(undelete=(made.id,))).undeleted] == [
        made.id
    ]
    assert not shorter(history)
    for number in range(8):
        day(history, number, RetentionRequest(Rules(last=20), compact_below=90))
    assert made.id in {point.id for point in history.fresh().points_of(UUID).points}
    assert not [name for name in history.store.objects if name.startswith("trash/")]


def test_a_point_that_is_healed_is_locked_as_a_whole(history: EngineHistory) -> None:
    history.disk.write(1, 5)
    made = history.backup()
    history.store.clock += DAY
    history.flip(made.id, 1)
    verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))
    history.backup()
    assert not history.damaged(), "it was healed"
    assert not shorter(history)
