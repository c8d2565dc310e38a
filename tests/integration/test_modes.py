# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Differential, threshold, rate limit, foreign jobs, changed blocks, and the choice of disks."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.reference import pull_job_xml
from module_process import created, run_module
from witness import Witnessed, ask, differences, disk_result, session_of, witnessed_backup

from _cbt.control import Control, Progress
from _cbt.errors import Interrupted, Refused
from _cbt.hypervisor.domain_xml.disks import Selection
from _cbt.operations.backup.backup import backup
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.tracking import changed_blocks
from _cbt.operations.tracking.tracking import TrackingRequest, set_tracking
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository

MIB = 1 << 20
BLOCK = 1 << 16
SIZE = 16 * MIB


def _point(taken: Witnessed) -> RestorePoint:
    assert taken.result.point is not None
    return taken.result.point


def _untrue(domain: BlockDomain, repository: Repository, taken: Witnessed, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    return differences(domain.name, repository, taken, folder)


def _restored(domain: BlockDomain, repository: Repository, point: str, folder: Path) -> dict[str, str]:
    """SHA-256 of each disk of a restored point."""
    folder.mkdir(exist_ok=True)
    result = restore(repository, RestoreRequest(domain.name, restore_point=point, dest=str(folder), format="raw"))
    found = {}
    for disk in result.disks:
        found[disk.target] = hashlib.sha256(Path(disk.path).read_bytes()).hexdigest()
        Path(disk.path).unlink()
    return found


def _touch(domain: BlockDomain, chance: random.Random) -> None:
    first = chance.randrange(SIZE // 512)
    length = min(SIZE // 512 - first, chance.choice([1, 129, 3000])) * 512
    kind = chance.randrange(4)
    if kind < 2:
        domain.write_random("vda", first * 512, length, chance.randrange(1 << 30))
    elif kind == 2:
        domain.write_zeroes("vda", first * 512, length, unmap=chance.random() < 0.5)
    else:
        domain.discard("vda", first * 512, length)


# Differential


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_differential_holds_what_an_incremental_of_the_same_moment_holds_and_leaves_tracking_as_it_is(
    paused: bool, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    chance = random.Random(5)
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE), DiskSpec("vdb", 4 * MIB + 512)]) as domain:
        domain.write_random("vda", 0, 8 * MIB, 1)
        domain.write_random("vdb", 0, 2 * MIB, 2)
        full = witnessed_backup(domain, repository, workspace)
        if paused:
            domain.handle.suspend()
        for _round in range(3):
            for _number in range(4):
                _touch(domain, chance)
            tracking = domain.checkpoints(), domain.bitmaps("vda"), domain.bitmaps("vdb")
            differentials = [
                witnessed_backup(domain, repository, workspace, ask(domain.name, mode="differential"))
                for _number in range(2)
            ]
            assert (domain.checkpoints(), domain.bitmaps("vda"), domain.bitmaps("vdb")) == tracking
            incremental = witnessed_backup(domain, repository, workspace, ask(domain.name, mode="incremental"))
            assert [[disk.mode for disk in each.result.disks] for each in (*differentials, incremental)] == [
                ["differential"] * 2,
                ["differential"] * 2,
                ["incremental"] * 2,
            ]
            assert all(_point(each).checkpoint is None for each in differentials)
            # All three rest on the point before them, not on one another.
            assert len({_point(each).parent for each in (*differentials, incremental)}) == 1
            expected = _restored(domain, repository, incremental.id, workspace / "out")
            for each in differentials:
                assert _point(each).incremental_set == _point(full).incremental_set
                assert all(
                    changed_blocks.changed_between(repository, target, _point(each).id, _point(incremental).id) == []
                    for target in ("vda", "vdb")
                )
                assert _restored(domain, repository, each.id, workspace / "out") == expected
            assert _untrue(domain, repository, incremental, workspace / "out") == []


def test_a_differential_where_nothing_is_known_reads_all_and_still_begins_no_tracking(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        domain.write_random("vda", 0, MIB, 1)
        first = witnessed_backup(domain, repository, workspace, ask(domain.name, mode="differential"))
        assert disk_result(first.result, "vda").mode == "full"
        assert (domain.checkpoints(), domain.bitmaps("vda"), _point(first).checkpoint) == ([], [], None)
        assert _untrue(domain, repository, first, workspace / "out") == []


# Threshold


def test_a_threshold_skips_only_changes_below_it(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE), DiskSpec("vdb", 4 * MIB)]) as domain:
        arguments = {
            "domain": domain.name,
            "repository": created(workspace, workspace / "repository"),
            "threshold": "1M",
        }
        domain.write("vda", 0, BLOCK, 1)
        first = run_module(workspace, "cbt_backup", **arguments)
        assert first["changed"] and "skipped" not in first  # it has to be read in full
        domain.write("vda", 0, BLOCK, 2)
        domain.write("vdb", 0, 14 * BLOCK, 2)
        before = domain.checkpoints()
        for check in (True, False):
            held_back = run_module(workspace, "cbt_backup", check=check, **arguments)
            assert not held_back["changed"] and "restore_point" not in held_back
            assert (
                held_back["skipped"]
                == f"960 KiB have changed on {domain.name}, which is less than the threshold of 1 MiB."
            )
            assert [disk["dirty_bytes"] for disk in held_back["disks"]] == [BLOCK, 14 * BLOCK]
        assert domain.checkpoints() == before and not domain.job_running()
        assert not run_module(workspace, "cbt_backup", **{**arguments, "mode": "differential"})["changed"]
        assert run_module(workspace, "cbt_backup", **{**arguments, "mode": "copy"})["changed"]
        domain.write("vda", 5 * MIB, 1, 1)  # a single byte marks the block that makes it one MiB
        done = run_module(workspace, "cbt_backup", **arguments)
        assert done["changed"] and [disk["mode"] for disk in done["disks"]] == ["incremental", "incremental"]
        info = run_module(workspace, "cbt_backup_info", repository=arguments["repository"])
        assert [point["disks"][0]["mode"] for point in info["restore_points"]] == ["full", "copy", "incremental"]


