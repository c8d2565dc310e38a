# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an image is in use, as QEMU's own locks tell it: of RAW and qcow2 alike, and whatever process of QEMU has it open."""

from __future__ import annotations

import contextlib
import os
import typing as t
from pathlib import Path

import pytest
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from lab.qemu_nbd import qemu_nbd, running
from loop_devices import loop_device
from module_process import run_module

from _cbt import programs
from _cbt.errors import HypervisorError, Refused
from _cbt.images import image_files, locks
from _cbt.operations.convert.convert import convert_image
from _cbt.operations.convert.plan import ConversionOptions
from _cbt.operations.restore.plan import DiskRestore, check_target

MIB = 1 << 20
FORMATS = ("raw", "qcow2")


def _image(folder: Path, fmt: str) -> Path:
    path = folder / f"free.{fmt}"
    run_tool(["qemu-img", "create", "-q", "-f", fmt, path, str(MIB)])
    path.chmod(0o666)
    return path


def _nbd(image: Path, fmt: str, *options: str) -> t.ContextManager[None]:
    return qemu_nbd(image, fmt, image.with_suffix(".sock"), *options)


def _daemon(image: Path, fmt: str, *options: str) -> t.ContextManager[None]:
    socket, ready = image.with_suffix(".sock"), image.with_suffix(".pid")
    node = f"driver={fmt},node-name=disk,file.driver=file,file.filename={image}"
    export = "type=nbd,id=e,node-name=disk,writable=" + ("off" if "read-only" in options else "on")
    server = f"addr.type=unix,addr.path={socket}"
    words = [
        "--blockdev",
        node + (",read-only=on" if "read-only" in options else ""),
        "--nbd-server",
        server,
        "--export",
        export,
    ]
    return running(ready, "qemu-storage-daemon", "--pidfile", ready, *words)


HOLDERS: dict[str, t.Callable[[Path, str], t.ContextManager[None]]] = {
    "qemu-nbd": _nbd,
    "qemu-nbd, reading": lambda image, fmt: _nbd(image, fmt, "--read-only"),
    "qemu-storage-daemon": _daemon,
    "qemu-storage-daemon, reading": lambda image, fmt: _daemon(image, fmt, "read-only"),
}


def _spellings(image: Path) -> list[Path]:
    """The image, a link to it, and another name of the same file."""
    link, other = image.with_suffix(".link"), image.with_suffix(".other")
    link.symlink_to(image.name)
    os.link(image, other)
    return [image, link, other]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS.keys())
def test_an_image_is_in_use_as_long_as_a_process_has_it_open(
    holder: t.Callable[[Path, str], t.ContextManager[None]], fmt: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = _image(workspace, fmt)
    spellings = _spellings(image)
    with monkeypatch.context() as changed:
        changed.setattr(programs, "subprocess", None)  # no process is started to see it
        assert [locks.in_use(str(path)) for path in spellings] == [False] * 3
        with holder(image, fmt):
            assert [locks.in_use(str(path)) for path in spellings] == [True] * 3
        assert [locks.in_use(str(path)) for path in spellings] == [False] * 3


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_disk_of_a_running_domain_is_in_use_and_that_of_a_stopped_one_is_free(
    fmt: str, hypervisor: Hypervisor
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB, format=fmt)], start=False) as domain:
        path = str(domain.image("vda"))
        assert not locks.in_use(path)
        domain.start()
        assert locks.in_use(path)
        before = Path(path).stat()
        locks.in_use(path)
        domain.write("vda", 0, 4096, 1)  # asking disturbs nothing
        assert Path(path).stat().st_ino == before.st_ino
        domain.destroy()
        assert not locks.in_use(path)


def test_a_backing_file_that_a_running_domain_reads_is_in_use(hypervisor: Hypervisor, workspace: Path) -> None:
    base, top = _image(workspace, "raw"), workspace / "top.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top])
    top.chmod(0o666)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=top)]):
        assert locks.in_use(str(base))
    assert not locks.in_use(str(base))


@pytest.mark.parametrize("fmt", FORMATS)
def test_nothing_is_restored_over_an_image_that_is_in_use_without_libvirt(fmt: str, workspace: Path) -> None:
    image = _image(workspace, fmt)
    plan = DiskRestore("vda", str(image), fmt, MIB)
    check_target(plan, None, True)
    with _nbd(image, fmt), pytest.raises(Refused, match="in use by a running process"):
        check_target(plan, None, True)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("fmt", FORMATS)
def test_no_image_that_is_in_use_is_converted(fmt: str, check: bool, workspace: Path) -> None:
    image = workspace / f"old.{fmt}"
    run_tool(
        ["qemu-img", "create", "-q", "-f", fmt, *(["-o", "compat=0.10"] if fmt == "qcow2" else []), image, str(MIB)]
    )
    with _daemon(image, fmt):
        refused = run_module(workspace, "cbt_image", check=check, path=str(image), source_format=fmt)
        assert refused.get("failed") and "is in use by a running process" in refused["msg"], refused
    assert not list(workspace.glob("*.cbt-original*")) and not (workspace / "old-v3.qcow2").exists()
    assert run_module(workspace, "cbt_image", check=True, path=str(image), source_format=fmt)["changed"]


def test_an_image_that_is_opened_while_it_is_copied_is_not_taken_for_converted(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = _image(workspace, "raw")
    real = image_files.compare
    with contextlib.ExitStack() as stack:

        def opened(*arguments: t.Any) -> None:
            real(*arguments)
            stack.enter_context(_nbd(image, "raw"))

        monkeypatch.setattr(image_files, "compare", opened)
        with pytest.raises(Refused, match="in use by a running process"):
            convert_image(None, str(image), "raw", ConversionOptions())
    assert sorted(path.name for path in workspace.iterdir() if "qcow2" in path.name or "cbt" in path.name) == []


def test_a_block_device_that_a_process_of_this_host_has_open_is_in_use(workspace: Path) -> None:
    image = _image(workspace, "raw")
    with loop_device(image) as made:
        device = str(made)
        assert not locks.in_use(device)
        link = workspace / "device"
        link.symlink_to(device)
        with _nbd(link, "raw"):
            assert locks.in_use(device)
        assert not locks.in_use(device)


@pytest.mark.parametrize("what", ["link", "pipe", "another name", "another user's file"])
def test_only_the_new_image_itself_gets_the_owner_of_the_old_one(what: str, workspace: Path) -> None:
    image, new, secret = _image(workspace, "raw"), workspace / "new.qcow2", workspace / "secret"
    secret.write_bytes(b"precious")
    secret.chmod(0o600)
    if what == "link":
        new.symlink_to(secret)
    elif what == "pipe":
        os.mkfifo(new)
    elif what == "another name":
        os.link(secret, new)
    else:
        new.write_bytes(b"")
        os.chown(new, 65534, 65534)
    os.chown(image, 64055, 64055)
    before = secret.stat()
    with pytest.raises(HypervisorError, match="Cannot continue with the new image"):
        image_files.take_owner(str(image), str(new))
    after = secret.stat()
    assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)


def test_an_unreadable_file_is_not_assumed_to_be_free(workspace: Path) -> None:
    with pytest.raises(Refused, match="Cannot determine whether"):
        locks.in_use(str(workspace / "none"))


def test_a_lock_on_other_bytes_is_not_a_qemu_lock(workspace: Path) -> None:
    import fcntl

    image = _image(workspace, "raw")
    with image.open("r+b") as file:
        for start, length, held in ((0, 100, False), (300, 10, False), (100, 1, True), (299, 1, True)):
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, locks._LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
            assert locks.in_use(str(image)) == held, start
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, locks._LOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))
