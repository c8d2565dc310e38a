# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores disks of a restore point, or the whole machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from ...blocks.nbd_target import NbdTls
from ...busy import RESTORE_NAMES, WRITING, Busy, Stopwatch, Watches
from ...control import Control, Progress
from ...errors import CbtError, DamagedObject, Refused, UnreadableObject
from ...files import Buffer, delete, rename_new
from ...grid import BLOCK_SIZE
from ...hypervisor.connection import Session
from ...images import qcow2_layout
from ...parallel import default_workers, ordered_results
from ...repository.format import manifests
from ...repository.format.maps import Run, portions
from ...repository.repository import Repository
from ...repository.selecting import select_point
from .definitions import check_readers, plain_texts
from .disk_writer import DiskWriter, layout_of, partial_name, sweep
from .plan import (
    DiskRestore,
    MachineOptions,
    RestoreRequest,
    bytes_needed,
    check_in_place,
    check_space,
    check_target,
    make_plan,
)
from .result import RestoreResult
from .saved_machine import configuration, write_file
from .targets import in_place

if t.TYPE_CHECKING:
    from .machine import MachinePlan

__all__ = ["DiskRestore", "MachineOptions", "NbdTls", "RestoreRequest", "RestoreResult", "make_plan", "restore"]


@dataclasses.dataclass(frozen=True)
class _RunWriter:
    """Writes runs of one disk, in one worker's thread. ``lost`` is the sentence on what a failure costs."""

    repository: Repository
    image: DiskWriter
    place: str
    size: int
    lost: str
    watch: Stopwatch

    def write(self, run: Run) -> int:
        """Verify and write one run's blocks. Return the number of bytes written."""
        self.watch.start()
        proven: list[Buffer] = []
        offset = run.first * BLOCK_SIZE
        try:
            for block in self.repository.reader.disk_blocks(run, self.size, self.watch):
                if isinstance(block, DamagedObject):
                    raise block
                proven.append(block)
        except UnreadableObject as error:
            raise DamagedObject(
                f"Cannot restore {self.place} at offset {offset + len(proven) * BLOCK_SIZE}: {str(error).rstrip('.')}."
                f" {self.lost} Choose another restore point; cbt_verify lists the damage."
            ) from error
        self.image.write(offset, proven)
        self.watch.lap(WRITING)
        return sum(len(block) for block in proven)


def _appear(partial: str, final: str, force: bool) -> None:
    """Rename a complete file to its final name; without ``force``, never replace another file."""
    try:
        if force:
            os.replace(partial, final)
        elif not rename_new(partial, final):
            raise Refused(
                f"Cannot restore to {final}: a file with that name was created in the meantime. Choose another path."
            )
    except OSError as error:
        raise CbtError(f"Cannot restore to {final}: {error.strerror}.") from error


