# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a repository takes, how it grew and what of it is damaged, held against what was done to it."""

from __future__ import annotations

import dataclasses
import datetime

import pytest
from engine_history import EngineHistory
from every_object import full_history, removed
from histories import KEYS
from samples import UUID, point, record
from stepping import Actor

from _cbt.operations.repository_status import Added, growth, identity, status
from _cbt.repository.format import names
from _cbt.repository.format.manifests import LARGEST_DISK, RestorePoint
from _cbt.repository.records import verified
from _cbt.repository.records.verified import Verified
from _cbt.repository.sharing import condemned, holds

NOW = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)


def taken(at: datetime.datetime, *stored: int) -> RestorePoint:
    """A point with a disk for each of these counts of bytes."""
    disks = [
        record(f"vd{number}", statistics={"new_bytes": 2 * each, "stored_bytes": each})
        for number, each in enumerate(stored)
    ]
    return point(1, tuple(disks), created=at.isoformat(timespec="microseconds"))


def test_growth_is_that_of_each_day_and_of_7_and_30_times_24_hours() -> None:
    ages = {
        "now": 0,
        "a week but an hour": 7 * 24 - 1,
        "a week": 7 * 24,
        "a month but an hour": 30 * 24 - 1,
        "a month": 30 * 24,
    }
    found = growth([taken(NOW - age * HOUR, 1 << number, 100) for number, age in enumerate(ages.values())], NOW)
    assert found.last_7_days == Added(2, 2 * (3 + 200), 3 + 200)
    assert found.last_30_days == Added(4, 2 * (15 + 400), 15 + 400)
    assert {day: each.stored_bytes for day, each in found.days.items()} == {
        "2026-01-01": 108,
        "2026-01-24": 206,
        "2026-01-31": 101,
    }
    assert list(found.days) == sorted(found.days)


def test_days_are_counted_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=5))
    assert list(growth([taken(datetime.datetime(2026, 1, 31, 1, tzinfo=zone), 1)], NOW).days) == ["2026-01-30"]


def test_a_point_dated_in_the_future_does_not_count_as_growth() -> None:
    assert growth([taken(NOW + HOUR, 1)], NOW) == growth([], NOW)


@pytest.mark.parametrize("count", [-1, 10**400])
def test_growth_is_a_number_for_any_manifest(count: int) -> None:
    assert 0 <= growth([taken(NOW, count)], NOW).last_7_days.stored_bytes <= LARGEST_DISK
    assert growth([dataclasses.replace(taken(NOW), disks=(record(statistics={}),))], NOW).last_7_days == Added(1, 0, 0)


@pytest.fixture(params=KEYS)
def history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    return full_history(request.param, monkeypatch)


def test_sizes_are_those_of_the_objects(history: EngineHistory) -> None:
    objects = history.store.objects
    leaving = set(condemned.announced(history.fresh())) & set(objects)
    found = status(history.fresh(), NOW).sizes

    def total(folder: str) -> int:
        return sum(len(data) for name, data in objects.items() if name.startswith(folder))

    packs = [name for name in objects if name.startswith("packs/")]
    assert (found.domains, found.restore_points, found.removed_points) == (1, 3, 1)
    assert (found.packs, found.pack_bytes, found.metadata_bytes) == (len(packs), total("packs/"), total("points/"))
    assert leaving & set(packs) and found.condemned_packs == len(leaving & set(packs))
    assert found.condemned_bytes == sum(len(objects[name]) for name in leaving & set(packs))


def test_a_recovered_point_does_not_count_as_removed(history: EngineHistory) -> None:
    entry = next(name for name in history.store.objects if name.startswith("trash/"))
    repository = history.fresh()
    repository.put_object(names.manifest(UUID, removed(history)), repository.get_object(entry))
    sizes = status(history.fresh(), NOW).sizes
    assert (sizes.restore_points, sizes.removed_points) == (4, 0)


def test_recorded_damage_and_manifests_that_cannot_be_read_are_found(history: EngineHistory) -> None:
    repository = history.fresh()
    first, second = repository.points_of().points[:2]
    verified.record(
        repository, first, Verified("2026-01-01T00:00:00+00:00", "data", 100, "damaged", "vda.map is damaged")
    )
    history.store.objects[names.manifest(*second.key)] = b"x"
    found = {flaw.object: (flaw.blocks, flaw.cause) for flaw in status(history.fresh(), NOW).damage}
    assert found.pop(names.manifest(*second.key))[0] is None
    assert found == {names.pack(b"\1" * 16): (1, "it was changed"), first.folder: (None, "vda.map is damaged")}


def test_holds_sessions_and_foreign_files_are_found(history: EngineHistory) -> None:
    history.store.objects["holds/README"] = b""
    found = status(history.fresh(), NOW)
    assert list(found.holds) == holds.listed(history.fresh()) and len(found.holds) == 1
    assert [session.operation for session in found.sessions] == ["backup"]
    assert [warning for warning in found.foreign if "holds/README" in warning]


def test_no_map_and_no_pack_is_read_and_nothing_is_written(history: EngineHistory) -> None:
    requests = []

    def look(actor: Actor) -> None:
        status(history.stepped(actor), NOW)

    actor = Actor("", look)
    while not actor.over:
        requests.append(actor.pending)
        actor.step()
    assert actor.error is None
    read = {name.partition(" ")[2] for name in requests if name.startswith("get ")}
    assert {request.partition(" ")[0] for request in requests} == {"begin", "list", "get"}
    assert read and not [name for name in read if name.startswith("packs/") or name.endswith(".map")]


def test_the_identity_of_an_open_repository_needs_no_request(history: EngineHistory) -> None:
    repository = history.fresh()
    history.store.objects.clear()
    found = identity(repository)
    assert (found.id, found.encrypted, found.slots) == (repository.id, bool(repository.slots), tuple(repository.slots))
