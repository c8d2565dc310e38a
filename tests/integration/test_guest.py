# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real guest with a real agent and file system."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import libvirt
import pytest
from lab.disks import DiskSpec
from lab.guest import LinuxGuest
from lab.hypervisor import Hypervisor
from lab.process import wait_until
from witness import ask, session_of

from _cbt.control import Control, Progress
from _cbt.errors import CbtError
from _cbt.operations.backup.backup import backup
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.repository.repository import Repository

MIB = 1 << 20


def _restore_raw(repository: Repository, guest: LinuxGuest, folder: Path, point: str = "latest") -> Path:
    folder.mkdir()
    result = restore(repository, RestoreRequest(guest.name, restore_point=point, dest=str(folder), format="raw"))
    return Path(result.disks[0].path)


def _check_file_system(image: Path) -> None:
    """Force a full check that may change nothing: only a file system that was frozen passes without a journal to replay."""
    done = subprocess.run(["e2fsck", "-f", "-n", str(image)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _dump(image: Path, path: str) -> bytes:
    return subprocess.run(["debugfs", "-R", f"cat {path}", str(image)], check=True, capture_output=True).stdout


def test_a_frozen_backup_under_writes_is_file_system_consistent(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    seen: list[bool] = []
    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB)]) as guest:
        guest.wait_ready()
        guest.write_file("/data/one", b"first")

        def observe(progress: Progress) -> None:
            if progress.phase in ("freezing", "publishing"):
                seen.append(guest.frozen())

        first = backup(session_of(guest), repository, ask(guest.name, quiesce="required"), control=Control(observe))
        assert first.point is not None and first.point.consistency == "filesystem"
        assert seen == [True, False]  # frozen for the begin, thawed long before the end
        assert "guest.json" in first.point.files
        guest.check("(while true; do head -c 300000 /dev/urandom > /data/busy; sync; done) >/dev/null 2>&1 &")
        guest.write_file("/data/two", b"second")
        second = backup(session_of(guest), repository, ask(guest.name, quiesce="required"))
        assert second.point is not None and second.disks[0].mode == "incremental"
        assert not guest.frozen()
        for point, files in ((first.point, {"/one": b"first"}), (second.point, {"/one": b"first", "/two": b"second"})):
            image = _restore_raw(repository, guest, workspace / f"out-{point.id}", point.id)
            _check_file_system(image)
            assert {path: _dump(image, path) for path in files} == files


def _longest_pause(guest: LinuxGuest, log: str) -> float:
    """Seconds between two neighbouring entries of a log of uptimes, at most."""
    times = [float(line) for line in guest.check(f"cat {log}").split()]
    return max(after - before for before, after in zip(times, times[1:]))


def test_only_the_named_mount_points_are_frozen(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    held = 4.0

    def hold(progress: Progress) -> None:
        if progress.phase == "freezing":
            time.sleep(held)

    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB), DiskSpec("vdb", 256 * MIB)]) as guest:
        guest.wait_ready()
        for disk in ("vda", "vdb"):
            write = f"echo x > /disks/{disk}/tick; cut -d' ' -f1 /proc/uptime >> /tmp/{disk}.log; sleep 0.1"
            guest.check(f"(while true; do {write}; done) >/dev/null 2>&1 &")
        request = ask(guest.name, quiesce="required", freeze_mountpoints=("/disks/vdb",))
        result = backup(session_of(guest), repository, request, control=Control(hold))
        assert result.point is not None and result.point.consistency == "filesystem"
        wait_until(lambda: _longest_pause(guest, "/tmp/vdb.log") >= held, 20, "a write that waited for the thaw")
        assert _longest_pause(guest, "/tmp/vda.log") < held
        with pytest.raises(CbtError, match="Cannot freeze the file systems"):
            backup(
                session_of(guest),
                repository,
                ask(guest.name, quiesce="required", freeze_mountpoints=("/no/such/mount",)),
            )
        assert not guest.frozen()


