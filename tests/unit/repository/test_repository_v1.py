# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repositories of format 1 as they were released, with objects of every kind: they are read, verified, restored and worked on for ever."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import point, record

from _cbt.blocks.extents import Extent
from _cbt.control import Control
from _cbt.errors import DamagedObject, ObjectMissing, Refused
from _cbt.grid import BLOCK_SIZE, block_count, block_length
from _cbt.operations import info
from _cbt.operations.copy import CopyRequest, copy
from _cbt.operations.point.new_point import Files, NewPoint, StoringOptions
from _cbt.operations.restore.restore import RestoreRequest, restore
from _cbt.operations.restore.saved_machine import saved_files, write_file
from _cbt.operations.upkeep.retention import RetentionRequest, retention
from _cbt.operations.verify.verify import VerifyRequest, verify
from _cbt.repository.creation import open_or_create
from _cbt.repository.crypto.keys import Keys
from _cbt.repository.format import manifests, names
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.format.packs import FOOTER_SIZE, TAIL, PackRef
from _cbt.repository.location import RepositoryLocation, open_store
from _cbt.repository.records import damage
from _cbt.repository.repository import Repository, open_repository
from _cbt.repository.selecting import ALL, PointSelection
from _cbt.repository.sharing import condemned, leases
from _cbt.repository.stores import directory as directory_store

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "repository-v1"
FORMAT = (Path(__file__).resolve().parents[3] / "docs" / "repository-format.md").read_text(encoding="utf-8")
RELEASED = {
    "encrypted.tar": "c03d70f4b3fa26578ba86c6d5f7787683a84f6e3c32b3953c787eb9dfe306df4",
    "expected.json": "dfeb4ba8f6d21bc077e823f095f73fdce7b31c3d9631b63e4407ebb4c5577838",
    "plain.tar": "78fb808cf6d4396accc669e8d5e6212ae43882514f58e5497966ce9f6fbc8882",
}
EXPECTED: dict[str, Any] = json.loads((FIXTURE / "expected.json").read_text(encoding="ascii"))
PASSPHRASES = {"default": "fixture passphrase", "second": "zweite Passphrase für Prüfungen"}
HOST = "hypervisor1"
LATER = 2 * leases.LAPSE + leases.ASTRAY  # seconds after which every session that was at work counts as dead
GRACE = 86400.0
WEB = "web1"

# Kinds of objects that came after the fixture, each with the reason why it lacks them and where they are covered.
_MARKED = "the name of a writer of today; test_copies_at_once.py has them"
_FOLDER = "points/<domain uuid>/<point id>/"
NOT_IN_THE_FIXTURE = {
    "hooks/<domain uuid>/<point id>-<8 hex>-<number>": _MARKED,
    "removed/<domain uuid>/<16 hex>": "came later, and may be lost; test_known_state.py has records of removed points",
    "holds/<domain uuid>/<point id>/<16 hex>": "came later; test_holds.py has holds",
    "reserve/": "came later, in directories only, and holds nothing; test_full_store.py has reserves",
    **{
        f"{_FOLDER}{file}-<8 hex>": _MARKED
        for file in ("domain.xml", "inactive.xml", "guest.json", "machine.json", "<kind>.<number>")
    },
}

PLACEHOLDERS = {
    "2 hex": "[0-9a-f]{2}",
    "8 hex": "[0-9a-f]{8}",
    "16 hex": "[0-9a-f]{16}",
    "32 hex": "[0-9a-f]{32}",
    "session": "[0-9a-f]{16}",
    "mark": "[0-9a-f]{8}",
    "domain uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "point id": "[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}",
    "target": "[a-z]+",
    "kind": "(loader|nvram|kernel|initrd|dtb|tpm)",
    "selection": "(latest|all|chosen)",
    "number": "[0-9]+",
    "n": "[0-9]+",
    "file": r"[A-Za-z0-9.-]+",
}


