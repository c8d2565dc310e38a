# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where restored disks go: onto devices, to NBD exports and into images like the original ones."""

from __future__ import annotations

import contextlib
import json
import os
import typing as t
from pathlib import Path

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from lab.qemu_nbd import qemu_nbd
from lab.reference import same_bytes
from loop_devices import loop_device
from module_process import run_module
from restored import new_name, refused, removed
from witness import ask, session_of

from _cbt.control import Control, Progress
from _cbt.errors import CbtError, Interrupted
from _cbt.hypervisor.connection import Session
from _cbt.operations.backup.backup import backup
from _cbt.operations.restore.restore import MachineOptions, RestoreRequest, restore
from _cbt.repository.repository import Repository

MIB = 1 << 20


def original_format(target: str) -> str:
    return {"vda": "qcow2", "vdb": "raw"}[target]


@pytest.fixture
def device(workspace: Path) -> t.Iterator[Path]:
    """A loop device of the host of 16 MiB, full of what was there before, and no file behind a file name."""
    backing = workspace / "backing"
    backing.write_bytes(b"\xa5" * (16 * MIB))
    with loop_device(backing) as made:
        yield made


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_disk_goes_onto_a_device_and_the_machine_starts_from_it(
    fmt: str, original: BlockDomain, session: Session, workspace: Path, repository: Repository, device: Path
) -> None:
    name = new_name()
    request = RestoreRequest(
        original.name,
        dest=str(workspace),
        disk_map={"vda": str(device)},
        format=fmt,
        force=True,
        new_name=name,
        machine=MachineOptions(new_uuid=True, start=True),
    )
    with removed(session, name):
        result = restore(repository, request, session)
        assert [disk.path for disk in result.disks] == [str(device), str(workspace / f"{name}-vdb.{fmt}")]
        copy = session.api.lookupByName(name)
        refused(repository, session, request, "running")
        copy.destroy()
        assert _unlike(device, fmt, original) is None
        assert device.open("rb").read()[-MIB:] == b"\xa5" * MIB  # behind the disk nothing changed
        again = backup(session, repository, ask(name))
        assert again.point is not None


def _unlike(device: Path, fmt: str, original: BlockDomain) -> str | None:
    """What of the device's first bytes is not as in the original's vda."""
    plain, expected = original.folder / "found", original.folder / "expected"
    run_tool(["qemu-img", "convert", "-f", fmt, "-O", "raw", device, plain])
    run_tool(["qemu-img", "convert", "-O", "raw", original.image("vda"), expected])
    os.truncate(plain, 8 * MIB)
    return same_bytes(plain, expected, "raw", "raw")


def test_a_device_must_be_free_and_large_enough(
    original: BlockDomain, hypervisor: Hypervisor, session: Session, repository: Repository, device: Path
) -> None:
    target = {"vda": str(device)}
    refused(
        repository,
        session,
        RestoreRequest(original.name, disk_map=target, format="raw"),
        "the content of the device would be lost",
    )
    refused(
        repository,
        session,
        RestoreRequest(original.name, disk_map=target, preallocation="full", force=True),
        "its size is fixed",
    )
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=device)]):
        refused(
            repository,
            session,
            RestoreRequest(original.name, disk_map=target, format="raw", force=True),
            "in use by the running domain",
        )
    holder = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mounted file system or a volume group holds it
    try:
        refused(
            repository,
            session,
            RestoreRequest(original.name, disk_map=target, format="raw", force=True),
            "Device or resource busy",
        )
    finally:
        os.close(holder)
    assert device.read_bytes() == b"\xa5" * (16 * MIB)


