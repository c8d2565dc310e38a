# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs libvirt's pull-mode backup job: a frozen view of disks, served over NBD."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import typing as t
from xml.etree import ElementTree

from ..endpoint import Export, Server, TcpServer
from ..errors import HypervisorError, Refused
from ..runtime import own_folder
from . import scratch
from .connection import Domain, explained, libvirt, no_wait
from .domain import DomainFacts
from .domain_xml.disks import Disk

END_WITHIN = 60  # seconds to wait until QEMU has ended the job


# Targets of the disks to export, each with the checkpoint since which it is read; None for all of the disk.
Wanted = t.Mapping[str, t.Optional[str]]


def _server(server: Server) -> dict[str, str]:
    if isinstance(server, str):
        return {"transport": "unix", "socket": server}
    tls = {"tls": "yes"} if server.certificates is not None else {}
    return {"transport": "tcp", "name": server.listen, "port": str(server.port), **tls}


def backup_xml(wanted: Wanted, disks: t.Iterable[Disk], folder: str, server: Server) -> str:
    """Return XML for ``backupBegin`` in pull mode, with scratch files in ``folder``."""
    root = ElementTree.Element("domainbackup", mode="pull")
    ElementTree.SubElement(root, "server", _server(server))
    listed = ElementTree.SubElement(root, "disks")
    for disk in disks:
        if disk.target not in wanted:
            ElementTree.SubElement(listed, "disk", name=disk.target, backup="no")
            continue
        element = ElementTree.SubElement(
            listed, "disk", name=disk.target, backup="yes", type="file", exportname=disk.target
        )
        since = wanted[disk.target]
        element.set("backupmode", "full" if since is None else "incremental")
        if since is not None:
            element.set("incremental", since)
        ElementTree.SubElement(element, "driver", type="qcow2")
        ElementTree.SubElement(element, "scratch", file=os.path.join(folder, f"{disk.target}.scratch"))
    return ElementTree.tostring(root, encoding="unicode")


def _gone(domain: Domain) -> bool:
    """Whether the domain has no job, is off or is gone. Raises libvirtError for other errors."""
    try:
        domain.api.backupGetXMLDesc()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_DOMAIN_BACKUP,
            libvirt.VIR_ERR_OPERATION_INVALID,
            libvirt.VIR_ERR_NO_DOMAIN,
        ):
            return True
        raise
    return False


def end(domain: Domain) -> None:
    """Abort the domain's backup job, if there is one, and wait until it is gone.

    The job outlives a restart of libvirtd, so this waits for it. Raises HypervisorError if the job does not end.
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
            raise HypervisorError(
                f"Cannot end the backup job of {domain.name}: {reason}. End it with virsh domjobabort {domain.name}."
            )
        with contextlib.suppress(libvirt.libvirtError):
            domain.api.abortJob()
        time.sleep(0.02)


def _begin(
    domain: Domain, servers: t.Sequence[Server], xml: t.Callable[[Server], str], new_checkpoint: str | None
) -> Server:
    """Begin the job at the first of ``servers`` with a free port. Return that server. Raises libvirtError."""
    for server in servers[:-1]:
        try:
            domain.api.backupBegin(xml(server), new_checkpoint, 0)
            return server
        except libvirt.libvirtError as error:
            if "Address already in use" not in str(error):  # QEMU's message
                raise
    domain.api.backupBegin(xml(servers[-1]), new_checkpoint, 0)
    return servers[-1]


@contextlib.contextmanager
def backup_job(
    domain: Domain,
    facts: DomainFacts,
    wanted: Wanted,
    folder: str,
    new_checkpoint: str | None = None,
    servers: t.Sequence[TcpServer] = (),
) -> t.Iterator[t.Callable[[], tuple[Export, ...]]]:
    """Yield a function that begins the job and returns its exports.

    The job ends with the block, also after an error. It begins separately, so that the guest is frozen only around the
    begin. ``new_checkpoint`` is the XML of a checkpoint that libvirt creates at the same instant. QEMU serves the job
    over a socket in ``folder``, which is on the hypervisor, or at the first of ``servers`` with a free port. Raises
    Refused if QEMU cannot export one of the disks.
    """
    for disk in facts.disks:
        if disk.target in wanted and disk.never is not None:
            raise Refused(f"Cannot read the disks of {facts.name}: {disk.target} {disk.never}")
    with contextlib.ExitStack() as stack:

        def begin() -> tuple[Export, ...]:
            with explained(f"begin the backup job of {facts.name}", "See libvirt's and QEMU's log of this domain."):
                server = _begin(
                    domain,
                    servers or [scratch.socket_of_qemu(folder)],
                    lambda each: backup_xml(wanted, facts.disks, folder, each),
                    new_checkpoint,
                )
                stack.callback(end, domain)
            return tuple(
                Export(target, server, f"qemu:dirty-bitmap:backup-{target}" if since else None)
                for target, since in wanted.items()
            )

        yield begin


@contextlib.contextmanager
def domain_lock(uuid: str, name: str, wait: t.Callable[[], bool] = no_wait) -> t.Iterator[None]:
    """Lock a domain or an image against other runs of this user. Raises Refused when ``wait`` returns False."""
    with contextlib.ExitStack() as stack:
        folder, at = stack.enter_context(own_folder())
        file = f"{uuid}.lock"
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=at)
        except OSError as error:
            why = f"{error.strerror}. If no run of kvm.cbt is in progress, delete it."
            raise Refused(f"Cannot lock {name} against other runs: {os.path.join(folder, file)}: {why}") from error
        stack.callback(os.close, handle)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not wait():
                    why = "Wait for it to end, or set lock_timeout."
                    raise Refused(f"Another run of kvm.cbt is working on {name}. {why}") from error
        yield
