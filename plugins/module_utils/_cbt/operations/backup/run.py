# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the plan of a backup: makes the frozen view, reads the disks, publishes and tidies up."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import typing as t

from ...blocks.nbd import Source, check_reachable
from ...control import Control, Progress
from ...endpoint import Export, TcpServer
from ...errors import CbtError, UnreadableObject
from ...hypervisor import agent, backup_job, checkpoints, free_space, scratch
from ...hypervisor.connection import Domain, libvirt
from ...hypervisor.domain import versions
from ...hypervisor.domain_xml.disks import Disk
from ...hypervisor.domain_xml.machine_files import machine_files
from ...hypervisor.other_hosts import host_name
from ...repository.format import manifests, maps
from ...repository.format.manifests import DiskRecord, RestorePoint, StoredFile
from ...repository.records.damage import damaged_runs
from ...repository.sharing.leases import Lease
from ..point.disk_reader import ReadDisk, ranges_of
from ..point.machine_files import LARGEST, Capture
from ..point.new_point import Files, NewPoint, StoringOptions
from . import frozen_view, spot_check
from .plan import DIFFERENTIAL, INCREMENTAL, BackupPlan, DiskPlan, Situation, untracked
from .transport import Transport

TOOL_VERSION = "0.1.0"


@dataclasses.dataclass(frozen=True)
class BackupOptions(StoringOptions, agent.FreezeOptions):
    """The options that decide how a plan is carried out."""

    scratch_dir: str = "/var/tmp"
    tags: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    pin: bool = False
    transport: Transport = Transport()


@dataclasses.dataclass(frozen=True)
class Decision:
    """A plan for one domain, with the facts it is based on and the options.

    ``servers`` are those that may serve the disks, as in ``transport.servers``.
    """

    domain: Domain
    found: Situation
    plan: BackupPlan
    options: BackupOptions
    servers: tuple[TcpServer, ...]


