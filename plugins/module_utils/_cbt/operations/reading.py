# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a disk into packs: what is zero, known or new. Private to the collection."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import itertools
import sys
import typing as t

from ..blocks.extents import BlockRange, joined_ranges, pieces, to_blocks, united
from ..blocks.nbd import MAX_REQUEST, Connection, Source
from ..blocks.pipeline import in_parallel
from ..blocks.throttle import Throttle
from ..grid import BLOCK_SIZE, ZERO_BLOCK
from ..interrupt import Interrupt
from ..progress import Observer, Progress
from ..repository.codecs import Encoder
from ..repository.known import Known
from ..repository.maps import ExtentMap, MapBuilder
from ..repository.pack_writer import PackWriter
from ..repository.packs import Encoded, PackRef

PORTION = MAX_REQUEST // BLOCK_SIZE  # blocks one worker takes at a time

_ZERO = "zero"
_KEPT = "kept"
_NEW = "new"


class Found(t.NamedTuple):
    """Consecutive blocks that turned out alike; new ones lie in ``pack`` from ``ordinal`` on."""

    first: int
    count: int  # type: ignore[assignment]  # hides tuple's method
    state: str
    pack: bytes = b""
    ordinal: int = 0


@dataclasses.dataclass
class Statistics:
    """Bytes of one disk by what became of them.

    ``dirty_bytes`` had to be looked at, ``read_bytes`` of them were read (the rest was known to be zero), ``zero_bytes`` are zero,
    ``unchanged_bytes`` equal the parent, ``new_bytes`` were stored and took ``stored_bytes`` in packs.
    """

    dirty_bytes: int = 0
    read_bytes: int = 0
    zero_bytes: int = 0
    unchanged_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0

    def add(self, other: Statistics) -> None:
        """Count another portion in."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass(frozen=True)
class ReadDisk:
    """A disk that was read: the map in the making, finished once all packs are sealed, and what was counted.

    ``unmarked`` are the blocks an audit found changed although tracking did not mark them.
    """

    builder: MapBuilder
    statistics: Statistics
    size: int
    unmarked: t.Tuple[BlockRange, ...] = ()

    @property
    def unmarked_bytes(self) -> t.Tuple[t.Tuple[int, int], ...]:
        """The unmarked blocks as (offset, length) in bytes."""
        ranges = ((each.first * BLOCK_SIZE, each.count * BLOCK_SIZE) for each in self.unmarked)
        return tuple((offset, min(length, self.size - offset)) for offset, length in ranges)

    def finish(self, written: t.Mapping[bytes, PackRef]) -> ExtentMap:
        """Its extent map."""
        return self.builder.finish(written)


def _runs(states: t.Iterable[t.Tuple[int, str]]) -> t.Iterator[t.Tuple[int, int, str]]:
    """(first, count, state) of consecutive blocks in the same state, from (block, state) in order."""
    first, count, last = 0, 0, ""
    for block, state in states:
        if count and state == last and block == first + count:
            count += 1
            continue
        if count:
            yield first, count, last
        first, count, last = block, 1, state
    if count:
        yield first, count, last


def _examine(data: bytearray, wanted: BlockRange, known: Known, encode: Encoder, fresh: t.List[Encoded]) -> t.Iterator[t.Tuple[int, str]]:
    """State of each block of a range that was read; new ones are appended to ``fresh``."""
    view = memoryview(data)
    digests = known.digests(wanted.first, wanted.count)
    for index in range(wanted.count):
        offset = index * BLOCK_SIZE
        block = view[offset : offset + BLOCK_SIZE]
        # Comparing in place costs no copy and ends at the first byte that is not zero.
        if data.startswith(ZERO_BLOCK if len(block) == BLOCK_SIZE else ZERO_BLOCK[: len(block)], offset):
            yield wanted.first + index, _ZERO
            continue
        digest = known.block_id(block)
        if digest == digests[index]:
            yield wanted.first + index, _KEPT
            continue
        codec, payload = encode(block)
        fresh.append(Encoded(digest, codec, payload, len(block)))
        yield wanted.first + index, _NEW


def _read_portion(
    connection: Connection, size: int, known: Known, encode: Encoder, writer: PackWriter, throttle: Throttle, portion: t.Tuple[BlockRange, ...]
) -> t.Tuple[t.List[Found], Statistics]:
    """Read, hash, compare, compress and store one portion. Runs in a worker's thread."""
    found: t.List[Found] = []
    fresh: t.List[Encoded] = []
    statistics = Statistics()
    for wanted in portion:
        offset = wanted.first * BLOCK_SIZE
        length = min(wanted.count * BLOCK_SIZE, size - offset)
        statistics.dirty_bytes += length
        if wanted.zero:
            statistics.zero_bytes += length
            found.append(Found(wanted.first, wanted.count, _ZERO))
            continue
        throttle.take(length)
        data = connection.read(offset, length)
        statistics.read_bytes += length
        states = _examine(data, wanted, known, encode, fresh)
        for first, count, state in _runs(states):
            amount = min(count * BLOCK_SIZE, size - first * BLOCK_SIZE)
            statistics.zero_bytes += amount if state == _ZERO else 0
            statistics.unchanged_bytes += amount if state == _KEPT else 0
            statistics.new_bytes += amount if state == _NEW else 0
            found.append(Found(first, count, state))
    statistics.stored_bytes = sum(len(block.payload) for block in fresh)
    return _placed(found, writer, fresh), statistics


