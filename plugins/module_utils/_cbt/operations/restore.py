# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restoring disks of a restore point to images. Private to the collection."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import secrets
import time
import typing as t

from ..blocks.pipeline import default_workers, in_parallel
from ..errors import CbtError, DamagedObject, ObjectMissing, Refused
from ..files import Buffer, ParallelFile
from ..grid import BLOCK_SIZE, block_length
from ..hypervisor import images, qcow2
from ..hypervisor.connection import Session
from ..hypervisor.domain import running_users_of
from ..interrupt import Interrupt
from ..progress import Observer, Progress, silent
from ..repository.maps import ExtentMap, Run
from ..repository.points import RestorePoint
from ..repository.repository import Repository
from .backup_plan import Selection, size_text
from .blockrun import portions
from .selecting import choose


@dataclasses.dataclass(frozen=True)
class RestoreRequest:
    """What is asked of one restore; see the module's documentation for the meaning of each."""

    domain: str
    restore_point: str = "latest"
    until: t.Optional[str] = None
    dest: t.Optional[str] = None
    disk_map: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    format: str = "qcow2"
    selection: Selection = Selection()
    force: bool = False
    workers: t.Optional[int] = None


@dataclasses.dataclass(frozen=True)
class DiskRestore:
    """One disk to be written, and afterwards what was; ``written_bytes`` is None in a plan."""

    target: str
    path: str
    format: str
    size: int
    written_bytes: t.Optional[int] = None


@dataclasses.dataclass(frozen=True)
class RestoreResult:
    """The outcome of a restore, or of its plan."""

    point: RestorePoint
    disks: t.Tuple[DiskRestore, ...]
    domain_xml: str
    duration: float = 0.0


def make_plan(point: RestorePoint, request: RestoreRequest) -> t.Tuple[DiskRestore, ...]:
    """Which disks go where. Pure. Raises Refused if the request does not fit the restore point."""
    known = {disk.target: disk for disk in point.disks}
    whose = f"Restore point {point.id} of {point.domain}"
    request.selection.check(list(known), whose)
    Selection(tuple(request.disk_map)).check(list(known), whose)
    plans = []
    for target, disk in known.items():
        if request.selection.left_out(target) is not None or (request.disk_map and target not in request.disk_map and request.dest is None):
            continue
        path = request.disk_map.get(target)
        if path is None:
            path = os.path.join(request.dest or "", f"{point.domain}-{target}.{request.format}")
        if not os.path.isabs(path):
            raise Refused(f"Cannot restore {target} to {path}: the path is not absolute. Set dest, or give disk_map an absolute path.")
        plans.append(DiskRestore(target, path, request.format, disk.size))
    if not plans:
        raise Refused(f"{whose} has no disk left to restore. Check include_disks, exclude_disks and disk_map.")
    paths = [os.path.normpath(f"/{plan.path.lstrip('/')}") for plan in plans]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise Refused(f"Two disks cannot be restored to the same path {', '.join(sorted(twice))}.")
    return tuple(plans)


def _check_target(plan: DiskRestore, session: t.Optional[Session], force: bool) -> None:
    """Raise Refused unless an image may appear under the plan's path."""
    folder = os.path.dirname(plan.path)
    if not os.path.isdir(folder):
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: the folder {folder} does not exist. Create it first.")
    if not os.path.lexists(plan.path):
        return
    if not os.path.isfile(plan.path):
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: it is not a file.")
    users = running_users_of(session, plan.path) if session is not None else []
    if users or images.in_use(plan.path):
        by = f"the running domain {', '.join(users)}" if users else "a running process"
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: it is in use by {by}. Shut it down, or restore to another path.")
    if not force:
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: it exists already. Choose another path, remove it, or set force: true.")


def _check_space(plans: t.Sequence[DiskRestore], maps: t.Mapping[str, ExtentMap]) -> None:
    """Raise Refused if the blocks to be written cannot fit; what else is written meanwhile shows itself when writing."""
    needed: t.Dict[int, t.Tuple[str, int]] = {}
    for plan in plans:
        folder = os.path.dirname(plan.path)
        device = os.stat(folder).st_dev
        _folder, so_far = needed.get(device, (folder, 0))
        needed[device] = folder, so_far + maps[plan.target].stored_blocks * BLOCK_SIZE
    for folder, size in needed.values():
        usage = os.statvfs(folder)
        free = usage.f_bavail * usage.f_frsize
        if size > free:
            raise Refused(f"Cannot restore to {folder}: {size_text(size)} are needed and {size_text(free)} are free. Free space, or choose another folder.")


