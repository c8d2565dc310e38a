# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine's files beside its disks: which there are, and that they come out of a restore point as they went in."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t
import zlib
from pathlib import Path

import pytest
from samples import UUID, point
from stores_for_tests import MemoryStore, with_bit_flipped

from _cbt import programs
from _cbt.errors import DamagedObject, Refused
from _cbt.hypervisor.domain_xml.machine_files import MachineFile, machine_files
from _cbt.operations.point import machine_files as kept
from _cbt.operations.point.machine_files import PIECE, Capture, SavedFile
from _cbt.operations.restore.saved_machine import names_other_files, saved_files, write_file
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.repository import Repository

TPM = "<devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>"
FOUND = {
    "nothing": ("<os><type>hvm</type></os>", []),
    "firmware": (
        "<os><loader>/fw</loader><nvram>/nv</nvram></os>",
        [MachineFile("loader", "/fw"), MachineFile("nvram", "/nv")],
    ),
    "variables in a source": (
        "<os><nvram type='file'><source file='/nv'/></nvram></os>",
        [MachineFile("nvram", "/nv")],
    ),
    "variables over the network": (
        "<os><nvram type='network'><source protocol='iscsi' name='iqn'/></nvram></os>",
        [MachineFile("nvram", "", unsaved="it is not a file (network iscsi iqn). Save it yourself.")],
    ),
    "variables on a device": (
        "<os firmware='efi'><nvram type='block'><source dev='/dev/nv'/></nvram></os>",
        [MachineFile("nvram", "", unsaved="it is not a file (block /dev/nv). Save it yourself.")],
    ),
    "firmware chosen by libvirt": (
        "<os firmware='efi'/>",
        [MachineFile("nvram", "/var/lib/libvirt/qemu/nvram/web1_VARS.fd", certain=False)],
    ),
    "firmware of QEMU": ("<os><loader>bios.bin</loader></os>", []),
    "direct boot": (
        "<os><kernel>/k</kernel><initrd>/i</initrd><dtb>/d</dtb></os>",
        [MachineFile("kernel", "/k"), MachineFile("initrd", "/i"), MachineFile("dtb", "/d")],
    ),
    "TPM": (TPM, [MachineFile("tpm", f"/var/lib/libvirt/swtpm/{UUID}/tpm2/tpm2-00.permall", certain=False)]),
    "old TPM": (
        TPM.replace("2.0", "1.2"),
        [MachineFile("tpm", f"/var/lib/libvirt/swtpm/{UUID}/tpm1.2/tpm-00.permall", certain=False)],
    ),
    "TPM of the host": (
        TPM.replace("emulator' version='2.0'/>", "passthrough'><device path='/dev/tpm0'/></backend>"),
        [MachineFile("tpm", "", unsaved="libvirt does not keep its state (passthrough /dev/tpm0). Save it yourself.")],
    ),
    "TPM of another program": (
        TPM.replace("emulator' version='2.0'/>", "external'><source type='unix' path='/run/s'/></backend>"),
        [MachineFile("tpm", "", unsaved="libvirt does not keep its state (external unix /run/s). Save it yourself.")],
    ),
    "TPM with its state elsewhere": (
        TPM.replace("version='2.0'/>", "version='2.0'><source type='dir' path='/state'/></backend>"),
        [MachineFile("tpm", "", unsaved="libvirt does not keep its state (emulator dir /state). Save it yourself.")],
    ),
}


@pytest.mark.parametrize(("parts", "expected"), FOUND.values(), ids=FOUND.keys())
def test_the_configuration_tells_which_files_there_are(parts: str, expected: list[MachineFile]) -> None:
    assert machine_files(f"<domain><name>web1</name><uuid>{UUID}</uuid>{parts}</domain>") == expected


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> Repository:
    return Repository(store, "r")


def _saved(repository: Repository, folder: Path, *files: MachineFile) -> tuple[RestorePoint, list[str]]:
    """A restore point that keeps the files, and the warnings."""
    scratch = folder / "scratch"
    scratch.mkdir()
    with contextlib.closing(Capture(str(scratch))) as captured:
        captured.take(files)
        assert list(scratch.iterdir()) == []  # what waits there has no name
        objects = {name: load() for name, load in captured.objects.items()}
        return point(1, files=repository.put_files(point(1).folder, objects)), captured.warnings


def test_a_file_that_cannot_be_saved_is_in_the_warnings(repository: Repository, tmp_path: Path) -> None:
    made, warnings = _saved(repository, tmp_path, MachineFile("tpm", "", unsaved="it is elsewhere."))
    assert (warnings, made.files) == (["tpm of the machine was not saved: it is elsewhere."], {})


NVRAM_IMAGES = {
    "raw": (["-f", "raw"], False),
    "qcow2": (["-f", "qcow2"], False),
    "qcow2, old": (["-f", "qcow2", "-o", "compat=0.10"], False),
    "with a backing file": (["-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw"], True),
    "old, with a backing file": (["-f", "qcow2", "-o", "compat=0.10", "-u", "-b", "/etc/shadow", "-F", "raw"], True),
    "with a data file": (["-f", "qcow2", "-o", "data_file=DATA"], True),
}


@pytest.mark.parametrize(("options", "expected"), NVRAM_IMAGES.values(), ids=NVRAM_IMAGES.keys())
def test_firmware_variables_that_name_another_file_are_recognized(
    options: list[str], expected: bool, repository: Repository, tmp_path: Path
) -> None:
    image = tmp_path / "nvram"
    words = [word.replace("DATA", str(tmp_path / "data")) for word in options]
    programs.run(["qemu-img", "create", "-q", *words, str(image), "1M"])
    made, _warnings = _saved(repository, tmp_path, MachineFile("nvram", str(image)))
    (saved,) = saved_files(repository, made)
    assert names_other_files(repository, made, saved) == expected


