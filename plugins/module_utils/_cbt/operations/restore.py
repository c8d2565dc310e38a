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
import tempfile
import time
import typing as t

from ..blocks.nbd import Connection
from ..blocks.pipeline import default_workers, in_parallel
from ..errors import CbtError, DamagedObject, HypervisorError, ObjectMissing, Refused
from ..grid import BLOCK_SIZE, block_length
from ..hypervisor import images
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
    paths = [plan.path for plan in plans]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise Refused(f"Two disks cannot be restored to the same path {', '.join(sorted(twice))}.")
    return tuple(plans)


def _check_target(plan: DiskRestore, connection: t.Optional[t.Any], force: bool) -> None:
    """Raise Refused unless an image may appear under the plan's path."""
    folder = os.path.dirname(plan.path)
    if not os.path.isdir(folder):
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: the folder {folder} does not exist. Create it first.")
    if not os.path.lexists(plan.path):
        return
    if not os.path.isfile(plan.path):
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: it is not a file.")
    users = running_users_of(connection, plan.path) if connection is not None else []
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


class _RawFile:
    """A new sparse file that blocks are written into; may be used from several threads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, offset: int, data: bytes) -> None:
        try:
            while data:
                written = os.pwrite(self._handle, data, offset)
                offset, data = offset + written, data[written:]
        except OSError as error:
            raise CbtError(f"Cannot write {self._path}: {error.strerror}. Free space there, or choose another folder.") from error

    def flush(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


class _Sink(t.Protocol):
    def write(self, offset: int, data: bytes) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def _opened(path: str, fmt: str, connections: int) -> t.Iterator[t.Callable[[], _Sink]]:
    """Yields a function that opens the image at ``path`` for writing, once per thread; all is on disk when the block ends well."""
    if fmt == "raw":
        yield functools.partial(_RawFile, path)
        return
    with tempfile.TemporaryDirectory(prefix="kvm-cbt-restore-") as folder, images.writable_export(path, fmt, folder, connections) as (socket, server):
        _wait_for(socket, server.failed)
        yield functools.partial(Connection, socket, "")
        server.stop()


def _wait_for(socket: str, failed: t.Callable[[], t.Optional[str]], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not os.path.exists(socket):
        reason = failed()
        if reason is not None or time.monotonic() > deadline:
            raise HypervisorError(f"Cannot serve the new image: {reason or 'qemu-nbd did not open its socket'}.")
        time.sleep(0.01)


def _copy_run(repository: Repository, sink: _Sink, place: str, size: int, run: Run) -> int:
    """Write one run's blocks, each proven; returns the bytes written. Runs in a worker's thread."""
    data = bytearray()
    offset = run.first * BLOCK_SIZE
    try:
        for index, block in enumerate(repository.reader.blocks(run.pack, run.ordinal, run.count)):
            if isinstance(block, DamagedObject):
                raise block
            if len(block) != block_length(run.first + index, size):
                raise DamagedObject(f"block {run.ordinal + index} of pack {run.pack.id.hex()} is of another length than the disk's")
            data += block
    except (DamagedObject, ObjectMissing) as error:
        raise DamagedObject(
            f"Cannot restore {place} at offset {offset + len(data)}: {str(error).rstrip('.')}."
            " Nothing was restored. Choose another restore point; cbt_verify lists the damage."
        ) from error
    sink.write(offset, bytes(data))
    return len(data)


@contextlib.contextmanager
def _copier(open_sink: t.Callable[[], _Sink], repository: Repository, place: str, size: int) -> t.Iterator[t.Callable[[Run], int]]:
    """Yields a function that copies a run, for one thread."""
    with contextlib.closing(open_sink()) as sink:
        yield functools.partial(_copy_run, repository, sink, place, size)


def _write_image(
    repository: Repository, extents: ExtentMap, path: str, plan: DiskRestore, place: str, workers: int, interrupt: Interrupt, observer: Observer
) -> DiskRestore:
    """Write one disk to a new image at ``path``."""
    images.create(path, plan.format, plan.size, {})
    written, total = 0, extents.stored_blocks * BLOCK_SIZE
    with _opened(path, plan.format, workers + 1) as open_sink:
        worker = functools.partial(_copier, open_sink, repository, place, plan.size)
        with in_parallel(portions(extents), worker, workers, interrupt) as results:
            for amount in results:
                written += amount
                observer(Progress("restoring", plan.target, written, total))
        with contextlib.closing(open_sink()) as last:
            last.flush()
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
    connection: t.Optional[t.Any] = None,
    interrupt: t.Optional[Interrupt] = None,
    observer: Observer = silent,
    check_only: bool = False,
) -> RestoreResult:
    """Restore disks to new images, or with ``check_only`` tell what would be written.

    ``connection`` to libvirt, where there is one, is asked whether a path is a running domain's disk. Images appear under
    their names only when all of them are complete and on disk. Raises a CbtError; then none of them is left.
    """
    started = time.monotonic()
    interrupt = interrupt or Interrupt()
    point = choose(repository.points_of().points, request.domain, request.restore_point, request.until)
    plans = make_plan(point, request)
    for plan in plans:
        _check_target(plan, connection, request.force)
    xml = repository.get_file(point, point.files["domain.xml"]).decode()
    maps = {plan.target: repository.read_map(point, plan.target) for plan in plans}
    _check_space(plans, maps)
    if check_only:
        return RestoreResult(point, plans, xml)
    done = []
    with contextlib.ExitStack() as cleanup:
        partials = {}
        for plan in plans:
            partial = f"{plan.path}.partial-{secrets.token_hex(4)}"
            partials[plan.path] = partial
            cleanup.callback(_forget, partial)
            place = f"{plan.target} of {point.domain} from restore point {point.id}"
            workers = request.workers or default_workers()
            done.append(_write_image(repository, maps[plan.target], partial, plan, place, workers, interrupt, observer))
        interrupt.check()
        for plan in plans:
            _appear(partials[plan.path], plan.path, request.force)
    return RestoreResult(point, tuple(done), xml, round(time.monotonic() - started, 3))


def _forget(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
