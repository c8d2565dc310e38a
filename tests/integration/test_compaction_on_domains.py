# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compaction between the backups of a real domain: the points stay true, and incrementals go on from them."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from lab.hypervisor import Hypervisor
from trial import MIB, Trial, fresh

from _cbt.control import Control
from _cbt.operations.upkeep.compaction import Candidates, compact
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.format import names
from _cbt.repository.selecting import ALL
from _cbt.repository.sharing import leases


@pytest.fixture
def trial(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Trial]:
    """A trial of three points, most of whose first pack only the first one needs."""
    with fresh(hypervisor, workspace) as made:
        made.backup()
        for target in made.targets:
            made.domain.write_random(target, 0, 2 * MIB - 65536, 5)
        made.backup()
        made.write()
        made.backup()
        yield made


def _reclaim(trial: Trial) -> None:
    """Delete every pack that no point names."""
    repository = trial.repository
    points = repository.points_of().points
    named = {
        ref.name for point in points for disk in point.disks for ref in repository.read_map(point, disk.target).packs
    }
    for name in list(repository.store.list("packs")):
        if name not in named:
            repository.store.delete(name)


def _stored(trial: Trial) -> int:
    return sum(entry.size for entry in trial.repository.store.entries("packs"))


def test_points_stay_true_and_incrementals_go_on(trial: Trial) -> None:
    repository, first = trial.taken.pop(0)
    uuid = trial.domain.handle.UUIDString()
    repository.store.delete(names.manifest(uuid, first.id))
    before = _stored(trial)
    with leases.held(repository, "compaction") as lease:
        done = compact(lease, Candidates(80, repository.points_of().points), Control())
    assert (done.packs > 0, done.points) == (True, 2)
    _reclaim(trial)
    # Of the first pack there was no need for what had been overwritten.
    assert _stored(trial) <= before - 2 * (2 * MIB - 65536) * 3 // 4
    trial.write()
    after = trial.survives("incremental")
    with leases.held(repository, "compaction") as lease:
        assert compact(lease, Candidates(10, repository.points_of().points), Control()).packs == 0
    assert {verdict.status for verdict in verify(repository, VerifyRequest(wanted=ALL))[0]} == {"ok"}
    assert after.result.point is not None
