# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has taken over a process of QEMU gains nothing by what he plants where root works: no file is written, read or deleted through it."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import stat
import subprocess
import typing as t
from pathlib import Path

import pytest
from lab.disks import DiskSpec
from lab.domain import BlockDomain
from lab.hypervisor import Hypervisor
from witness import ask, session_of

from _cbt.control import Control, Progress
from _cbt.errors import Refused
from _cbt.hypervisor import leftovers, offline_export, scratch
from _cbt.hypervisor.domain_xml.machine_files import MachineFile
from _cbt.operations.backup import run
from _cbt.operations.backup.backup import backup
from _cbt.operations.convert.convert import convert_disks
from _cbt.operations.convert.plan import ConversionOptions
from _cbt.repository.repository import Repository

MIB = 1 << 20
QEMU = pwd.getpwnam("libvirt-qemu")

# What QEMU's user tries with the folder of a run; prints the names of what worked.
ATTACK = """
import json, os, sys
run, outside = sys.argv[1:]
done = []

def attempt(name, call, *arguments):
    try:
        call(*arguments)
        done.append(name)
    except OSError:
        pass

secret, qemu = f"{outside}/secret", f"{run}/qemu"
for name in ("captured-domain.xml", "captured-machine.json", "nbd.pid", "nbd.sock", "original", "vdx.scratch", "machine.json"):
    attempt("link in the run's folder", os.symlink, secret, f"{run}/{name}")
    attempt("link in QEMU's folder", os.symlink, secret, f"{qemu}/{name}")
attempt("list of the run's folder", os.listdir, run)
attempt("scratch file replaced", os.rename, f"{run}/vda.scratch", f"{run}/moved")
attempt("scratch file removed", os.unlink, f"{run}/vda.scratch")
attempt("QEMU's folder replaced", os.rename, qemu, f"{run}/away")
attempt("a folder in QEMU's folder", os.makedirs, f"{qemu}/a/b")
attempt("a link deeper", os.symlink, outside, f"{qemu}/a/b/outside")
attempt("a pipe", os.mkfifo, f"{qemu}/a/pipe")
attempt("another name", os.link, f"{qemu}/nbd.sock", f"{qemu}/other.sock")
attempt("the run's folder moved", os.rename, run, run + "-moved")
attempt("a link in its place", os.symlink, outside, run)
print(json.dumps(sorted(set(done))))
"""
INSIDE = {"link in QEMU's folder", "a folder in QEMU's folder", "a link deeper", "a pipe", "another name"}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")


def as_qemu(*arguments: str | Path) -> list[str]:
    """Run the attack as QEMU's user; what worked."""
    command = ["/usr/bin/python3", "-I", "-c", ATTACK, *(str(each) for each in arguments)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        user=QEMU.pw_uid,
        group=QEMU.pw_gid,
        extra_groups=[],
        cwd="/",
    )
    return t.cast("list[str]", json.loads(done.stdout))


@dataclasses.dataclass
class Outside:
    """What is root's own; ``untouched`` as long as nobody wrote, read or changed it."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "secret").write_bytes(b"precious")
        (self.folder / "secret").chmod(0o600)
        (self.folder / "below").mkdir()
        (self.folder / "below/file").write_bytes(b"more")
        self._before = self._state()

    def _state(self) -> list[tuple[object, ...]]:
        found = []
        for path in sorted((self.folder, *self.folder.rglob("*"))):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found.append(
                (str(path), status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino, content)
            )
        return found

    @property
    def untouched(self) -> bool:
        """Whether all is as it was."""
        return self._state() == self._before


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path / "outside")


@pytest.fixture
def parent(hypervisor: Hypervisor) -> Path:
    """Where scratch folders are made, as ``/var/tmp`` is."""
    return hypervisor.folder()


def _run_folder(parent: Path) -> Path:
    (found,) = [path for path in parent.glob("kvm-cbt-*") if path.is_dir() and not path.is_symlink()]
    return found


def test_files_planted_during_a_backup_gain_nothing(
    hypervisor: Hypervisor, parent: Path, outside: Outside, repository: Repository
) -> None:
    worked: list[str] = []
    with BlockDomain(hypervisor, [DiskSpec("vda", 8 * MIB)]) as domain:
        domain.write("vda", 0, MIB, 7)

        def attack(progress: Progress) -> None:
            if progress.phase == "publishing" and not worked:
                folder = _run_folder(parent)
                for path, mode, owner in ((folder, 0o711, 0), (folder / "qemu", 0o700, QEMU.pw_uid)):
                    status = path.stat()
                    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, owner)
                worked.extend(as_qemu(folder, outside.folder))

        made = backup(
            session_of(domain), repository, ask(domain.name, scratch_dir=str(parent)), control=Control(attack)
        )
        assert made.point is not None and outside.untouched
        assert b"precious" not in b"".join(
            path.read_bytes() for path in Path(str(repository.store.local_path)).rglob("*") if path.is_file()
        )
        assert set(worked) == INSIDE
        assert list(parent.iterdir()) == []
        assert not domain.job_running() and outside.untouched


def test_files_planted_before_a_backup_gain_nothing(
    hypervisor: Hypervisor, parent: Path, outside: Outside, repository: Repository
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)]) as domain:
        prefix = parent / scratch.local_prefix(domain.uuid)[0]
        Path(f"{prefix}link").symlink_to(outside.folder)
        Path(f"{prefix}none").symlink_to("/no/such/folder")
        os.mkfifo(f"{prefix}pipe")
        folder = Path(f"{prefix}left")
        (folder / "a/b").mkdir(parents=True)
        for place in (folder / "captured-domain.xml", folder / "a/link", folder / "a/b/link"):
            place.symlink_to(outside.folder)
        os.mkfifo(folder / "a/pipe")
        for path in (folder, *folder.rglob("*")):
            os.lchown(path, QEMU.pw_uid, QEMU.pw_gid)
        made = backup(session_of(domain), repository, ask(domain.name, scratch_dir=str(parent)))
        assert made.point is not None and outside.untouched
        assert [warning for warning in made.warnings if "link" in warning or "pipe" in warning] == []
        assert not folder.exists()


def test_leftovers_that_cannot_be_removed_are_not_reported_as_removed(
    hypervisor: Hypervisor, parent: Path, outside: Outside
) -> None:
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        folder = Path(f"{parent}/{scratch.local_prefix(domain.uuid)[0]}left")
        deepest = folder.joinpath(*"abcdefghij")
        deepest.mkdir(parents=True)
        (deepest / "link").symlink_to(outside.folder)
        asked = session_of(domain)
        assert leftovers.clear(asked.domain(domain.name), str(parent)) == []
        assert deepest.exists() and outside.untouched


def test_files_planted_while_a_conversion_is_verified_gain_nothing(
    hypervisor: Hypervisor, parent: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's own server of images writes its process id beside its socket."""
    worked: list[str] = []
    real = offline_export.image_exports

    def attacked(facts: t.Any, wanted: t.Any, folder: str) -> t.Any:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700 and os.stat(folder).st_uid == 0
        worked.extend(as_qemu(_run_folder(parent), outside.folder))
        return real(facts, wanted, folder)

    with BlockDomain(hypervisor, [DiskSpec("vda", 4 * MIB, format="raw")]) as domain:
        monkeypatch.setattr(offline_export, "image_exports", attacked)
        convert_disks(session_of(domain), domain.name, None, ConversionOptions(scratch_dir=str(parent)))
        assert set(worked) == INSIDE
        assert outside.untouched and domain.running and list(parent.iterdir()) == []


