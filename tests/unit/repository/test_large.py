# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes nobody has in a test machine, in a process of their own whose memory is all there is. Figures are printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MIB = 1 << 20
ENGINE = str(Path(__file__).resolve().parents[3] / "plugins" / "module_utils")

# The peak of the process itself. That of getrusage begins with what the process had that started it.
MEMORY = """
def memory():
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024
"""

# A point with scattered blocks, and a backup on it as a run makes it, of other scattered blocks. What is read differs from block to block
# in its beginning only, which is all that is hashed here, and payloads are left out: packs are holes but for their directories.
SCATTERED = """
import contextlib, hashlib, json, os, random, sys
sys.path[:0] = sys.argv[1:3]
from samples import UUID, point, record
from _cbt.blocks.extents import Extent
from _cbt.grid import BLOCK_SIZE
from _cbt.control import Control
from _cbt.operations.point.new_point import NewPoint, StoringOptions
from _cbt.repository.sharing import leases
from _cbt.repository.stores.directory import DirectoryStore
from _cbt.repository.crypto.keys import PlainKeys
from _cbt.repository.format.maps import MapBuilder
from _cbt.repository.format.packs import PackRef
from _cbt.repository.repository import Repository
size, dirty = 20 << 40, 2_000_000
gap = (size >> 16) // dirty
def scattered(seed):
    chance = random.Random(seed)
    return (number * gap + chance.randrange(gap) for number in range(dirty))
class Keys(PlainKeys):
    def block_id(self, data):
        return hashlib.sha256(data[:8]).digest()
class Store(DirectoryStore):
    def upload(self, name):
        upload = super().upload(name)
        if name.startswith("packs/"):
            write = upload.write
            upload.write = lambda buffers, offset: None if isinstance(buffers[0], memoryview) else write(buffers, offset)
        return upload
class Disk:
    size = size
    def extents(self):
        return (Extent(block * BLOCK_SIZE, BLOCK_SIZE, False) for block in scattered(2))
    @contextlib.contextmanager
    def connect(self):
        yield self
    def read(self, offset, length):
        places = range(offset, offset + length, BLOCK_SIZE)
        return bytearray(b"".join((place + 1).to_bytes(8, "big") + bytes(BLOCK_SIZE - 8) for place in places))
repository = Repository(Store(sys.argv[3]), "r" * 32, Keys())
def stored_as(number, stored):
    return point(number, (record("vda", size, map=stored),))
def first():
    builder, packs = MapBuilder(size), [PackRef(os.urandom(16), 64 << 20, 1024) for _number in range(dirty // 1024 + 1)]
    for number, block in enumerate(scattered(1)):
        builder.put(block, 1, packs[number // 1024].id, number % 1024)
    for ref in packs:
        repository.store.put(ref.name, b"")
        os.truncate(os.path.join(sys.argv[3], ref.name), ref.size)
    files = repository.put_files(point(1).folder, {"vda.map": builder.finish({ref.id: ref for ref in packs}).encode()})
    repository.publish(stored_as(1, files["vda.map"]))
first()
with leases.held(repository, "backup") as lease:
    new = NewPoint(lease, point(2).key, StoringOptions(compression="none"), {}, Control())
    read = new.read(Disk(), "vda", repository.read_map(repository.points_of().points[0], "vda"))
    made = new.publish({}, lambda maps, _files: stored_as(2, maps["vda"]), lambda _target: None)
    new.record_hooks()
taken = memory()
runs = len(repository.read_map(made, "vda"))
print(json.dumps({"new": read.statistics.new_bytes, "runs": runs, "map": made.disks[0].map.size, "memory": taken}))
"""

