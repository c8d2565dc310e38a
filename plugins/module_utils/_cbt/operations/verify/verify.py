# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verifies restore points: their structure, and every byte or a sample."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
import typing as t

from ...busy import Busy, Stopwatch, Watches
from ...control import Control, Progress
from ...errors import DamagedObject, Interrupted, ObjectMissing, Refused, RepositoryError, UnreadableObject, check_range
from ...grid import BLOCK_SIZE, BLOCKS_AT_ONCE, byte_range
from ...parallel import check_workers, default_workers, ordered_results
from ...repository.format.manifests import RestorePoint
from ...repository.format.maps import ExtentMap, Run
from ...repository.format.packs import ENTRY, FOOTER_SIZE, HEADER
from ...repository.records import verified
from ...repository.repository import Listing, Repository
from ...repository.selecting import ALL, LATEST, PointSelection, select_points
from .findings import Findings, Recorder
from .verdicts import Damage, PointVerdict, joined

__all__ = ["PointSelection", "VerifyRequest", "verify"]

DATA = "data"

MOST_RANGES = 1 << 16  # damaged ranges of a disk that are listed one by one


@dataclasses.dataclass(frozen=True)
class VerifyRequest:
    """The points to verify and the level.

    At level data, at most ``sample`` percent of the blocks are read.
    """

    domain: str | None = None
    wanted: PointSelection = LATEST
    level: str = DATA
    sample: int = 100
    workers: int | None = None

    def __post_init__(self) -> None:
        check_workers(self.workers)
        check_range("sample", self.sample, "between 1 and 100 percent", 1, 100)

    @property
    def slices(self) -> int:
        """Return the number of verifications that together read all blocks."""
        return -(-100 // self.sample) if self.level == DATA else 1


def _range(target: str, run: Run, size: int, error: Exception, ordinal: int | None = None) -> Damage:
    offset, length = byte_range(run.first, run.count, size)
    return Damage(target, offset, length, str(error), isinstance(error, ObjectMissing), ordinal=ordinal)


def _as_far_as_told(target: str, size: int, found: list[Damage]) -> list[Damage]:
    """Return the damage of a disk; the whole disk if there are too many ranges.

    More than MOST_RANGES ranges become one that names the first cause.
    """
    if len(found) <= MOST_RANGES:
        return found
    return [
        Damage(
            target,
            0,
            size,
            f"more than {MOST_RANGES} of its ranges are damaged, the first because: {found[0].cause}",
            found[0].missing,
        )
    ]


def _tasks(extents: ExtentMap, findings: Findings, due: t.Callable[[Run], bool]) -> t.Iterator[Run]:
    """Yield the due pieces of a map's runs whose blocks are not known to be sound yet.

    A piece never crosses a multiple of BLOCKS_AT_ONCE in its pack.
    """
    for run in extents.runs():
        sound = findings.sound_blocks(run.pack)
        ordinal, end = run.ordinal, run.ordinal + run.count
        while ordinal < end:
            unknown = sound.find(0, ordinal, end)
            if unknown < 0:
                break
            stop = min(end, (unknown // BLOCKS_AT_ONCE + 1) * BLOCKS_AT_ONCE)
            following = sound.find(1, unknown, stop)
            stop = following if following >= 0 else stop
            piece = run.part(run.first + unknown - run.ordinal, run.first + stop - run.ordinal)
            if due(piece):
                yield piece
            ordinal = stop


def _look(repository: Repository, target: str, size: int, watch: Stopwatch, run: Run) -> list[Damage]:
    damage = []
    watch.start()
    try:
        for index, block in enumerate(repository.reader.disk_blocks(run, size, watch)):
            if isinstance(block, DamagedObject):
                one = run.part(run.first + index, run.first + index + 1)
                damage.append(_range(target, one, size, block, one.ordinal))
    except UnreadableObject as error:
        damage.append(_range(target, run, size, error))
    return damage


def _check_run(repository: Repository, target: str, size: int, watch: Stopwatch, run: Run) -> tuple[Run, list[Damage]]:
    """Return a run and its damage. Damage counts only if a second reading finds it too."""
    first = _look(repository, target, size, watch, run)
    if not first:
        return run, []
    again = _look(repository, target, size, watch, run)
    return run, _within(again, first) or _within(first, again)


def _twice(read: t.Callable[[], t.Any]) -> t.Any:
    """Return the result of ``read``, which is called again if it finds damage."""
    try:
        return read()
    except UnreadableObject:
        return read()


def _within(some: t.Iterable[Damage], others: t.Sequence[Damage]) -> list[Damage]:
    """Return the ranges that others cover. An unreadable pack covers each of its blocks."""
    return [
        each
        for each in some
        if any(
            other.offset <= each.offset and each.offset + each.length <= other.offset + other.length for other in others
        )
    ]


@dataclasses.dataclass(frozen=True)
class Verifier:
    """Verifies points of one repository, and reads shared blocks only once.

    The request divides the blocks into slices, and one of them is read. ``due_slices`` contains its number, by the UUID
    of the domain.
    """

    repository: Repository
    findings: Findings
    request: VerifyRequest
    due_slices: t.Mapping[str, int]
    control: Control

    def verify(self, point: RestorePoint) -> PointVerdict | None:
        """Verify one restore point; returns None if the point was removed since it was listed.

        Raises RepositoryError only if the repository cannot be read.
        """
        with self.control.phase("verifying", point=point.id, domain=point.domain, level=self.request.level) as result:
            verdict = self._verify(point)
            result.update(verdict.summary() if verdict is not None else {"status": "removed"})
        return verdict

    def _verify(self, point: RestorePoint) -> PointVerdict | None:
        while True:
            verdict = self._examine(point)
            if not verdict.damage:
                return verdict
            self.repository.check_there()
            try:
                now = self.repository.point(point.uuid, point.id)
            except ObjectMissing:
                return None
            except DamagedObject:
                return verdict
            if now == point:
                return verdict
            point = now  # its blocks were moved during the verification, and the old packs may be deleted

    def _examine(self, point: RestorePoint) -> PointVerdict:
        damage: list[Damage] = []
        checked = 0
        busy: list[Busy] = []
        for file in point.files.values():
            try:
                _twice(functools.partial(self.repository.get_file, point, file))
            except UnreadableObject as error:
                damage.append(Damage("", 0, 0, str(error), isinstance(error, ObjectMissing), own=True))
        for disk in point.disks:
            try:
                extents = _twice(functools.partial(self.repository.read_map, point, disk.target))
            except UnreadableObject as error:
                damage.append(Damage(disk.target, 0, disk.size, str(error), isinstance(error, ObjectMissing), own=True))
                continue
            if self.request.level == DATA:
                amount, found = self._verify_data(disk.target, extents, self.due_slices.get(point.uuid, 0), busy)
            else:
                amount, found = self._verify_packs(disk.target, extents)
            checked += amount
            damage += found
        return PointVerdict(point.id, point, joined(damage), checked, tuple(busy))

    def _verify_packs(self, target: str, extents: ExtentMap) -> tuple[int, list[Damage]]:
        """Check that every pack exists with the right size and a sound directory."""
        faults: dict[bytes, Exception] = {}
        checked = 0
        for ref in extents.packs:
            self.control.check()
            try:
                _twice(functools.partial(self.repository.reader.directory, ref))
            except UnreadableObject as error:
                faults[ref.id] = error
                self.findings.note_unreadable(ref, str(error))
            else:
                self.findings.note_readable(ref)
                checked += HEADER.size + ref.blocks * ENTRY.size + FOOTER_SIZE
        if not faults:
            return checked, []
        ranges = (
            _range(target, run, extents.size, faults[run.pack.id]) for run in extents.runs() if run.pack.id in faults
        )
        return checked, _as_far_as_told(target, extents.size, list(itertools.islice(ranges, MOST_RANGES + 1)))

    def _verify_data(
        self, target: str, extents: ExtentMap, due_slice: int, busy: list[Busy]
    ) -> tuple[int, list[Damage]]:
        """Read every block that is due and compare it with its recorded id."""
        found: list[Damage] = []
        watches = Watches()
        slices, workers = self.request.slices, self.request.workers or default_workers()
        checked, total = 0, extents.stored_blocks * BLOCK_SIZE // slices

        def due(piece: Run) -> bool:
            piece_number = int.from_bytes(piece.pack.id[:8], "big") + piece.ordinal // BLOCKS_AT_ONCE
            return piece_number % slices == due_slice or self.findings.suspect(piece)

        @contextlib.contextmanager
        def worker() -> t.Iterator[t.Callable[[Run], tuple[Run, list[Damage]]]]:
            yield functools.partial(_check_run, self.repository, target, extents.size, watches.new())

        with ordered_results(_tasks(extents, self.findings, due), worker, workers, self.control) as results:
            for run, damage in results:
                self._record(run, damage)
                if len(found) <= MOST_RANGES:
                    found += damage
                checked += run.count * BLOCK_SIZE
                self.control.progress(Progress("verifying", target, checked, total))
        busy.append(watches.busy())
        return checked, _as_far_as_told(target, extents.size, found)

    def _record(self, run: Run, damage: t.Sequence[Damage]) -> None:
        hurt = {each.ordinal: each.cause for each in damage if each.ordinal is not None}
        if len(hurt) < len(damage):
            self.findings.note_unreadable(run.pack, damage[0].cause)
        else:
            self.findings.note_blocks(run, hurt)


def _chosen(listing: Listing, request: VerifyRequest) -> tuple[list[RestorePoint], list[PointVerdict]]:
    """Return the points to verify, and verdicts on manifests that cannot be read.

    If points are selected by id, unreadable manifests are ignored.
    """
    damaged = sorted(listing.damaged.items()) if request.wanted in (ALL, LATEST) else ()
    verdicts = [PointVerdict(name, None, (Damage("", 0, 0, cause),), 0) for name, cause in damaged]
    try:
        return select_points(listing.points, request.domain, request.wanted), verdicts
    except Refused:
        if not verdicts:
            raise
        return [], verdicts


def verify(
    repository: Repository,
    request: VerifyRequest,
    control: Control | None = None,
    record: bool = True,
    warn: t.Callable[[str], None] = lambda _text: None,
) -> tuple[list[PointVerdict], float]:
    """Verify restore points; returns a verdict for each and the seconds it took.

    Unreadable manifests are damage too, unless points are selected by id. A sample reads a half of the blocks, a third
    and so on; each verification reads other blocks, until all were read. Findings are recorded for backups to heal,
    unless ``record`` is false. If recording fails, ``warn`` is called with the reason.

    Raises RepositoryError if something cannot be read, after the other points are verified.
    """
    started = time.monotonic()
    listing = repository.points_of()
    if listing.damaged:
        listing = repository.points_of()  # a manifest counts as damaged only if a second reading fails too
    chosen, verdicts = _chosen(listing, request)
    findings, kind, slices = Findings(repository), request.wanted.kind, request.slices
    uuids = {point.uuid for point in chosen} if slices > 1 else ()
    due_slices = {uuid: verified.next_slice(repository, uuid, kind, slices) for uuid in uuids}
    recorder = Recorder(repository, findings, request.level, 100 // slices, warn, record)
    verifier = Verifier(repository, findings, request, due_slices, control or Control())
    unread: dict[str, RepositoryError] = {}
    for point in chosen:
        try:
            verdict = verifier.verify(point)
        except Interrupted:
            recorder.ended()
            raise
        except RepositoryError as error:
            repository.check_there()
            recorder.ended()
            unread.setdefault(point.uuid, error)
            continue
        if verdict is not None:
            verdicts.append(verdict)
            recorder.point(verdict)
    recorder.end(
        listing, {uuid: due_slice for uuid, due_slice in due_slices.items() if uuid not in unread}, kind, slices
    )
    for failure in unread.values():
        raise failure
    return verdicts, round(time.monotonic() - started, 3)