def test_a_device_that_a_domain_takes_into_use_while_images_are_written_is_left_alone(
    original: BlockDomain,
    hypervisor: Hypervisor,
    session: Session,
    workspace: Path,
    repository: Repository,
    device: Path,
) -> None:
    folder = workspace / "restored"
    folder.mkdir()
    request = RestoreRequest(
        original.name, dest=str(folder), disk_map={"vda": str(device)}, format="raw", force=True, workers=1
    )
    with contextlib.ExitStack() as running:
        domains: list[BlockDomain] = []

        def start(_progress: Progress) -> None:
            if not domains:
                domains.append(
                    running.enter_context(BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=device)]))
                )

        with pytest.raises(CbtError, match="in use by the running domain"):
            restore(repository, request, session, control=Control(start))
    assert device.read_bytes() == b"\xa5" * (16 * MIB)
    assert list(folder.iterdir()) == []


def test_a_device_that_is_too_small_is_left_alone(
    hypervisor: Hypervisor, session: Session, repository: Repository, device: Path
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", 16 * MIB), DiskSpec("vdb", 16 * MIB + 512, format="raw")]) as domain:
        domain.write_random("vda", 0, 16 * MIB, 1)
        backup(session_of(domain), repository, ask(domain.name))
        for disk, fmt in (("vda", "qcow2"), ("vdb", "raw")):
            refused(
                repository,
                session,
                RestoreRequest(domain.name, disk_map={disk: str(device)}, format=fmt, force=True),
                "Choose a larger one",
            )
        assert device.read_bytes() == b"\xa5" * (16 * MIB)
        restore(
            repository, RestoreRequest(domain.name, disk_map={"vda": str(device)}, format="raw", force=True), session
        )
        domain.destroy()
        assert same_bytes(device, domain.image("vda"), "raw", "qcow2") is None


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_device_whose_restore_is_killed_holds_nothing_one_could_take_for_a_disk(
    fmt: str, original: BlockDomain, workspace: Path, repository: Repository, device: Path
) -> None:
    """Ended in the middle of the data: what a disk is known by, its first bytes, is written last."""

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.phase == "restoring":
            raise Killed

    with pytest.raises(Killed):
        restore(
            repository,
            RestoreRequest(original.name, disk_map={"vda": str(device)}, format=fmt, force=True),
            control=Control(kill),
        )
    assert device.open("rb").read(MIB) == bytes(MIB)


IMAGES = {
    "small clusters": ("cluster_size=4k", "none"),
    "large clusters, zstd": ("cluster_size=1M,compression_type=zstd", "none"),
    "extended L2, lazy refcounts": ("cluster_size=128k,extended_l2=on,lazy_refcounts=on", "none"),
    "preallocated metadata": ("cluster_size=64k", "metadata"),
    "allocated": ("extended_l2=on", "falloc"),
    "written": ("cluster_size=2M", "full"),
}


@pytest.mark.parametrize(("options", "preallocation"), IMAGES.values(), ids=IMAGES.keys())
def test_an_image_is_made_like_the_original(
    options: str, preallocation: str, hypervisor: Hypervisor, session: Session, workspace: Path, repository: Repository
) -> None:
    image = workspace / "original.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, str(20 * MIB + 512)])
    out = workspace / "out"
    out.mkdir()
    with BlockDomain(hypervisor, [DiskSpec("vda", source=image)]) as domain:
        domain.write_random("vda", 3 * MIB, 2 * MIB, 1)
        domain.write("vda", 20 * MIB, 512, 0x77)
        backup(session_of(domain), repository, ask(domain.name))
        domain.destroy()
        restored = Path(
            restore(repository, RestoreRequest(domain.name, dest=str(out), preallocation=preallocation), session)
            .disks[0]
            .path
        )
        assert same_bytes(restored, image, "qcow2", "qcow2") is None
        assert _features(restored) == _features(image)
        run_tool(["qemu-img", "check", "-q", restored])
        allocated = restored.stat().st_blocks * 512
        assert (allocated >= 20 * MIB) == (preallocation in ("falloc", "full"))


def _features(image: Path) -> dict[str, t.Any]:
    info = json.loads(run_tool(["qemu-img", "info", "--output=json", image]))
    details = {key: value for key, value in info["format-specific"]["data"].items() if key != "bitmaps"}
    return {**details, "cluster-size": info["cluster-size"]}


@pytest.mark.parametrize("preallocation", ["falloc", "full"])
def test_a_raw_image_can_be_allocated_beforehand(
    preallocation: str, original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    out = workspace / "out"
    out.mkdir()
    result = restore(
        repository, RestoreRequest(original.name, dest=str(out), format="raw", preallocation=preallocation), session
    )
    for disk in result.disks:
        path = Path(disk.path)
        assert same_bytes(path, original.image(disk.target), "raw", original_format(disk.target)) is None
        assert path.stat().st_blocks * 512 >= disk.size


def test_a_backing_image_of_a_running_domain_is_never_replaced(
    hypervisor: Hypervisor, session: Session, workspace: Path, repository: Repository
) -> None:
    base, top = workspace / "base.qcow2", workspace / "top.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", base, "8M"])
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top])
    with BlockDomain(hypervisor, [DiskSpec("vda", source=top)]) as domain:
        backup(session_of(domain), repository, ask(domain.name))
        refused(
            repository,
            session,
            RestoreRequest(domain.name, disk_map={"vda": str(base)}, force=True),
            f"running domain {domain.name}",
        )


