# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides where each disk of a restore point is written, and refuses unsafe targets."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ...blocks.nbd_target import VERIFIED, NbdTarget, NbdTls, is_nbd
from ...busy import RESTORE_NAMES, Busy
from ...errors import Refused, size_text
from ...grid import BLOCK_SIZE
from ...hypervisor.connection import Session
from ...hypervisor.domain import running_users_of
from ...hypervisor.domain_xml.disks import Selection
from ...images import locks, qcow2_layout
from ...parallel import check_workers
from ...repository.format.manifests import RestorePoint
from ...repository.format.maps import ExtentMap
from ...repository.format.names import shown
from .targets import is_device

LONGEST_NAME = 255 - len(".partial-01234567")  # bytes of a file name, which has this suffix until the file is complete


@dataclasses.dataclass(frozen=True)
class MachineOptions:
    """How a restored machine is defined. ``new_uuid`` and ``new_macs`` make it differ from the original.

    ``networks`` is as in ``TargetMachine``. ``isolated_network`` takes all interfaces and is created if needed.
    With ``trust_definition``, the stored definition is not filtered.
    """

    new_uuid: bool = False
    new_macs: bool = False
    networks: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    start: bool = False
    autostart: bool | None = None
    trust_definition: bool = False
    isolated_network: str | None = None


@dataclasses.dataclass(frozen=True)
class RestoreRequest:
    """The options of one restore, as documented in the module. ``machine`` is None to define no domain."""

    domain: str
    restore_point: str = "latest"
    until: str | None = None
    dest: str | None = None
    disk_map: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    format: str = "qcow2"
    preallocation: str = "none"
    selection: Selection = Selection()
    force: bool = False
    new_name: str | None = None
    machine: MachineOptions | None = None
    workers: int | None = None
    nbd_tls: NbdTls = VERIFIED

    def __post_init__(self) -> None:
        check_workers(self.workers)


@dataclasses.dataclass(frozen=True)
class DiskRestore:
    """One disk of a restore, planned or done; ``written_bytes`` is None in a plan."""

    target: str
    path: str
    format: str
    size: int
    written_bytes: int | None = None
    busy: Busy | None = None

    @property
    def shares(self) -> dict[str, float]:
        """The share of the workers' time that each kind of work took; empty in a plan."""
        return self.busy.shares(RESTORE_NAMES) if self.busy is not None else {}


def path_in(folder: str, name: str) -> str:
    """Return the path of ``name`` directly in ``folder``. Raises Refused for a path or too long a name. Pure."""
    path = os.path.join(folder, name)
    if not name or "\0" in name or os.path.basename(os.path.normpath(path)) != name:
        raise Refused(
            f"Cannot restore to {shown(name)} in {folder}: this is not a valid file name. Choose another name with"
            " new_name."
        )
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise Refused(
            f"Cannot restore to {shown(name)} in {folder}: the name is too long for a file. Choose a shorter one with"
            " new_name."
        )
    return path


def make_plan(point: RestorePoint, request: RestoreRequest) -> tuple[DiskRestore, ...]:
    """Decide which disk goes where. Pure. Raises Refused if the request does not fit the restore point."""
    if request.format == "raw" and request.preallocation == "metadata":
        raise Refused("A raw image has no metadata to preallocate. Set preallocation to none, falloc or full.")
    known = {disk.target: disk for disk in point.disks}
    whose = f"Restore point {point.id} of {point.domain}"
    request.selection.check(list(known), whose)
    Selection(tuple(request.disk_map)).check(list(known), whose)
    plans = []
    for target, disk in known.items():
        if request.selection.why_excluded(target) is not None or (
            request.disk_map and target not in request.disk_map and request.dest is None
        ):
            continue
        path = request.disk_map.get(target)
        if path is None:
            path = path_in(request.dest or "", f"{request.new_name or point.domain}-{target}.{request.format}")
        if not os.path.isabs(path) and not is_nbd(path):
            raise Refused(
                f"Cannot restore {target} to {path}: the path is not absolute. Set dest, or give disk_map an absolute"
                " path."
            )
        # An NBD server chooses its image format. It receives the content of the disk.
        plans.append(DiskRestore(target, path, "raw" if is_nbd(path) else request.format, disk.size))
    if not plans:
        raise Refused(f"{whose} has no disk left to restore. Check include_disks, exclude_disks and disk_map.")
    paths = [os.path.normpath(f"/{plan.path.lstrip('/')}") for plan in plans]
    twice = {path for path in paths if paths.count(path) > 1}
    if twice:
        raise Refused(f"Two disks cannot be restored to the same path {', '.join(sorted(twice))}.")
    return tuple(plans)