def test_a_header_in_short_pieces_is_recognized(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository decides how long the pieces are."""
    image = tmp_path / "nvram"
    programs.run(["qemu-img", "create", "-q", *NVRAM_IMAGES["with a backing file"][0], str(image), "1M"])
    image.write_bytes(image.read_bytes()[:100])
    monkeypatch.setattr(kept, "PIECE", 10)
    made, _warnings = _saved(repository, tmp_path, MachineFile("nvram", str(image)))
    (saved,) = saved_files(repository, made)
    assert len(saved.pieces) == 10 and names_other_files(repository, made, saved)


@pytest.mark.parametrize("data", [b"", b"QFI\xfb", b"QFI\xfb\0\0\0\3" + bytes(71)], ids=["empty", "magic", "short"])
def test_a_short_file_names_no_other(data: bytes, repository: Repository, tmp_path: Path) -> None:
    image = tmp_path / "nvram"
    image.write_bytes(data)
    made, _warnings = _saved(repository, tmp_path, MachineFile("nvram", str(image)))
    (saved,) = saved_files(repository, made)
    assert not names_other_files(repository, made, saved)


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 2 * PIECE + 7])
def test_a_file_round_trips(size: int, repository: Repository, tmp_path: Path) -> None:
    original = tmp_path / "kernel"
    original.write_bytes(bytes(range(251)) * (size // 251) + b"x" * (size % 251))
    original.chmod(0o640)
    made, warnings = _saved(repository, tmp_path, MachineFile("kernel", str(original)))
    assert warnings == []
    (saved,) = saved_files(repository, made)
    assert (saved.kind, saved.path, saved.size, len(saved.pieces)) == ("kernel", str(original), size, -(-size // PIECE))
    write_file(repository, made, saved, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == original.read_bytes()
    assert (tmp_path / "again").stat().st_mode & 0o777 == 0o640


def test_a_point_without_such_files_has_none(repository: Repository, tmp_path: Path) -> None:
    assert saved_files(repository, point(1)) == []
    assert _saved(repository, tmp_path)[0].files == {}


def test_an_unreadable_file_is_reported_and_a_missing_optional_one_is_not(
    repository: Repository, tmp_path: Path
) -> None:
    missing = str(tmp_path / "nvram")
    made, warnings = _saved(
        repository, tmp_path, MachineFile("nvram", missing), MachineFile("tpm", missing, certain=False)
    )
    assert warnings == [f"nvram of the machine was not saved: cannot read {missing}: No such file or directory."]
    assert (saved_files(repository, made), made.files) == ([], {})


def test_a_file_too_large_for_a_restore_point_is_reported(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "LARGEST", {"initrd": 1 << 20})
    with open(tmp_path / "initrd", "wb") as file:
        file.truncate((1 << 20) + 1)
    _made, warnings = _saved(repository, tmp_path, MachineFile("initrd", str(tmp_path / "initrd")))
    assert warnings == [
        f"initrd of the machine was not saved: cannot read {tmp_path / 'initrd'}: it is larger than 1 MiB."
    ]


def test_a_file_written_during_reading_is_reread_until_it_is_consistent(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest sets a firmware variable while its file is read."""
    variables = tmp_path / "nvram"
    variables.write_bytes(b"a" * (PIECE + 1000))
    compress, writes = zlib.compress, []

    def compress_and_write(data: bytes, level: int) -> bytes:
        if len(writes) < 3:
            writes.append(data)
            variables.write_bytes(b"b" * (1000 + len(writes)))
        return compress(data, level)

    monkeypatch.setattr(kept.zlib, "compress", compress_and_write)
    made, warnings = _saved(repository, tmp_path, MachineFile("nvram", str(variables)))
    (saved,) = saved_files(repository, made)
    write_file(repository, made, saved, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == b"b" * 1003
    assert warnings == []


def test_damage_is_found_and_nothing_is_taken_for_the_file(
    repository: Repository, store: MemoryStore, tmp_path: Path
) -> None:
    original = tmp_path / "nvram"
    original.write_bytes(b"variables" * 1000)
    made, warnings = _saved(repository, tmp_path, MachineFile("nvram", str(original)))
    (saved,) = saved_files(repository, made)
    name = f"{made.folder}/nvram.0"
    store.objects[name] = with_bit_flipped(store.objects[name], 100)
    with pytest.raises(DamagedObject):
        write_file(repository, made, saved, str(tmp_path / "again"))


@pytest.mark.parametrize("change", [{"sha256": "00" * 32}, {"size": 8999}, {"pieces": ()}], ids=str)
def test_pieces_that_are_not_the_whole_file_are_refused(
    change: dict[str, t.Any], repository: Repository, tmp_path: Path
) -> None:
    original = tmp_path / "nvram"
    original.write_bytes(b"variables" * 1000)
    made, warnings = _saved(repository, tmp_path, MachineFile("nvram", str(original)))
    saved: SavedFile = dataclasses.replace(saved_files(repository, made)[0], **change)
    with pytest.raises(DamagedObject, match="its pieces do not match what was saved"):
        write_file(repository, made, saved, str(tmp_path / "again"))


def test_an_existing_file_is_not_overwritten(repository: Repository, tmp_path: Path) -> None:
    original = tmp_path / "nvram"
    original.write_bytes(b"variables")
    made, warnings = _saved(repository, tmp_path, MachineFile("nvram", str(original)))
    with pytest.raises(Refused, match="File exists"):
        write_file(repository, made, saved_files(repository, made)[0], str(original))