def test_the_module_predicts_its_actions_in_check_mode(
    original: BlockDomain, session: Session, workspace: Path
) -> None:
    name = new_name()
    out = workspace / "out"
    out.mkdir()
    arguments = {
        "domain": original.name,
        "repository": str(workspace / "repository"),
        "dest": str(out),
        "define": True,
        "new_name": name,
        "start": True,
        "exclude_disks": ["vdb"],
    }
    with removed(session, name):
        predicted = run_module(workspace, "cbt_restore", check=True, **arguments)
        assert list(out.iterdir()) == []
        done = run_module(workspace, "cbt_restore", **arguments)
        same = ("changed", "restore_point", "domain", "files", "changes")
        assert {key: done.get(key) for key in same} == {key: predicted.get(key) for key in same}
        assert done["changes"] == ["vdb is not part of this restore and was removed."]
        assert (done["domain"], done["uuid"]) == (name, session.api.lookupByName(name).UUIDString())
        assert session.api.lookupByName(name).isActive()
    wrong = run_module(workspace, "cbt_restore", **{**arguments, "define": False})
    assert wrong["msg"] == "define: true is required with start."


@contextlib.contextmanager
def _served(image: Path, socket: Path, *options: str) -> t.Iterator[str]:
    """An image as an NBD export named disk; its URI."""
    with qemu_nbd(image, "raw", socket, "--shared=4", "--export-name=disk", *options):
        yield f"nbd+unix:///disk?socket={socket}"


