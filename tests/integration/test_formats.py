# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The format of an image is never guessed: a guest writes every byte of a RAW disk, and can have it look like an image of another file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forged import SECRET, SIZE, Watch, forge, names_formats, watched
from lab.domain import BlockDomain, DiskSpec
from lab.hypervisor import Hypervisor
from lab.process import run_tool
from module_process import run_module
from witness import ask, session_of

from _cbt.errors import CbtError, Refused
from _cbt.hypervisor.domain import read_domain
from _cbt.hypervisor.other_hosts import OtherHosts
from _cbt.images import marker as image_marker
from _cbt.images import qemu_img
from _cbt.images.marker import Original
from _cbt.operations.backup.backup import backup
from _cbt.operations.convert.convert import convert_disks, convert_image
from _cbt.operations.convert.plan import ConversionOptions
from _cbt.operations.domains import describe_domains
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.tracking.reconcile import reconcile
from _cbt.operations.tracking.tracking import TrackingRequest, set_tracking
from _cbt.repository.repository import Repository

MIB = 1 << 20


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return watched(monkeypatch)


@pytest.fixture
def disk(workspace: Path) -> Path:
    return workspace / "disk.img"


@pytest.fixture
def content(disk: Path, workspace: Path) -> bytes:
    """What the forged disk holds."""
    return forge(disk, workspace / "secret")


def test_the_watch_knows_a_command_without_a_format() -> None:
    """Else it would show nothing."""
    for words in (
        "info x",
        "convert -f raw x y",
        "compare -f raw x y",
        "create -f qcow2 -b x y",
        "bitmap --add x b",
        "measure x",
        "dd if=x",
    ):
        assert not names_formats(["qemu-img", *words.split()]), words
    assert not names_formats(["qemu-nbd", "x"])
    for node in (
        '{"file":{"driver":"file"}}',
        '{"driver":"raw","file":{"filename":"x"}}',
        '{"driver":"qcow2","backing":{"file":"x"},"file":"y"}',
    ):
        assert not names_formats(["qemu-storage-daemon", "--blockdev", node]), node
    assert names_formats(["qemu-img", "info", "-f", "raw", "x"])


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_a_raw_disk_with_a_forged_header_is_read_as_raw(
    running: bool,
    hypervisor: Hypervisor,
    workspace: Path,
    repository: Repository,
    disk: Path,
    content: bytes,
    watch: Watch,
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=disk)], start=running) as domain:
        session = session_of(domain)
        ((facts, _checkpoints),) = describe_domains(session, domain.name)
        assert [(each.virtual_size, each.compat, each.bitmaps) for each in facts.disks] == [(SIZE, None, ())]
        estimate = backup(session, repository, ask(domain.name), check_only=True)
        assert [each.mode for each in estimate.disks] == ["scan"]
        made = backup(session, repository, ask(domain.name))
        assert made.point is not None
        (record,) = made.point.disks
        assert record.size == SIZE and "cluster-size" not in record.image and "compat" not in record.image
        restored = restore(repository, RestoreRequest(domain.name, dest=str(workspace), format="raw"), session)
        assert Path(restored.disks[0].path).read_bytes() == content
        # As a place to restore to.
        place = {"disk_map": {"vda": str(disk)}, "format": "raw", "force": True}
        if running:
            with pytest.raises(Refused, match="in use by the running domain"):
                restore(repository, RestoreRequest(domain.name, **place), session)
            with pytest.raises(Refused, match="in use by a running process"):
                restore(repository, RestoreRequest(domain.name, **place))
        else:
            restore(repository, RestoreRequest(domain.name, **place), session)
    assert running or {"info", "qemu-storage-daemon"} <= watch.commands
    assert watch.formats_of(disk) <= {"raw"}


