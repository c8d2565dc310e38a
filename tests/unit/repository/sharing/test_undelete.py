# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore point that is brought back while somebody else still removes it is published or can be brought back again."""

from __future__ import annotations

import dataclasses
import time

import pytest
from engine_history import EngineHistory
from histories import KEYS
from samples import OTHER_UUID, UUID, point
from stepping import Actor

from _cbt.errors import Refused
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.sharing import condemned, trash
from _cbt.repository.sharing.collector import Collected
from _cbt.repository.sharing.leases import ASTRAY, LAPSE


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest) -> EngineHistory:
    made = EngineHistory(KEYS[request.param])
    made.backup()
    made.store.clock += 10
    return made


def _brought_back(history: EngineHistory, point_id: str) -> list[str]:
    result = retention(history.fresh(), RetentionRequest(undelete=(point_id,), collect=False))
    assert point_id not in {each.point.id for each in result.trash}, "what exists is not told of as removed"
    return [each.id for each in history.fresh().points_of(UUID).points]


@pytest.mark.parametrize("requests", range(4))
def test_a_point_is_never_lost_between_two_removals_and_a_recovery(history: EngineHistory, requests: int) -> None:
    (made,) = history.fresh().points_of(UUID).points
    slow = Actor("", lambda actor: trash.remove(history.stepped(actor), made))
    for _request in range(requests):
        slow.step()
    trash.remove(history.fresh(), made)
    assert _brought_back(history, made.id) == [made.id]
    while not slow.over:
        slow.step()
    assert slow.error is None
    assert _brought_back(history, made.id) == [made.id]
    assert not history.wrong()


def test_old_entries_go_when_a_point_is_brought_back(history: EngineHistory) -> None:
    (made,) = history.fresh().points_of(UUID).points
    trash.remove(history.fresh(), made)
    history.store.clock += LAPSE + ASTRAY + 1
    assert _brought_back(history, made.id) == [made.id]
    assert list(history.store.list("trash")) == []


def test_a_point_of_another_machine_with_the_same_id_is_another_point(history: EngineHistory) -> None:
    repository = history.fresh()
    (made,) = repository.points_of(UUID).points
    namesake = dataclasses.replace(point(1), id=made.id, uuid=OTHER_UUID, domain="other", disks=(), files={})
    later = dataclasses.replace(namesake, id=point(31).id, created="2026-02-01T00:00:00+00:00", parent=made.id)
    repository.publish(namesake)
    repository.publish(later)
    rules = RetentionRequest(rules=Rules(last=1), grace=0)
    predicted = retention(history.fresh(), rules, check_only=True)
    assert ([each.key for each in predicted.removed], predicted.collected) == ([namesake.key], Collected(0, 0, 0))
    trash.remove(repository, made)
    assert _brought_back(history, made.id) == [made.id]
    assert {each.key for each in history.fresh().points_of().points} == {made.key, namesake.key, later.key}


def test_with_a_domain_only_points_of_that_domain_are_brought_back(history: EngineHistory) -> None:
    repository = history.fresh()
    (made,) = repository.points_of(UUID).points
    namesake = dataclasses.replace(point(1), id=made.id, uuid=OTHER_UUID, domain="other", disks=(), files={})
    repository.publish(namesake)
    trash.remove(repository, namesake)
    with pytest.raises(Refused, match=f"{point(2).id} cannot be brought back.* the trash contains {made.id}"):
        retention(history.fresh(), RetentionRequest(domain="other", undelete=(point(2).id,), collect=False))
    with pytest.raises(Refused, match=f"{point(2).id} cannot be brought back.* the trash contains nothing"):
        retention(history.fresh(), RetentionRequest(domain=made.domain, undelete=(point(2).id,), collect=False))
    assert (
        retention(history.fresh(), RetentionRequest(domain=made.domain, undelete=(made.id,), collect=False)).undeleted
        == ()
    )
    trash.remove(repository, made)
    result = retention(history.fresh(), RetentionRequest(domain=UUID, undelete=(made.id,), collect=False))
    assert [each.key for each in result.undeleted] == [made.key]
    assert [each.key for each in history.fresh().points_of().points] == [made.key]


def test_check_mode_tells_what_is_too_late_and_what_just_is_not(history: EngineHistory) -> None:
    for number in (7, 8):
        history.disk.write(3, number)
        history.backup()
    for each in history.fresh().points_of(UUID).points[:2]:
        trash.remove(history.fresh(), each)
    history.store.clock += 2 * LAPSE  # the grace period is over, but nobody reclaimed anything
    history.store.clock = max(history.store.clock, time.time())
    first, second = (each.point for each in trash.removed(history.fresh()))
    condemned.condemn(history.fresh(), f"{second.folder}/{second.disks[0].map.name}")
    for check_only in (True, False):
        with pytest.raises(Refused, match=f"{second.id} of web1 cannot be brought back: its grace period is over"):
            retention(history.fresh(), RetentionRequest(undelete=(second.id,), grace=LAPSE), check_only)
    request = RetentionRequest(undelete=(first.id,), grace=LAPSE)
    told = retention(history.fresh(), request, check_only=True)
    result = retention(history.fresh(), request)
    assert (told.undeleted, told.collected, told.trash) == (result.undeleted, result.collected, result.trash)
    assert result.undeleted == (first,) and not history.wrong()


def test_an_unknown_point_cannot_be_recovered_and_no_other_point_is(history: EngineHistory) -> None:
    (made,) = history.fresh().points_of(UUID).points
    trash.remove(history.fresh(), made)
    with pytest.raises(
        Refused, match=f"{point(2).id} cannot be brought back: it is not in the trash.*the trash contains {made.id}"
    ):
        retention(history.fresh(), RetentionRequest(undelete=(made.id, point(2).id), collect=False))
    assert history.fresh().points_of(UUID).points == ()


@pytest.mark.parametrize("name", ["trash/README", "trash/a/b/c/d"])
def test_a_foreign_object_in_the_trash_blocks_nothing_and_is_kept(history: EngineHistory, name: str) -> None:
    (made,) = history.fresh().points_of(UUID).points
    trash.remove(history.fresh(), made)
    history.store.objects[name] = b"somebody's"
    assert retention(history.fresh(), RetentionRequest(undelete=(made.id,))).undeleted == (made,)
    assert history.store.objects[name] == b"somebody's"
