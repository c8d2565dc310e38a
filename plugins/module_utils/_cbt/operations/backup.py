# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backing up a running domain. Private to the collection."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import socket
import time
import typing as t

from ..blocks.nbd import Source
from ..blocks.pipeline import default_workers
from ..errors import CbtError, DamagedObject, ObjectMissing, ProgramError, Refused
from ..hypervisor import agent, checkpoints, images, job
from ..hypervisor.connection import Domain, Session, libvirt
from ..hypervisor.disks import Disk
from ..hypervisor.domain import DomainFacts, read_domain, versions
from ..interrupt import Interrupt
from ..progress import Observer, Progress, silent
from ..repository import maps, points
from ..repository.codecs import encoder
from ..repository.known import Known, unsound_packs
from ..repository.pack_writer import PackWriter
from ..repository.points import DiskRecord, RestorePoint, StoredFile
from ..repository.repository import Repository
from . import backup_plan
from .backup_plan import BackupPlan, DiskPlan, Selection, Situation
from .reading import ReadDisk, Reader, Statistics

TOOL_VERSION = "0.1.0"


@dataclasses.dataclass(frozen=True)
class BackupRequest:
    """What is asked of one backup; see the module's documentation for the meaning of each."""

    domain: str
    mode: str = backup_plan.AUTO
    selection: Selection = Selection()
    compression: str = "lz4"
    compression_level: t.Optional[int] = None
    quiesce: str = "auto"
    freeze_mountpoints: t.Tuple[str, ...] = ()
    scan_untracked: bool = True
    scratch_dir: str = "/var/tmp"
    workers: t.Optional[int] = None
    tags: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    pin: bool = False


@dataclasses.dataclass(frozen=True)
class DiskResult:
    """What became of one disk; ``statistics`` is None where it was not read."""

    target: str
    mode: str
    reason: str
    virtual_size: t.Optional[int]
    dirty_bytes: t.Optional[int]
    statistics: t.Optional[Statistics] = None


@dataclasses.dataclass(frozen=True)
class BackupResult:
    """The outcome of a backup or, with ``point`` None, of its estimate. ``duration`` is in seconds."""

    point: t.Optional[RestorePoint]
    disks: t.Tuple[DiskResult, ...]
    warnings: t.Tuple[str, ...]
    duration: float = 0.0


def situation(domain: Domain, repository: t.Optional[Repository]) -> Situation:
    """Everything the decision rests on, read from libvirt, QEMU and the repository."""
    facts = read_domain(domain)
    if repository is None:
        return Situation(facts, (), (), "cbt-")
    listing = repository.points_of(facts.uuid)
    found = Situation(
        facts=facts,
        points=listing.points,
        checkpoints=tuple(each.name for each in checkpoints.list_checkpoints(domain)),
        ours=checkpoints.prefix(repository.id),
    )
    return dataclasses.replace(found, damaged=_damage(repository, found))


def _damage(repository: Repository, found: Situation) -> t.Dict[t.Tuple[str, str], str]:
    """Why disks at the points that may serve as a base cannot: those with a checkpoint on the domain, and the newest."""
    ours = set(backup_plan.our_checkpoints(found))
    candidates = [point for point in found.points if point.checkpoint in ours or point is found.points[-1]]
    damaged = {}
    for point in candidates:
        for record in point.disks:
            try:
                unsound = unsound_packs(repository.read_map(point, record.target), repository.store)
                if unsound:
                    damaged[point.id, record.target] = f"pack {unsound[0].id.hex()} is missing or damaged"
            except (DamagedObject, ObjectMissing) as error:
                damaged[point.id, record.target] = str(error)
    return damaged


def _estimate(found: Situation, plan: BackupPlan) -> BackupResult:
    sizes = {disk.target: disk.virtual_size for disk in found.facts.disks}
    disks = tuple(DiskResult(each.target, each.mode, each.reason, sizes[each.target], each.dirty_bytes) for each in plan.disks)
    return BackupResult(None, disks, plan.warnings)


def _ready(facts: DomainFacts) -> None:
    if not facts.active:
        raise Refused(f"Cannot back up {facts.name}: it is {facts.state}, and this version backs up running domains only. Start it, paused if need be.")
    if facts.job is not None:
        raise Refused(
            f"Cannot back up {facts.name}: a {facts.job} job is running on it. Wait for it, or end it with virsh domjobabort {facts.name} if it was left over."
        )


