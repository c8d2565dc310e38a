# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The generator of tests/fixtures/repository-v1. It ran once; it stays to document how, and to make fixtures of later formats.

    .venv/bin/python tests/tools/repository_v1.py FOLDER

The engine itself writes every object, in process: a week of backups, verifications, healing, retention and compaction of three
domains whose disks lie in memory. Only the hypervisor is missing. Two sessions are killed at the end, one with its draft put and one
with its list of the doomed put, so that the objects of sessions at work are there as well. What is expected of the repositories
comes from what was written to the disks, never from what the engine reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import io
import json
import random
import sys
import tarfile
import tempfile
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "unit"), str(TESTS.parent / "plugins" / "module_utils")]

from stores_for_tests import MemoryStore, MemoryUpload  # noqa: E402

from _cbt.blocks.extents import BlockRange, Extent  # noqa: E402
from _cbt.control import Control  # noqa: E402
from _cbt.grid import BLOCK_SIZE, block_count, block_length  # noqa: E402
from _cbt.hypervisor import checkpoints  # noqa: E402
from _cbt.hypervisor.domain_xml.machine_files import machine_files  # noqa: E402
from _cbt.operations import keys  # noqa: E402
from _cbt.operations.keys import KeyRequest  # noqa: E402
from _cbt.operations.point.disk_reader import ranges_of  # noqa: E402
from _cbt.operations.point.machine_files import PIECE, Capture  # noqa: E402
from _cbt.operations.point.new_point import Files, NewPoint, StoringOptions  # noqa: E402
from _cbt.operations.upkeep.healing import heal  # noqa: E402
from _cbt.operations.upkeep.retention import RetentionRequest, RetentionResult, retention  # noqa: E402
from _cbt.operations.upkeep.retention_rules import Rules  # noqa: E402
from _cbt.operations.verify.verify import VerifyRequest, verify  # noqa: E402
from _cbt.repository import creation  # noqa: E402
from _cbt.repository import repository as opening  # noqa: E402
from _cbt.repository.format import manifests  # noqa: E402
from _cbt.repository.format.manifests import DiskRecord, RestorePoint  # noqa: E402
from _cbt.repository.location import RepositoryLocation  # noqa: E402
from _cbt.repository.records import damage  # noqa: E402
from _cbt.repository.repository import Repository  # noqa: E402
from _cbt.repository.selecting import ALL, LATEST, PointSelection  # noqa: E402
from _cbt.repository.sharing import leases  # noqa: E402
from _cbt.repository.sharing.leases import Lease  # noqa: E402
from _cbt.repository.stores.directory import DirectoryStore  # noqa: E402

PASSPHRASES = {"default": "fixture passphrase", "second": "zweite Passphrase für Prüfungen"}
HOST = "hypervisor1"
WEB, DB, OFFICE = "web1", "db1", "büro"
UUIDS = {
    WEB: "5d0a3b0e-7c1f-4a53-9f43-6e1f3d1c0a01",
    DB: "5d0a3b0e-7c1f-4a53-9f43-6e1f3d1c0a02",
    OFFICE: "5d0a3b0e-7c1f-4a53-9f43-6e1f3d1c0a03",
}
QCOW2 = {
    "format": "qcow2",
    "type": "file",
    "compat": "1.1",
    "cluster-size": 65536,
    "compression-type": "zlib",
    "lazy-refcounts": False,
}
QCOW2.update({"refcount-bits": 16, "extended-l2": False})
RAW = {"format": "raw", "type": "block"}
VERSIONS = {"kvm.cbt": "0.1.0", "libvirt": "9.0.0", "qemu": "7.2.19"}


class Killed(BaseException):
    """The session is no more."""


class _Upload(MemoryUpload):
    def commit(self, replace: bool = True) -> bool:
        appeared = super().commit(replace)
        self._store.appeared(self._name)  # type: ignore[attr-defined]
        return appeared


