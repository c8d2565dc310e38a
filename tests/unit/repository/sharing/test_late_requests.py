# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest that appears or goes hours after that was asked for, as through a mount that hung: what it names may be gone, and is stored again."""

from __future__ import annotations

import pytest
from engine_history import EngineHistory
from histories import use_small_disks
from samples import UUID
from stepping import Actor

from _cbt.errors import Refused
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.repository.format import names
from _cbt.repository.sharing import condemned, leases, removals, trash


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    """A point, and a clock for all."""
    use_small_disks(monkeypatch, cut=0)
    made = EngineHistory()
    monkeypatch.setattr(leases, "boot_clock", lambda: made.store.clock)
    for block in range(8):
        made.disk.write(block, block + 1)
    made.backup()
    return made


def hang(history: EngineHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next manifest appear only when its session is taken for dead, all others were removed and their space was reclaimed."""
    put = history.store.put

    def late(name: str, data: bytes, replace: bool = True) -> bool:
        if name.startswith("points/") and name.endswith("manifest.json"):
            monkeypatch.setattr(history.store, "put", put)
            for each in history.fresh().points_of().points:
                trash.remove(history.fresh(), each)
            for _turn in range(2):
                history.collect()
            assert not list(history.store.list("packs"))
        return put(name, data, replace)

    monkeypatch.setattr(history.store, "put", late)


def test_a_backup_stores_its_lost_objects_again(history: EngineHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    history.disk.write(0, 20)
    hang(history, monkeypatch)
    made = history.backup()
    assert [each.id for each in history.fresh().points_of(UUID).points] == [made.id]
    assert not history.wrong()


def test_a_point_whose_recovery_fails_is_not_kept(history: EngineHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = history.fresh().points_of(UUID).points
    trash.remove(history.fresh(), made)
    hang(history, monkeypatch)
    with pytest.raises(Refused, match=f"{made.id} of web1 cannot be brought back"):
        retention(history.fresh(), RetentionRequest(undelete=(made.id,), collect=False))
    assert not history.fresh().points_of().points


DAY = 86400.0


def removing(history: EngineHistory, until: str) -> Actor:
    """A removal of the only point, halted before a request."""
    made = history.fresh().points_of(UUID).points[0]
    actor = Actor("", lambda actor: trash.remove(history.stepped(actor), made))
    while not actor.pending.startswith(until):
        actor.step()
    return actor


def test_a_removal_whose_deletion_took_a_day_can_be_undone_for_another_day(history: EngineHistory) -> None:
    slow = removing(history, "delete points")
    history.store.clock += DAY + 1
    while not slow.over:
        slow.step()
    assert slow.error is None
    retention(history.fresh(), RetentionRequest(grace=DAY))
    history.store.clock += DAY - 10
    (removed,) = trash.removed(history.fresh(), history.store.clock - DAY)
    retention(history.fresh(), RetentionRequest(grace=DAY, undelete=(removed.point.id,)))
    assert [each.id for each in history.fresh().points_of(UUID).points] == [removed.point.id] and not history.wrong()


def test_a_point_whose_removal_took_days_is_recorded_as_removed(history: EngineHistory) -> None:
    """A collector takes its entry for that of a point that was brought back, and once the manifest is gone, all it named is deleted."""
    (made,) = history.fresh().points_of(UUID).points
    slow = removing(history, "delete points")
    history.store.clock += DAY + leases.LAPSE
    retention(history.fresh(), RetentionRequest(grace=DAY))
    assert list(history.store.list("trash")) == []
    while names.manifest(*made.key) in history.store.objects:
        slow.step()
    for _night in range(2):
        history.store.clock += DAY + leases.LAPSE
        retention(history.fresh(), RetentionRequest(grace=DAY, confirm_shrink=True))
    assert list(history.store.list("packs")) == []
    while not slow.over:
        slow.step()
    assert slow.error is None and list(history.store.list("trash")) == []
    assert not removals.vanished(history.fresh(), made.key)


def test_an_entry_that_came_late_does_not_outlast_the_manifest_that_it_keeps(history: EngineHistory) -> None:
    """The point was changed meanwhile, and what it named before is gone."""
    made = history.fresh().points_of(UUID).points[0]
    slow = removing(history, "put trash")
    entry = slow.pending.partition(" ")[2]
    history.store.clock += DAY
    while not slow.over:
        slow.step()
    left = list(history.store.list("trash"))
    assert len(left) == 2 and entry not in left, "one before the deletion, and one after it"
    assert {each.point.key for each in trash.removed(history.fresh())} == {made.key}


def test_an_entry_after_the_deletion_is_withdrawn_if_a_collector_is_about_to_delete_what_it_names(
    history: EngineHistory,
) -> None:
    slow = removing(history, "delete points")
    pack = next(iter(history.store.list("packs")))
    history.store.clock += DAY
    while not (slow.pending.startswith("put trash") or slow.over):
        slow.step()
    condemned.list_for_deletion(history.fresh(), "1" * 16, [pack])
    while not slow.over:
        slow.step()
    assert list(history.store.list("trash")) == []
