# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates a restore point: stores its blocks, maps and files, and publishes it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import secrets
import typing as t

from ...blocks.extents import BlockRange
from ...blocks.source import DiskSource
from ...blocks.throttle import Throttle
from ...control import Control
from ...errors import ObjectMissing, Refused, RepositoryError
from ...parallel import check_workers, default_workers
from ...repository.dedup import dedup
from ...repository.format import names
from ...repository.format.codecs import encoder
from ...repository.format.manifests import Key, RestorePoint, StoredFile
from ...repository.format.maps import ExtentMap
from ...repository.records.damage import Damages
from ...repository.sharing import publishing
from ...repository.sharing.leases import Lease
from .disk_reader import ReadDisk, Reader, ranges_of
from .parent_blocks import ParentBlocks
from .portion import BlockSink

_AT_ONCE = 4  # files in memory at the same time

Files = t.Mapping[str, StoredFile]
Contents = t.Mapping[str, t.Callable[[], bytes]]  # by name of a file, which may be large, a function that loads it
Describe = t.Callable[[Files, Files], RestorePoint]  # from the stored maps by target, and the stored files by name
SourceOf = t.Callable[[str], t.ContextManager[DiskSource]]  # reopens the disk with this target


@dataclasses.dataclass(frozen=True)
class StoringOptions:
    """How blocks are stored. ``rate_limit`` is in bytes per second; None for no limit."""

    compression: str = "lz4"
    compression_level: int | None = None
    dedup: str = dedup.REPOSITORY
    workers: int | None = None
    rate_limit: int | None = None

    def __post_init__(self) -> None:
        check_workers(self.workers)
        if self.rate_limit is not None and self.rate_limit < 1:
            raise Refused(
                f"rate_limit is {self.rate_limit}; it must be at least 1 byte per second. Omit it to read without a"
                " limit."
            )


def check(options: StoringOptions) -> None:
    """Raise RepositoryError if codec or level are unknown, or a library is missing. Called in check mode, too."""
    encoder(options.compression, options.compression_level)