# Rate limit


def test_a_rate_limited_backup_obeys_the_limit_and_is_correct(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        domain.write_random("vda", 0, 8 * MIB, 1)
        taken = witnessed_backup(domain, repository, workspace, ask(domain.name, rate_limit=8 * MIB, workers=3))
        # All but the last portion of 1 MiB had to be waited for.
        assert taken.result.duration >= 7 / 8
        assert _untrue(domain, repository, taken, workspace / "out") == []


def test_a_signal_is_handled_while_the_rate_limit_blocks_all_readers(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    def strike(progress: Progress) -> None:
        if progress.phase == "reading":
            control.request("SIGTERM")

    control = Control(strike)

    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        domain.write_random("vda", 0, 8 * MIB, 1)
        with pytest.raises(Interrupted, match="SIGTERM"):
            backup(session_of(domain), repository, ask(domain.name, rate_limit=1, workers=3), control)
        assert (domain.job_running(), domain.checkpoints()) == (False, [])


# Foreign jobs


def test_a_foreign_job_is_left_alone_unless_its_end_is_asked_for(hypervisor: Hypervisor, workspace: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        arguments = {"domain": domain.name, "repository": created(workspace, workspace / "repository")}
        domain.write_random("vda", 0, MIB, 1)
        domain.handle.backupBegin(pull_job_xml(domain, hypervisor.folder()), None, 0)
        for check in (True, False):
            refused = run_module(workspace, "cbt_backup", check=check, **arguments)
            assert refused["failed"] and "a backup job is running on it that is not ours" in refused["msg"]
        assert "abort_foreign_job: true" in refused["msg"] and domain.job_running()
        estimate = run_module(workspace, "cbt_backup", check=True, abort_foreign_job=True, **arguments)
        assert estimate["changed"] and domain.job_running()
        done = run_module(workspace, "cbt_backup", abort_foreign_job=True, **arguments)
        assert done["changed"] and not domain.job_running()
        assert f"A backup job of another tool on {domain.name} was ended" in str(done["warnings"])


# Changed blocks


def test_changed_blocks_between_points_and_until_now(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE), DiskSpec("vdb", MIB + 512)]) as domain:
        domain.write_random("vda", 0, 8 * MIB, 1)
        first = _point(witnessed_backup(domain, repository, workspace))
        domain.write("vda", MIB, 100, 1)
        domain.write_zeroes("vda", 2 * MIB, 2 * BLOCK)
        domain.write_random("vda", 4 * MIB, BLOCK, 1)
        domain.write("vdb", MIB, 512, 1)
        second = _point(witnessed_backup(domain, repository, workspace))
        domain.discard("vda", 6 * MIB, BLOCK)
        domain.write("vda", MIB, 100, 2)
        domain.write("vda", 12 * MIB, BLOCK, 2)

        one_to_two = [(MIB, BLOCK, False), (2 * MIB, 2 * BLOCK, True), (4 * MIB, BLOCK, False)]
        two_to_now = [(MIB, BLOCK, False), (6 * MIB, BLOCK, True), (12 * MIB, BLOCK, False)]

        def now() -> list[changed_blocks.ChangedRange]:
            return changed_blocks.changed_until_now(session_of(domain), repository, "vda", second.id)

        assert changed_blocks.changed_between(repository, "vda", first.id, second.id) == one_to_two
        assert changed_blocks.changed_between(repository, "vdb", first.id, second.id) == [(MIB, 512, False)]
        assert changed_blocks.changed_between(repository, "vda", first.id, first.id) == []
        assert changed_blocks.changed_between(repository, "vda", second.id, first.id) == [
            (offset, length, False) for offset, length, _zero in one_to_two
        ]
        tracking = domain.checkpoints(), domain.bitmaps("vda")
        left = Path(f"/var/tmp/kvm-cbt-{domain.uuid[:8]}-left")  # as by a run that was killed
        left.mkdir()
        left.chmod(0o777)
        domain.handle.backupBegin(pull_job_xml(domain, left), None, 0)
        assert now() == two_to_now
        assert (domain.checkpoints(), domain.bitmaps("vda"), domain.job_running()) == (*tracking, False)
        assert list(Path("/var/tmp").glob(f"kvm-cbt-{domain.uuid[:8]}-*")) == []
        # The point before the last has no checkpoint any more: what changed since is not known.
        with pytest.raises(Refused, match=changed_blocks.UNRELATED):
            changed_blocks.changed_until_now(session_of(domain), repository, "vda", first.id)
        domain.destroy()
        assert now() == two_to_now
        domain.start()
        assert now() == two_to_now
        asked = {"from": first.id, "to": second.id, "disk": "vda"}
        told = run_module(workspace, "cbt_changed_blocks_info", repository=repository.store.location, **asked)
        assert told["changed_blocks"] == [
            {"offset": offset, "length": length, "zero": zero} for offset, length, zero in one_to_two
        ]
        told = run_module(
            workspace,
            "cbt_changed_blocks_info",
            repository=repository.store.location,
            **{"from": second.id, "disk": "vda"},
        )
        assert told["changed_blocks"] == [
            {"offset": offset, "length": length, "zero": zero} for offset, length, zero in two_to_now
        ]


@pytest.mark.parametrize("how", ["tracking was disabled", "a full backup", "a crash"])
def test_points_between_which_tracking_was_interrupted_are_unrelated(
    how: str, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        domain.write_random("vda", 0, MIB, 1)
        before = _point(witnessed_backup(domain, repository, workspace))
        if how == "tracking was disabled":
            set_tracking(session_of(domain), repository, TrackingRequest(domain.name, present=False))
            domain.write("vda", 0, BLOCK, 1)
            set_tracking(session_of(domain), repository, TrackingRequest(domain.name, present=True))
            with pytest.raises(Refused, match=changed_blocks.UNRELATED):
                changed_blocks.changed_until_now(session_of(domain), repository, "vda", before.id)
        elif how == "a crash":
            domain.kill()
            domain.start()
        taken = witnessed_backup(
            domain, repository, workspace, ask(domain.name, mode="full" if how == "a full backup" else "auto")
        )
        after = _point(taken)
        assert disk_result(taken.result, "vda").mode == "full"
        for old, new in ((before, after), (after, before)):
            with pytest.raises(Refused, match=changed_blocks.UNRELATED):
                changed_blocks.changed_between(repository, "vda", old.id, new.id)
        asked = {"from": before.id, "to": after.id, "disk": "vda"}
        refused = run_module(workspace, "cbt_changed_blocks_info", repository=repository.store.location, **asked)
        assert refused["failed"] and refused["msg"].startswith("Restore points are unrelated")
        assert changed_blocks.changed_until_now(session_of(domain), repository, "vda", after.id) == []
        assert _untrue(domain, repository, taken, workspace / "out") == []


# The choice of disks


def test_included_and_excluded_disks_each_keep_a_true_history_of_their_own(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    choices: list[tuple[Selection, list[str]]] = [
        (Selection(), ["full", "full", "scan"]),
        (Selection(include=("vda", "vdc")), ["incremental", "skipped", "scan"]),
        (Selection(exclude=("vda",)), ["skipped", "full", "scan"]),
        (Selection(include=("vda", "vdb"), exclude=("vdb",)), ["full", "skipped", "skipped"]),
        (Selection(include=("vdc",)), ["skipped", "skipped", "scan"]),  # nothing tracked: tracking stays as it is
        (Selection(include=("vda",)), ["incremental", "skipped", "skipped"]),
        (Selection(), ["incremental", "full", "scan"]),
    ]
    with BlockDomain(
        hypervisor, [DiskSpec("vda", 4 * MIB), DiskSpec("vdb", 4 * MIB), DiskSpec("vdc", 2 * MIB, format="raw")]
    ) as domain:
        taken = []
        for number, (selection, modes) in enumerate(choices):
            for target in ("vda", "vdb", "vdc"):
                domain.write_random(target, number * 3 * BLOCK, 2 * BLOCK, number)
            folder = workspace / f"step-{number}"
            folder.mkdir()
            each = witnessed_backup(domain, repository, folder, ask(domain.name, selection=selection))
            assert [disk.mode for disk in each.result.disks] == modes
            assert {disk.target for disk in _point(each).disks} == {
                disk.target for disk in each.result.disks if disk.mode != "skipped"
            }
            taken.append(each)
        assert [_untrue(domain, repository, each, workspace / "out") for each in taken] == [[]] * len(taken)
        with pytest.raises(Refused, match=f"{domain.name} has no disk vdx; it has vda, vdb, vdc"):
            backup(session_of(domain), repository, ask(domain.name, selection=Selection(include=("vda", "vdx"))))
        with pytest.raises(Refused, match="There is nothing to back up"):
            backup(session_of(domain), repository, ask(domain.name, selection=Selection(exclude=("vda", "vdb", "vdc"))))
        assert len(repository.points_of().points) == len(taken) and len(domain.checkpoints()) == 1
