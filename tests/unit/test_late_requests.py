# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest that appears hours after it was put, as through a mount that hung: what it names may be gone, and is stored again."""

from __future__ import annotations

import histories
import pytest
from engine_history import EngineHistory
from samples import UUID

from _cbt.errors import Refused
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.retention import RetentionRequest, retention
from _cbt.repository import leases, trash


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> EngineHistory:
    """A point, and a clock for all."""
    monkeypatch.setattr(histories, "BLOCKS", 8)
    monkeypatch.setattr(histories.Disk, "size", 8 * BLOCK_SIZE)
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


def test_of_a_backup_what_is_gone_is_stored_again(history: EngineHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    history.disk.write(0, 20)
    hang(history, monkeypatch)
    made = history.backup()
    assert [each.id for each in history.fresh().points_of(UUID).points] == [made.id]
    assert not history.wrong()


def test_a_point_brought_back_in_vain_does_not_stay(history: EngineHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = history.fresh().points_of(UUID).points
    trash.remove(history.fresh(), made)
    hang(history, monkeypatch)
    with pytest.raises(Refused, match=f"{made.id} of web1 cannot be brought back"):
        retention(history.fresh(), RetentionRequest(undelete=(made.id,), collect=False))
    assert not history.fresh().points_of().points