@pytest.fixture(params=["plain", "encrypted"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@functools.cache
def _keys(kind: str, passphrase: str | None) -> Keys:
    """What the repository is read with, found once: a passphrase takes its time to be tried."""
    with tempfile.TemporaryDirectory() as folder:
        _unpack(kind, Path(folder), 0.0)
        return open_repository(RepositoryLocation(folder, passphrase=passphrase)).keys


def _unpack(kind: str, folder: Path, shift: float) -> None:
    with tarfile.open(FIXTURE / f"{kind}.tar") as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
            os.utime(path, (member.mtime + shift, member.mtime + shift))


class Unpacked:
    """A copy of a repository of the fixture, its objects of the ages they have ``later`` seconds after it was taken."""

    def __init__(self, kind: str, folder: Path, later: float = 0.0) -> None:
        self.folder, self._expected = folder, EXPECTED[kind]
        self.points: dict[str, dict[str, Any]] = self._expected["points"]
        _unpack(kind, folder, time.time() - later - self._expected["taken"])
        self.keys = _keys(kind, PASSPHRASES["default"] if kind == "encrypted" else None)

    def fresh(self) -> Repository:
        """The repository as another process opens it."""
        return Repository(open_store(str(self.folder)), self._expected["id"], self.keys)

    def ids(self, *states: str) -> list[str]:
        """The points in these states, oldest first."""
        return sorted(
            (each for each, described in self.points.items() if described["state"] in states),
            key=lambda each: (self.points[each]["created"], each),
        )

    @property
    def names(self) -> list[str]:
        """The names of all objects."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def disks_of(self, point_id: str) -> dict[str, str]:
        """The checksums of a point's disks."""
        return {target: disk["sha256"] for target, disk in self.points[point_id]["disks"].items()}


@pytest.fixture
def unpacked(kind: str, tmp_path: Path) -> Unpacked:
    """At the moment it was taken, with two sessions at work."""
    return Unpacked(kind, tmp_path / "fixture")


@pytest.fixture
def later(kind: str, tmp_path: Path) -> Unpacked:
    """Once no session can be at work any more."""
    return Unpacked(kind, tmp_path / "fixture", LATER)


def _names_table() -> list[str]:
    """The patterns of names in the format's table. In a row, those without a folder belong to that of the first one."""
    rows = re.findall(r"^\| (`.*?) \|", FORMAT.partition("\n## Names\n")[2].partition("\n## ")[0], re.MULTILINE)
    patterns = []
    for first, *others in (re.findall(r"`([^`]+)`", row) for row in rows):
        folder = first[: first.rindex("/") + 1] if "/" in first else ""
        patterns += [first, *(each if "/" in each else folder + each for each in others)]
    return patterns


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"<([^>]+)>", pattern)
    text = "".join(PLACEHOLDERS[part] if index % 2 else re.escape(part) for index, part in enumerate(parts))
    return re.compile(text + (f"{HOST}-.+" if pattern.endswith("/") else ""))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content(repository: Repository, point_id: str, target: str) -> str:
    """The checksum of a disk read block by block."""
    (found,) = (each for each in repository.points_of().points if each.id == point_id)
    extents = repository.read_map(found, target)
    image = bytearray(extents.size)
    for run in extents.runs():
        for index, block in enumerate(repository.reader.disk_blocks(run, extents.size)):
            if isinstance(block, DamagedObject):
                raise block
            start = (run.first + index) * BLOCK_SIZE
            image[start : start + len(block)] = block
    return _sha256(image)


def _check_sound_points(unpacked: Unpacked, repository: Repository, point_ids: list[str]) -> None:
    """Every disk of these points holds what it did, but for those of damaged points, which nothing false is read of."""
    for point_id in point_ids:
        for target, wanted in unpacked.disks_of(point_id).items():
            if any(each["disk"] == target for each in unpacked.points[point_id]["damage"]):
                with pytest.raises((DamagedObject, ObjectMissing)):
                    _content(repository, point_id, target)
            else:
                assert _content(repository, point_id, target) == wanted, (point_id, target)


@pytest.mark.parametrize("name", RELEASED)
def test_the_files_are_those_that_were_released(name: str) -> None:
    assert _sha256((FIXTURE / name).read_bytes()) == RELEASED[name]


def test_there_is_no_other_file() -> None:
    assert sorted(path.name for path in FIXTURE.iterdir()) == sorted([*RELEASED, "README.md"])


def test_the_passphrases_are_in_the_readme() -> None:
    described = (FIXTURE / "README.md").read_text(encoding="utf-8")
    assert all(f"`{passphrase}` opens the key slot `{slot}`" in described for slot, passphrase in PASSPHRASES.items())


def test_there_is_an_object_of_every_kind_and_none_of_another(unpacked: Unpacked) -> None:
    patterns = [each for each in _names_table() if each not in NOT_IN_THE_FIXTURE]
    assert len(patterns) >= 23, "the table was not understood"
    missing = [each for each in patterns if not any(_expression(each).fullmatch(name) for name in unpacked.names)]
    assert not missing, "a new kind of object needs a fixture of its own, or a reason in NOT_IN_THE_FIXTURE"
    assert not [name for name in unpacked.names if not any(_expression(each).fullmatch(name) for each in patterns)]


def test_there_is_every_kind_of_json_object(unpacked: Unpacked) -> None:
    described = set(re.findall(r"[Kk]ind `([a-z]+)`", FORMAT))
    assert {"repository", "lease", "manifest", "damage", "turn"} <= described
    found = set()
    for name in unpacked.names:
        data = (unpacked.folder / name).read_bytes()
        if not name.startswith(("packs/", "condemned/", "tmp/")):
            plain = data if name == "repository.json" else unpacked.keys.unseal(name, data)
            match = re.match(rb'\{"kvm\.cbt":"([a-z]+)","version":1,', plain)
            found |= {match[1].decode()} if match else set()
    assert found | {"removed", "hold"} == described, "removed and hold: see NOT_IN_THE_FIXTURE"


def test_there_is_every_kind_of_file_of_the_machine(unpacked: Unpacked) -> None:
    section = FORMAT.partition("\n## Files of the machine\n")[2].partition("A file is split")[0]
    kinds = set(re.findall(r"`([a-z]+)`", section)) - {"kind"}
    assert len(kinds) >= 6
    assert kinds == {kind for described in unpacked.points.values() for kind in described["machine"]}
    assert any(name.endswith("/kernel.1") for name in unpacked.names), "one is of several pieces"


def test_there_is_every_codec(unpacked: Unpacked) -> None:
    described = {int(number) for number in re.findall(r"^\| ([0-9]) [a-z0-9]+ \|", FORMAT, re.MULTILINE)}
    repository, found = unpacked.fresh(), set()
    for name in repository.store.list("packs"):
        data = repository.store.get(name)
        _offset, blocks, _zero = TAIL.unpack_from(data, len(data) - FOOTER_SIZE)
        directory = repository.reader.directory(PackRef(bytes.fromhex(name[-32:]), len(data), blocks))
        found |= {directory.entry(ordinal).codec for ordinal in range(blocks)}
    assert len(described) >= 4
    assert found == described


def test_there_is_every_kind_of_point(unpacked: Unpacked) -> None:
    described = list(unpacked.points.values())
    disks = [disk for each in described for disk in each["disks"].values()]
    assert {disk["mode"] for disk in disks} == {"full", "incremental", "differential", "copy", "scan"}
    assert {disk["format"] for disk in disks} == {"qcow2", "raw"}
    assert {disk["size"] % BLOCK_SIZE for disk in disks} >= {0, 512, 1536}
    assert {each["dedup"] for each in described} == {"repository", "domain", "none"}
    assert {each["state"] for each in described} == {"there", "removed", "expired"}
    assert {each["consistency"] for each in described} == {"filesystem", "crash"}
    assert (
        {each["pinned"] for each in described}
        == {bool(each["tags"]) for each in described}
        == {each["autostart"] for each in described}
        == {False, True}
    )


@pytest.mark.parametrize("slot", PASSPHRASES)
def test_each_passphrase_opens_it(slot: str, tmp_path: Path) -> None:
    Unpacked("encrypted", tmp_path)
    opened = open_repository(RepositoryLocation(str(tmp_path), passphrase=PASSPHRASES[slot]))
    assert (opened.id, opened.slots) == (EXPECTED["encrypted"]["id"], tuple(PASSPHRASES))


def test_it_is_opened_by_its_path(tmp_path: Path) -> None:
    Unpacked("plain", tmp_path)
    assert open_repository(str(tmp_path)).id == EXPECTED["plain"]["id"]


def test_the_listing(unpacked: Unpacked) -> None:
    listing = unpacked.fresh().points_of()
    assert dict(listing.damaged) == {}
    assert [each.id for each in listing.points] == unpacked.ids("there")
    for each in listing.points:
        described = unpacked.points[each.id]
        plain = {
            "domain",
            "uuid",
            "created",
            "parent",
            "checkpoint",
            "incremental_set",
            "consistency",
            "autostart",
            "tags",
            "pinned",
            "host",
            "dedup",
        }
        assert {field: getattr(each, field) for field in plain} == {field: described[field] for field in plain}
        assert {disk.target: (disk.size, disk.mode, disk.image["format"], disk.source) for disk in each.disks} == {
            target: (disk["size"], disk["mode"], disk["format"], disk["source"])
            for target, disk in described["disks"].items()
        }
        assert sorted(each.files) == described["objects"]
        assert each.repository == unpacked.fresh().id


def test_sessions_damage_and_announced_deletions_are_read(unpacked: Unpacked) -> None:
    repository = unpacked.fresh()
    found = leases.lease_holders(repository)
    at_work = [(each.operation, each.host) for each in found if not each.lapsed(time.time())]
    assert (at_work, len(found)) == ([("backup", HOST), ("retention", HOST)], 3)
    announced = condemned.announced(repository)
    assert len(announced) == sum(name.startswith("condemned/") for name in unpacked.names)
    assert condemned.pending_deletion(repository) == set(announced), "what is doomed is condemned first"
    assert sorted(map(names.damage_of, damage.read_all(repository))) == [
        name for name in unpacked.names if name.startswith("damaged/")
    ]
    assert [each.damaged for each in info.healths(repository, repository.points_of().points)] == [
        bool(unpacked.points[each]["damage"]) for each in unpacked.ids("there")
    ]


@pytest.mark.parametrize("level", ["structure", "data"])
def test_a_verification_finds_the_damage_there_is(unpacked: Unpacked, level: str) -> None:
    verdicts, _seconds = verify(unpacked.fresh(), VerifyRequest(wanted=ALL, level=level, workers=2))
    wanted, states = {}, {}
    for each in unpacked.ids("there"):
        described = [
            damage for damage in unpacked.points[each]["damage"] if level == "data" or damage["level"] == level
        ]
        wanted[each] = sorted(
            (one["disk"], one["offset"], one["length"], one["missing"], one["own"]) for one in described
        )
        states[each] = (
            "ok" if not described else "incomplete" if all(one["missing"] for one in described) else "damaged"
        )
    assert {
        each.name: sorted((one.disk, one.offset, one.length, one.missing, one.own) for one in each.damage)
        for each in verdicts
    } == wanted
    assert {each.name: each.status for each in verdicts} == states
    assert set(states.values()) == {"ok", "damaged", "incomplete"}


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_every_disk_of_every_point_is_restored(unpacked: Unpacked, tmp_path: Path, image_format: str) -> None:
    repository = unpacked.fresh()
    for each in unpacked.ids("there"):
        described = unpacked.points[each]
        dest = tmp_path / "restored" / each
        dest.mkdir(parents=True)
        request = RestoreRequest(described["domain"], each, dest=str(dest), format=image_format, workers=1)
        if any(one["disk"] for one in described["damage"]):
            with pytest.raises(DamagedObject, match="Nothing was restored"):
                restore(repository, request)
            assert list(dest.iterdir()) == []
            continue
        for disk in restore(repository, request).disks:
            path = Path(disk.path)
            if image_format == "qcow2":
                path = dest / f"{disk.target}.plain"
                subprocess.run(
                    ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.path, str(path)], check=True, timeout=60
                )
            assert _sha256(path.read_bytes()) == described["disks"][disk.target]["sha256"], (each, disk.target)