class _ImageFile:
    """A new sparse image that blocks are written into, from several threads."""

    def __init__(self, path: str, extents: ExtentMap, fmt: str) -> None:
        """Creates the file, with all that belongs to its format, for the disk an extent map describes."""
        self._path = path
        self._layout = qcow2.plan(extents.size, ((run.first, run.count) for run in extents.runs())) if fmt == "qcow2" else None
        with self._explained():
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = ParallelFile(self._handle)
            os.ftruncate(self._handle, self._layout.file_size if self._layout else extents.size)
            for offset, data in self._layout.metadata() if self._layout else ():
                self._file.write([data], offset)

    @contextlib.contextmanager
    def _explained(self) -> t.Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CbtError(f"Cannot write {self._path}: {error.strerror}. Free space there, or choose another folder.") from error

    def write(self, offset: int, buffers: t.Sequence[Buffer]) -> None:
        """Write consecutive blocks from an offset of the disk on."""
        with self._explained():
            self._file.write(buffers, self._layout.place(offset) if self._layout else offset)

    def sync(self) -> None:
        """Bring everything onto the disk."""
        with self._explained():
            os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def _copy_run(repository: Repository, image: _ImageFile, place: str, size: int, run: Run) -> int:
    """Write one run's blocks, each proven; returns the bytes written. Runs in a worker's thread."""
    proven: t.List[Buffer] = []
    offset = run.first * BLOCK_SIZE
    try:
        for index, block in enumerate(repository.reader.blocks(run.pack, run.ordinal, run.count)):
            if isinstance(block, DamagedObject):
                raise block
            if len(block) != block_length(run.first + index, size):
                raise DamagedObject(f"block {run.ordinal + index} of pack {run.pack.id.hex()} is of another length than the disk's")
            proven.append(block)
    except (DamagedObject, ObjectMissing) as error:
        raise DamagedObject(
            f"Cannot restore {place} at offset {offset + len(proven) * BLOCK_SIZE}: {str(error).rstrip('.')}."
            " Nothing was restored. Choose another restore point; cbt_verify lists the damage."
        ) from error
    written = sum(len(block) for block in proven)
    image.write(offset, proven)
    return written


def _write_image(
    repository: Repository, extents: ExtentMap, path: str, plan: DiskRestore, place: str, workers: int, interrupt: Interrupt, observer: Observer
) -> DiskRestore:
    """Write one disk to a new image at ``path``."""
    written, total = 0, extents.stored_blocks * BLOCK_SIZE
    with contextlib.closing(_ImageFile(path, extents, plan.format)) as image:
        work = functools.partial(_copy_run, repository, image, place, plan.size)
        with in_parallel(portions(extents), lambda: contextlib.nullcontext(work), workers, interrupt) as results:
            for amount in results:
                written += amount
                observer(Progress("restoring", plan.target, written, total))
        image.sync()
    return dataclasses.replace(plan, written_bytes=written)


def _appear(partial: str, final: str, force: bool) -> None:
    """Give a finished image its final name; without ``force`` never in the place of another file."""
    if force:
        os.replace(partial, final)
        return
    try:
        os.link(partial, final)
    except FileExistsError as error:
        raise Refused(f"Cannot restore to {final}: a file of that name appeared meanwhile. Choose another path.") from error
    os.unlink(partial)


def restore(
    repository: Repository,
    request: RestoreRequest,
    session: t.Optional[Session] = None,
    interrupt: t.Optional[Interrupt] = None,
    observer: Observer = silent,
    check_only: bool = False,
) -> RestoreResult:
    """Restore disks to new images, or with ``check_only`` tell what would be written.

    ``session`` with libvirt, where there is one, is asked whether a path is a running domain's disk. Images appear under
    their names only when all of them are complete and on disk. Raises a CbtError; then none of them is left.
    """
    started = time.monotonic()
    interrupt = interrupt or Interrupt()
    point = choose(repository.points_of().points, request.domain, request.restore_point, request.until)
    plans = make_plan(point, request)
    for plan in plans:
        _check_target(plan, session, request.force)
    xml = repository.get_file(point, point.files["domain.xml"]).decode()
    maps = {plan.target: repository.read_map(point, plan.target) for plan in plans}
    _check_space(plans, maps)
    if check_only:
        return RestoreResult(point, plans, xml)
    done = []
    workers = request.workers or default_workers()
    with contextlib.ExitStack() as cleanup:
        partials = {}
        for plan in plans:
            partial = f"{plan.path}.partial-{secrets.token_hex(4)}"
            partials[plan.path] = partial
            cleanup.callback(_forget, partial)
            place = f"{plan.target} of {point.domain} from restore point {point.id}"
            done.append(_write_image(repository, maps[plan.target], partial, plan, place, workers, interrupt, observer))
        interrupt.check()
        with contextlib.ExitStack() as undo:
            for plan in plans:
                _appear(partials[plan.path], plan.path, request.force)
                if not request.force:
                    undo.callback(_forget, plan.path)
            undo.pop_all()
    return RestoreResult(point, tuple(done), xml, round(time.monotonic() - started, 3))


def _forget(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
