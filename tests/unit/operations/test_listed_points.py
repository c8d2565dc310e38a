# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore points are listed by conditions, the latest among those that fulfill them."""

from __future__ import annotations

import pytest
from engine_history import EngineHistory
from histories import use_small_disks
from samples import OTHER_UUID, UUID

from _cbt.operations.info import PointFilter, describe_points
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.selecting import ALL


def test_damage_and_the_latest_are_those_of_the_other_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_disks(monkeypatch)
    history = EngineHistory()
    made = []
    for number, uuid in enumerate((UUID, UUID, OTHER_UUID, UUID)):
        history.disk.write(number, number + 1)
        made.append(history.backup(uuid).id)
    second = next(point for point in history.fresh().points_of().points if point.id == made[1])
    del history.store.objects[second.object_name(second.disks[0].map)]
    verify(history.fresh(), VerifyRequest(wanted=ALL, workers=1))

    def listed(domain: str | None = None, wanted: str | None = None, **conditions: object) -> list[str]:
        found, unreadable = describe_points(history.fresh(), domain, wanted, PointFilter(**conditions))  # type: ignore[arg-type]
        assert not unreadable
        assert all(health.damaged == (point.id == made[1]) for point, health in found)
        return [point.id for point, _health in found]

    assert listed() == made
    assert listed(damaged=True) == listed(wanted="latest", damaged=True) == [made[1]]
    assert listed(damaged=False) == [made[0], made[2], made[3]]
    assert listed(wanted="latest") == [made[3], made[2]] or listed(wanted="latest") == [made[2], made[3]]
    assert listed(UUID, "latest", until=second.created) == [made[1]]
    assert listed(UUID, "latest", until=second.created, damaged=False) == [made[0]]
    assert listed(UUID, made[0], damaged=True) == []
    assert listed("no-such") == []
