# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore points are pinned, labelled and removed by id. test_relocation_beside_others.py has what happens at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from engine_history import EngineHistory
from histories import KEYS, use_small_disks
from samples import OTHER_UUID, UUID

from _cbt.control import Control
from _cbt.errors import Held, Refused, RepositoryError
from _cbt.operations.upkeep.points import LONGEST_NOTE, PointRequest, PointResult, change_points
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.upkeep.retention_rules import Rules
from _cbt.repository.sharing import holding, leases, publishing

LATER = leases.LAPSE * 2


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    """Two points, of which each has a block of its own, and one of another domain."""
    use_small_disks(monkeypatch)
    made = EngineHistory(KEYS[request.param])
    made.store.clock = 1_800_000_000.0  # later than the points it makes
    for number, uuid in enumerate((UUID, UUID, OTHER_UUID)):
        made.disk.write(number, number + 1)
        made.backup(uuid)
    made.store.clock += LATER
    return made


def ids(history: EngineHistory) -> list[str]:
    return [each.id for each in history.fresh().points_of().points]


def change(history: EngineHistory, *wanted: str, check: bool = False, **values: Any) -> PointResult:
    """Change restore points; a prediction changes nothing, and is what the run then does."""
    before = dict(history.store.objects)
    predicted = change_points(history.fresh(), PointRequest(wanted, **values), Control(), True)
    assert history.store.objects == before
    if check:
        return predicted
    assert change_points(history.fresh(), PointRequest(wanted, **values), Control()) == predicted
    assert not history.wrong()
    return predicted


def refused(history: EngineHistory, *wanted: str, match: str, error: type[Exception] = Refused, **values: Any) -> None:
    """Prove that a request is refused and changes nothing, in check mode as well."""
    before = dict(history.store.objects)
    for check_only in (True, False):
        with pytest.raises(error, match=match):
            change_points(history.fresh(), PointRequest(wanted, **values), Control(), check_only)
    assert history.store.objects == before


def test_pin_tags_and_note_are_set_one_by_one_and_the_rest_stays(history: EngineHistory) -> None:
    first, second, third = history.fresh().points_of().points
    values: dict[str, Any] = {"pinned": True, "tags": {"change": "CHG-1742"}, "note": "Before the upgrade\nof db1"}
    for key, value in values.items():
        assert change(history, first.id, **{key: value}).after != [first]
    first = dataclasses.replace(first, **values)
    assert history.fresh().points_of().points == (first, second, third)
    kept = dict(history.store.objects)
    assert change(history, first.id, **values) == ([first], [first])
    assert {name for name in history.store.objects if name.startswith(("points/", "packs/"))} <= kept.keys()
    assert change(history, first.id, pinned=False, tags={}, note="").after == [
        dataclasses.replace(first, pinned=False, tags={}, note="")
    ]


def test_a_pinned_point_survives_rules_and_is_removed_once_it_is_unpinned(history: EngineHistory) -> None:
    first, second, other = ids(history)
    change(history, first, pinned=True)
    rules = RetentionRequest(Rules(last=1))
    assert retention(history.fresh(), rules).removed == []
    change(history, first, pinned=False)
    assert [point.id for point in retention(history.fresh(), rules).removed] == [first]
    assert ids(history) == [second, other]


def test_removed_points_can_be_brought_back_until_their_space_is_reclaimed(history: EngineHistory) -> None:
    first, second, other = ids(history)
    change(history, first, note="a note")
    assert [point.id for point in change(history, first, other, remove=True).before] == [first, other]
    assert ids(history) == [second]
    retention(history.fresh(), RetentionRequest(undelete=(first,)))
    assert [point.note for point in history.fresh().points_of().points] == ["a note", ""]
    change(history, first, second, remove=True)
    assert history.collect().collected is not None
    assert [name for name in history.store.objects if name.startswith(("packs/", "points/"))] == []


def test_what_does_not_exist_is_removed_already_and_cannot_be_changed(history: EngineHistory) -> None:
    first, _second, other = ids(history)
    gone = "20200101T000000Z-deadbeef"
    assert change(history, gone, remove=True) == ([], [])
    assert change(history, other, gone, remove=True, domain=UUID) == ([], [])
    assert other in ids(history)
    refused(history, first, gone, pinned=True, match=f"no restore point {gone}")
    refused(history, other, pinned=True, domain=UUID, match=f"no restore point {other} of {UUID}")


@pytest.mark.parametrize("values", [{"tags": {}}, {"note": ""}, {"pinned": True}])
def test_a_point_is_not_labelled_and_removed_at_once(values: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="only with state: present"):
        PointRequest((), remove=True, **values)


@pytest.mark.parametrize("word", ["latest", "all", "", "../x", "20261122T113005Z"])
def test_a_word_that_is_not_an_id_is_refused(word: str) -> None:
    with pytest.raises(Refused, match="cbt_backup_info lists the ids"):
        PointRequest((word,), remove=True)


def test_a_note_has_a_limit(history: EngineHistory) -> None:
    change(history, ids(history)[0], note="é" * LONGEST_NOTE)
    with pytest.raises(Refused, match="the limit is 4096"):
        PointRequest((), note="x" * (LONGEST_NOTE + 1))


def test_one_point_that_is_pinned_or_in_use_keeps_all_from_removal(history: EngineHistory) -> None:
    first, second, _other = history.fresh().points_of().points
    change(history, second.id, pinned=True)
    refused(history, first.id, second.id, remove=True, match=f"{second.id} of web1 is pinned.*Set pinned: false")
    hold = holding.hold(history.fresh(), first, "export")
    refused(history, second.id, first.id, remove=True, pinned=False, error=Held, match="held by export")
    holding.holds.release(history.fresh(), hold.id)
    assert change(history, first.id, second.id, remove=True, pinned=False).after == []


def test_a_point_whose_manifest_cannot_be_read_is_refused_and_does_not_count_as_removed(history: EngineHistory) -> None:
    first = history.fresh().points_of().points[0]
    history.store.objects[f"{first.folder}/manifest.json"] = b"x"
    for values in ({"remove": True}, {"pinned": True}):
        refused(history, first.id, match="manifest.json cannot be read", **values)


def test_a_point_that_lacks_an_object_is_not_changed(history: EngineHistory) -> None:
    first = history.fresh().points_of().points[0]
    del history.store.objects[first.object_name(first.disks[0].map)]
    with pytest.raises(RepositoryError, match="an object that it needs is missing. cbt_verify lists the damage"):
        change_points(history.fresh(), PointRequest((first.id,), pinned=True), Control())
    assert first in history.fresh().points_of().points


def test_a_changed_point_and_all_that_it_needs_are_locked_equally_long(history: EngineHistory) -> None:
    history.store.lock_for = 86400.0
    first = history.fresh().points_of().points[0]
    change(history, first.id, pinned=True)
    repository = history.fresh()
    until = history.store.locks[f"{first.folder}/manifest.json"]
    assert all(history.store.locks[name] >= until for name in publishing.needed(repository, first))