def _placed(found: t.List[Found], writer: PackWriter, fresh: t.Sequence[Encoded]) -> t.List[Found]:
    if not fresh:
        return found
    pack, ordinal = writer.append(fresh)
    placed = []
    for each in found:
        if each.state == _NEW:
            each = each._replace(pack=pack, ordinal=ordinal)
            ordinal += each.count
        placed.append(each)
    return placed


def _note(builder: MapBuilder, each: Found) -> None:
    if each.state == _ZERO:
        builder.zero(each.first, each.count)
    elif each.state == _KEPT:
        builder.keep(each.first, each.count)
    else:
        builder.place(each.first, each.count, each.pack, each.ordinal)


def _unmarked(found: Found, claims: t.Sequence[BlockRange], base: t.Optional[ExtentMap], known: Known) -> t.Iterator[BlockRange]:
    """The blocks of a finding that differ from the base and lie in no claim of being changed."""
    if found.state == _KEPT or base is None:
        return
    stop = found.first + found.count
    if found.state == _ZERO:
        changed = [(run.first, run.stop) for run in base.runs(found.first, stop)]
    else:
        unknown = {block for run in base.runs(found.first, stop) for block in range(run.first, run.stop) if known.unreadable(run, block)}
        changed = [(block, block + 1) for block in range(found.first, stop) if block not in unknown]
    for first, end in changed:
        index = max(0, bisect.bisect_right(claims, (first, sys.maxsize, True)) - 1)
        for claim in itertools.islice(claims, index, None):
            if claim.first >= end:
                break
            if claim.first > first:
                yield BlockRange(first, claim.first - first, False)
            first = max(first, min(end, claim.first + claim.count))
        if first < end:
            yield BlockRange(first, end - first, False)


@dataclasses.dataclass(frozen=True)
class Reader:
    """How disks of one run are read: where blocks go, how they are encoded, by how many workers."""

    writer: PackWriter
    encode: Encoder
    workers: int
    interrupt: Interrupt
    observer: Observer
    throttle: Throttle

    def read(self, source: Source, target: str, base: t.Optional[ExtentMap], known: Known, audit: bool = False, again: t.Iterable[BlockRange] = ()) -> ReadDisk:
        """Read what ``source`` says is to be looked at, and ``again``, and compare it with what is ``known``; the rest stays as in ``base``.

        With ``audit``, everything is read, and what changed without being marked is told.
        """
        wanted = to_blocks(source.allocation() if audit else source.extents(), source.size)
        portions = pieces(united(wanted, again), PORTION)
        claims = tuple(to_blocks(source.extents(), source.size)) if audit else ()
        unmarked: t.List[BlockRange] = []
        builder = MapBuilder(source.size, base)
        statistics = Statistics()

        @contextlib.contextmanager
        def worker() -> t.Iterator[t.Callable[[t.Tuple[BlockRange, ...]], t.Tuple[t.List[Found], Statistics]]]:
            with source.connect() as connection:
                yield functools.partial(_read_portion, connection, source.size, known, self.encode, self.writer, self.throttle)

        with in_parallel(portions, worker, self.workers, self.interrupt) as results:
            for found, counted in results:
                for each in found:
                    _note(builder, each)
                    if audit:
                        unmarked += _unmarked(each, claims, base, known)
                statistics.add(counted)
                done = (found[-1].first + found[-1].count) * BLOCK_SIZE if found else 0
                self.observer(Progress("reading", target, min(done, source.size), source.size))
        return ReadDisk(builder, statistics, source.size, tuple(joined_ranges(unmarked)))
