# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file system that fills up ends the backup and never harms the guest."""

from __future__ import annotations

import subprocess
import threading
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from module_process import created, run_module
from witness import ask, differences, session_of, unfinished, witnessed_backup

from _cbt.control import Control, Progress
from _cbt.errors import CbtError, HypervisorError, Refused, RepositoryError
from _cbt.operations.backup.backup import backup
from _cbt.repository.creation import open_or_create
from _cbt.repository.repository import Repository

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def small(workspace: Path) -> t.Iterator[Path]:
    """A file system of 32 MiB. Domains must be started after it, so that QEMU, in a mount namespace of its own, sees it."""
    folder = workspace / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={32 * MIB},mode=0711", "small", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _repository(folder: Path) -> Repository:
    made = open_or_create(str(folder))
    assert made is not None
    return made


def _objects(repository: Repository) -> list[str]:
    return sorted([*repository.store.list("packs"), *repository.store.list("points"), *unfinished(repository)])


def _seen_by_qemu(domain: BlockDomain, folder: Path) -> bool:
    return str(folder) in Path(f"/proc/{domain.qemu_pid}/mountinfo").read_text()


class _Overwriting:
    """A guest that overwrites its disk from the beginning while a backup reads it; keeps what it wrote, and what failed."""

    def __init__(self, domain: BlockDomain) -> None:
        self._domain = domain
        self._thread = threading.Thread(target=self._run)
        self.written = 0
        self.failed: list[BaseException] = []

    def begin(self, progress: Progress) -> None:
        """Lets the guest loose once the disk is being read."""
        if progress.phase == "reading" and self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        try:
            for number in range(SIZE // MIB):
                self._domain.write("vda", number * MIB, MIB, 1 + number % 255)
                self.written += MIB
        except BaseException as error:
            self.failed.append(error)

    def end(self) -> None:
        """Wait until all is overwritten."""
        self._thread.join()


# With one byte per second every reader sleeps; without a limit, the work is in the middle of anything.
@pytest.mark.parametrize("rate_limit", [1, 8 * MIB, None], ids=["waiting", "slow", "fast"])
def test_a_scratch_directory_that_fills_up_ends_the_backup_before_the_guest_sees_an_error(
    rate_limit: int | None, hypervisor: Hypervisor, workspace: Path, small: Path
) -> None:
    repository = _repository(workspace / "repository")
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        assert _seen_by_qemu(domain, small), (
            "libvirtd runs in another mount namespace; run this with tests/lab/isolated.sh"
        )
        domain.write_random("vda", 0, SIZE, 1)
        witnessed_backup(domain, repository, workspace)
        domain.write_random("vda", 0, SIZE, 2)
        before = _objects(repository), domain.checkpoints()
        guest = _Overwriting(domain)

        def hold(progress: Progress) -> None:
            guest.begin(progress)
            if rate_limit is None and progress.phase == "publishing":
                guest.end()  # as if the repository took its time

        request = ask(domain.name, scratch_dir=str(small), workers=1, rate_limit=rate_limit)
        with pytest.raises(
            HypervisorError,
            match=f"ended because the scratch directory {small}/kvm-cbt-.* runs out of space .*another place with scratch_dir",
        ):
            backup(session_of(domain), repository, request, control=Control(hold))
        guest.end()
        assert (guest.failed, guest.written) == ([], SIZE)
        assert (_objects(repository), domain.checkpoints()) == before
        assert not domain.job_running() and list(small.iterdir()) == []
        after = witnessed_backup(domain, repository, workspace)
        assert after.result.disks[0].mode == "incremental"
        data = after.copies["vda"].read_bytes()
        assert data == b"".join(bytes([1 + number % 255]) * MIB for number in range(SIZE // MIB))
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, after, restored) == []


def test_a_repository_that_fills_up_ends_the_backup_and_keeps_what_it_had(
    hypervisor: Hypervisor, workspace: Path, small: Path
) -> None:
    repository = _repository(small / "repository")
    with BlockDomain(hypervisor, [DiskSpec("vda", SIZE)]) as domain:
        domain.write_random("vda", 0, 8 * MIB, 1)
        first = witnessed_backup(domain, repository, workspace)
        kept = workspace / "first"
        kept.mkdir()
        first.copies["vda"].rename(kept / "vda.raw")
        before = _objects(repository), domain.checkpoints()
        domain.write_random("vda", 0, SIZE, 2)
        for rate_limit in (None, 16 * MIB):  # full before anybody looked, or seen to fill up
            request = ask(domain.name, scratch_dir=str(workspace), rate_limit=rate_limit)
            with pytest.raises(
                CbtError,
                match="No space left on device. Free space there|the repository .* runs out of space .*another place with repository",
            ):
                backup(session_of(domain), repository, request)
            assert (_objects(repository), domain.checkpoints(), domain.job_running()) == (*before, False)
            assert not list(workspace.glob("kvm-cbt-*"))
        domain.write_zeroes("vda", 8 * MIB, SIZE - 8 * MIB)
        second = witnessed_backup(domain, repository, workspace)
        assert second.result.disks[0].mode == "incremental"
        restored = workspace / "restored"
        restored.mkdir()
        assert differences(domain.name, repository, second, restored) == []
        first.copies["vda"].unlink()
        (kept / "vda.raw").rename(first.copies["vda"])
        assert differences(domain.name, repository, first, restored) == []


@pytest.mark.parametrize("short", ["scratch_dir", "repository"])
def test_a_backup_without_enough_space_is_refused_before_it_begins(
    short: str, hypervisor: Hypervisor, workspace: Path, small: Path
) -> None:
    folders = {"scratch_dir": workspace, "repository": workspace}
    folders[short] = small
    repository = _repository(folders["repository"] / "repository")
    phases: list[str] = []
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        ballast = small / "ballast"
        ballast.write_bytes(bytes((30 if short == "repository" else 31) * MIB))  # the repository has a reserve of 1 MiB
        request = ask(domain.name, scratch_dir=str(folders["scratch_dir"]))
        with pytest.raises(
            Refused, match=f"not started because the .* {small}/.* runs out of space .*another place with {short}"
        ):
            backup(
                session_of(domain), repository, request, control=Control(lambda progress: phases.append(progress.phase))
            )
        assert (phases, _objects(repository), domain.checkpoints(), domain.job_running()) == ([], [], [], False)
        ballast.unlink()
        assert backup(session_of(domain), repository, request).point is not None


def test_a_completely_full_file_system_is_reported(hypervisor: Hypervisor, workspace: Path, small: Path) -> None:
    repository = _repository(small / "repository")
    with (
        BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain,
        (small / "ballast").open("wb", buffering=0) as ballast,
    ):
        with pytest.raises(OSError):
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(CbtError, match="Free space there"):
            backup(session_of(domain), repository, ask(domain.name))
        with pytest.raises(RepositoryError, match="Free space there"):
            open_or_create(str(small / "other"))


def test_retention_on_a_full_file_system_succeeds_and_says_so(workspace: Path, small: Path) -> None:
    repository = created(workspace, small / "repository")
    with (small / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(4096))
    result = run_module(workspace, "cbt_retention", repository=repository, keep_last=1, grace=0)
    assert not result.get("failed"), result
    assert f"{repository} was full" in str(result["warnings"])