class BackupRun:
    """Carries out the plan for one domain. ``disks``, ``healed`` and ``warnings`` are the outcome.

    ``plan`` is changed if the images of a shut-off domain cannot store bitmaps.
    """

    def __init__(self, decision: Decision, lease: Lease, control: Control) -> None:
        self._domain, self.plan, self._options = decision.domain, decision.plan, decision.options
        self._servers = decision.servers
        self._facts, self._points, self._damages = decision.found.facts, decision.found.points, decision.found.damages
        self._lease, self._repository = lease, lease.repository
        self._control = control
        self.warnings: list[str] = []
        self._freezer = agent.Freezer(self._domain, self._facts, self._options)
        self.healed: t.Mapping[str, int] = {}  # blocks by target
        now = datetime.datetime.now(datetime.timezone.utc)
        self._created = now.isoformat(timespec="microseconds")
        self._id = manifests.new_id(now)
        self._checkpoint = f"{checkpoints.prefix(self._repository.id)}{self._id}" if self.plan.tracked else None
        key = (self._facts.uuid, self._id)
        self._new = NewPoint(lease, key, self._options, self._damages, control)
        # Read before the job begins: libvirt may be slow to ask QEMU, and during the job guest writes fill scratch.
        self._versions = {"kvm.cbt": TOOL_VERSION, **versions(self._domain.session)}

    @property
    def disks(self) -> t.Mapping[str, ReadDisk]:
        """Return the disks that were read, by target."""
        return self._new.disks

    def carry_out(self) -> RestorePoint:
        """Take the backup, publish it, and return its restore point."""
        with (
            contextlib.ExitStack() as undo,
            scratch.workspace(self._domain, self._facts, self._options.scratch_dir) as work,
            contextlib.closing(self._nothing_captured(work.folder)) as captured,
        ):
            undo.callback(self._new.unpublish)
            undo.callback(self._forget_checkpoint)
            watched = self._watched(work)
            self._track_images()
            taken = [each for each in self.plan.disks if each.read]
            wanted = {each.target: each.since for each in taken}
            with (
                self._begun(wanted, work) as view,
                free_space.guarded(watched, self._control, lambda: backup_job.end(self._domain)),
            ):
                if view.note is not None:
                    self.warnings.append(f"The backup of {self._facts.name} is only crash-consistent: {view.note}.")
                # Firmware variables and similar files, as they are close to the instant of the view.
                captured.take(machine_files(self._facts.xml))
                self.warnings += captured.warnings
                check_reachable(view.exports[0].server)
                for plan, export in zip(taken, view.exports):
                    self._read(plan, export)
                point = self._publish(view, captured)
                undo.pop_all()  # it is published: from here on, nothing is undone
        self.warnings += [self._freezer.warning] if self._freezer.warning is not None else []
        self._control.reached(
            f"Restore point {point.id} of {point.domain} is published and complete. The next backup completes the"
            " remaining work."
        )
        with self._control.phase("tidying"):
            self._remove_superseded()
            if self._damages:
                from ..upkeep.healing import heal_others  # loaded only when packs are damaged

                self.healed = heal_others(self._lease, point, self._damages, self._control, self.warnings)
            self._new.record_hooks()
        self.warnings += self._new.warnings
        self._control.progress(Progress("done", self._facts.name))
        return point

    def _track_images(self) -> None:
        """Add the bitmaps of the checkpoint to the images of a shut-off domain, before they are read."""
        if self._facts.active or self._checkpoint is None:
            return
        self.plan = untracked(self.plan, checkpoints.add_bitmaps(self._facts, self._checkpoint, self.plan.tracked))
        if not self.plan.tracked:
            self._checkpoint = None

    @contextlib.contextmanager
    def _begun(self, wanted: backup_job.Wanted, work: scratch.Workspace) -> t.Iterator[frozen_view.View]:
        with contextlib.ExitStack() as stack:
            with self._control.phase("freezing", domain=self._facts.name) as result:
                view = stack.enter_context(self._view(wanted, work))
                result["consistency"] = view.consistency
            yield view

    def _view(self, wanted: backup_job.Wanted, work: scratch.Workspace) -> t.ContextManager[frozen_view.View]:
        asked = frozen_view.ViewRequest(self._domain, self._facts, wanted, self._checkpoint, self.plan.tracked)
        if not self._facts.active:
            return frozen_view.shut_off(asked, work.folder)
        return frozen_view.running(asked, work.scratch, self._freezer, self._frozen, self._servers)

    def _nothing_captured(self, folder: str) -> Capture:
        if self._facts.host is None:
            return Capture(folder)
        from ...hypervisor import storage_pools  # loaded only for a domain of another host

        session, most = self._domain.session, max(LARGEST.values())
        return Capture(folder, functools.partial(storage_pools.open_file, session, most))

    def _frozen(self) -> None:
        self._control.progress(Progress("freezing", self._facts.name))
        self._control.check()

    def _watched(self, work: scratch.Workspace) -> list[free_space.WatchedDirectory]:
        """Return the directories that need free space. Raises Refused if there is too little."""
        watched = [work.watched]
        stored_in = self._repository.local_path
        if stored_in is not None:
            watched.append(free_space.WatchedDirectory(stored_in, "the repository", "repository", 0.25))
        for directory in watched:
            directory.require_room()
        return watched

    def _read(self, plan: DiskPlan, export: Export) -> None:
        base = self._base_map(plan)
        with Source(export) as source:
            known = base if plan.since is not None else None  # all changes since it are marked
            doubtful = (
                known is not None
                and not plan.audit
                and spot_check.contradiction(source, known, self._new.parent_blocks(known)) is not None
            )
            again = ranges_of(damaged_runs(known, self._damages)) if known is not None else ()
            read = self._new.read(source, plan.target, base, plan.audit or doubtful, again)
        if read.unmarked:
            amount = sum(length for _offset, length in read.unmarked_bytes)
            how = (
                "Tracking was wrong, so the whole disk was read. Was it resized, or its image overwritten?"
                if doubtful
                else "Audit:"
            )
            self.warnings.append(
                f"{plan.target} of {self._facts.name}: {how} {amount} bytes changed without being marked by tracking,"
                f" the first at offset {read.unmarked_bytes[0][0]}. They are stored now; earlier restore points since"
                f" {plan.base} may lack them."
            )

    def _base_map(self, plan: DiskPlan) -> maps.ExtentMap | None:
        if plan.base is None:
            return None
        point = next(each for each in self._points if each.id == plan.base)
        try:
            return self._repository.read_map(point, plan.target)
        except UnreadableObject:
            if plan.since is not None:
                raise
            return None  # the whole disk is read; without a base to compare with, all blocks are stored

    def _publish(self, view: frozen_view.View, captured: Capture) -> RestorePoint:
        self._control.progress(Progress("publishing", self._facts.name))
        exports = {export.target: export for export in view.exports}
        describe = functools.partial(self._point, view)
        self._add_configuration(captured)
        return self._new.publish(captured.objects, describe, lambda target: Source(exports[target]))

    def _point(self, view: frozen_view.View, stored_maps: Files, files: Files) -> RestorePoint:
        return RestorePoint(
            id=self._id,
            repository=self._repository.id,
            domain=self._facts.name,
            uuid=self._facts.uuid,
            created=self._created,
            parent=self.plan.parent,
            checkpoint=self._checkpoint,
            checkpoint_xml=view.checkpoint_xml,
            incremental_set=self._set(),
            consistency=view.consistency,
            disks=tuple(
                self._record(plan, stored_maps[plan.target]) for plan in self.plan.disks if plan.target in stored_maps
            ),
            files=files,
            autostart=self._facts.autostart,
            tags=dict(self._options.tags),
            pinned=self._options.pin,
            host=host_name(self._domain.session),
            versions=self._versions,
            dedup=self._options.dedup,
        )

    def _set(self) -> str:
        since = next(
            (plan.base for plan in self.plan.disks if plan.mode in (INCREMENTAL, DIFFERENTIAL) or plan.audit), None
        )
        return next((point.incremental_set for point in self._points if point.id == since), self._id)

    def _record(self, plan: DiskPlan, stored_map: StoredFile) -> DiskRecord:
        disk = next(each for each in self._facts.disks if each.target == plan.target)
        read = self.disks[plan.target]
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

    def _add_configuration(self, captured: Capture) -> None:
        """Add the files with the configuration of the machine."""
        captured.add("domain.xml", self._facts.xml.encode())
        captured.add("inactive.xml", self._facts.inactive_xml.encode())
        guest = agent.guest_information(self._domain, self._facts)
        if guest:
            captured.add("guest.json", json.dumps(guest, sort_keys=True).encode())

    def _forget_checkpoint(self) -> None:
        if self._checkpoint is not None:
            checkpoints.remove(self._domain, self._checkpoint)

    def _remove_superseded(self) -> None:
        for name in self.plan.superseded:
            try:
                checkpoints.remove(self._domain, name)
                self._control.note("checkpoint_removed", checkpoint=name)
            except (CbtError, libvirt.libvirtError) as error:
                # The restore point is complete. The leftover uses a little memory, and the next backup removes it.
                self.warnings.append(f"The superseded checkpoint {name} of {self._facts.name} was not removed: {error}")


def _image_properties(disk: Disk) -> dict[str, t.Any]:
    """Return what a restore needs to create a similar image: format, cluster size, qcow2 features."""
    properties: dict[str, t.Any] = {"format": disk.format, "type": disk.type, "below": disk.below}
    if disk.type not in ("file", "block"):
        return properties
    details = disk.image.get("format-specific", {}).get("data", {})
    kept = ("compat", "compression-type", "lazy-refcounts", "refcount-bits", "extended-l2")
    properties.update({key: details[key] for key in kept if key in details})
    if "cluster-size" in disk.image:
        properties["cluster-size"] = disk.image["cluster-size"]
    return properties
