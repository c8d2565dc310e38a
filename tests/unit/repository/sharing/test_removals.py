# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""At any moment, a removed restore point is in the trash or recorded as removed, whoever removes, merges or collects."""

from __future__ import annotations

import pytest
from engine_history import EngineHistory
from histories import KEYS
from samples import UUID, point_id
from stepping import Actor

from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.repository.sharing import removals, trash
from _cbt.repository.sharing.leases import LAPSE


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest) -> EngineHistory:
    made = EngineHistory(KEYS[request.param])
    made.backup()
    made.store.clock += 10
    return made


@pytest.mark.parametrize("requests", range(4))
def test_a_collector_without_grace_beside_a_removal_that_is_under_way(history: EngineHistory, requests: int) -> None:
    (made,) = history.fresh().points_of().points
    slow = Actor("", lambda actor: trash.remove(history.stepped(actor), made))
    for _request in range(requests):
        slow.step()
    retention(history.fresh(), RetentionRequest(grace=0.0))
    assert not removals.vanished(history.fresh(), made.key)
    while not slow.over:
        slow.step()
        assert not removals.vanished(history.fresh(), made.key)
    history.store.clock += LAPSE + 1
    retention(history.fresh(), RetentionRequest(grace=0.0, confirm_shrink=True))
    assert list(history.store.list("trash")) == []
    assert not removals.vanished(history.fresh(), made.key)


def test_no_request_of_a_merge_makes_a_record_unreadable(history: EngineHistory) -> None:
    ids = [point_id(day) for day in range(1, 18)]
    for each in ids[:-1]:
        removals.record(history.fresh(), [(UUID, each)])
    assert len(list(history.store.list("removed"))) == 16
    merging = Actor("", lambda actor: removals.record(history.stepped(actor), [(UUID, ids[-1])]))
    while not merging.over:
        assert all(removals.recorded(history.fresh(), (UUID, each)) for each in ids[:-1])
        merging.step()
    assert merging.error is None
    assert all(removals.recorded(history.fresh(), (UUID, each)) for each in ids)
    assert len(list(history.store.list("removed"))) == 1