def _exchangeable(parent: Path, how: str) -> Path:
    """A place for scratch folders that QEMU's user can exchange."""
    place = parent / "scratch"
    place.mkdir()
    if how == "QEMU's own":
        os.chown(place, QEMU.pw_uid, QEMU.pw_gid)
    elif how == "in a folder of QEMU's":
        os.chown(place, QEMU.pw_uid, QEMU.pw_gid)
        place = place / "below"
        place.mkdir()
    elif how == "a link into a folder of QEMU's":
        os.chown(place, QEMU.pw_uid, QEMU.pw_gid)
        (place / "below").mkdir()
        (parent / "link").symlink_to(place / "below")
        place = parent / "link"
    else:
        os.chown(place, 0, QEMU.pw_gid)
        place.chmod({"for all": 0o777, "for QEMU's group": 0o770, "QEMU's own, sticky": 0o1777}[how])
        if "sticky" in how:
            os.chown(place, QEMU.pw_uid, 0)
    return place


@pytest.mark.parametrize(
    "how",
    [
        "QEMU's own",
        "in a folder of QEMU's",
        "a link into a folder of QEMU's",
        "for all",
        "for QEMU's group",
        "QEMU's own, sticky",
    ],
)
def test_a_place_whose_folders_can_be_exchanged_is_refused(
    how: str, hypervisor: Hypervisor, parent: Path, repository: Repository
) -> None:
    place = _exchangeable(parent, how)
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)]) as domain:
        with pytest.raises(Refused, match=f"Cannot use {place} for scratch files: another user could replace"):
            backup(session_of(domain), repository, ask(domain.name, scratch_dir=str(place)))
        assert list(place.iterdir()) in ([], [place / "below"]) and not domain.job_running()


@pytest.mark.parametrize("what", ["link", "pipe", "link above"])
def test_a_file_of_the_machine_that_was_exchanged_is_not_captured(
    what: str,
    hypervisor: Hypervisor,
    workspace: Path,
    outside: Outside,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder of firmware variables belongs to QEMU's user."""
    variables = workspace / "nvram"
    variables.mkdir()
    place = variables / "web1_VARS.fd"
    if what == "pipe":
        os.mkfifo(place)
    elif what == "link":
        place.symlink_to(outside.folder / "secret")
    else:
        place = variables / "state/web1_VARS.fd"
        (variables / "state").symlink_to(outside.folder)
        (outside.folder / "web1_VARS.fd").write_bytes(b"precious")
    for path in (variables, *variables.rglob("*")):
        os.lchown(path, QEMU.pw_uid, QEMU.pw_gid)
    monkeypatch.setattr(run, "machine_files", lambda _xml: [MachineFile("nvram", str(place))])
    with BlockDomain(hypervisor, [DiskSpec("vda", MIB)], start=False) as domain:
        made = backup(session_of(domain), repository, ask(domain.name))
        assert made.point is not None and "machine.json" not in made.point.files
        (warning,) = [each for each in made.warnings if "nvram" in each]
        assert ("not a regular file" if what == "pipe" else "a link of another user") in warning
    assert b"precious" not in b"".join(
        path.read_bytes() for path in Path(str(repository.store.local_path)).rglob("*") if path.is_file()
    )
