# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proving restore points: their structure, and every byte they hold. Private to the collection."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
import typing as t

from ..blocks.pipeline import default_workers, in_parallel
from ..errors import DamagedObject, ObjectMissing, Refused
from ..grid import BLOCK_SIZE
from ..interrupt import Interrupt
from ..progress import Observer, Progress, silent
from ..repository.maps import ExtentMap, Run
from ..repository.packs import ENTRY, FOOTER_SIZE, HEADER, PackRef
from ..repository.points import RestorePoint
from ..repository.repository import Listing, Repository
from .selecting import of_domain

OK = "ok"
DAMAGED = "damaged"
INCOMPLETE = "incomplete"

STRUCTURE = "structure"
DATA = "data"


@dataclasses.dataclass(frozen=True)
class Damage:
    """A range of a disk that cannot be restored, and why; the disk is empty and the range 0 where the whole point is concerned.

    ``missing`` is True if an object is gone rather than changed.
    """

    disk: str
    offset: int
    length: int
    cause: str
    missing: bool = False


@dataclasses.dataclass(frozen=True)
class PointVerdict:
    """What was found of one restore point; ``point`` is None if its manifest cannot be read."""

    name: str
    point: t.Optional[RestorePoint]
    damage: t.Tuple[Damage, ...]
    checked_bytes: int

    @property
    def status(self) -> str:
        """ok, damaged (something changed) or incomplete (something is gone)."""
        if not self.damage:
            return OK
        return INCOMPLETE if all(each.missing for each in self.damage) else DAMAGED


def select(listing: Listing, domain: t.Optional[str], wanted: t.Union[str, t.Sequence[str]]) -> t.List[RestorePoint]:
    """The points to verify: ``latest`` of each domain, ``all``, or those with the given ids. Raises Refused as ``choose`` does."""
    found = of_domain(listing.points, domain) if domain is not None else list(listing.points)
    if wanted == "all":
        return found
    if wanted == "latest":
        return list({point.uuid: point for point in found}.values())
    chosen = []
    for each in [wanted] if isinstance(wanted, str) else wanted:
        matches = [point for point in found if point.id == each]
        if not matches:
            raise Refused(f"The repository holds no restore point {each}{f' of {domain}' if domain else ''}.")
        chosen += matches
    return chosen


def _joined(damage: t.Iterable[Damage]) -> t.Tuple[Damage, ...]:
    """Neighbouring ranges with the same cause made one."""
    joined: t.List[Damage] = []
    for each in damage:
        last = joined[-1] if joined else None
        if last is not None and last.disk == each.disk and last.offset + last.length == each.offset and last.cause == each.cause:
            joined[-1] = dataclasses.replace(last, length=last.length + each.length)
        else:
            joined.append(each)
    return tuple(joined)


def _range(target: str, run: Run, size: int, error: Exception) -> Damage:
    offset = run.first * BLOCK_SIZE
    return Damage(target, offset, min(run.count * BLOCK_SIZE, size - offset), str(error), isinstance(error, ObjectMissing))


class _Checked:
    """What is known of packs and their blocks so far, so that points sharing them cost one reading. Only the main thread writes."""

    def __init__(self) -> None:
        self.sound: t.Dict[bytes, bytearray] = {}

    def block_states(self, ref: PackRef) -> bytearray:
        """One byte per block of a pack: 1 if it was read and is sound."""
        return self.sound.setdefault(ref.id, bytearray(ref.blocks))


def _tasks(extents: ExtentMap, checked: _Checked) -> t.Iterator[Run]:
    """Pieces of a map's runs whose blocks were not read yet."""
    for run in extents.runs():
        states = checked.block_states(run.pack)
        ordinal, end = run.ordinal, run.ordinal + run.count
        while ordinal < end:
            known = states.find(0, ordinal, end)
            if known < 0:
                break
            stop = min(end, known + 16)
            following = states.find(1, known, stop)
            stop = following if following >= 0 else stop
            yield run.part(run.first + known - run.ordinal, run.first + stop - run.ordinal)
            ordinal = stop


def _check_run(repository: Repository, target: str, size: int, run: Run) -> t.Tuple[Run, t.List[Damage]]:
    damage = []
    try:
        for index, block in enumerate(repository.reader.blocks(run.pack, run.ordinal, run.count)):
            one = run.part(run.first + index, run.first + index + 1)
            if isinstance(block, DamagedObject):
                damage.append(_range(target, one, size, block))
            elif len(block) != min(BLOCK_SIZE, size - one.first * BLOCK_SIZE):
                damage.append(_range(target, one, size, DamagedObject(f"block {one.ordinal} of pack {run.pack.id.hex()} is of another length")))
    except (DamagedObject, ObjectMissing) as error:
        damage.append(_range(target, run, size, error))
    return run, damage