def test_the_configuration_of_every_point_is_read(unpacked: Unpacked) -> None:
    repository = unpacked.fresh()
    for each in repository.points_of().points:
        described = unpacked.points[each.id]
        for name, wanted in described["files"].items():
            if any(one["own"] for one in described["damage"]) and name == "guest.json":
                with pytest.raises(DamagedObject, match="it does not match its restore point"):
                    repository.get_file(each, each.files[name])
            else:
                assert _sha256(repository.get_file(each, each.files[name])) == wanted


def test_the_files_of_the_machine_are_restored(unpacked: Unpacked, tmp_path: Path) -> None:
    repository = unpacked.fresh()
    for each in repository.points_of().points:
        found = {}
        for saved in saved_files(repository, each):
            path = tmp_path / f"{each.id}-{saved.kind}"
            write_file(repository, each, saved, str(path))
            found[saved.kind] = _sha256(path.read_bytes())
            assert stat.S_IMODE(path.stat().st_mode) == (0o600 if saved.kind in ("nvram", "tpm") else 0o644)
        assert found == unpacked.points[each.id]["machine"]


def test_a_removed_point_is_brought_back(later: Unpacked) -> None:
    (wanted,) = later.ids("removed")
    result = retention(later.fresh(), RetentionRequest(undelete=(wanted,), collect=False))
    assert [each.id for each in result.undeleted] == [wanted]
    repository = later.fresh()
    assert [each.id for each in repository.points_of().points] == later.ids("there", "removed")
    _check_sound_points(later, repository, [wanted])
    assert not [name for name in later.names if name.startswith("trash/") and wanted in name]


