# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pull-mode backup job: a frozen view of a domain's disks, served over NBD. Private to the collection."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import tempfile
import time
import typing as t
from xml.etree import ElementTree

from .. import programs
from ..errors import HypervisorError, Refused
from .connection import Domain, explained, libvirt
from .disks import Disk
from .domain import DomainFacts

SCRATCH_PREFIX = "kvm-cbt-"
SELINUX = "/sys/fs/selinux/enforce"  # is there while SELinux is active
END_WITHIN = 60  # seconds to wait for QEMU to take down the job


@dataclasses.dataclass(frozen=True)
class Export:
    """One disk of a running job: an NBD export on the job's socket.

    ``dirty_context`` is the metadata context that tells the changes, None if the disk is read in full.
    """

    target: str
    socket: str
    name: str
    dirty_context: t.Optional[str]


@dataclasses.dataclass(frozen=True)
class JobDisk:
    """A disk to be exported; ``since`` is the checkpoint whose bitmap tells its changes, None for all of it."""

    target: str
    since: t.Optional[str] = None


def backup_xml(wanted: t.Sequence[JobDisk], disks: t.Iterable[Disk], folder: str) -> str:
    """XML for ``backupBegin`` in pull mode, with socket and scratch files in ``folder``."""
    chosen = {disk.target: disk for disk in wanted}
    root = ElementTree.Element("domainbackup", mode="pull")
    ElementTree.SubElement(root, "server", transport="unix", socket=os.path.join(folder, "nbd.sock"))
    listed = ElementTree.SubElement(root, "disks")
    for disk in disks:
        item = chosen.get(disk.target)
        if item is None:
            ElementTree.SubElement(listed, "disk", name=disk.target, backup="no")
            continue
        element = ElementTree.SubElement(listed, "disk", name=disk.target, backup="yes", type="file", exportname=disk.target)
        if item.since is None:
            element.set("backupmode", "full")
        else:
            element.set("backupmode", "incremental")
            element.set("incremental", item.since)
        ElementTree.SubElement(element, "driver", type="qcow2")
        ElementTree.SubElement(element, "scratch", file=os.path.join(folder, f"{disk.target}.scratch"))
    return ElementTree.tostring(root, encoding="unicode")


def _label(folder: str) -> None:
    # A folder gets the label of its parent; SELinux lets QEMU make a socket only in what the host's rules say is for it.
    if os.path.exists(SELINUX) and shutil.which("restorecon"):
        programs.run(["restorecon", folder])


@contextlib.contextmanager
def scratch_folder(facts: DomainFacts, parent: str) -> t.Iterator[str]:
    """A folder of the job's own for its socket and scratch files, writable by QEMU and closed to others.

    Its name tells the domain, its lock (flock) that the run still lives.
    """
    try:
        folder = tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{facts.uuid[:8]}-", dir=parent)
    except OSError as error:
        raise Refused(f"Cannot create a scratch folder in {parent}: {error.strerror}. Choose another with scratch_dir.") from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if facts.owner is not None and os.geteuid() == 0:
            os.chown(folder, *facts.owner)
        _label(folder)
        if len(os.fsencode(os.path.join(folder, "nbd.sock"))) > 107:
            raise Refused(f"The scratch directory {parent} is too long a path for a Unix socket. Choose a shorter one with scratch_dir.")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _gone(domain: Domain) -> bool:
    """True if the domain has no backup job. Raises libvirtError if that cannot be told."""
    try:
        domain.api.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            return True
        raise
    return False


def end(domain: Domain) -> None:
    """Abort the domain's backup job and wait until it is gone; a job that is gone already is no fault.

    The job outlives a restart of libvirtd, which therefore is waited for. Raises HypervisorError if the job cannot be ended.
    """
    deadline = time.monotonic() + END_WITHIN
    while True:
        try:
            if _gone(domain):
                return
            reason = f"it did not end within {END_WITHIN} s"
        except libvirt.libvirtError as error:
            reason = str(error)
            if domain.session.alive:
                deadline = 0.0
        if time.monotonic() > deadline:
            raise HypervisorError(f"Cannot end the backup job of {domain.name}: {reason}. End it with virsh domjobabort {domain.name}.")
        with contextlib.suppress(libvirt.libvirtError):
            domain.api.abortJob()
        time.sleep(0.02)


@contextlib.contextmanager
def backup_job(
    domain: Domain, facts: DomainFacts, wanted: t.Sequence[JobDisk], folder: str, new_checkpoint: t.Optional[str] = None
) -> t.Iterator[t.Callable[[], t.Tuple[Export, ...]]]:
    """Yields a function that begins the job and returns its exports; whatever happens then, the job ends with the block.

    Begin and block are apart so that the guest is frozen only around the begin. ``new_checkpoint`` is the XML
    of a checkpoint that libvirt creates in the same instant.
    """
    begun = False

    def begin() -> t.Tuple[Export, ...]:
        nonlocal begun
        xml = backup_xml(wanted, facts.disks, folder)
        with explained(f"begin the backup job of {facts.name}", "See libvirt's and QEMU's log of this domain."):
            domain.api.backupBegin(xml, new_checkpoint, 0)
            begun = True
        socket = os.path.join(folder, "nbd.sock")
        return tuple(Export(each.target, socket, each.target, f"qemu:dirty-bitmap:backup-{each.target}" if each.since else None) for each in wanted)

    try:
        yield begin
    finally:
        if begun:
            end(domain)


@contextlib.contextmanager
def domain_lock(uuid: str, name: str) -> t.Iterator[None]:
    """Hold the right to change a domain's checkpoints on this host. Raises Refused if another run holds it."""
    runtime = "/run/lock" if os.access("/run/lock", os.W_OK) else os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())
    path = os.path.join(runtime, f"{SCRATCH_PREFIX}{uuid}.lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Refused(
            f"Cannot lock {name} against other runs: {path}: {error.strerror}. If it belongs to another user and no run uses it, delete it."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(f"Another run of kvm.cbt is working on {name}. Wait for it to end.") from error
        yield
    finally:
        os.close(handle)