@pytest.mark.parametrize("method", ["convert", "auto"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_forged_image_by_itself_is_copied_as_raw(
    method: str, compat: str, workspace: Path, disk: Path, watch: Watch
) -> None:
    content = forge(disk, workspace / "secret", compat)
    made = convert_image(None, str(disk), "raw", ConversionOptions(method=method))
    run_tool(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", made.images[0].path, workspace / "seen"])
    assert (workspace / "seen").read_bytes() == content and SECRET not in content
    assert disk.read_bytes() == content and made.images[0].format == "raw"
    assert convert_image(None, str(disk), "raw", ConversionOptions(method=method)).images == ()
    assert watch.formats_of(disk) == {"raw"} and {"info", "measure", "convert", "compare"} <= watch.commands


def test_the_module_wants_the_format_of_an_image_by_itself(workspace: Path, disk: Path, content: bytes) -> None:
    for check in (True, False):
        refused = run_module(workspace, "cbt_image", check=check, path=str(disk))
        assert refused.get("failed") and "source_format" in refused["msg"], refused
    wrong = run_module(workspace, "cbt_image", domain="x", source_format="raw")
    assert wrong.get("failed") and "source_format" in wrong["msg"], wrong
    assert disk.read_bytes() == content


@pytest.mark.parametrize("running", [True, False], ids=["running", "shut off"])
def test_a_forged_disk_of_a_domain_is_converted_as_raw_and_proven_as_raw(
    running: bool, hypervisor: Hypervisor, workspace: Path, disk: Path, content: bytes, watch: Watch
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=disk)], start=running) as domain:
        done = convert_disks(session_of(domain), domain.name, None, ConversionOptions(keep_original=True))
        assert done.images[0].format == "raw" and done.notes == ()
        made = done.images[0].path
        if running:
            domain.destroy()
        run_tool(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", made, workspace / "seen"])
    assert (workspace / "seen").read_bytes() == content == disk.read_bytes()
    assert watch.formats_of(disk) == {"raw"} and (not running or "qemu-storage-daemon" in watch.commands)


def _left_by_a_run(domain: BlockDomain, disk: Path) -> Path:
    """A conversion under a running guest as a run leaves it that is killed before the proof; returns the new image."""
    from _cbt.operations.convert import run

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as changed, pytest.raises(KeyboardInterrupt):
        changed.setattr(run.ImageRun, "finish", killed)
        convert_disks(session_of(domain), domain.name, None, ConversionOptions())
    made = disk.with_suffix(".qcow2")
    assert domain.image("vda") == made and image_marker.read(str(made)) == Original(str(disk), "raw")
    return made


def test_what_an_older_version_began_is_not_opened_by_a_guessed_format(
    hypervisor: Hypervisor, workspace: Path, disk: Path, content: bytes, watch: Watch
) -> None:
    """Its marker does not tell the format of the original, which looks like qcow2: it may be either."""
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=disk)]) as domain:
        made = _left_by_a_run(domain, disk)
        image_marker.remove(str(made))
        image_marker.make(str(made), Original(str(disk), None))
        done = convert_disks(session_of(domain), domain.name, None, ConversionOptions())
        assert [image.original for image in done.images] == [
            str(disk)
        ] and "was kept without a comparison" in done.notes[0]
        assert disk.read_bytes() == content and domain.bitmaps("vda") == [] and not image_marker.there(str(made))
        assert "qemu-storage-daemon" not in watch.commands and watch.formats_of(disk) == {"raw"}
        assert convert_disks(session_of(domain), domain.name, None, ConversionOptions()).images == ()


def test_what_an_older_version_began_with_a_plain_raw_disk_is_finished(
    hypervisor: Hypervisor, workspace: Path, disk: Path
) -> None:
    disk.write_bytes(bytes(SIZE))
    disk.chmod(0o666)
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=disk)]) as domain:
        made = _left_by_a_run(domain, disk)
        image_marker.remove(str(made))
        image_marker.make(str(made), Original(str(disk), None))
        done = convert_disks(session_of(domain), domain.name, None, ConversionOptions())
        assert ([image.original for image in done.images], done.notes, disk.exists()) == ([None], (), False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of others")
def test_a_marker_that_another_user_made_is_not_followed(hypervisor: Hypervisor, workspace: Path) -> None:
    """What it names would be deleted once the domain runs."""
    precious = workspace / "precious"
    precious.write_bytes(b"precious")
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)]) as domain:
        marker = Path(f"{domain.image('vda')}{image_marker.SUFFIX}-raw")
        marker.symlink_to(precious)
        os.lchown(marker, 65534, 65534)
        assert convert_disks(session_of(domain), domain.name, None, ConversionOptions()).images == ()
        assert precious.exists() and marker.is_symlink()
        os.lchown(marker, 0, 0)
        assert [
            image.method for image in convert_disks(session_of(domain), domain.name, None, ConversionOptions()).images
        ] == ["finish"]


# What an image rests on.


