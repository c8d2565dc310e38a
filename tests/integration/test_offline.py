# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shut-off domains: their images are read, and the history goes on through off and on. The witness is qemu-img convert."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import typing as t
from pathlib import Path

import libvirt
import pytest
import soaks
from lab.base import Domain
from lab.domain import BlockDomain, DiskSpec
from lab.guest import LinuxGuest
from lab.hypervisor import Hypervisor
from lab.process import run_tool, wait_until
from lab.qemu_nbd import qemu_nbd
from lab.reference import same_bytes
from module_process import ModuleProcess, created, run_module
from witness import Witnessed, ask, differences, differing, disk_result, session_of, unfinished, witnessed_backup

from _cbt.control import Control, Observer, Progress
from _cbt.errors import CbtError, HypervisorError
from _cbt.hypervisor import checkpoints, offline_export
from _cbt.operations.backup.backup import backup
from _cbt.operations.backup.result import BackupResult
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.selecting import ALL

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture
def scratch(workspace: Path) -> Path:
    folder = workspace / "scratch, too"
    folder.mkdir()
    folder.chmod(0o711)
    return folder


def qemu_io(domain: Domain, target: str, *commands: str) -> None:
    """Write into the image of a shut-off domain, as a tool of its owner would."""
    spec = next(each for each in domain.disks if each.target == target)
    words = [word for command in commands for word in ("-c", command)]
    printed = run_tool(["qemu-io", "-f", spec.format, *words, domain.image(target)])
    assert "failed" not in printed, printed


def image_bitmaps(domain: Domain, target: str) -> dict[str, list[str]]:
    """Flags of the bitmaps in the image of a shut-off domain, by name. Each is to have its mark, which is not among them."""
    info = json.loads(run_tool(["qemu-img", "info", "--output=json", domain.image(target)]))
    found = {bitmap["name"]: bitmap["flags"] for bitmap in info["format-specific"]["data"].get("bitmaps", [])}
    marks = {name for name in found if "@" in name}
    names = found.keys() - marks
    assert marks == {f"{name}@{target}" for name in names if name.startswith("cbt-")}
    return {name: found[name] for name in names}


def offline_backup(
    domain: Domain, repository: Repository, folder: Path, observer: Observer | None = None, **wanted: t.Any
) -> Witnessed:
    """Back up a shut-off domain. Its images are copied before, and must hold the same after."""
    assert not domain.running
    copies = {}
    for spec in domain.disks:
        copies[spec.target] = folder / f"{spec.target}.raw"
        run_tool(
            ["qemu-img", "convert", "-f", spec.format, "-O", "raw", domain.image(spec.target), copies[spec.target]]
        )
    result = backup(session_of(domain), repository, ask(domain.name, **wanted), control=Control(observer))
    for spec in domain.disks:
        assert same_bytes(domain.image(spec.target), copies[spec.target], spec.format) is None
    return Witnessed(result, copies)


def check_all(domain: str, repository: Repository, taken: t.Sequence[Witnessed], workspace: Path) -> None:
    """Every point restores to the bytes its witness has."""
    folder = workspace / "restored"
    folder.mkdir()
    assert [found for each in taken for found in differences(domain, repository, each, folder)] == []
    assert [verdict.status for verdict in verify(repository, VerifyRequest(wanted=ALL))[0]] == ["ok"] * len(taken)


def step_folder(workspace: Path, name: str) -> Path:
    """A folder for the copies of one step."""
    folder = workspace / f"step-{name}"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def modes(result: BackupResult) -> list[str]:
    """How the disks were read."""
    return [disk.mode for disk in result.disks]


def only_checkpoint(domain: Domain, taken: Witnessed) -> str:
    """The checkpoint of a point, which must be the only one libvirt knows."""
    assert taken.result.point is not None and taken.result.point.checkpoint is not None
    assert domain.checkpoints() == [taken.result.point.checkpoint]
    return taken.result.point.checkpoint