def test_a_point_about_to_be_deleted_cannot_be_recovered(later: Unpacked) -> None:
    (wanted,) = later.ids("expired")
    with pytest.raises(Refused, match=f"{wanted} of {WEB} cannot be brought back: its grace period is over"):
        retention(later.fresh(), RetentionRequest(undelete=(wanted,)))
    assert [each.id for each in later.fresh().points_of().points] == later.ids("there")


def test_nothing_that_is_needed_is_collected_beside_the_sessions_at_work(unpacked: Unpacked) -> None:
    """The draft counts as well: its session may put the manifest any moment."""
    (draft,) = (name for name in unpacked.names if name.startswith("drafts/"))
    retention(unpacked.fresh(), RetentionRequest(grace=0.0, compact_below=60))
    repository = unpacked.fresh()
    manifest = f"points/{draft.split('/', 2)[2].rpartition('/')[0]}/manifest.json"
    repository.put_object(manifest, repository.get_object(draft))
    made = repository.point(*manifest.split("/")[1:3])
    assert not [name for name in condemned.pending_deletion(repository) if name.startswith(made.folder)]
    verdicts, _seconds = verify(repository, VerifyRequest(wanted=PointSelection.parse([made.id]), workers=1))
    assert [each.status for each in verdicts] == ["ok"]
    _check_sound_points(unpacked, repository, unpacked.ids("there"))