class NewPoint:
    """A restore point that is being created.

    ``key`` is the UUID of the domain and the id of the point. Reading a disk stores packs. ``publish`` stores maps and
    files and, last, the manifest. Other runs do not see a point before its manifest is stored.

    ``disks`` are those that were read, ``warnings`` what the user should know about how the point was stored.
    """

    def __init__(self, lease: Lease, key: Key, options: StoringOptions, damages: Damages, control: Control) -> None:
        self._lease, self._repository = lease, lease.repository
        self._uuid, self._id = self._key = names.check_uuid(key[0]), names.check_point_id(key[1])
        self._workers = options.workers or default_workers()
        self._encode = encoder(options.compression, options.compression_level)
        self._throttle = Throttle(options.rate_limit, control.check)
        self._control = control
        self._damages = damages
        self._dedup = dedup.deduplicator(self._repository, options.dedup, self._uuid, damages)
        self._writers = [self._repository.writer()]
        self._maps: dict[str, ExtentMap] = {}
        self._unnamed = list(self._writers)  # writers with packs that no manifest can name yet
        self._stored: list[str] = []  # maps and files that no manifest can name yet
        self._may_exist = False
        self.disks: dict[str, ReadDisk] = {}
        self.warnings: list[str] = []

    def parent_blocks(self, base: ExtentMap | None) -> ParentBlocks:
        """Return the known blocks of a disk, from a map of it."""
        return ParentBlocks(base, self._repository.reader, self._damages)

    def _reader(self, deduplicator: dedup.Deduplicator | None) -> Reader:
        sink = BlockSink(self._writers[-1], self._encode, deduplicator)
        return Reader(sink, self._workers, self._control, self._throttle)

    def read(
        self,
        source: DiskSource,
        target: str,
        base: ExtentMap | None,
        audit: bool = False,
        again: t.Iterable[BlockRange] = (),
    ) -> ReadDisk:
        """Read a disk as ``Reader.read`` does."""
        self._control.check()
        if not names.is_target(target):
            raise Refused(
                f"Cannot store the disk {names.shown(target)}: a repository cannot hold this name. Use another target,"
                " or exclude the disk."
            )
        with self._control.phase("reading", disk=target, compared=base is not None) as result:
            disk = self._reader(self._dedup).read(source, target, base, self.parent_blocks(base), audit, again)
            result.update(disk.summary())
        self.disks[target] = disk
        return disk

    def publish(
        self,
        files: Contents,
        describe: Describe,
        source_of: SourceOf,
        yields: bool = False,
    ) -> RestorePoint:
        """Store packs, then maps and files, then the manifest.

        Return the published point. With ``yields``, this may be a point with the same id that another run published.

        ``source_of`` reopens a disk. It is called only if packs in the map of the disk are missing or condemned.
        """
        with self._control.phase("publishing", point=self._id) as result:
            packs = self._writers[-1].finish()
            written = {**(self._dedup.packs if self._dedup is not None else {}), **packs}
            result.update(packs=len(packs), pack_bytes=sum(pack.size for pack in packs.values()))
            self._maps = {target: disk.builder.finish(written) for target, disk in self.disks.items()}
            described = functools.partial(self._described, files, describe)
            point = described()
            self._control.check()
            restore_missing = functools.partial(self._restore_missing, described, source_of)
            return publishing.publish(self._lease, point, restore_missing, self._before_visible, yields)

    def _before_visible(self) -> None:
        """Note that other runs may see the point from now on and refer to its blocks.

        This holds even if the store reports an error, because the request may still succeed later.
        """
        self._may_exist = True
        self._stored.clear()
        self._unnamed.clear()

    def _restore_missing(
        self, described: t.Callable[[], RestorePoint], source_of: SourceOf, lost: set[str]
    ) -> RestorePoint:
        """Read the blocks in the ``lost`` packs again and store them in new packs.

        Store all maps and files again under new names.
        """
        self._control.check()
        self._control.warn("stored_again", objects=len(lost), reason="a collector is about to delete them")
        self._writers.append(self._repository.writer())
        self._unnamed.append(self._writers[-1])
        again = {}
        for target, extents in self._maps.items():
            ranges = ranges_of(run for run in extents.runs() if run.pack.name in lost)
            if ranges:
                with source_of(target) as source:
                    again[target] = self._reader(None).read_ranges(
                        source, target, extents, self.parent_blocks(None), ranges
                    )
        written = self._writers[-1].finish()
        for target, disk in again.items():
            self._maps[target] = disk.builder.finish(written)
            self.disks[target].statistics.stored_bytes += disk.statistics.stored_bytes
        return described()

    def _described(self, files: Contents, describe: Describe) -> RestorePoint:
        """Store maps and files under unique names, and return the restore point that names them."""
        maps = {target: names.map_file(target, secrets.token_hex(4)) for target in self._maps}
        own = {name: names.own_file(name, secrets.token_hex(4)) for name in files}
        folder = names.point_folder(*self._key)
        self._stored += [f"{folder}/{name}" for name in (*maps.values(), *own.values())]
        contents = {maps[target]: extents.encode() for target, extents in self._maps.items()}
        stored = self._repository.put_files(folder, contents)
        waiting = list(files)
        while waiting:  # a few at a time: the files of a machine may be large, and are loaded only here
            some, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
            stored.update(self._repository.put_files(folder, {own[name]: files[name]() for name in some}))
        for target, extents in self._maps.items():
            # Missing packs are found and stored again before the point is published.
            with contextlib.suppress(ObjectMissing):
                self._repository.protect((pack.name for pack in extents.packs), like=f"{folder}/{maps[target]}")
        return describe(
            {target: stored[name] for target, name in maps.items()}, {name: stored[each] for name, each in own.items()}
        )

    def withdraw(self) -> None:
        """Delete the objects that this run stored, unless another run may refer to them.

        The collector deletes the rest.
        """
        for name in self._stored:
            with contextlib.suppress(RepositoryError):  # no manifest names what stays, and the collector deletes it
                self._repository.discard(name)
        for writer in self._unnamed:
            writer.discard()

    def unpublish(self) -> None:
        """Delete the manifest if it may exist, then do the same as ``withdraw``.

        Call this only for a point whose id this run created, because another run may have published any other point.
        """
        if self._may_exist:
            # The removal is recorded first. Without the record the manifest stays: another host may have read it.
            with contextlib.suppress(RepositoryError):
                publishing.withdraw(self._repository, self._key)
        self.withdraw()

    def leave(self) -> None:
        """Do the same as ``withdraw``, but keep the packs and record their hooks.

        A later attempt reuses the blocks. If there is none, the collector deletes the packs.
        """
        try:
            if self._dedup is not None:
                with contextlib.suppress(RepositoryError):
                    for writer in self._writers:
                        writer.finish()
                    self._record()
                    self._unnamed.clear()
        finally:
            self.withdraw()

    def _record(self) -> None:
        name = dedup.of_backup(self._uuid, f"{self._id}-{secrets.token_hex(4)}")  # another run may copy the same point
        dedup.store_hooks(
            self._repository, name, itertools.chain.from_iterable(writer.hooks() for writer in self._writers)
        )

    def record_hooks(self) -> None:
        """Record the hooks by which later runs find these blocks. A failure costs only space."""
        self.warnings += self._repository.foreign_words()
        if self._dedup is None:
            return
        try:
            self._record()
        except RepositoryError as error:
            self.warnings.append(
                f"Later backups cannot reuse the blocks of restore point {self._id} for deduplication: {error}"
            )
        if self._dedup.failure is not None:
            self.warnings.append(
                f"Deduplication did not cover the whole repository, which costs space: {self._dedup.failure}."
            )
