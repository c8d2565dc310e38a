# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Killed with SIGKILL at any moment: the next run works, and every published point is true to the byte."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import random
import signal
import time
import typing as t
from pathlib import Path

import pytest
import soaks
from lab.domain import BlockDomain, DiskSpec
from lab.errors import LabError
from lab.hypervisor import Hypervisor
from lab.process import wait_until
from lab.reference import snapshot_reference
from module_process import ModuleProcess
from witness import ask, session_of, unfinished

from _cbt.operations.backup.backup import backup
from _cbt.operations.backup.result import BackupResult
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository
from _cbt.repository.selecting import ALL

MIB = 1 << 20
KILLS = soaks.count("kills")
SIZES = {"vda": 16 * MIB, "vdb": 8 * MIB + 512 * 3}
BEFORE, DURING, AFTER, COMPLETED = "before begin", "during", "after publish", "completed"


def _sums(files: t.Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of raw copies of disks; the copies are removed."""
    found = {}
    for target, path in files.items():
        found[target] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.unlink()
    return found


@dataclasses.dataclass
class _History:
    """A domain, its repository, and what the bytes of each published point must be."""

    domain: BlockDomain
    repository: Repository
    workspace: Path
    scratch: Path
    chance: random.Random
    disks: dict[str, bytearray] = dataclasses.field(
        default_factory=lambda: {target: bytearray(size) for target, size in SIZES.items()}
    )
    truth: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    outcomes: t.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def touch(self) -> None:
        """Guest writes, noted in ``disks`` as well: while a killed run's job stands, nothing else could tell what the disks hold."""
        for _number in range(self.chance.randrange(1, 4)):
            target = self.chance.choice(sorted(SIZES))
            sectors = SIZES[target] // 512
            first = self.chance.randrange(sectors)
            length = min(sectors - first, self.chance.choice([1, 129, 3000, 10000])) * 512
            data = bytes(length)
            if self.chance.random() < 0.6:
                data = self.domain.write_random(target, first * 512, length, self.chance.randrange(1 << 30))
            else:
                self.domain.write_zeroes(target, first * 512, length, unmap=self.chance.random() < 0.5)
            self.disks[target][first * 512 : first * 512 + length] = data

    def now(self) -> dict[str, str]:
        """SHA-256 of what the guest wrote, by disk."""
        return {target: hashlib.sha256(data).hexdigest() for target, data in self.disks.items()}

    def points(self) -> list[str]:
        """Ids of all published points; the new ones are noted with what they must hold."""
        ids = [point.id for point in self.repository.points_of().points]
        for each in ids:
            if each not in self.truth:
                self.truth[each] = self.now()
        return ids

    def begun(self) -> bool:
        """Whether a run is, or was, at work on the domain."""
        return any(self.scratch.iterdir())

    def arguments(self) -> dict[str, t.Any]:
        """A backup's options."""
        return {
            "domain": self.domain.name,
            "repository": self.repository.store.location,
            "scratch_dir": str(self.scratch),
            "mode": self.chance.choice(["auto", "auto", "auto", "auto", "full", "copy", "differential"]),
            "workers": self.chance.choice([1, 2, 4]),
            "compression": self.chance.choice(["lz4", "none"]),
        }

    def timed_run(self) -> tuple[float, float]:
        """A run that nobody disturbs: seconds until it has begun, and from then to its end."""
        start = time.monotonic()
        run = ModuleProcess(self.workspace, "cbt_backup", self.arguments())
        wait_until(self.begun, 60, "begin of a backup", step=0.002)
        begun = time.monotonic()
        assert not run.result().get("failed")
        self.points()
        return begun - start, time.monotonic() - begun

    def killed_run(self, until_begun: float, from_then: float) -> str:
        """A run that is killed at some moment; returns what had become of it."""
        before = self.points()
        left = self.begun()
        run = ModuleProcess(self.workspace, "cbt_backup", self.arguments())
        if left or self.chance.random() < 0.25:
            time.sleep(self.chance.uniform(0.1, until_begun * 1.2))
        else:
            # Counted from the moment in which it begins: the time before is long, and differs with the load of the machine.
            wait_until(self.begun, 60, "begin of a backup", step=0.002)
            time.sleep(self.chance.uniform(0, from_then * 0.75))
        run.signal(signal.SIGKILL)
        result = run.result_if_any()
        published = self.points() != before
        if result is not None:
            assert not result.get("failed") and published, result
            return COMPLETED
        if published:
            return AFTER
        return DURING if self.begun() else BEFORE

    def run(self) -> BackupResult:
        """A run to its end, after which nothing may be left of any run before."""
        result = backup(session_of(self.domain), self.repository, ask(self.domain.name, scratch_dir=str(self.scratch)))
        assert result.point is not None
        self.points()
        assert not self.domain.job_running()
        assert self.domain.checkpoints() == [result.point.checkpoint]
        for target in SIZES:
            bitmaps = {bitmap["name"] for bitmap in self.domain.bitmaps(target, marks=True)}
            assert bitmaps == {result.point.checkpoint, f"{result.point.checkpoint}@{target}"}
        assert list(self.scratch.iterdir()) == []
        assert unfinished(self.repository) == []
        return result

    def untrue(self) -> list[str]:
        """Points whose restore differs from what the disks held."""
        found = []
        for each in self.points():
            folder = self.workspace / each
            folder.mkdir()
            result = restore(
                self.repository, RestoreRequest(self.domain.name, restore_point=each, dest=str(folder), format="raw")
            )
            if _sums({disk.target: Path(disk.path) for disk in result.disks}) != self.truth[each]:
                found.append(each)
        return found


@pytest.fixture
def scratch(workspace: Path) -> Path:
    folder = workspace / "scratch"
    folder.mkdir()
    folder.chmod(0o711)
    return folder


def _repository(workspace: Path) -> Repository:
    made = open_or_create(str(workspace / "repository"))
    assert made is not None
    return made


@pytest.mark.soak("kills")
def test_killed_at_any_moment_of_a_long_history(hypervisor: Hypervisor, workspace: Path, scratch: Path) -> None:
    with BlockDomain(hypervisor, [DiskSpec(target, size) for target, size in SIZES.items()]) as domain:
        history = _History(domain, _repository(workspace), workspace, scratch, random.Random(KILLS))
        history.touch()
        history.run()
        history.touch()
        until_begun, from_then = history.timed_run()
        for _number in range(KILLS):
            history.touch()
            outcome = history.killed_run(until_begun, from_then)
            history.outcomes[outcome] += 1
            if history.chance.random() < 0.3:
                continue  # the next one is killed as well
            time.sleep(0.2)  # what libvirt was told before the kill is done
            left = domain.job_running()
            result = history.run()
            assert not left or any(
                "A backup job that a killed run had left" in warning for warning in result.warnings
            ), result.warnings
        history.touch()
        history.run()
        assert _sums(snapshot_reference(domain, workspace)) == history.now()
        print(
            f"\n{KILLS} kills: {dict(history.outcomes)}; {len(history.truth)} points; begin after {until_begun:.2f} s, end {from_then:.2f} s later"
        )
        assert history.untrue() == []
        assert [verdict.status for verdict in verify(history.repository, VerifyRequest(wanted=ALL))[0]] == ["ok"] * len(
            history.truth
        )
        assert KILLS < 30 or all(history.outcomes[each] for each in (DURING, AFTER)), history.outcomes


@pytest.mark.soak("kills")
def test_a_killed_backup_of_a_shut_off_domain_lets_go_of_its_images(
    hypervisor: Hypervisor, workspace: Path, scratch: Path
) -> None:
    chance = random.Random(7)
    with BlockDomain(hypervisor, [DiskSpec(target, size) for target, size in SIZES.items()]) as domain:
        history = _History(domain, _repository(workspace), workspace, scratch, chance)
        history.touch()
        history.run()
        history.touch()
        domain.destroy()
        _until_begun, from_then = history.timed_run()
        domain.start()
        for _number in range(max(3, KILLS // 8)):
            history.touch()
            domain.destroy()
            history.outcomes[history.killed_run(_until_begun, from_then)] += 1
            _start_soon(domain)
            history.run()
        print(f"\n{dict(history.outcomes)}; {len(history.truth)} points")
        assert history.outcomes[DURING], history.outcomes
        assert history.untrue() == []


def _start_soon(domain: BlockDomain) -> None:
    """Start a domain whose images may be held for another moment by a server that is just ending."""

    def started() -> bool:
        try:
            domain.start()
        except Exception as error:
            if "lock" in str(error):
                return False
            raise
        return True

    try:
        wait_until(started, 5, f"start of {domain.name}")
    except LabError as error:
        raise AssertionError("the images are still in use") from error
