"""A repository in memory with restore points of disks that a test writes to, made by the engine but for libvirt and QEMU."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator

import pytest
from samples import UUID, point, point_id, random_bytes, record
from stores_for_tests import MemoryStore

from _cbt.blocks.extents import BlockRange, Extent
from _cbt.blocks.throttle import Throttle
from _cbt.control import Control
from _cbt.errors import DamagedObject, ObjectMissing
from _cbt.grid import BLOCK_SIZE
from _cbt.operations.point.disk_reader import Reader
from _cbt.operations.point.parent_blocks import ParentBlocks
from _cbt.operations.point.portion import BlockSink
from _cbt.operations.upkeep.healing import Healed, heal
from _cbt.repository.crypto.encryption import EncryptedKeys
from _cbt.repository.crypto.keys import Keys, PlainKeys
from _cbt.repository.format import configuration, names
from _cbt.repository.format.codecs import encoder
from _cbt.repository.format.manifests import RestorePoint
from _cbt.repository.records import damage
from _cbt.repository.repository import Repository
from _cbt.repository.sharing.leases import Lease

BLOCKS = 48
KEYS: dict[str, Keys] = {"plain": PlainKeys(), "encrypted": EncryptedKeys(bytes(32))}


def use_small_disks(monkeypatch: pytest.MonkeyPatch, blocks: int = 8, cut: int = 512) -> None:
    """Give the disks of a test fewer blocks, the last one ``cut`` by so many bytes."""
    monkeypatch.setattr(sys.modules[__name__], "BLOCKS", blocks)
    monkeypatch.setattr(Disk, "size", blocks * BLOCK_SIZE - cut)


@functools.lru_cache(maxsize=1024)
def block_of(number: int) -> bytes:
    """The content a number stands for."""
    return random_bytes(BLOCK_SIZE, number) if number else bytes(BLOCK_SIZE)


class Disk:
    """A disk of a few blocks, each told by a number, 0 for zeroes; it is its own export and knows what changed since the last point."""

    size = BLOCKS * BLOCK_SIZE - 512

    def __init__(self) -> None:
        self.content = [0] * BLOCKS
        self.dirty: set[int] = set()

    def write(self, block: int, number: int) -> None:
        """Change a block."""
        self.content[block] = number
        self.dirty.add(block)

    def bytes(self) -> bytes:
        """All it holds."""
        return b"".join(map(block_of, self.content))[: self.size]

    def extents(self) -> Iterator[Extent]:
        """What changed."""
        return (
            Extent(block * BLOCK_SIZE, min(BLOCK_SIZE, self.size - block * BLOCK_SIZE), False)
            for block in sorted(self.dirty)
        )

    @contextlib.contextmanager
    def connect(self) -> Iterator[Disk]:
        """It is its own connection."""
        yield self

    def read(self, offset: int, length: int) -> bytearray:
        """A part of it."""
        return bytearray(self.bytes()[offset : offset + length])


class History:
    """A repository with points of one disk; ``truth`` holds what each point must restore to."""

    def __init__(self, keys: Keys | None = None) -> None:
        self.store, self._keys = MemoryStore(), keys
        self.repository = self.fresh()
        self.store.objects.setdefault(configuration.NAME, b"")
        self.disk = Disk()
        self.truth: dict[str, bytes] = {}
        self._made = 0  # points, also those that are forgotten
        self.healed = Healed()
        self._last: RestorePoint | None = None

    def fresh(self) -> Repository:
        """The repository as another process opens it: without anything remembered."""
        self.repository = Repository(self.store, "00" * 16, self._keys)
        return self.repository

    def backup(self, uuid: str = UUID) -> RestorePoint:
        """A backup as the engine makes it: what is damaged of the base is read again, and healed."""
        repository = self.fresh()
        # Its blocks may have been moved.
        last = repository.point(self._last.uuid, self._last.id) if self._last is not None else None
        base = repository.read_map(last, "vda") if last is not None else None
        damages = damage.read_all(repository)
        if base is not None:
            damages.update(damage.unsound_packs(repository, base.packs))
        again = (
            [BlockRange(run.first, run.count, False) for run in damage.damaged_runs(base, damages)]
            if base is not None
            else []
        )
        writer = repository.writer()
        reader = Reader(BlockSink(writer, encoder("none")), 1, Control(), Throttle(None, lambda: None))
        if base is None:
            self.disk.dirty = set(range(BLOCKS))
        read = reader.read(self.disk, "vda", base, ParentBlocks(base, repository.reader, damages), False, again)  # type: ignore[arg-type]
        self._made += 1
        name = point_id(self._made)
        files = repository.put_files(
            names.point_folder(uuid, name), {"vda.map": read.builder.finish(writer.finish()).encode()}
        )
        made = point(self._made, (record(size=self.disk.size, map=files["vda.map"]),), uuid=uuid)
        repository.publish(made)
        self.truth[name], self._last = self.disk.bytes(), made
        self.disk.dirty.clear()
        lease = Lease(repository, "backup")
        self.healed = heal(lease, uuid, damages)
        lease.release()
        return made

    def read(self, name: str, uuid: str = UUID) -> bytes:
        """All of the disk at a point. Raises DamagedObject or ObjectMissing."""
        repository = self.fresh()
        extents = repository.read_map(repository.point(uuid, name), "vda")
        data = bytearray(extents.size)
        for run in extents.runs():
            for index, block in enumerate(repository.reader.blocks(run.pack, run.ordinal, run.count)):
                if isinstance(block, DamagedObject):
                    raise block
                data[(run.first + index) * BLOCK_SIZE : (run.first + index) * BLOCK_SIZE + len(block)] = block
        return bytes(data)

    def block_place(self, name: str, block: int) -> tuple[str, int, int]:
        """The pack's object, and offset and length in it, that hold a block at a point."""
        repository = self.fresh()
        run = next(repository.read_map(repository.point(UUID, name), "vda").runs(block, block + 1))
        start, length = repository.reader.directory(run.pack).span(run.ordinal, 1)
        return run.pack.name, start, length

    def flip(self, name: str, block: int) -> bytes:
        """Change a bit in a stored block of a point; returns the pack as it was."""
        pack, start, length = self.block_place(name, block)
        whole = self.store.objects[pack]
        changed = bytearray(whole)
        changed[start + length // 2] ^= 1
        self.store.objects[pack] = bytes(changed)
        return whole

    def untrue(self) -> list[str]:
        """Points that restore to something else than they should; one that cannot be restored is not among them."""
        found = []
        for each in self.fresh().points_of().points:
            with contextlib.suppress(DamagedObject, ObjectMissing):
                if self.read(each.id, each.uuid) != self.truth[each.id]:
                    found.append(each.id)
        return found

    def damaged(self) -> list[str]:
        """Points that cannot be restored."""
        found = []
        for each in self.fresh().points_of().points:
            try:
                self.read(each.id, each.uuid)
            except (DamagedObject, ObjectMissing):
                found.append(each.id)
        return found