def _overlay(workspace: Path, base: Path, named: bool, compat: str = "1.1") -> Path:
    """A qcow2 image over a RAW file, whose format it names or, like those that qemu-img made before 6.1, does not."""
    image = workspace / "overlay.qcow2"
    run_tool(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            f"compat={compat}",
            "-u",
            "-b",
            base,
            "-F",
            "raw",
            image,
            str(SIZE),
        ]
    )
    if not named:
        name_of_format = bytes.fromhex("e2792aca")  # a header extension, which becomes one that QEMU does not know
        data = image.read_bytes()
        assert data.count(name_of_format) == 1
        image.write_bytes(data.replace(name_of_format, bytes.fromhex("11223344")))
    image.chmod(0o666)
    return image


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
def test_a_backing_file_is_read_in_its_named_format_and_otherwise_as_raw(
    named: bool, hypervisor: Hypervisor, workspace: Path, repository: Repository, watch: Watch
) -> None:
    base = workspace / "base.img"
    base.write_bytes(b"base" * (SIZE // 4))
    base.chmod(0o644)
    overlay = _overlay(workspace, base, named)
    assert qemu_img.chain(str(overlay), "qcow2")[1] == (str(base), "raw", named)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=overlay)], start=False) as domain:
        made = backup(session_of(domain), repository, ask(domain.name))
        assert made.point is not None
        restored = restore(repository, RestoreRequest(domain.name, dest=str(workspace), format="raw"))
        assert Path(restored.disks[0].path).read_bytes() == base.read_bytes()
    (serving,) = [arguments for arguments in watch.seen if arguments[0] == "qemu-storage-daemon"]
    # Written out where the header lacks it.
    assert [str(base) in word for word in serving if word.startswith("{")] == [
        not named,
        False,
    ]
    bitmaps = [arguments for arguments in watch.seen if "bitmap" in arguments]
    # The backing file is not opened for that.
    assert bitmaps and all('"backing": null' in arguments[-2] for arguments in bitmaps)


def test_a_forged_backing_file_whose_format_is_not_named_is_refused(
    hypervisor: Hypervisor, workspace: Path, repository: Repository, disk: Path, content: bytes, watch: Watch
) -> None:
    overlay = _overlay(workspace, disk, False)
    with BlockDomain(hypervisor, [DiskSpec("vda", source=overlay)], start=False) as domain:
        with pytest.raises(CbtError, match="does not name the format of its backing file"):
            backup(session_of(domain), repository, ask(domain.name))
        assert repository.points_of().points == ()
    with pytest.raises(Refused, match="does not name the format of its backing file"):
        qemu_img.require_formats(str(overlay), "qcow2")


def test_an_old_image_whose_backing_file_has_no_named_format_is_not_converted(
    workspace: Path, disk: Path, content: bytes, watch: Watch
) -> None:
    old = _overlay(workspace, disk, False, compat="0.10")
    for check in (True, False):
        with pytest.raises(Refused, match="does not name the format of its backing file"):
            convert_image(None, str(old), "qcow2", ConversionOptions(), check_only=check)


def test_facts_of_a_shut_off_domain_are_those_of_its_definition(
    hypervisor: Hypervisor, disk: Path, content: bytes
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=disk)], start=False) as domain:
        (read,) = read_domain(session_of(domain).domain(domain.name)).disks
        assert (read.virtual_size, read.image.get("backing-filename"), read.image["format"]) == (SIZE, None, "raw")


def test_bitmaps_that_a_guest_wrote_to_its_raw_disk_are_not_removed(
    hypervisor: Hypervisor, disk: Path, workspace: Path, repository: Repository
) -> None:
    inner = workspace / "inner.qcow2"
    run_tool(["qemu-img", "create", "-q", "-f", "qcow2", inner, str(SIZE)])
    run_tool(["qemu-img", "bitmap", "--add", "-f", "qcow2", inner, "leftover"])
    disk.write_bytes(inner.read_bytes())
    os.truncate(disk, SIZE)
    written = disk.read_bytes()
    with BlockDomain(hypervisor, [DiskSpec("vda", format="raw", source=disk)], start=False) as domain:
        session, name = session_of(domain), domain.name
        plan = reconcile(session, repository, name, OtherHosts(), remove_foreign=True)
        assert (plan.steps, plan.foreign) == ((), ())
        request = TrackingRequest(name, False, "leftover")
        assert set_tracking(session, repository, request).actions == ()
        assert disk.read_bytes() == written
