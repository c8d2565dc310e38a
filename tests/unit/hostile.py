# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore points as an enemy makes them who can write to a plain repository: any content, and every checksum right."""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from samples import UUID, created, point_id
from stores_for_tests import MemoryStore

from _cbt.grid import BLOCK_SIZE
from _cbt.repository.format import maps
from _cbt.repository.format.packs import Encoded
from _cbt.repository.repository import Repository

DEEP = "@deep@"  # stands for 10,000 lists within each other
SIZE = 3 * BLOCK_SIZE - 512
XML = (
    f"<domain type='test'><name>web1</name><uuid>{UUID}</uuid><memory>1024</memory>"
    "<os><type arch='i686'>hvm</type><kernel>/k</kernel><dtb>/d</dtb></os>"
    "<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/web1.qcow2'/>"
    "<target dev='vda'/></disk></devices></domain>"
)
KERNEL, TREE = b"kernel" * 5000, b"tree"

Path = tuple[Any, ...]


def leaves(body: Any, path: Path = ()) -> Iterator[Path]:
    """Where each value of a JSON document is, those that hold others included."""
    if path:
        yield path
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in items:
        yield from leaves(value, (*path, key))


def changed(body: Any, path: Path, value: Any) -> Any:
    """The document with another value at a place."""
    made = copy.deepcopy(body)
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


def values(outside: str) -> dict[str, Any]:
    """What an enemy puts in the place of any value; ``outside`` is a folder nothing may be written to."""
    return {
        "up": f"../../../../../../../..{outside}/evil",
        "absolute": f"{outside}/evil",
        "slash": "a/b",
        "dots": "..",
        "empty": "",
        "300 characters": "v" * 300,
        "100,000 characters": "x" * 100_000,
        "NUL": "a\0b",
        "control": "a\x1b[2J\nb",
        "no text": "\udcff\ud800",
        "-1": -1,
        "0": 0,
        "2**63": 1 << 63,
        "2**80": 1 << 80,
        "no number": 1.5,
        "null": None,
        "true": True,
        "list": [],
        "dict": {},
        "100,000 names": ["dtb.0"] * 100_000,
        "deep": DEEP,
    }


def text_of(body: Any) -> bytes:
    """The JSON of a document."""
    data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return data.replace(f'"{DEEP}"'.encode(), b"[" * 10_000 + b"]" * 10_000)


class Enemy:
    """Makes one restore point after another in a repository, each on the same blocks."""

    def __init__(self, repository: Repository, xml: str = XML) -> None:
        assert isinstance(repository.store, MemoryStore)
        self._repository, self._store, self._xml = repository, repository.store, xml
        writer = repository.writer()
        blocks = [bytes([kind]) * BLOCK_SIZE for kind in (1, 2)]
        place = writer.append([Encoded(hashlib.sha256(block).digest(), 0, block, len(block)) for block in blocks])
        written = writer.finish()
        builder = maps.MapBuilder(SIZE)
        builder.put(0, 2, place.pack, place.ordinal)
        self._map = builder.finish(written).encode()
        self.content = b"".join(blocks) + bytes(SIZE - 2 * BLOCK_SIZE)

    def index(self) -> dict[str, Any]:
        """An honest machine.json."""
        return {"files": [self._entry("kernel", KERNEL), self._entry("dtb", TREE)]}

    @staticmethod
    def _entry(kind: str, data: bytes) -> dict[str, Any]:
        owner = {"owner": "root", "group": "root", "mode": 0o644}
        return {
            "kind": kind,
            "path": f"/{kind}",
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "pieces": [f"{kind}.0"],
            **owner,
        }

    def files(self, index: bytes | None = None) -> dict[str, bytes]:
        """The files of a restore point, honest but for machine.json if that is given."""
        return {
            "domain.xml": self._xml.encode(),
            "inactive.xml": self._xml.encode(),
            "guest.json": b"{}",
            "machine.json": text_of(self.index()) if index is None else index,
            "kernel.0": zlib.compress(KERNEL),
            "dtb.0": zlib.compress(TREE),
        }

    def manifest(self, files: Mapping[str, bytes] | None = None, number: int = 1) -> dict[str, Any]:
        """The body of an honest manifest of these files, which are stored, for the ``number``-th day."""
        folder = f"points/{UUID}/{point_id(number)}"
        stored = {"vda.map": self._map, **(self.files() if files is None else files)}
        for name, data in stored.items():
            self._repository.put_object(f"{folder}/{name}", data)
        table = {
            name: {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in stored.items()
        }
        image = {
            "format": "qcow2",
            "cluster-size": 65536,
            "compression-type": "zlib",
            "lazy-refcounts": False,
            "extended-l2": False,
        }
        disk = {
            "target": "vda",
            "size": SIZE,
            "mode": "full",
            "reason": "",
            "map": table.pop("vda.map"),
            "source": "/i",
            "image": image,
            "statistics": {},
        }
        text = {
            "repository": self._repository.id,
            "domain": "web1",
            "consistency": "crash",
            "created": created(number),
            "host": "host1",
        }
        nothing = dict.fromkeys(("parent", "checkpoint", "checkpoint_xml"))
        more = {
            "disks": [disk],
            "files": table,
            "autostart": False,
            "tags": {},
            "pinned": False,
            "versions": {"qemu": "7"},
        }
        return {"id": point_id(number), "uuid": UUID, "incremental_set": point_id(number), **text, **nothing, **more}

    def publish(self, body: Any, name: str = f"points/{UUID}/{point_id(1)}/manifest.json") -> None:
        """Store a manifest, sealed as a true one is, under any name: the store is the enemy's."""
        data = text_of(body)
        digest = hashlib.sha256(b"manifest 1 " + data).hexdigest()
        self._store.objects[name] = b'{"kvm.cbt":"manifest","version":1,"sha256":"%s","body":%s}\n' % (
            digest.encode(),
            data,
        )