class MortalStore(MemoryStore):
    """A session on it dies once an object appeared below ``fatal``: nothing it does later reaches the store."""

    def __init__(self) -> None:
        super().__init__()
        self.fatal: str | None = None
        self.dead = False

    def appeared(self, name: str) -> None:
        """Die if it is time."""
        if self.fatal is not None and name.startswith(self.fatal):
            self.dead = True
            raise Killed

    def _live(self) -> None:
        if self.dead:
            raise Killed

    def upload(self, name: str) -> MemoryUpload:
        self._live()
        upload = _Upload(self, name)
        self.uploads.add(upload)
        return upload

    def get(self, name: str) -> bytes:
        self._live()
        return super().get(name)

    def list(self, prefix: str) -> Iterator[str]:
        self._live()
        return super().list(prefix)

    def delete(self, name: str) -> None:
        self._live()
        super().delete(name)

    @contextlib.contextmanager
    def killing(self, fatal: str) -> Iterator[None]:
        """The session in the block dies there."""
        self.fatal = fatal
        try:
            yield
        except Killed:
            return
        finally:
            self.fatal, self.dead = None, False
        raise RuntimeError(f"nothing appeared below {fatal}")


def content(number: int) -> bytes:
    """A block of its own for each number: most are small once compressed, those below 10 do not compress."""
    made = random.Random(number)
    return (
        made.randbytes(BLOCK_SIZE)
        if number < 10
        else made.randbytes(48) * (BLOCK_SIZE // 48) + made.randbytes(BLOCK_SIZE % 48)
    )


class GuestDisk:
    """A disk that a guest writes to, and what tracking knows of it; it is its own export."""

    def __init__(self, target: str, size: int, image: dict[str, Any], source: str) -> None:
        self.target, self.size, self.image, self.source = target, size, image, source
        self.data = bytearray(size)
        self.dirty: set[int] = set()
        self.reads_all = True

    def write(self, block: int, number: int) -> None:
        """Change a block."""
        length = block_length(block, self.size)
        self.data[block * BLOCK_SIZE : block * BLOCK_SIZE + length] = content(number)[:length]
        self.dirty.add(block)

    def discard(self, block: int) -> None:
        """Have a block read as zeroes."""
        length = block_length(block, self.size)
        self.data[block * BLOCK_SIZE : block * BLOCK_SIZE + length] = bytes(length)
        self.dirty.add(block)

    def allocation(self) -> Iterator[Extent]:
        """All of it."""
        return self._extents(range(block_count(self.size)))

    def extents(self) -> Iterator[Extent]:
        """What is to be read."""
        return self.allocation() if self.reads_all else self._extents(sorted(self.dirty))

    def _extents(self, blocks: Any) -> Iterator[Extent]:
        for block in blocks:
            length = block_length(block, self.size)
            yield Extent(block * BLOCK_SIZE, length, not any(self.read(block * BLOCK_SIZE, length)))

    @contextlib.contextmanager
    def connect(self) -> Iterator[GuestDisk]:
        """It is its own connection."""
        yield self

    def read(self, offset: int, length: int) -> bytearray:
        """A part of it."""
        return self.data[offset : offset + length]


def _xml(name: str, disks: list[GuestDisk], firmware: bool) -> str:
    machine = "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>"
    devices = ""
    if firmware:
        files = {
            "loader": "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "kernel": "/var/lib/kernels/db1",
            "initrd": "/var/lib/kernels/db1.initrd",
        }
        files.update(dtb="/var/lib/kernels/db1.dtb", nvram="/var/lib/libvirt/qemu/nvram/db1_VARS.fd")
        machine = machine.replace(
            "</os>", "".join(f"<{kind}>{path}</{kind}>" for kind, path in files.items()) + "</os>"
        )
        devices = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    for disk in disks:
        kind = ("file", "file") if disk.image is QCOW2 else ("block", "dev")
        devices += f"<disk type='{kind[0]}' device='disk'><driver name='qemu' type='{disk.image['format']}'/><source {kind[1]}='{disk.source}'/>"
        devices += f"<target dev='{disk.target}' bus='virtio'/></disk>"
    head = f"<domain type='kvm'><name>{name}</name><uuid>{UUIDS[name]}</uuid><memory unit='KiB'>1048576</memory><vcpu>1</vcpu>"
    return f"{head}{machine}<devices>{devices}</devices></domain>\n"


class Machine:
    """A domain and its disks."""

    def __init__(
        self, name: str, disks: list[GuestDisk], firmware: bool = False, guest: dict[str, Any] | None = None
    ) -> None:
        self.name, self.uuid, self.disks = name, UUIDS[name], disks
        self.xml, self.guest = _xml(name, disks, firmware), guest
        self.tracked_since: RestorePoint | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """What its configuration files hold."""
        files = {"domain.xml": self.xml.encode(), "inactive.xml": self.xml.replace("pc-q35-7.2", "q35").encode()}
        if self.guest is not None:
            files["guest.json"] = json.dumps(self.guest, sort_keys=True).encode()
        return files


def machines() -> dict[str, Machine]:
    """The domains before they write anything: their disks end with a short block, all but one."""
    web = [
        GuestDisk("vda", 11 * BLOCK_SIZE + 1536, QCOW2, "/var/lib/libvirt/images/web1.qcow2"),
        GuestDisk("vdb", 3 * BLOCK_SIZE + 512, RAW, "/dev/vg0/web1"),
    ]
    database = [GuestDisk("vda", 5 * BLOCK_SIZE, QCOW2, "/var/lib/libvirt/images/db1.qcow2")]
    office = [GuestDisk("sda", 5 * BLOCK_SIZE + 4096, QCOW2, "/var/lib/libvirt/images/office.qcow2")]
    made = [
        Machine(WEB, web),
        Machine(DB, database, firmware=True, guest={"os": {"id": "debian"}}),
        Machine(OFFICE, office, guest={"hostname": "büro"}),
    ]
    return {each.name: each for each in made}


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a backup is to be like; ``mode`` is that of disks that can be tracked."""

    mode: str = "incremental"
    options: StoringOptions = StoringOptions(workers=1)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    pinned: bool = False


def storing(compression: str = "lz4", level: int | None = None, dedup: str = "repository") -> StoringOptions:
    """How a backup stores."""
    return StoringOptions(compression=compression, compression_level=level, dedup=dedup, workers=1)


class World:
    """A repository, the domains backed up into it, and what is expected of it."""

    def __init__(self, passphrases: dict[str, str], files: Path) -> None:
        self.store, self.machines, self.files = MortalStore(), machines(), files
        self.at(1, 1)
        self.passphrase = passphrases.get("default")
        self.fresh(create=True)
        for name, passphrase in passphrases.items():
            if name != "default":
                place = RepositoryLocation("memory", passphrase=self.passphrase)
                with unittest.mock.patch.object(keys, "open_store", lambda _place: self.store):
                    keys.apply_keys(place, KeyRequest(passphrase, name))
        self.keys = self.fresh().keys
        self.points: dict[str, dict[str, Any]] = {}

    def at(self, day: int, hour: int, minute: int = 0) -> datetime.datetime:
        """Let it be that time."""
        self.now = datetime.datetime(2026, 1, day, hour, minute, tzinfo=datetime.UTC)
        self.store.clock = self.now.timestamp()
        return self.now

    def fresh(self, create: bool = False) -> Repository:
        """The repository as another process opens it."""
        place = RepositoryLocation("memory", passphrase=self.passphrase)
        with (
            unittest.mock.patch.object(creation, "open_store", lambda _place: self.store),
            unittest.mock.patch.object(opening, "open_store", lambda _place: self.store),
        ):
            made = creation.open_or_create(place) if create else opening.open_repository(place)
        assert made is not None
        return made

    def backup(self, name: str, wish: Wish) -> RestorePoint:
        """Back up a domain as a run does it, from the lease to the hooks."""
        repository = self.fresh()
        with leases.held(repository, "backup") as lease:
            return _Backup(self, lease, self.machines[name], wish).carry_out()

    def capture(self, machine: Machine) -> Capture:
        """The machine's files beside its disks, as a backup captures them."""
        folder = self.files / "captured"
        folder.mkdir(exist_ok=True)
        captured = Capture(str(folder), self._opened)
        captured.take(machine_files(machine.xml))
        assert not captured.warnings
        for name, data in machine.files.items():
            captured.add(name, data)
        return captured

    def _opened(self, path: str) -> BinaryIO:
        return open(f"{self.files}{path}", "rb")

    def retention(self, request: RetentionRequest) -> RetentionResult:
        """One run of retention."""
        result = retention(self.fresh(), request)
        for each in result.removed:
            self.points[each.id]["state"] = "removed"
        return result

    def verify(self, wanted: PointSelection, **how: Any) -> None:
        """One verification."""
        verify(self.fresh(), VerifyRequest(wanted=wanted, workers=1, **how))

    def pack_of(self, point: RestorePoint, target: str, block: int) -> tuple[str, int, int]:
        """The object of the pack that holds a block, and the offset and length of its payload."""
        repository = self.fresh()
        run = next(repository.read_map(repository.point(point.uuid, point.id), target).runs(block, block + 1))
        return (run.pack.name, *repository.reader.directory(run.pack).span(run.ordinal, 1))

    def rot(self, point: RestorePoint, target: str, block: int) -> None:
        """Change a bit of a stored block."""
        name, start, length = self.pack_of(point, target, block)
        data = bytearray(self.store.objects[name])
        data[start + length // 2] ^= 1
        self.store.objects[name] = bytes(data)


class _Backup:
    """One backup."""

    def __init__(self, world: World, lease: Lease, machine: Machine, wish: Wish) -> None:
        self._world, self._lease, self._machine, self._wish = world, lease, machine, wish
        self._repository = lease.repository
        self._id = manifests.new_id(world.now)
        self._last = next(reversed(self._repository.points_of(machine.uuid).points), None)
        self._damages = damage.read_all(self._repository)
        self._new = NewPoint(lease, (machine.uuid, self._id), wish.options, self._damages, Control())
        self._modes = {disk.target: self._mode(disk) for disk in machine.disks}

    def _mode(self, disk: GuestDisk) -> str:
        return "scan" if disk.image is RAW and self._wish.mode != "copy" else self._wish.mode

    def carry_out(self) -> RestorePoint:
        """Read, publish, heal, leave hooks."""
        for disk in self._machine.disks:
            self._read(disk)
        disks = {disk.target: disk for disk in self._machine.disks}
        captured = self._world.capture(self._machine)
        made = self._new.publish(captured.objects, self._describe, lambda target: contextlib.nullcontext(disks[target]))
        heal(self._lease, self._machine.uuid, self._damages, Control())
        self._new.record_hooks()
        self._expect(made, captured)
        if made.checkpoint is not None:
            self._machine.tracked_since = made
            for disk in self._machine.disks:
                disk.dirty.clear()
        return made

    def _read(self, disk: GuestDisk) -> None:
        disk.reads_all = self._modes[disk.target] not in ("incremental", "differential")
        compared = self._last if disk.reads_all else self._machine.tracked_since
        base = (
            self._repository.read_map(self._repository.point(compared.uuid, compared.id), disk.target)
            if compared is not None
            else None
        )
        again: tuple[BlockRange, ...] = (
            ranges_of(damage.damaged_runs(base, self._damages)) if base is not None and not disk.reads_all else ()
        )
        self._new.read(disk, disk.target, base, again=again)

    def _describe(self, maps: Files, files: Files) -> RestorePoint:
        tracks = self._wish.mode in ("full", "incremental")
        name = f"{checkpoints.prefix(self._repository.id)}{self._id}" if tracks else None
        since = self._machine.tracked_since
        xml = f"<domaincheckpoint><name>{name}</name><disks><disk name='vda' checkpoint='bitmap' bitmap='{name}'/></disks></domaincheckpoint>"
        return RestorePoint(
            id=self._id,
            repository=self._repository.id,
            domain=self._machine.name,
            uuid=self._machine.uuid,
            created=self._world.now.isoformat(timespec="microseconds"),
            parent=self._last.id if self._last is not None else None,
            checkpoint=name,
            checkpoint_xml=xml if tracks else None,
            incremental_set=since.incremental_set
            if since is not None and self._wish.mode in ("incremental", "differential")
            else self._id,
            consistency="filesystem" if self._machine.guest else "crash",
            disks=tuple(self._record(disk, maps) for disk in self._machine.disks),
            files=files,
            autostart=self._machine.name == DB,
            tags=self._wish.tags,
            pinned=self._wish.pinned,
            host=HOST,
            versions=VERSIONS,
            dedup=self._wish.options.dedup,
        )

    def _record(self, disk: GuestDisk, maps: Files) -> DiskRecord:
        mode = self._modes[disk.target]
        statistics = dataclasses.asdict(self._new.disks[disk.target].statistics)
        return DiskRecord(
            disk.target, disk.size, mode, f"Read as {mode}.", maps[disk.target], disk.source, disk.image, statistics
        )

    def _expect(self, made: RestorePoint, captured: Capture) -> None:
        """Note what the point must be, from what went into it."""
        fields = (
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
        )
        disks = {
            disk.target: {
                "size": disk.size,
                "mode": self._modes[disk.target],
                "format": disk.image["format"],
                "source": disk.source,
                "sha256": hashlib.sha256(disk.data).hexdigest(),
            }
            for disk in self._machine.disks
        }
        machine = {
            each.kind: (self._world.files / each.path[1:]).read_bytes() for each in machine_files(self._machine.xml)
        }
        self._world.points[made.id] = {
            **{field: getattr(made, field) for field in fields},
            "disks": disks,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in self._machine.files.items()},
            "objects": sorted(captured.objects),
            "machine": {kind: hashlib.sha256(data).hexdigest() for kind, data in machine.items()},
            "state": "there",
            "damage": [],
        }


def write_machine_files(folder: Path) -> None:
    """The files that the machine with firmware has beside its disks; its kernel is of two pieces."""
    for file in machine_files(machines()[DB].xml):
        path = folder / file.path[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        size = PIECE + 4096 if file.kind == "kernel" else 2048
        path.write_bytes(file.kind.encode().ljust(size, b"\0"))
        path.chmod(0o600 if file.kind in ("nvram", "tpm") else 0o644)


def first_days(world: World) -> None:
    """Backups of all modes, a point removed, its space reclaimed by compaction, damage found and healed."""
    web, database = (world.machines[name].disks for name in (WEB, DB))
    for block in range(12):
        web[0].write(block, 100 + block)
    for block in range(4):
        web[1].write(block, 200 + block)
        database[0].write(block, 102 + block)  # as in web1
    web[0].write(6, 1)  # which does not compress
    world.at(1, 2)
    gone = world.backup(WEB, Wish("full", tags={"schedule": "nightly"}))
    world.backup(DB, Wish("full", storing("zstd", dedup="domain")))
    world.at(2, 2)
    for block in (0, 1, 2, 3, 4, 5, 7, 8):
        web[0].write(block, 300 + block)
    world.backup(WEB, Wish(options=storing("zstd", 9)))
    world.at(2, 12)
    assert len(world.retention(RetentionRequest(Rules(last=1), WEB)).removed) == 1
    world.at(3, 2)
    web[0].discard(9)
    web[0].write(10, 400)
    web[1].write(3, 401)
    database[0].write(4, 402)
    world.backup(WEB, Wish("differential", storing("zlib")))
    world.backup(DB, Wish(options=storing("zlib", 9, "domain")))
    world.at(3, 6)
    web[0].write(11, 403)
    world.backup(WEB, Wish("copy", storing("none")))
    world.at(4, 12)
    del world.points[gone.id]  # its time in the trash is over
    compacted = world.retention(RetentionRequest(compact_below=60)).compacted
    assert compacted is not None and compacted.packs and compacted.points
    world.at(5, 2)
    for block in (1, 2):
        web[0].write(block, 500 + block)
    pinned = world.backup(WEB, Wish(tags={"release": "1.0", "schedule": "nightly"}, pinned=True))
    world.rot(pinned, "vda", 2)
    world.at(5, 6)
    world.verify(ALL)
    world.at(6, 2)
    web[0].write(1, 601)
    world.backup(WEB, Wish())
    assert len(world.fresh().point(pinned.uuid, pinned.id).disk("vda").map.name) > len("vda.map"), "it was not healed"  # type: ignore[union-attr]


def last_days(world: World) -> None:
    """What a killed backup left is condemned; another domain is damaged for good; two sessions are killed at work."""
    web, office = (world.machines[name].disks for name in (WEB, OFFICE))
    world.at(6, 3)
    web[0].write(0, 610)
    with world.store.killing("drafts/"):
        world.backup(WEB, Wish())
    world.at(6, 12)
    (expired,) = world.retention(RetentionRequest(Rules(last=3), WEB)).removed
    damaged_for_good(world, office[0])
    world.at(7, 4)
    web[0].write(4, 2)
    web[1].discard(0)
    world.backup(WEB, Wish("full", storing("zlib", 9, "none")))
    world.at(7, 6)
    world.verify(ALL, level="structure")
    world.verify(ALL)
    for wanted in (LATEST, ALL, PointSelection.parse([max(world.points)])):
        world.verify(wanted, sample=50)
    world.at(7, 12, 30)
    assert len(world.retention(RetentionRequest(Rules(last=3), WEB, collect=False)).removed) == 1
    world.at(7, 12, 50)
    web[0].write(0, 700)
    with world.store.killing("drafts/"):
        world.backup(WEB, Wish())
    world.at(7, 13)
    world.points[expired.id]["state"] = "expired"
    with world.store.killing("doomed/"):
        world.retention(RetentionRequest())


def damaged_for_good(world: World, disk: GuestDisk) -> None:
    """Three points: a changed bit in the first; a pack that is missing, which the third needs as well, and a changed file of the second."""
    world.at(7, 1)
    for block in range(6):
        disk.write(block, 620 + block)
    first = world.backup(OFFICE, Wish("full"))
    world.at(7, 2)
    for block in (2, 3, 4):
        disk.write(block, 630 + block)
    second = world.backup(OFFICE, Wish())
    world.at(7, 3)
    disk.write(0, 640)
    third = world.backup(OFFICE, Wish())
    world.rot(first, "sda", 2)
    del world.store.objects[world.pack_of(second, "sda", 3)[0]]
    name = f"{second.folder}/guest.json"
    world.store.objects[name] = world.keys.seal(name, b'{"hostname": "changed"}')
    gone = {
        "disk": "sda",
        "offset": 2 * BLOCK_SIZE,
        "length": 3 * BLOCK_SIZE,
        "level": "structure",
        "missing": True,
        "own": False,
    }
    changed = {"disk": "", "offset": 0, "length": 0, "level": "structure", "missing": False, "own": True}
    world.points[first.id]["damage"] = [{**gone, "length": BLOCK_SIZE, "level": "data", "missing": False}]
    world.points[second.id]["damage"] = [changed, gone]
    world.points[third.id]["damage"] = [gone]


def left_over() -> tuple[str, bytes]:
    """What a killed session leaves below tmp, made by a store in a directory."""
    with tempfile.TemporaryDirectory() as folder:
        upload = DirectoryStore(folder).upload(f"packs/00/{'0' * 32}")
        upload.write([b"KVMCBTPK"], 0)
        (path,) = Path(folder, "tmp").iterdir()
        made = f"tmp/{path.name}", path.read_bytes()
        upload.abandon()
    return made


def pack_up(world: World, path: Path) -> None:
    """An archive of the repository, which keeps the times of its objects."""
    objects = dict([*world.store.objects.items(), left_over()])
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(objects.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = (
                len(data),
                0o600,
                int(world.store.times.get(name, world.now.timestamp())),
            )
            archive.addfile(member, io.BytesIO(data))


def make(passphrases: dict[str, str]) -> World:
    """One repository."""
    with tempfile.TemporaryDirectory() as folder:
        write_machine_files(Path(folder))
        world = World(passphrases, Path(folder))
        first_days(world)
        last_days(world)
    return world


def main(folder: Path) -> None:
    """Write both repositories and what is expected of them."""
    kinds: dict[str, Callable[[], World]] = {
        "plain": functools.partial(make, {}),
        "encrypted": functools.partial(make, PASSPHRASES),
    }
    expected = {}
    with unittest.mock.patch("socket.gethostname", lambda: HOST):
        for kind, made in kinds.items():
            world = made()
            pack_up(world, folder / f"{kind}.tar")
            expected[kind] = {"id": world.fresh().id, "taken": world.now.timestamp(), "points": world.points}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