@dataclasses.dataclass(frozen=True)
class Verifier:
    """Verifies points of one repository, remembering what it has read."""

    repository: Repository
    level: str = DATA
    workers: int = dataclasses.field(default_factory=default_workers)
    interrupt: Interrupt = dataclasses.field(default_factory=Interrupt)
    observer: Observer = silent
    _checked: _Checked = dataclasses.field(default_factory=_Checked)

    def verify(self, point: RestorePoint) -> PointVerdict:
        """Verify one restore point. Raises RepositoryError only if the repository cannot be read at all."""
        damage: t.List[Damage] = []
        checked = 0
        for file in point.files.values():
            try:
                self.repository.get_file(point, file)
            except (DamagedObject, ObjectMissing) as error:
                damage.append(Damage("", 0, 0, str(error), isinstance(error, ObjectMissing)))
        for disk in point.disks:
            try:
                extents = self.repository.read_map(point, disk.target)
            except (DamagedObject, ObjectMissing) as error:
                damage.append(Damage(disk.target, 0, disk.size, str(error), isinstance(error, ObjectMissing)))
                continue
            check = self._verify_data if self.level == DATA else self._verify_packs
            amount, found = check(disk.target, extents)
            checked += amount
            damage += found
        return PointVerdict(point.id, point, _joined(damage), checked)

    def _verify_packs(self, target: str, extents: ExtentMap) -> t.Tuple[int, t.List[Damage]]:
        """Every pack is there, of its size, and its directory as written."""
        faults: t.Dict[bytes, Exception] = {}
        checked = 0
        for ref in extents.packs:
            self.interrupt.check()
            try:
                self.repository.reader.directory(ref)
                checked += HEADER.size + ref.blocks * ENTRY.size + FOOTER_SIZE
            except (DamagedObject, ObjectMissing) as error:
                faults[ref.id] = error
        if not faults:
            return checked, []
        return checked, [_range(target, run, extents.size, faults[run.pack.id]) for run in extents.runs() if run.pack.id in faults]

    def _verify_data(self, target: str, extents: ExtentMap) -> t.Tuple[int, t.List[Damage]]:
        """Every pack is as above, and every block unpacks to the bytes whose SHA-256 was recorded."""
        found: t.List[Damage] = []
        checked, total = 0, extents.stored_blocks * BLOCK_SIZE

        @contextlib.contextmanager
        def worker() -> t.Iterator[t.Callable[[Run], t.Tuple[Run, t.List[Damage]]]]:
            yield functools.partial(_check_run, self.repository, target, extents.size)

        with in_parallel(_tasks(extents, self._checked), worker, self.workers, self.interrupt) as results:
            for run, damage in results:
                if not damage:
                    self._checked.block_states(run.pack)[run.ordinal : run.ordinal + run.count] = b"\1" * run.count
                found += damage
                checked += run.count * BLOCK_SIZE
                self.observer(Progress("verifying", target, checked, total))
        return checked, found


def verify(
    repository: Repository,
    domain: t.Optional[str] = None,
    wanted: t.Union[str, t.Sequence[str]] = "latest",
    level: str = DATA,
    workers: t.Optional[int] = None,
    interrupt: t.Optional[Interrupt] = None,
    observer: Observer = silent,
) -> t.Tuple[t.List[PointVerdict], float]:
    """Verify restore points; returns a verdict for each and the seconds it took.

    Manifests that cannot be read are damage too, except where points are asked for by id.
    """
    started = time.monotonic()
    listing = repository.points_of()
    verdicts = []
    if wanted in ("all", "latest"):
        verdicts = [PointVerdict(name, None, (Damage("", 0, 0, cause),), 0) for name, cause in sorted(listing.damaged.items())]
    try:
        chosen = select(listing, domain, wanted)
    except Refused:
        if not verdicts:
            raise
        chosen = []
    verifier = Verifier(repository, level, workers or default_workers(), interrupt or Interrupt(), observer)
    verdicts += [verifier.verify(point) for point in chosen]
    return verdicts, round(time.monotonic() - started, 3)