def servers(scratch: Path) -> list[int]:
    """Processes that serve images from a scratch folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if words.startswith(b"qemu-storage-daemon") and os.fsencode(scratch) in words:
            found.append(int(path.parent.name))
    return found


def traces(domain: Domain, repository: Repository, scratch: Path) -> dict[str, t.Any]:
    """Everything a backup of a shut-off domain could leave behind."""
    return {
        "checkpoints": domain.checkpoints(),
        "bitmaps": {
            spec.target: sorted(image_bitmaps(domain, spec.target)) for spec in domain.disks if spec.format == "qcow2"
        },
        "scratch": sorted(path.name for path in scratch.iterdir()),
        "servers": servers(scratch),
        "points": [point.id for point in repository.points_of().points],
        "objects": sorted([*repository.store.list("packs"), *repository.store.list("points"), *unfinished(repository)]),
    }


def test_every_mode_on_a_domain_that_never_ran(hypervisor: Hypervisor, workspace: Path, repository: Repository) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB), DiskSpec("vdb", 8 * MIB + 1536)], start=False) as domain:
        taken: list[Witnessed] = []

        def take(**wanted: t.Any) -> BackupResult:
            taken.append(offline_backup(domain, repository, step_folder(workspace, str(len(taken))), **wanted))
            return taken[-1].result

        qemu_io(domain, "vda", "write -P 0x11 1M 4M", "write -P 0x12 12M 512")
        qemu_io(domain, "vdb", "write -P 0x13 8M 1536")
        first = take()
        assert modes(first) == ["full", "full"]
        checkpoint = only_checkpoint(domain, taken[-1])
        for target in ("vda", "vdb"):
            assert image_bitmaps(domain, target) == {checkpoint: ["auto"]}

        qemu_io(domain, "vda", "write -P 0x21 2M 64k", "write -z 3M 512k")
        assert modes(take(mode="copy")) == ["copy", "copy"]
        assert domain.checkpoints() == [checkpoint]
        second = take(mode="differential")
        assert modes(second) == ["differential", "differential"]
        assert disk_result(second, "vda").statistics.dirty_bytes == 576 * KIB
        assert domain.checkpoints() == [checkpoint]

        qemu_io(domain, "vda", "write -P 0x31 10M 128k")
        assert disk_result(take(mode="differential"), "vda").statistics.dirty_bytes == 704 * KIB
        third = take(mode="incremental")
        assert modes(third) == ["incremental", "incremental"]
        assert [disk_result(third, target).statistics.dirty_bytes for target in ("vda", "vdb")] == [704 * KIB, 0]
        newer = only_checkpoint(domain, taken[-1])
        assert newer != checkpoint and image_bitmaps(domain, "vda") == {newer: ["auto"]}
        qemu_io(domain, "vdb", "discard 8M 512", "write -P 0x41 0 512")
        assert modes(take()) == ["incremental", "incremental"]
        assert modes(take(mode="full")) == ["full", "full"]
        assert modes(take(audit=True)) == ["full", "full"]
        assert not taken[-1].result.disks[0].unmarked
        only_checkpoint(domain, taken[-1])
        check_all(domain.name, repository, taken, workspace)


@pytest.mark.parametrize("way", ["destroy", "quit"])
def test_the_history_goes_on_from_running_to_off_and_back(
    way: str, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB), DiskSpec("vdb", 8 * MIB)]) as domain:
        end = domain.destroy if way == "destroy" else domain.shutdown_hard
        domain.write_random("vda", 0, 6 * MIB, 1)
        domain.write("vdb", MIB, MIB, 0x01)
        taken = [witnessed_backup(domain, repository, step_folder(workspace, "full"))]
        domain.write("vda", 2 * MIB, 64 * KIB, 0x02)
        end()
        taken.append(offline_backup(domain, repository, step_folder(workspace, "off")))
        assert disk_result(taken[-1].result, "vda").statistics.dirty_bytes == 64 * KIB
        only_checkpoint(domain, taken[-1])
        qemu_io(domain, "vda", "write -P 0x03 3M 64k")
        domain.start()
        domain.write("vda", 4 * MIB, 64 * KIB, 0x04)
        meanwhile = step_folder(workspace, "on")
        taken.append(
            witnessed_backup(
                domain, repository, meanwhile, meanwhile=lambda: domain.write("vda", 5 * MIB, 64 * KIB, 0x05)
            )
        )
        assert disk_result(taken[-1].result, "vda").statistics.dirty_bytes == 128 * KIB
        only_checkpoint(domain, taken[-1])
        end()
        qemu_io(domain, "vdb", "write -z 1M 512k")
        taken.append(offline_backup(domain, repository, step_folder(workspace, "off again")))
        assert [modes(each.result) for each in taken[1:]] == [["incremental", "incremental"]] * 3
        assert [disk_result(taken[-1].result, target).statistics.dirty_bytes for target in ("vda", "vdb")] == [
            64 * KIB,
            512 * KIB,
        ]
        only_checkpoint(domain, taken[-1])
        check_all(domain.name, repository, taken, workspace)


@pytest.mark.soak("histories")
@pytest.mark.parametrize("seed", range(1, soaks.count("histories") // 2 + 1))
def test_any_history_of_on_off_and_crash_restores_byte_for_byte(
    seed: int, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    chance = random.Random(seed)
    sizes = {"vda": 8 * MIB, "vdb": 4 * MIB + 512}
    with BlockDomain(hypervisor, [DiskSpec(target, size) for target, size in sizes.items()], start=False) as domain:

        def touch() -> None:
            for _number in range(chance.randrange(5)):
                target = chance.choice(sorted(sizes))
                first = chance.randrange(sizes[target] // 512)
                length = min(sizes[target] // 512 - first, chance.choice([1, 8, 129, 1000])) * 512
                command = chance.choice([f"write -P {chance.randrange(256)}", "write -z", "discard"])
                if not domain.running:
                    qemu_io(domain, target, f"{command} {first * 512} {length}")
                elif command.startswith("write -P"):
                    domain.write(target, first * 512, length, chance.randrange(256))
                else:
                    domain.write_zeroes(target, first * 512, length, unmap=command == "discard")

        taken: list[Witnessed] = []
        for number in range(7):
            touch()
            event = chance.choice(["start", "destroy", "quit", "kill", "none"])
            if domain.running and event in ("destroy", "quit", "kill"):
                {"destroy": domain.destroy, "quit": domain.shutdown_hard, "kill": domain.kill}[event]()
            elif not domain.running and event == "start":
                domain.start()
            touch()
            folder = step_folder(workspace, str(number))
            wanted = {"mode": chance.choice(["auto", "auto", "copy", "differential", "full"])}
            if domain.running:
                taken.append(witnessed_backup(domain, repository, folder, ask(domain.name, **wanted), touch))
            else:
                taken.append(offline_backup(domain, repository, folder, **wanted))
            assert len(domain.checkpoints()) <= 1
        check_all(domain.name, repository, taken, workspace)


def test_disks_that_cannot_be_tracked_are_scanned(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    disks = [
        DiskSpec("vda", 8 * MIB, format="raw"),
        DiskSpec("vdb", 8 * MIB + 512, compat="0.10"),
        DiskSpec("vdc", 8 * MIB),
    ]
    with BlockDomain(hypervisor, disks, start=False) as domain:
        for spec in disks:
            qemu_io(domain, spec.target, "write -P 0x11 0 4M", "write -P 0x12 7M 512")
        taken = [offline_backup(domain, repository, step_folder(workspace, "one"))]
        for spec in disks:
            qemu_io(domain, spec.target, "write -P 0x55 1M 64k", "write -z 2M 64k")
        taken.append(offline_backup(domain, repository, step_folder(workspace, "two")))
        assert [modes(each.result) for each in taken] == [["scan", "scan", "full"], ["scan", "scan", "incremental"]]
        assert [differing(disk) for disk in taken[1].result.disks] == [64 * KIB] * 3
        check_all(domain.name, repository, taken, workspace)


def test_an_image_over_a_backing_file_is_read_through_both(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    base, overlay = workspace / "base image.qcow2", workspace / "overlay, with data.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", base, "8M"])
    run_tool(["qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 4M", base])
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, overlay, "12M"])
    with BlockDomain(hypervisor, [DiskSpec("vda", source=overlay)], start=False) as domain:
        qemu_io(domain, "vda", "write -P 0x12 1M 64k", "write -z 2M 64k", "write -P 0x12 10M 64k")
        taken = [offline_backup(domain, repository, step_folder(workspace, "one"))]
        qemu_io(domain, "vda", "write -z -u 1M 64k", "discard 3M 64k", "write -P 0x13 3584k 512")
        taken.append(offline_backup(domain, repository, step_folder(workspace, "two")))
        assert modes(taken[1].result) == ["incremental"]
        assert disk_result(taken[1].result, "vda").statistics.dirty_bytes == 192 * KIB
        check_all(domain.name, repository, taken, workspace)


def test_libvirt_builds_on_a_checkpoint_made_while_the_domain_was_off(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB)], start=False) as domain:
        qemu_io(domain, "vda", "write -P 0x11 0 4M")
        taken = [offline_backup(domain, repository, step_folder(workspace, "off"))]
        checkpoint = only_checkpoint(domain, taken[0])
        domain.start()
        domain.write("vda", MIB, 64 * KIB, 0x22)
        (bitmap,) = domain.bitmaps("vda")
        assert (bitmap["name"], bitmap["count"], bitmap["recording"], bitmap["granularity"]) == (
            checkpoint,
            64 * KIB,
            True,
            64 * KIB,
        )
        described = domain.handle.checkpointLookupByName(checkpoint).getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE)
        assert f"size='{64 * KIB}'" in described
        taken.append(witnessed_backup(domain, repository, step_folder(workspace, "on")))
        assert modes(taken[1].result) == ["incremental"]
        assert disk_result(taken[1].result, "vda").statistics.dirty_bytes == 64 * KIB
        check_all(domain.name, repository, taken, workspace)


def test_consistency_is_that_of_the_way_the_guest_ended(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with LinuxGuest(hypervisor, [DiskSpec("vda", 32 * MIB)]) as guest:
        guest.wait_ready()
        guest.write_file("/data/kept", b"content")
        guest.handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
        wait_until(lambda: not guest.running, 30, "shutdown by the agent")
        orderly = offline_backup(guest, repository, step_folder(workspace, "orderly"))
        assert orderly.result.point is not None
        assert (orderly.result.point.consistency, orderly.result.warnings) == ("filesystem", ())
        folder = workspace / "file system"
        folder.mkdir()
        image = restore(repository, RestoreRequest(guest.name, dest=str(folder), format="raw")).disks[0].path
        checked = subprocess.run(["e2fsck", "-f", "-n", image], check=False, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        guest.start()
        guest.destroy()
        torn = offline_backup(guest, repository, step_folder(workspace, "torn"))
        assert torn.result.point is not None
        assert torn.result.point.consistency == "crash"
        assert "only crash-consistent" in torn.result.warnings[0]
        assert modes(torn.result) == ["incremental"]
        check_all(guest.name, repository, [orderly, torn], workspace)


@pytest.mark.parametrize("mode", ["auto", "copy"])
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_an_image_held_by_another_process_is_reported_and_unchanged(
    fmt: str, mode: str, hypervisor: Hypervisor, workspace: Path, scratch: Path, repository: Repository
) -> None:
    with BlockDomain(
        hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 8 * MIB, format=fmt)], start=False
    ) as domain:
        qemu_io(domain, "vda", "write -P 0x11 0 1M")
        taken = [offline_backup(domain, repository, step_folder(workspace, "one"), scratch_dir=str(scratch))]
        before = traces(domain, repository, scratch)
        with (
            qemu_nbd(domain.image("vdb"), fmt, workspace / "holder.sock"),
            pytest.raises(HypervisorError, match="in use") as raised,
        ):
            backup(session_of(domain), repository, ask(domain.name, mode=mode, scratch_dir=str(scratch)))
        assert "vdb" in str(raised.value)
        assert traces(domain, repository, scratch) == before
        taken.append(offline_backup(domain, repository, step_folder(workspace, "two")))
        assert modes(taken[1].result) == ["incremental", "incremental" if fmt == "qcow2" else "scan"]
        check_all(domain.name, repository, taken, workspace)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_the_domain_cannot_be_started_while_it_is_read(
    fmt: str, hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    refused: list[str] = []
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, format=fmt)], start=False) as domain:

        def start(progress: Progress) -> None:
            if progress.phase in ("reading", "publishing") and progress.phase not in refused:
                with pytest.raises(libvirt.libvirtError, match="lock"):
                    domain.start()
                refused.append(progress.phase)

        qemu_io(domain, "vda", "write -P 0x11 0 4M")
        taken = [offline_backup(domain, repository, step_folder(workspace, "off"), start, workers=1)]
        assert refused == ["reading", "publishing"]
        domain.start()
        domain.write("vda", 0, 64 * KIB, 0x22)
        taken.append(witnessed_backup(domain, repository, step_folder(workspace, "on")))
        assert modes(taken[1].result) == ["incremental" if fmt == "qcow2" else "scan"]
        check_all(domain.name, repository, taken, workspace)


@pytest.mark.parametrize(
    ("fmt", "step"), [("qcow2", "add_bitmaps"), ("qcow2", "image_exports"), ("raw", "image_exports")]
)
def test_a_domain_that_starts_after_the_decision_ends_the_backup_in_order(
    fmt: str,
    step: str,
    hypervisor: Hypervisor,
    workspace: Path,
    scratch: Path,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No moment of a real run is long enough to strike in time: the domain is started as the step begins.
    place = checkpoints if step == "add_bitmaps" else offline_export
    real = getattr(place, step)
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB, format=fmt)], start=False) as domain:

        def started_meanwhile(*arguments: t.Any) -> t.Any:
            domain.start()
            domain.write("vda", MIB, 64 * KIB, 0x22)
            return real(*arguments)

        qemu_io(domain, "vda", "write -P 0x11 0 4M")
        taken = [offline_backup(domain, repository, step_folder(workspace, "off"))]
        before = traces(domain, repository, scratch)
        with monkeypatch.context() as patch, pytest.raises(HypervisorError, match="in use"):
            patch.setattr(place, step, started_meanwhile)
            backup(session_of(domain), repository, ask(domain.name, scratch_dir=str(scratch)))
        assert domain.running
        if fmt == "qcow2":
            assert [bitmap["name"] for bitmap in domain.bitmaps("vda")] == domain.checkpoints() == before["checkpoints"]
        domain.destroy()
        assert traces(domain, repository, scratch) == before
        taken.append(offline_backup(domain, repository, step_folder(workspace, "off again")))
        assert modes(taken[1].result) == ["incremental" if fmt == "qcow2" else "scan"]
        check_all(domain.name, repository, taken, workspace)


@pytest.mark.parametrize("phase", ["reading", "publishing"])
def test_an_error_leaves_nothing_and_the_next_run_is_incremental(
    phase: str, hypervisor: Hypervisor, workspace: Path, scratch: Path, repository: Repository
) -> None:
    def fail(progress: Progress) -> None:
        if progress.phase == phase:
            assert servers(scratch)
            raise CbtError("made to fail")

    with BlockDomain(
        hypervisor, [DiskSpec("vda", 16 * MIB), DiskSpec("vdb", 4 * MIB, format="raw")], start=False
    ) as domain:
        for attempt in ("full", "incremental"):
            qemu_io(domain, "vda", "write -P 0x11 0 4M")
            before = traces(domain, repository, scratch)
            with pytest.raises(CbtError, match="made to fail"):
                backup(
                    session_of(domain), repository, ask(domain.name, scratch_dir=str(scratch)), control=Control(fail)
                )
            assert traces(domain, repository, scratch) == before
            done = offline_backup(domain, repository, step_folder(workspace, attempt))
            assert modes(done.result) == [attempt, "scan"]


def _prepared(domain: BlockDomain, workspace: Path) -> Repository:
    """A shut-off domain with a backup and 16 MiB changed since."""
    qemu_io(domain, "vda", "write -P 0x11 0 24M")
    result = run_module(
        workspace, "cbt_backup", domain=domain.name, repository=created(workspace, workspace / "repository")
    )
    assert result["disks"][0]["mode"] == "full", result
    (workspace / "random").write_bytes(random.Random(1).randbytes(16 * MIB))
    qemu_io(domain, "vda", f"write -s {workspace / 'random'} 8M 16M")
    return open_repository(str(workspace / "repository"))


def _slow_run(domain: BlockDomain, workspace: Path, scratch: Path) -> ModuleProcess:
    """A backup as a process of its own, slow enough to be struck while it reads."""
    arguments = {
        "domain": domain.name,
        "repository": str(workspace / "repository"),
        "scratch_dir": str(scratch),
        "rate_limit": "4M",
    }
    return ModuleProcess(workspace, "cbt_backup", arguments)


def test_a_signal_leaves_nothing_and_the_next_run_is_incremental(
    hypervisor: Hypervisor, workspace: Path, scratch: Path
) -> None:
    chance = random.Random(15)
    with BlockDomain(hypervisor, [DiskSpec("vda", 32 * MIB)], start=False) as domain:
        repository = _prepared(domain, workspace)
        before = traces(domain, repository, scratch)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            run = _slow_run(domain, workspace, scratch)
            wait_until(lambda: bool(servers(scratch)), 20, "begin of the reading", step=0.002)
            time.sleep(chance.uniform(0, 0.5))
            run.signal(number)
            result = run.result()
            assert result["failed"] and number.name in result["msg"]
            assert traces(domain, repository, scratch) == before
        done = offline_backup(domain, repository, step_folder(workspace, "after"))
        assert modes(done.result) == ["incremental"]


def test_a_run_that_is_killed_outright_does_not_keep_the_domain_from_starting(
    hypervisor: Hypervisor, workspace: Path, scratch: Path
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 32 * MIB)], start=False) as domain:
        repository = _prepared(domain, workspace)
        run = _slow_run(domain, workspace, scratch)
        wait_until(lambda: bool(list(scratch.glob("*/nbd.sock"))), 20, "begin of the reading")
        run.signal(signal.SIGKILL)
        assert run.result_if_any() is None
        wait_until(lambda: not servers(scratch), 10, "end of the image server")
        domain.start()
        domain.write("vda", 0, 64 * KIB, 0x22)
        domain.destroy()
        done = offline_backup(domain, repository, step_folder(workspace, "after"), scratch_dir=str(scratch))
        assert modes(done.result) == ["incremental"]
        assert list(image_bitmaps(domain, "vda")) == [only_checkpoint(domain, done)]
        assert list(scratch.iterdir()) == []
        folder = workspace / "restored"
        folder.mkdir()
        assert differences(domain.name, repository, done, folder) == []


def test_skip_changes_nothing(hypervisor: Hypervisor, workspace: Path, scratch: Path, repository: Repository) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)], start=False) as domain:
        before = traces(domain, repository, scratch)
        arguments = {"domain": domain.name, "repository": str(workspace / "repository"), "offline": "skip"}
        for check in (True, False):
            result = run_module(workspace, "cbt_backup", check=check, **arguments)
            assert not result["changed"] and not result.get("failed")
            assert result["skipped"] == f"{domain.name} is shutoff, and offline is set to skip."
            assert "restore_point" not in result
            assert traces(domain, repository, scratch) == before
        domain.start()
        assert run_module(workspace, "cbt_backup", **arguments)["changed"]


def test_start_paused_shuts_off_again_and_carries_the_history_on(
    hypervisor: Hypervisor, workspace: Path, scratch: Path, repository: Repository
) -> None:
    states: list[int] = []
    with BlockDomain(
        hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 4 * MIB, format="raw")], start=False
    ) as domain:

        def observe(progress: Progress) -> None:
            states.append(domain.handle.state()[0])

        taken: list[Witnessed] = []
        for number, (wanted, mode) in enumerate(
            [
                ("start_paused", "full"),
                ("read", "incremental"),
                ("start_paused", "incremental"),
                ("read", "incremental"),
            ]
        ):
            qemu_io(domain, "vda", f"write -P {number + 1} {number}M 64k")
            folder = step_folder(workspace, str(number))
            taken.append(
                offline_backup(
                    domain, repository, folder, observe, offline=wanted, start_paused=wanted == "start_paused"
                )
            )
            assert modes(taken[-1].result) == [mode, "scan"]
            assert not domain.running
            assert image_bitmaps(domain, "vda") == {only_checkpoint(domain, taken[-1]): ["auto"]}
        assert set(states) == {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_SHUTOFF}

        def fail(progress: Progress) -> None:
            raise CbtError("made to fail")

        before = traces(domain, repository, scratch)
        with pytest.raises(CbtError, match="made to fail"):
            backup(
                session_of(domain),
                repository,
                ask(domain.name, start_paused=True, scratch_dir=str(scratch)),
                control=Control(fail),
            )
        assert not domain.running
        assert traces(domain, repository, scratch) == before
        check_all(domain.name, repository, taken, workspace)


def test_check_mode_predicts_for_a_shut_off_domain(hypervisor: Hypervisor, workspace: Path, scratch: Path) -> None:
    disks = [
        DiskSpec("vda", 8 * MIB),
        DiskSpec("vdb", 4 * MIB + 512),
        DiskSpec("vdc", 4 * MIB, format="raw"),
        DiskSpec("sda", MIB, device="cdrom"),
    ]
    with BlockDomain(hypervisor, disks, start=False) as domain:

        def both(**options: t.Any) -> list[str]:
            arguments = {
                "domain": domain.name,
                "repository": str(workspace / "repository"),
                "scratch_dir": str(scratch),
                **options,
            }
            there = (workspace / "repository").exists()
            arguments["create_repository"] = not there
            before = traces(domain, open_repository(arguments["repository"]), scratch) if there else None
            estimate = run_module(workspace, "cbt_backup", check=True, **arguments)
            assert not domain.running
            assert (workspace / "repository").exists() == there
            if there:
                assert traces(domain, open_repository(arguments["repository"]), scratch) == before
            result = run_module(workspace, "cbt_backup", **arguments)
            for each in (estimate, result):
                assert each["changed"] and not each.get("failed"), each
            for planned, done in zip(estimate["disks"], result["disks"]):
                keys = ("target", "mode", "reason", *(("virtual_size",) if done["mode"] != "skipped" else ()))
                assert [planned[key] for key in keys] == [done[key] for key in keys]
                assert planned["dirty_bytes"] in (None, done["dirty_bytes"])
            return [disk["mode"] for disk in result["disks"]]

        assert both() == ["full", "full", "scan", "skipped"]
        qemu_io(domain, "vda", "write -P 0x11 1M 64k")
        assert both() == ["incremental", "incremental", "scan", "skipped"]
        assert both(mode="incremental", include_disks=["vda"]) == ["incremental", "skipped", "skipped", "skipped"]
        assert both(mode="differential") == ["differential", "full", "scan", "skipped"]
        assert both(offline="start_paused") == ["incremental", "full", "scan", "skipped"]
        assert both(mode="copy") == ["copy", "copy", "copy", "skipped"]


def test_a_bitmap_that_was_not_closed_is_not_trusted(
    hypervisor: Hypervisor, workspace: Path, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB), DiskSpec("vdb", 4 * MIB)]) as domain:
        domain.write_random("vda", 0, 4 * MIB, 1)
        taken = [witnessed_backup(domain, repository, step_folder(workspace, "on"))]
        domain.destroy()  # the bitmap is in the image
        domain.start()
        domain.write("vda", MIB, 64 * KIB, 0x22)
        domain.flush("vda")
        domain.kill()
        assert "in-use" in image_bitmaps(domain, "vda")[only_checkpoint(domain, taken[0])]
        taken.append(offline_backup(domain, repository, step_folder(workspace, "off")))
        assert disk_result(taken[1].result, "vda").mode == "full"
        assert "was not saved properly" in disk_result(taken[1].result, "vda").reason
        assert disk_result(taken[1].result, "vda").statistics.new_bytes <= 64 * KIB
        assert image_bitmaps(domain, "vda") == {only_checkpoint(domain, taken[1]): ["auto"]}
        qemu_io(domain, "vda", "write -P 0x33 2M 64k")
        taken.append(offline_backup(domain, repository, step_folder(workspace, "off again")))
        assert modes(taken[2].result) == ["incremental", "incremental"]
        assert disk_result(taken[2].result, "vda").statistics.dirty_bytes == 64 * KIB
        domain.start()
        domain.write("vda", 3 * MIB, 64 * KIB, 0x44)
        taken.append(witnessed_backup(domain, repository, step_folder(workspace, "on again")))
        assert modes(taken[3].result) == ["incremental", "incremental"]
        check_all(domain.name, repository, taken, workspace)