@pytest.mark.parametrize("trouble", ["killed", "hanging"])
def test_an_agent_that_is_gone_or_hangs_holds_up_neither_backup_nor_guest(
    trouble: str, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB)]) as guest:
        guest.wait_ready()
        if trouble == "killed":
            guest.kill_agent()
        else:
            guest.hang_agent()
        with pytest.raises(CbtError, match="Cannot freeze the file systems"):
            backup(session_of(guest), repository, ask(guest.name, quiesce="required"))
        assert (guest.checkpoints(), guest.job_running()) == ([], False)
        result = backup(session_of(guest), repository, ask(guest.name, quiesce="auto"))
        assert result.point is not None and result.point.consistency == "crash"
        assert any("only crash-consistent" in warning for warning in result.warnings)
        if trouble == "hanging":
            guest.continue_agent()
            assert not guest.frozen()


def test_a_guest_that_freezes_slowly_is_thawed(hypervisor: Hypervisor, repository: Repository) -> None:
    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB)]) as guest:
        guest.wait_ready()
        guest.handle.setBlockIoTune("vda", {"write_bytes_sec": MIB})
        guest.check("dd if=/dev/zero of=/data/unwritten bs=1M count=5")  # the freeze writes it first
        result = backup(session_of(guest), repository, ask(guest.name, freeze_timeout=1))
        assert result.point is not None and result.point.consistency == "crash"
        assert any("the guest agent did not confirm the freeze" in warning for warning in result.warnings)
        assert not guest.frozen()
        guest.check("echo alive > /data/alive && sync")


def test_a_guest_that_thaws_too_early_is_noticed(hypervisor: Hypervisor, repository: Repository) -> None:
    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB), DiskSpec("vdb", 64 * MIB)]) as guest:
        guest.wait_ready()
        size = guest.handle.blockInfo("vdb")[0]
        # The guest sees in the size of vdb that it is frozen.
        wait = f"while [ $(cat /sys/block/vdb/size) = {size // 512} ]; do sleep 0.1; done"
        guest.check(f"({wait}; fsfreeze --unfreeze /disks/vda; echo THAWED >/dev/ttyS0) >/dev/null 2>&1 &")

        def thaw_too_early(progress: Progress) -> None:
            if progress.phase == "freezing":
                guest.handle.blockResize("vdb", size + MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
                wait_until(lambda: "THAWED" in guest.console, 30, "a thaw in the guest")

        result = backup(session_of(guest), repository, ask(guest.name), control=Control(thaw_too_early))
        assert result.point is not None and result.point.consistency == "crash"
        assert any("1 of 2 file systems thawed by themselves" in warning for warning in result.warnings)


def test_a_backup_that_fails_while_frozen_thaws_the_guest(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    def fail(progress: Progress) -> None:
        if progress.phase == "freezing":
            raise CbtError("made to fail")

    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB)]) as guest:
        guest.wait_ready()
        with pytest.raises(CbtError, match="made to fail"):
            backup(session_of(guest), repository, ask(guest.name, quiesce="required"), control=Control(fail))
        assert not guest.frozen()
        guest.check("echo alive > /data/alive && sync")


def test_a_paused_domain_is_not_frozen(hypervisor: Hypervisor, workspace: Path, repository: Repository) -> None:
    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB)]) as guest:
        guest.wait_ready()
        guest.handle.suspend()
        with pytest.raises(CbtError, match="the domain is paused"):
            backup(session_of(guest), repository, ask(guest.name, quiesce="required"))
        result = backup(session_of(guest), repository, ask(guest.name))
        assert result.point is not None and result.point.consistency == "crash"
        guest.handle.resume()
        guest.check("true")


def test_a_restored_disk_boots_and_holds_the_data(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with LinuxGuest(hypervisor, [DiskSpec("vda", 256 * MIB)]) as guest:
        guest.wait_ready()
        backup(session_of(guest), repository, ask(guest.name))
        expected = guest.write_random_file("/data/random", 3 * MIB)
        guest.sync()
        backup(session_of(guest), repository, ask(guest.name, quiesce="required"))
        out = workspace / "out"
        out.mkdir()
        disk = restore(repository, RestoreRequest(guest.name, dest=str(out))).disks[0]
        Path(disk.path).chmod(0o666)
        with LinuxGuest(hypervisor, [DiskSpec("vda", disk.size, source=Path(disk.path))]) as copy:
            copy.wait_ready()
            assert copy.sha256("/data/random") == expected