def backup(
    session: Session,
    repository: t.Optional[Repository],
    request: BackupRequest,
    interrupt: t.Optional[Interrupt] = None,
    observer: Observer = silent,
    check_only: bool = False,
) -> BackupResult:
    """Back up a domain into a repository, or with ``check_only`` tell what would be done.

    ``repository`` may be None with ``check_only``, if it would have to be created. Raises a CbtError; then nothing
    is published, the domain has no job and no new checkpoint of ours, and the next run builds on the last good point.
    """
    started = time.monotonic()
    domain = session.domain(request.domain)
    with job.domain_lock(domain.uuid, domain.name):
        found = situation(domain, repository)
        _ready(found.facts)
        plan = backup_plan.make_plan(found, request.mode, request.selection, request.scan_untracked)
        if check_only or repository is None:
            return _estimate(found, plan)
        run = _Run(domain, repository, request, found, plan, interrupt or Interrupt(), observer)
        result = run.carry_out()
    return dataclasses.replace(result, duration=round(time.monotonic() - started, 3))


class _Run:
    """One backup under way: the plan carried out."""

    def __init__(
        self,
        domain: Domain,
        repository: Repository,
        request: BackupRequest,
        found: Situation,
        plan: BackupPlan,
        interrupt: Interrupt,
        observer: Observer,
    ) -> None:
        self._domain, self._repository = domain, repository
        self._request, self._facts, self._points, self._plan = request, found.facts, found.points, plan
        self._interrupt, self._observer = interrupt, observer
        now = datetime.datetime.now(datetime.timezone.utc)
        self._created = now.isoformat(timespec="microseconds")
        self._id = points.new_id(now)
        self._checkpoint = f"{checkpoints.prefix(repository.id)}{self._id}" if plan.tracked else None
        self._writer = PackWriter(repository.store)
        self._stored: t.List[str] = []
        self._warnings = list(plan.warnings)
        # Read before the job begins: libvirt may take its time to ask QEMU, and the guest's writes go to scratch meanwhile.
        self._versions = {"kvm.cbt": TOOL_VERSION, **versions(domain.session)}

    def carry_out(self) -> BackupResult:
        """Take the backup and publish it."""
        taken = [each for each in self._plan.disks if each.read]
        wanted = [job.JobDisk(each.target, each.since) for each in taken]
        new = checkpoints.checkpoint_xml(self._checkpoint, self._plan.tracked, self._facts.disks) if self._checkpoint else None
        with contextlib.ExitStack() as undo, job.scratch_folder(self._facts, self._request.scratch_dir) as folder:
            undo.callback(self._withdraw)
            with job.backup_job(self._domain, self._facts, wanted, folder, new) as begin:
                undo.callback(self._forget_checkpoint)
                with agent.quiesced(self._domain, self._facts, self._request.quiesce, self._request.freeze_mountpoints) as quiesce:
                    self._observer(Progress("freezing", self._facts.name))
                    self._interrupt.check()
                    exports = begin()
                if quiesce.note is not None and self._request.quiesce == "auto":
                    self._warnings.append(f"The backup of {self._facts.name} is only crash-consistent: {quiesce.note}.")
                read = {plan.target: self._read(plan, export) for plan, export in zip(taken, exports)}
                point = self._publish(read, quiesce.consistency)
                undo.pop_all()  # it is published: from here on nothing is taken back
        self._remove_superseded()
        self._observer(Progress("done", self._facts.name))
        return BackupResult(point, self._results(read), tuple(self._warnings))

    def _read(self, plan: DiskPlan, export: job.Export) -> ReadDisk:
        self._interrupt.check()
        base = self._base_map(plan)
        known = Known(base, self._repository.reader)
        workers = self._request.workers or default_workers()
        encode = encoder(self._request.compression, self._request.compression_level)
        reader = Reader(self._writer, encode, workers, self._interrupt, self._observer)
        with Source(export.socket, export.name, export.dirty_context) as source:
            return reader.read(source, plan.target, base, known)

    def _base_map(self, plan: DiskPlan) -> t.Optional[maps.ExtentMap]:
        if plan.base is None:
            return None
        point = next(each for each in self._points if each.id == plan.base)
        return self._repository.read_map(point, plan.target)

    def _publish(self, read: t.Mapping[str, ReadDisk], consistency: str) -> RestorePoint:
        """Store packs, then maps and files, then the manifest."""
        self._observer(Progress("publishing", self._facts.name))
        written = self._writer.finish()
        maps_of = {f"{target}.map": disk.finish(written).encode() for target, disk in read.items()}
        configuration = self._configuration()
        folder = points.folder(self._facts.uuid, self._id)
        self._stored = [f"{folder}/{name}" for name in (*maps_of, *configuration)]
        files = self._repository.put_files(folder, {**maps_of, **configuration})
        point = RestorePoint(
            id=self._id,
            domain=self._facts.name,
            uuid=self._facts.uuid,
            created=self._created,
            parent=self._plan.parent,
            checkpoint=self._checkpoint,
            checkpoint_xml=checkpoints.read_xml(self._domain, self._checkpoint) if self._checkpoint else None,
            incremental_set=self._set(),
            consistency=consistency,
            disks=tuple(self._record(plan, read[plan.target], files[f"{plan.target}.map"]) for plan in self._plan.disks if plan.target in read),
            files={name: files[name] for name in configuration},
            autostart=self._facts.autostart,
            tags=dict(self._request.tags),
            pinned=self._request.pin,
            host=socket.gethostname(),
            versions=self._versions,
        )
        self._interrupt.check()
        self._stored.insert(0, points.manifest_name(point.uuid, point.id))
        self._repository.publish(point)
        return point

    def _set(self) -> str:
        since = next((plan.base for plan in self._plan.disks if plan.mode == backup_plan.INCREMENTAL), None)
        return next((point.incremental_set for point in self._points if point.id == since), self._id)

    def _record(self, plan: DiskPlan, read: ReadDisk, stored_map: StoredFile) -> DiskRecord:
        disk = next(each for each in self._facts.disks if each.target == plan.target)
        return DiskRecord(
            target=plan.target,
            size=read.size,
            mode=plan.mode,
            reason=plan.reason,
            map=stored_map,
            source=disk.source,
            image=_image_properties(disk),
            statistics=dataclasses.asdict(read.statistics),
        )

    def _configuration(self) -> t.Dict[str, bytes]:
        """The files that keep the machine's configuration, by name."""
        files = {"domain.xml": self._facts.xml.encode(), "inactive.xml": self._facts.inactive_xml.encode()}
        guest = agent.guest_information(self._domain, self._facts)
        if guest:
            files["guest.json"] = json.dumps(guest, sort_keys=True).encode()
        return files

    def _withdraw(self) -> None:
        """Delete what was stored, the manifest first: while it stands, nothing it names may go."""
        for name in self._stored:
            self._repository.store.delete(name)
        self._writer.discard()

    def _forget_checkpoint(self) -> None:
        if self._checkpoint is not None:
            checkpoints.remove(self._domain, self._checkpoint)

    def _remove_superseded(self) -> None:
        for name in self._plan.superseded:
            try:
                checkpoints.remove(self._domain, name)
            except (CbtError, libvirt.libvirtError) as error:
                # The restore point stands; the leftover costs a little memory and goes with the next backup.
                self._warnings.append(f"The superseded checkpoint {name} of {self._facts.name} was not removed: {error}")

    def _results(self, read: t.Mapping[str, ReadDisk]) -> t.Tuple[DiskResult, ...]:
        results = []
        for plan in self._plan.disks:
            done = read.get(plan.target)
            size = next(disk.virtual_size for disk in self._facts.disks if disk.target == plan.target)
            if done is None:
                results.append(DiskResult(plan.target, plan.mode, plan.reason, size, None))
            else:
                results.append(DiskResult(plan.target, plan.mode, plan.reason, done.size, done.statistics.dirty_bytes, done.statistics))
        return tuple(results)


def _image_properties(disk: Disk) -> t.Dict[str, t.Any]:
    """What a restore needs to make an image like the original one: format, cluster size, qcow2 features."""
    properties: t.Dict[str, t.Any] = {"format": disk.format, "type": disk.type}
    if disk.source is None or disk.type not in ("file", "block"):
        return properties
    try:
        info = images.info(disk.source, share=True)
    except ProgramError:
        return properties  # of use for a restore, but no reason to go without a backup
    details = info.get("format-specific", {}).get("data", {})
    kept = ("compat", "compression-type", "lazy-refcounts", "refcount-bits", "extended-l2")
    properties.update({key: details[key] for key in kept if key in details})
    if "cluster-size" in info:
        properties["cluster-size"] = info["cluster-size"]
    return properties
