# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup that fails or is ended leaves nothing, and the next one builds on the last good point."""

from __future__ import annotations

import random
import signal
import time
import typing as t
from pathlib import Path

import pytest
import soaks
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from module_process import ModuleProcess, created, run_module
from witness import ask, differences, session_of, unfinished, witnessed_backup

from _cbt.control import Control, Progress
from _cbt.errors import CbtError
from _cbt.operations.backup.backup import backup
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.selecting import ALL

MIB = 1 << 20


def _traces(domain: BlockDomain, repository: Repository, scratch: Path) -> dict[str, t.Any]:
    """Everything a backup could leave behind."""
    return {
        "job": domain.job_running(),
        "checkpoints": domain.checkpoints(),
        "bitmaps": [bitmap["name"] for bitmap in domain.bitmaps("vda", marks=True)],
        "scratch": sorted(path.name for path in scratch.iterdir()),
        "points": [point.id for point in repository.points_of().points],
        "objects": sorted(repository.store.list("packs"))
        + sorted(repository.store.list("points"))
        + unfinished(repository),
    }


@pytest.fixture
def scratch(workspace: Path) -> Path:
    folder = workspace / "scratch"
    folder.mkdir()
    folder.chmod(0o711)
    return folder


def _prepared(domain: BlockDomain, workspace: Path) -> Repository:
    """A domain with a full backup and changes since."""
    domain.write_random("vda", 0, 24 * MIB, 1)
    result = run_module(
        workspace, "cbt_backup", domain=domain.name, repository=created(workspace, workspace / "repository")
    )
    assert result["changed"], result
    domain.write_random("vda", 8 * MIB, 16 * MIB, 2)
    return open_repository(str(workspace / "repository"))


@pytest.mark.soak("signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_at_any_moment_leaves_nothing_and_the_next_run_is_incremental(
    number: signal.Signals, hypervisor: Hypervisor, workspace: Path, scratch: Path
) -> None:
    chance = random.Random(int(number))
    with BlockDomain(hypervisor, [DiskSpec("vda", 64 * MIB)]) as domain:
        repository = _prepared(domain, workspace)
        arguments = {
            "domain": domain.name,
            "repository": repository.store.location,
            "scratch_dir": str(scratch),
            "workers": 2,
        }
        arguments["rate_limit"] = "8M"  # so that reading takes as long as the start of the module does
        before = _traces(domain, repository, scratch)
        outcomes = set()
        for _attempt in range(soaks.count("signals")):
            run = ModuleProcess(workspace, "cbt_backup", arguments)
            time.sleep(chance.uniform(0.2, 2.2))
            run.signal(number)
            result = run.result_if_any()
            if result is None:  # struck before the module had taken over the signal
                outcomes.add("not begun")
                assert _traces(domain, repository, scratch) == before
                continue
            if result.get("failed"):
                outcomes.add("undone")
                assert number.name in result["msg"]
                assert _traces(domain, repository, scratch) == before
                continue
            # Past the point of no return the backup is completed, as if the signal had come after it.
            outcomes.add("completed")
            assert result["disks"][0]["mode"] == "incremental"
            domain.write_random("vda", chance.randrange(40) * MIB, 8 * MIB, chance.randrange(1 << 20))
            before = _traces(domain, repository, scratch)
            assert (before["job"], len(before["checkpoints"]), before["scratch"]) == (False, 1, [])
        assert "undone" in outcomes, outcomes
        last = witnessed_backup(domain, repository, workspace)
        assert last.result.disks[0].mode == "incremental"
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, last, restored) == []


@pytest.mark.parametrize("phase", ["freezing", "reading", "publishing"])
def test_an_error_in_any_phase_leaves_nothing_and_the_next_run_is_incremental(
    phase: str, hypervisor: Hypervisor, workspace: Path, scratch: Path
) -> None:
    def fail(progress: Progress) -> None:
        if progress.phase == phase:
            raise CbtError("made to fail")

    with BlockDomain(hypervisor, [DiskSpec("vda", 64 * MIB)]) as domain:
        repository = _prepared(domain, workspace)
        before = _traces(domain, repository, scratch)
        request = ask(domain.name, scratch_dir=str(scratch))
        with pytest.raises(CbtError, match="made to fail"):
            backup(session_of(domain), repository, request, control=Control(fail))
        assert _traces(domain, repository, scratch) == before
        after = witnessed_backup(domain, repository, workspace)
        assert after.result.disks[0].mode == "incremental"
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, after, restored) == []


def test_a_domain_that_dies_during_the_backup_publishes_nothing(
    hypervisor: Hypervisor, workspace: Path, scratch: Path
) -> None:
    def kill(progress: Progress) -> None:
        if progress.phase == "reading" and domain.running:
            domain.kill()

    with BlockDomain(hypervisor, [DiskSpec("vda", 64 * MIB)]) as domain:
        repository = _prepared(domain, workspace)
        points = [point.id for point in repository.points_of().points]
        with pytest.raises(CbtError):
            backup(
                session_of(domain),
                repository,
                ask(domain.name, scratch_dir=str(scratch), workers=1),
                control=Control(kill),
            )
        assert [point.id for point in repository.points_of().points] == points
        assert list(scratch.iterdir()) == []
        domain.start()
        after = witnessed_backup(domain, repository, workspace)
        # QEMU was killed before the bitmap ever reached the image, so nothing but a full reading is right.
        assert after.result.disks[0].mode == "full"
        assert "is missing from vda" in after.result.disks[0].reason
        assert len(domain.checkpoints()) == 1
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, after, restored) == []


def test_two_backups_of_one_domain_at_once_one_is_refused_and_both_outcomes_are_true(
    hypervisor: Hypervisor, workspace: Path
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 64 * MIB)]) as domain:
        repository = _prepared(domain, workspace)
        arguments = {"domain": domain.name, "repository": repository.store.location}
        results = [run.result() for run in [ModuleProcess(workspace, "cbt_backup", arguments) for _number in range(3)]]
        done = [result for result in results if not result.get("failed")]
        refused = [result for result in results if result.get("failed")]
        assert done
        assert all("Another run of kvm.cbt is working on" in result["msg"] for result in refused)
        assert len(domain.checkpoints()) == 1
        assert [verdict.status for verdict in verify(repository, VerifyRequest(wanted=ALL))[0]] == ["ok"] * (
            1 + len(done)
        )