def test_what_a_session_at_work_stored_is_spared_by_its_lease_alone(unpacked: Unpacked) -> None:
    """Before its draft nothing names what it stored."""
    (draft,) = (name for name in unpacked.names if name.startswith("drafts/"))
    folder = f"points/{draft.split('/', 2)[2].rpartition('/')[0]}/"
    made = manifests.decode(
        (unpacked.keys.unseal(draft, (unpacked.folder / draft).read_bytes())), f"{folder}manifest.json"
    )
    stored = [name for name in unpacked.names if name.startswith(folder)]
    stored += [ref.name for disk in made.disks for ref in unpacked.fresh().read_packs(made, disk)]
    (unpacked.folder / draft).unlink()
    retention(unpacked.fresh(), RetentionRequest(grace=0.0))
    assert not [name for name in stored if not (unpacked.folder / name).exists()]
    for lease in (unpacked.folder / "leases").iterdir():
        lease.unlink()
    retention(unpacked.fresh(), RetentionRequest(grace=0.0))
    assert not list((unpacked.folder / folder).glob("*"))


def test_a_condemned_object_is_deleted_only_after_the_grace_period(later: Unpacked) -> None:
    repository = later.fresh()
    since = {
        name: (later.folder / names.announcement(name)).stat().st_mtime for name in condemned.announced(repository)
    }
    due = {name for name, moment in since.items() if time.time() - moment > GRACE}
    assert due and len(due) < len(since)
    retention(repository, RetentionRequest(grace=GRACE))
    assert {name for name in since if not (later.folder / name).exists()} == due


