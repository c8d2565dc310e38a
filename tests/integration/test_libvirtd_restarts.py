# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirtd restarted between backups and in the midst of one. Where libvirtd is not the lab's own, these are skipped."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from lab.hypervisor import Hypervisor
from trial import Trial, begun
from witness import ask, session_of

from _cbt.control import Control, Progress
from _cbt.errors import CbtError
from _cbt.operations.backup.backup import backup


@pytest.fixture
def trial(hypervisor: Hypervisor, workspace: Path) -> t.Iterator[Trial]:
    """A trial after its first backup and some writes."""
    if not hypervisor.may_restart:
        pytest.skip("libvirtd was started by somebody else")
    with begun(hypervisor, workspace) as made:
        yield made


def test_libvirtd_restarted_between_backups(trial: Trial) -> None:
    trial.domain.hypervisor.restart_daemon()
    trial.write()
    trial.survives("incremental")


@pytest.mark.parametrize("phase", ["freezing", "reading", "publishing"])
def test_libvirtd_restarted_during_a_backup(phase: str, trial: Trial) -> None:
    restarted: list[str] = []

    def restart(progress: Progress) -> None:
        if progress.phase == phase and not restarted:
            restarted.append(phase)
            trial.domain.hypervisor.restart_daemon()

    scratch = trial.workspace / "scratch"
    scratch.mkdir()
    scratch.chmod(0o711)
    before = trial.domain.checkpoints()
    known = [point.id for point in trial.repository.points_of().points]
    try:
        result = backup(
            session_of(trial.domain),
            trial.repository,
            ask(trial.domain.name, scratch_dir=str(scratch)),
            control=Control(restart),
        )
    except CbtError:
        assert trial.domain.checkpoints() == before
        assert [point.id for point in trial.repository.points_of().points] == known
    else:
        assert result.point is not None
        assert {disk.mode for disk in result.disks} == {"incremental"}
        assert trial.domain.checkpoints() == [result.point.checkpoint]
    assert restarted == [phase]
    assert not trial.domain.job_running()
    assert list(scratch.iterdir()) == []
    trial.write()
    trial.survives("incremental")