# A repository that holds hooks only, made when they are asked for.
HOOKS = """
import json, os, random, sys, time
sys.path.insert(0, sys.argv[1])
from _cbt.repository.format import hooks
from _cbt.repository.format.hooks import PackHooks
from _cbt.repository.dedup.index import HookIndex
from _cbt.repository.format.packs import PackRef
from _cbt.repository.repository import Repository
packs = int(sys.argv[2])
class Store:
    location, local_path, reserve = "memory", None, None
    def list(self, prefix):
        return iter([f"hooks/compaction/{number:016x}-0" for number in range(packs // hooks.PACKS_PER_OBJECT)])
    def get(self, name, most=None):
        chance = random.Random(name)
        keys = lambda: tuple(chance.getrandbits(61) for _hook in range(24))
        return hooks.encode([PackHooks(PackRef(chance.randbytes(16), 64 << 20, 1024), keys()) for _pack in range(hooks.PACKS_PER_OBJECT)])
os.environ["XDG_CACHE_HOME"] = sys.argv[3]
index = HookIndex(Repository(Store(), "r" * 32))
started = time.monotonic()
index.refresh()
filled = time.monotonic()
index.refresh()
again = time.monotonic()
chance = random.Random(f"hooks/compaction/{1:016x}-0")
ref = PackRef(chance.randbytes(16), 64 << 20, 1024)
with index.lookup() as lookup:
    found = list(lookup([chance.getrandbits(61).to_bytes(8, "big")]))
if index.failure or found[:1] != [ref]:
    sys.exit(index.failure or "it was not found")
size = sum(os.stat(os.path.join(folder, each)).st_size for folder, _folders, files in os.walk(sys.argv[3]) for each in files)
print(json.dumps({"filled": round(filled - started, 1), "again": round(again - filled, 3), "file": size, "memory": memory()}))
"""

# What a run keeps of the packs it wrote, each with as many hooks as a whole one.
WRITTEN = """
import json, random, sys
sys.path.insert(0, sys.argv[1])
from _cbt.repository.format import packs
from _cbt.repository.crypto.keys import PlainKeys
from _cbt.repository.packs.writer import PackWriter
from _cbt.repository.format.packs import Encoded
class Nothing:
    open_uploads = 4
    def upload(self, _name):
        return self
    def write(self, _buffers, _offset):
        pass
    def commit(self):
        pass
packs.MAX_BLOCKS, chance, before = 256, random.Random(0), 0
writer = PackWriter(Nothing(), PlainKeys())
for number in range(11_000):
    if number == 1000:
        before = memory()
    writer.append([Encoded(chance.randbytes(32), 0, b"x", 65536) for _block in range(256)])
writer.finish()
kept = memory() - before
keys = sum(len(each.keys) for each in writer.hooks())
print(json.dumps({"keys": keys // 11_000, "kept": kept // 10_000, "memory": memory()}))
"""


def measured(program: str, *arguments: str) -> dict[str, Any]:
    """What a program printed, which is a JSON object."""
    printed = subprocess.run(
        [sys.executable, "-c", MEMORY + program, ENGINE, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    figures: dict[str, Any] = json.loads(printed)
    print(figures)
    return figures


def test_a_backup_of_two_million_scattered_blocks_of_twenty_tebibytes(tmp_path: Path) -> None:
    figures = measured(SCATTERED, str(Path(__file__).parents[1]), str(tmp_path / "repository"))
    assert figures["new"] == 2_000_000 * 65536
    assert figures["runs"] > 3_900_000
    assert figures["map"] < 64 * MIB
    assert figures["memory"] < (512 - 64) * MIB, "what libvirt, NBD and Ansible take comes on top"


def test_an_index_is_filled_in_bounded_memory_for_any_number_of_packs(tmp_path: Path) -> None:
    few, many = (measured(HOOKS, str(packs), str(tmp_path / str(packs))) for packs in (2 * 4096, 20 * 4096))
    assert many["file"] > 9 * few["file"]
    assert many["memory"] < 256 * MIB


def test_packs_awaiting_their_hooks_take_little_memory() -> None:
    figures = measured(WRITTEN)
    assert figures["keys"] > 16
    assert figures["kept"] * (20 << 40) // (64 << 20) < 256 * MIB