def test_all_unneeded_data_is_reclaimed_once_no_session_is_active(
    later: Unpacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = retention(later.fresh(), RetentionRequest(grace=0.0, compact_below=60))
    assert result.collected is not None and result.collected.deleted
    monkeypatch.setattr(directory_store.socket, "gethostname", lambda: HOST)
    later.fresh().store.sweep()
    repository = later.fresh()
    listing = repository.points_of()
    assert [each.id for each in listing.points] == later.ids("there")
    needed = {f"{each.folder}/manifest.json" for each in listing.points}
    for each in listing.points:
        needed |= {f"{each.folder}/{file.name}" for file in each.stored_files}
        needed |= {ref.name for disk in each.disks for ref in repository.read_packs(each, disk)}
    gone = {name for name in needed if not (later.folder / name).exists()}
    assert len(gone) == 1, "one pack was missing from the beginning"
    left = [
        name
        for name in later.names
        if not name.startswith(("hooks/", "damaged/", "verified/", "leases/", "removed/", "reserve/"))
    ]
    assert sorted(left) == sorted({*needed - gone, "repository.json", "collected.json"})
    _check_sound_points(later, repository, later.ids("there"))


class Written:
    """The disk of a restore point with one block written since; it is its own export."""

    def __init__(self, data: bytes, block: int) -> None:
        self.size, self._block = len(data), block
        start = block * BLOCK_SIZE
        new = b"written later".ljust(block_length(block, self.size), b"!")
        self.data = data[:start] + new + data[start + len(new) :]
        self.read_bytes = 0

    def extents(self) -> Iterator[Extent]:
        yield Extent(self._block * BLOCK_SIZE, block_length(self._block, self.size), False)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Written]:
        yield self

    def read(self, offset: int, length: int) -> bytearray:
        self.read_bytes += length
        return bytearray(self.data[offset : offset + length])


def _backed_up(repository: Repository, last: RestorePoint, disk: Written) -> RestorePoint:
    """An incremental backup of one disk as a run makes it."""
    with leases.held(repository, "backup") as lease:
        new = NewPoint(
            lease, (last.uuid, point(1).id), StoringOptions(workers=1), damage.read_all(repository), Control()
        )
        new.read(disk, "vda", repository.read_map(last, "vda"))  # type: ignore[arg-type]

        def describe(maps: Files, files: Files) -> RestorePoint:
            disks = (record(size=disk.size, map=maps["vda"], mode="incremental"),)
            created = last.created.replace("2026-", "2027-")
            return point(
                1,
                disks,
                uuid=last.uuid,
                domain=last.domain,
                parent=last.id,
                created=created,
                repository=repository.id,
                files=files,
            )

        made = new.publish({"domain.xml": lambda: b"<domain/>"}, describe, lambda _target: contextlib.nullcontext(disk))  # type: ignore[arg-type,return-value]
        new.record_hooks()
    return made


@pytest.mark.parametrize("seconds", [0.0, LATER])
def test_a_new_backup_builds_on_it(kind: str, tmp_path: Path, seconds: float) -> None:
    unpacked = Unpacked(kind, tmp_path / "fixture", seconds)
    repository = unpacked.fresh()
    last = next(each for each in reversed(repository.points_of().points) if each.domain == WEB)
    restore(repository, RestoreRequest(WEB, last.id, dest=str(tmp_path), format="raw", workers=1))
    disk = Written((tmp_path / f"{WEB}-vda.raw").read_bytes(), block_count(last.disks[0].size) - 1)
    made = _backed_up(repository, last, disk)
    assert disk.read_bytes == disk.size % BLOCK_SIZE, "only what changed is read"
    before, after = ({ref.id for ref in repository.read_packs(each, each.disks[0])} for each in (last, made))
    assert len(after - before) == 1, "the rest is that of the point before"
    retention(unpacked.fresh(), RetentionRequest(grace=0.0))
    repository = unpacked.fresh()
    assert _content(repository, made.id, "vda") == _sha256(disk.data)
    _check_sound_points(unpacked, repository, unpacked.ids("there"))


def test_its_points_are_copied_to_a_new_repository(unpacked: Unpacked, tmp_path: Path) -> None:
    dest = open_or_create(str(tmp_path / "dest"))
    assert dest is not None
    hurt = [each for each in unpacked.ids("there") if unpacked.points[each]["damage"]]
    result = copy(unpacked.fresh(), dest, CopyRequest(options=StoringOptions(workers=1)))
    assert sorted(result.failed) == sorted(hurt)
    sound = [each for each in unpacked.ids("there") if each not in hurt]
    copied = open_repository(str(tmp_path / "dest"))
    assert [each.id for each in copied.points_of().points] == sound
    _check_sound_points(unpacked, copied, sound)
    for each in copied.points_of().points:
        described = unpacked.points[each.id]
        assert {name: _sha256(copied.get_file(each, each.files[name])) for name in described["files"]} == described[
            "files"
        ]
        assert (each.tags, each.pinned, each.parent, each.checkpoint) == (
            described["tags"],
            described["pinned"],
            described["parent"],
            described["checkpoint"],
        )