def check_target(plan: DiskRestore, session: Session | None, force: bool) -> None:
    """Raise Refused if the restore must not write to the path of the plan.

    The reasons are a missing folder, a wrong file type, a running domain or QEMU process that uses the path, and an
    existing target without ``force``. Users of an NBD export cannot be detected, so only ``force`` is checked.
    """
    if is_nbd(plan.path):
        if not force:
            raise Refused(
                f"Cannot restore {plan.target} to {plan.path}: the content of the export would be lost. Check it, and"
                " set force: true."
            )
        return
    folder = os.path.dirname(plan.path)
    if not os.path.isdir(folder):
        raise Refused(
            f"Cannot restore {plan.target} to {plan.path}: the folder {folder} does not exist. Create it first."
        )
    if not os.path.lexists(plan.path):
        return
    device = is_device(plan.path)
    if not os.path.isfile(plan.path) and not device:
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: it is neither a file nor a block device.")
    users = running_users_of(session, plan.path) if session is not None else []
    if users or locks.in_use(plan.path):
        by = f"the running domain {', '.join(users)}" if users else "a running process"
        raise Refused(
            f"Cannot restore {plan.target} to {plan.path}: it is in use by {by}. Shut it down, or restore to another"
            " path."
        )
    if not force and device:
        raise Refused(
            f"Cannot restore {plan.target} to {plan.path}: the content of the device would be lost. Check it, and set"
            " force: true."
        )
    if not force:
        raise Refused(
            f"Cannot restore {plan.target} to {plan.path}: it exists already. Choose another path, remove it, or set"
            " force: true."
        )


def check_in_place(plan: DiskRestore, layout: qcow2_layout.Layout | None, request: RestoreRequest) -> list[str]:
    """Raise Refused unless the disk fits the device or NBD export, and the device is free.

    Return a warning if it has no space to grow. ``check_target`` checks whether QEMU uses it. Raises CbtError if an NBD
    server does not answer.
    """
    if request.preallocation != "none":
        raise Refused(
            f"Cannot restore {plan.target} to {plan.path} with preallocation: its size is fixed. Set preallocation:"
            " none."
        )
    size = _capacity(plan, request.nbd_tls)
    needed = layout.file_size if layout is not None else plan.size
    if size < needed:
        raise Refused(
            f"Cannot restore {plan.target} to {plan.path}: {size_text(needed)} are needed and it has {size_text(size)}."
            " Choose a larger one."
        )
    if layout is None or size >= layout.full_size:
        return []
    return [
        f"{plan.path} has {size_text(size)}, and {plan.target} can grow to {size_text(layout.full_size)} with its"
        " bitmaps. When it is full, writes of the guest fail and changes are not tracked. Enlarge the device."
    ]


def _capacity(plan: DiskRestore, tls: NbdTls) -> int:
    """Return the size of a device or NBD export in bytes.

    Raises Refused if it is read-only, or if the device is mounted or is part of a volume group or RAID.
    """
    if is_nbd(plan.path):
        with contextlib.closing(NbdTarget(plan.path, tls)) as export:
            return export.size
    try:
        handle = os.open(plan.path, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        why = f"{error.strerror}. Is it mounted, or part of a volume group or RAID?"
        raise Refused(f"Cannot restore {plan.target} to {plan.path}: {why}") from error
    try:
        return os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)


def bytes_needed(plan: DiskRestore, extents: ExtentMap, layout: qcow2_layout.Layout | None, preallocation: str) -> int:
    """Return the bytes that the image of a disk occupies. Pure."""
    if preallocation in ("falloc", "full"):
        return layout.file_size if layout is not None else plan.size
    return extents.stored_blocks * BLOCK_SIZE + (layout.metadata_size if layout is not None else 0)


def check_space(amounts: t.Iterable[tuple[str, int]]) -> None:
    """Raise Refused if a file system has too little free space for the files.

    ``amounts`` contains paths and sizes in bytes. If another program uses the space later, writing fails.
    """
    needed: dict[int, tuple[str, int]] = {}
    for path, amount in amounts:
        folder = os.path.dirname(path)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        device = os.stat(folder).st_dev
        folder, so_far = needed.get(device, (folder, 0))
        needed[device] = folder, so_far + amount
    for folder, size in needed.values():
        usage = os.statvfs(folder)
        free = usage.f_bavail * usage.f_frsize
        if size > free and usage.f_blocks:  # otherwise the file system does not report its size
            raise Refused(
                f"Cannot restore to {folder}: {size_text(size)} are needed and {size_text(free)} are free. Free space,"
                " or choose another folder."
            )