def test_a_disk_goes_to_an_nbd_export(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    image = workspace / "served.raw"
    image.write_bytes(b"\xa5" * (10 * MIB))
    with _served(image, workspace / "nbd.sock") as uri:
        result = run_module(
            workspace,
            "cbt_restore",
            repository=str(workspace / "repository"),
            domain=original.name,
            disk_map={"vda": uri},
            force=True,
        )
        assert [(disk["path"], disk["format"]) for disk in result["disks"]] == [(uri, "raw")]
    # What it held is gone where the disk is zero, and stays behind the disk.
    assert image.read_bytes()[8 * MIB :] == b"\xa5" * (2 * MIB)
    assert _unlike(image, "raw", original) is None


def test_an_nbd_export_must_be_large_enough_writable_and_given_up(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    image = workspace / "served.raw"
    image.write_bytes(b"\xa5" * (8 * MIB - 512))

    def wanted(uri: str, **fields: t.Any) -> RestoreRequest:
        return RestoreRequest(original.name, disk_map={"vda": uri}, **{"force": True, **fields})

    with _served(image, workspace / "nbd.sock") as uri:
        refused(repository, session, wanted(uri, force=False), "the content of the export would be lost")
        refused(repository, session, wanted(uri), "Choose a larger one")
        refused(repository, session, wanted(uri, preallocation="full"), "its size is fixed")
    with _served(image, workspace / "nbd.sock", "--read-only") as uri:
        refused(repository, session, wanted(uri), "exports it read-only")
    refused(repository, session, wanted(f"nbd+unix:///disk?socket={workspace}/none"), "Check that the server runs")
    assert image.read_bytes() == b"\xa5" * (8 * MIB - 512)
    image.write_bytes(b"\xa5" * (8 * MIB))
    with _served(image, workspace / "nbd.sock") as uri:
        machine = RestoreRequest(
            original.name,
            disk_map={"vda": uri},
            dest=str(workspace),
            new_name=new_name(),
            force=True,
            machine=MachineOptions(new_uuid=True),
        )
        refused(repository, session, machine, "must be files or devices")
    assert image.read_bytes() == b"\xa5" * (8 * MIB)


def test_an_nbd_server_of_another_host_is_verified_unless_tls_is_given_up(
    original: BlockDomain, workspace: Path, repository: Repository
) -> None:
    def said(uri: str, **options: t.Any) -> str:
        where = {
            "domain": original.name,
            "repository": repository.store.location,
            "disk_map": {"vda": uri},
            "force": True,
        }
        result = run_module(workspace, "cbt_restore", **where, **options)
        assert result["failed"]
        return t.cast(str, result["msg"])

    assert "set tls: false if the network is trusted" in said("nbd://backup.example/x")
    assert "set tls: false" not in said("nbd://backup.invalid/x", tls=False)
    assert "/nonexistent/ca-cert.pem cannot be read" in said("nbds://localhost:1/x", tls_certificates="/nonexistent")


def test_a_restore_that_is_ended_leaves_nothing_on_an_nbd_export_that_looks_like_a_disk(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    image = workspace / "served.raw"
    image.write_bytes(b"\xa5" * (8 * MIB))

    control = Control(lambda _progress: control.request("SIGTERM"))

    with _served(image, workspace / "nbd.sock") as uri:
        with pytest.raises(
            Interrupted, match=r"Ended by SIGTERM\. nbd\+unix:.* holds a part of vda only\. Run it again\."
        ):
            ending = RestoreRequest(original.name, disk_map={"vda": uri}, force=True, workers=1)
            restore(repository, ending, session, control)
        assert image.read_bytes()[:MIB] == bytes(MIB)
        restore(repository, RestoreRequest(original.name, disk_map={"vda": uri}, force=True), session)
    assert _unlike(image, "raw", original) is None


def test_the_message_about_a_restore_that_meets_damage_is_true(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository
) -> None:
    for pack in (workspace / "repository/packs").glob("*/*"):
        data = bytearray(pack.read_bytes())
        data[len(data) // 3] ^= 1
        pack.write_bytes(data)
    folder, image = workspace / "restored", workspace / "served.raw"
    folder.mkdir()
    image.write_bytes(b"\xa5" * (8 * MIB))
    with pytest.raises(CbtError, match=r"Cannot restore vd. .* Nothing was restored\. Choose another restore point"):
        restore(repository, RestoreRequest(original.name, dest=str(folder), format="raw"), session)
    assert list(folder.iterdir()) == []
    with _served(image, workspace / "nbd.sock") as uri:
        with pytest.raises(CbtError) as caught:
            restore(repository, RestoreRequest(original.name, disk_map={"vda": uri}, force=True), session)
        assert f"The previous content of {uri} is lost. Choose another restore point" in str(
            caught.value
        ) and "Nothing was restored" not in str(caught.value)
    assert image.read_bytes()[:MIB] == bytes(MIB)


def test_a_device_that_was_written_is_named_when_libvirt_refuses_the_domain(
    original: BlockDomain, session: Session, workspace: Path, repository: Repository, device: Path
) -> None:
    wanted = {"disk_map": {"vda": str(device)}, "format": "raw", "force": True, "new_name": "not/a/name"}
    request = RestoreRequest(original.name, **wanted, machine=MachineOptions(new_uuid=True))
    with pytest.raises(
        CbtError,
        match=f"Cannot define not/a/name: .* The restored files and devices were kept and replace the previous ones: {device}",
    ):
        restore(repository, request, session)
