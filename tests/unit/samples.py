"""Small things of the engine's types that tests need in many places."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import uuid
import zlib
from typing import Any

from _cbt.hypervisor.domain import DomainFacts
from _cbt.hypervisor.domain_xml.disks import Bitmap, Disk, identity_bitmap
from _cbt.operations.backup.plan import BackupPlan, BackupPolicy, Situation, make_plan
from _cbt.operations.restore.machine_xml import DiskTarget, TargetMachine
from _cbt.repository.format import codecs, names
from _cbt.repository.format.manifests import DiskRecord, RestorePoint, StoredFile
from _cbt.repository.format.packs import Encoded, PackRef

UUID = "6f1d0a52-9a3c-4c0e-8a53-0d1b1f6f4a11"
OTHER_UUID = "b9a7f3d0-1111-4222-8333-444455556666"
GIB = 1 << 30


def uuid_of(word: str) -> str:
    """The UUID of the domain that a test calls so."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, word))


def run_of(word: str) -> str:
    """The id of the restore point that a test calls so."""
    return f"20260101T120000Z-{zlib.crc32(word.encode()):08x}"


def hooks_of(domain: str, word: str, number: int = 0) -> str:
    """Name of the hooks of the packs that were written with this point."""
    return names.hooks_of_run(uuid_of(domain), run_of(word), number)


def random_bytes(length: int, seed: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(length)


def encoded(data: bytes, compression: str = "none") -> Encoded:
    """A block ready to be stored."""
    codec, payload = codecs.encoder(compression)(data)
    return Encoded(hashlib.sha256(data).digest(), codec, payload, len(data))


def pack_ref(number: int, blocks: int = 1024) -> PackRef:
    """A pack that exists only by name."""
    return PackRef(number.to_bytes(16, "big"), 32 + blocks * 108 + 56, blocks)


def point_id(number: int) -> str:
    """Id of the restore point of the ``number``-th day."""
    return f"202601{number:02d}T120000Z-{number:08x}"


def created(number: int) -> str:
    """When that restore point was made."""
    return f"2026-01-{number:02d}T12:00:00.000000+00:00"


def record(target: str = "vda", size: int = GIB, source: str | None = None, **fields: Any) -> DiskRecord:
    """A disk of a restore point."""
    stored = StoredFile(f"{target}.map", 3, hashlib.sha256(b"map").hexdigest())
    given = {
        "mode": "full",
        "reason": "",
        "map": stored,
        "source": source or f"/images/{target}.qcow2",
        "image": {},
        "statistics": {},
    }
    return DiskRecord(target, size, **{**given, **fields})


def point(number: int, disks: tuple[DiskRecord, ...] = (), **fields: Any) -> RestorePoint:
    """The restore point of the ``number``-th day."""
    made = RestorePoint(
        id=point_id(number),
        repository="00" * 16,
        domain="web1",
        uuid=UUID,
        created=created(number),
        parent=None,
        checkpoint=None,
        checkpoint_xml=None,
        incremental_set=point_id(number),
        consistency="crash",
        disks=disks or (record(),),
        files={},
        autostart=False,
        tags={},
        pinned=False,
        host="host1",
        versions={},
    )
    return dataclasses.replace(made, **fields)


def disk(target: str = "vda", bitmaps: tuple[str | Bitmap, ...] = (), **fields: Any) -> Disk:
    """A qcow2 v3 disk of 1 GiB; ``bitmaps`` by name are healthy ones, each beside its mark."""
    healthy = tuple(each if isinstance(each, Bitmap) else Bitmap(each, 65536, 131072) for each in bitmaps)
    healthy += tuple(
        Bitmap(identity_bitmap(each, target), 1 << 31, 0, recording=False) for each in bitmaps if isinstance(each, str)
    )
    given = {"format": "qcow2", "compat": "1.1", "source": f"/images/{target}.qcow2", "virtual_size": GIB}
    return Disk(target, bitmaps=healthy, **{**given, **fields})


UNREMARKABLE: dict[str, Any] = {
    **dict.fromkeys(("autostart", "shut_down", "saved"), False),
    **dict.fromkeys(("job", "owner", "host")),
}


def facts(*disks: Disk) -> DomainFacts:
    """A running domain with these disks."""
    return DomainFacts("web1", UUID, "running", True, disks, "<domain/>", "<domain/>", **UNREMARKABLE)


def plan_of(situation: Situation, mode: str = "auto", **wish: Any) -> BackupPlan:
    """What is decided for a mode and further wishes."""
    return make_plan(situation, BackupPolicy(mode, **wish))


def target_machine(path: str, **fields: Any) -> TargetMachine:
    """The machine web1 as it is restored with the disk vda at ``path``, unless ``fields`` say otherwise."""
    plain = {
        "name": "web1",
        "uuid": UUID,
        "disks": {"vda": DiskTarget(path, "qcow2")},
        "files": {},
        "new_macs": False,
        "networks": {},
        "trusted": False,
        "keep_host_devices": False,
        "firmware": frozenset(),
    }
    return TargetMachine(**{**plain, **fields})