class _Restore:
    """Plans and checks one restore, then carries it out. ``disks`` and ``xml`` are the plan, then the outcome."""

    def __init__(self, repository: Repository, request: RestoreRequest, session: Session | None) -> None:
        """Plan the restore and make all checks."""
        self._repository, self._request, self._session = repository, request, session
        self.point = select_point(
            repository.points_with(request.domain), request.domain, request.restore_point, request.until
        )
        manifests.check(self.point)  # again, in case that a manifest was accepted when it was read
        self.disks = make_plan(self.point, request)
        for plan in self.disks:
            check_target(plan, session, request.force)
        if session is not None:
            replaced = request.machine is not None and not request.machine.new_uuid
            check_readers(session, self.disks, self.point.uuid if replaced else None)
        self.xml = configuration(repository, self.point, "domain.xml")
        self.warnings = plain_texts(self.xml, self.disks)
        self._written_over: list[str] = []  # devices and exports whose previous content is lost
        self._maps = {plan.target: repository.read_map(self.point, plan.target) for plan in self.disks}
        self._layouts = {plan.target: self._layout(plan) for plan in self.disks}
        for plan in self.disks:
            if in_place(plan.path):
                self.warnings += check_in_place(plan, self._layouts[plan.target], request)
        self.machine: MachinePlan | None = None
        if request.machine is not None:
            if session is None:
                raise Refused(
                    f"Cannot define {request.new_name or self.point.domain}: libvirt does not answer here. Restore the"
                    " disks without define."
                )
            from .machine import plan_machine  # loaded only to define a machine

            self.machine = plan_machine(session, repository, self.point, request, self.disks, request.machine)
            self.xml = self.machine.xml
        check_space(self._amounts())

    def _amounts(self) -> t.Iterator[tuple[str, int]]:
        """Yield the paths of the files to write, and their sizes in bytes."""
        for plan in self.disks:
            if not in_place(plan.path):
                yield (
                    plan.path,
                    bytes_needed(
                        plan, self._maps[plan.target], self._layouts[plan.target], self._request.preallocation
                    ),
                )
        for file in self.machine.files if self.machine is not None else ():
            yield file.path, file.saved.size

    def _layout(self, plan: DiskRestore) -> qcow2_layout.Layout | None:
        record = self.point.disk(plan.target)
        if plan.format != "qcow2":
            return None
        return layout_of(
            self._maps[plan.target], record.image if record is not None else {}, self._request.preallocation
        )

    def carry_out(self, control: Control) -> None:
        """Write images under temporary names, then devices and exports in place.

        Rename the images, and define the machine last.
        """
        done: dict[str, DiskRestore] = {}
        with contextlib.ExitStack() as cleanup:
            appearing: dict[str, str] = {}  # final names by partial ones
            # Devices and exports come last, so that few steps can fail after their content is lost.
            for plan in sorted(self.disks, key=lambda disk: in_place(disk.path)):
                path = plan.path
                if in_place(path):
                    # Check again: images may have been written since the first check, which takes time.
                    check_target(plan, self._session, self._request.force)
                    check_in_place(plan, self._layouts[plan.target], self._request)
                    control.reached(f"{path} holds a part of {plan.target} only. Run it again.")
                    self._written_over.append(path)
                else:
                    sweep(plan.path)
                    path = partial_name(plan.path)
                    appearing[path] = plan.path
                    cleanup.callback(delete, path)
                with control.phase("restoring", disk=plan.target, path=plan.path, format=plan.format) as result:
                    written, busy = self._write_disk(plan, path, control)
                    done[plan.target] = dataclasses.replace(plan, written_bytes=written, busy=busy)
                    result.update(written_bytes=written, **busy.summary(RESTORE_NAMES))
            control.check()
            self._check_again()
            with contextlib.ExitStack() as undo:
                self._write_files(appearing, undo)
                for partial, final in appearing.items():
                    _appear(partial, final, self._request.force)
                    if not self._request.force:
                        undo.callback(delete, final)
                if self.machine is not None:
                    self.xml = self.machine.define(self._remains(appearing.values()))
                undo.pop_all()
        if self.machine is not None:
            self.machine.begin()
        self.disks = tuple(done[plan.target] for plan in self.disks)

    def _remains(self, files: t.Iterable[str]) -> str:
        """Return the sentence on what is kept if libvirt refuses to define the domain."""
        written = self._written_over + (list(files) if self._request.force else [])
        if not written:
            return "Nothing was restored."
        kept = f"The restored files and devices were kept and replace the previous ones: {', '.join(sorted(written))}."
        return f"{kept} Define a domain with them, or restore without define."

    def _check_again(self) -> None:
        """Check again that images and the domain may be created: both may have changed during the writing."""
        for plan in self.disks:
            if not in_place(plan.path):
                check_target(plan, self._session, self._request.force)
        if self.machine is not None:
            self.machine.check(self._request.force)

    def _write_disk(self, plan: DiskRestore, path: str, control: Control) -> tuple[int, Busy]:
        """Return the number of bytes written, and what the workers were busy with."""
        extents = self._maps[plan.target]
        written, total = 0, extents.stored_blocks * BLOCK_SIZE
        disk = f"{plan.target} of {self.point.domain} from restore point {self.point.id}"
        with contextlib.closing(
            DiskWriter(path, extents, self._layouts[plan.target], self._request.preallocation, self._request.nbd_tls)
        ) as image:
            lost = (
                f"The previous content of {', '.join(self._written_over)} is lost."
                if self._written_over
                else "Nothing was restored."
            )
            watches = Watches()

            @contextlib.contextmanager
            def worker() -> t.Iterator[t.Callable[[Run], int]]:
                yield _RunWriter(self._repository, image, disk, plan.size, lost, watches.new()).write

            workers = self._request.workers or default_workers()
            with ordered_results(portions(extents.runs()), worker, workers, control) as results:
                for amount in results:
                    written += amount
                    control.progress(Progress("restoring", plan.target, written, total))
            busy = watches.busy()
            image.finish()
        return written, busy

    def _write_files(self, appearing: dict[str, str], undo: contextlib.ExitStack) -> None:
        for file in self.machine.files if self.machine is not None else ():
            for made in file.make_folders() if file.saved.kind == "tpm" else ():
                undo.callback(_remove_folder, made)
            partial = partial_name(file.path)
            undo.callback(delete, partial)
            self.warnings += write_file(self._repository, self.point, file.saved, partial)
            appearing[partial] = file.path


def _remove_folder(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


def restore(
    repository: Repository,
    request: RestoreRequest,
    session: Session | None = None,
    control: Control | None = None,
    check_only: bool = False,
) -> RestoreResult:
    """Restore disks and, if asked for, define the machine.

    With ``check_only``, nothing is written, and the result is the plan. ``session`` shows whether a path is the disk of
    a running domain; None without libvirt. Files get their names when all are complete and on disk. The domain is
    defined last. Raises CbtError. New files are then deleted, unless only the start or autostart failed. With
    ``force``, files that have their final names stay. A complete device or export keeps the disk; an incomplete one has
    zeroes in the first MiB, or in all of it if it is smaller.
    """
    started = time.monotonic()
    run = _Restore(repository, request, session)
    if not check_only:
        run.carry_out(control or Control())
    duration = round(time.monotonic() - started, 3)
    return RestoreResult(run.point, run.disks, run.xml, run.machine, duration, tuple(run.warnings))
