# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a domain: its state, its disks and other facts for a restore point."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import typing as t
from xml.etree import ElementTree

from ..errors import HypervisorError, ProgramError, Refused
from .connection import Domain, Session, explained, libvirt
from .domain_xml import disk_kinds
from .domain_xml.disks import Disk, parse_disks, with_block_nodes, with_image

try:
    import libvirt_qemu
except ImportError:
    libvirt_qemu = None

INCOMING = "incoming"  # a job
SHUTDOWN = "shutdown"  # a state, and then the job
_SETTLES_WITHIN = 30  # seconds to wait for a job that begins or ends


@dataclasses.dataclass(frozen=True)
class DomainFacts:
    """The state and configuration of a domain at the moment of reading.

    ``shut_down`` is whether it is off because its guest shut down, ``saved`` whether its memory is saved to disk, so
    that its next start continues there. ``owner`` is QEMU's user and group while the domain
    runs. ``host`` is the domain's host if that is not this one: its configuration then names files of ``host``.
    """

    name: str
    uuid: str
    state: str
    active: bool
    disks: tuple[Disk, ...]
    xml: str
    inactive_xml: str
    autostart: bool
    job: str | None
    shut_down: bool
    saved: bool
    owner: tuple[int, int] | None
    host: str | None

    @property
    def job_text(self) -> str:
        """The domain's job, as the subject of a sentence."""
        named = {"backup": "a backup job", SHUTDOWN: "a shutdown"}
        return named.get(self.job or "", "another job, such as a migration or a snapshot,")


def _states() -> dict[int, str]:
    names = ("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")
    return {getattr(libvirt, f"VIR_DOMAIN_{name.upper()}"): name for name in names}


def state_of(domain: Domain) -> str | None:
    """Return libvirt's name of a domain's state; None if the domain is undefined. Raises HypervisorError."""
    return domain.reading("the state of", lambda api: _states().get(api.state()[0], "unknown"))


class Definition(t.NamedTuple):
    """A domain's definition, and whether libvirt keeps it while the domain is off and starts it with the host."""

    xml: str
    persistent: bool
    autostart: bool


def definition_of(domain: Domain) -> Definition | None:
    """Return a domain's definition; None if the domain is undefined. Raises HypervisorError."""

    def read(api: t.Any) -> Definition:
        persistent = bool(api.isPersistent())
        return Definition(
            api.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), persistent, persistent and bool(api.autostart())
        )

    return domain.reading("the definition of", read)


def monitor(domain: Domain, command: str, **arguments: t.Any) -> t.Any:
    """Return QEMU's reply to a monitor command. Raises HypervisorError with QEMU's message."""
    with explained(f"ask QEMU of {domain.name} for {command}"):
        answer = json.loads(
            libvirt_qemu.qemuMonitorCommand(domain.api, json.dumps({"execute": command, "arguments": arguments}), 0)
        )
    if "error" in answer:
        raise HypervisorError(f"Cannot ask QEMU of {domain.name} for {command}: {answer['error'].get('desc')}")
    return answer["return"]


def agent_command(domain: Domain, request: str, within: int) -> str:
    """Return the reply of the guest agent. Both are JSON, and ``within`` is in seconds. Raises libvirtError."""
    reply: str = libvirt_qemu.qemuAgentCommand(domain.api, request, within, 0)
    return reply


def _qemu_owner(xml: str) -> tuple[int, int] | None:
    """Return QEMU's numeric user and group from a live domain's DAC label, or None."""
    label = ElementTree.fromstring(xml).findtext("./seclabel[@model='dac']/label", "")
    user, _separator, group = label.partition(":")
    try:
        return int(user.lstrip("+")), int(group.lstrip("+"))
    except ValueError:
        return None


def _running_job(domain: Domain) -> str | None:
    """Return ``backup``, ``incoming`` (the domain is being migrated to this host), ``other`` or None.

    Waits while a job begins or ends, because libvirt's answers contradict each other until then.
    """
    deadline = time.monotonic() + _SETTLES_WITHIN
    unnamed = 0
    while unnamed < 2:
        try:
            if domain.api.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
                return None
        except libvirt.libvirtError as error:
            # "migration statistics are available only on the source host"
            if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                return INCOMING
            # "backup job data missing"
            if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR or time.monotonic() > deadline:
                raise
        else:
            try:
                domain.api.backupGetXMLDesc()
                return "backup"
            except libvirt.libvirtError:
                unnamed += 1
        time.sleep(0.05)
    return "other"


def located(session: Session, disk: Disk) -> Disk:
    """Return a volume of a storage pool as the file or block device that it is, and any other disk unchanged."""
    if disk.type != "volume" or disk.source is None:
        return disk
    pool, _separator, name = disk.source.partition("/")
    kinds = {libvirt.VIR_STORAGE_VOL_FILE: "file", libvirt.VIR_STORAGE_VOL_BLOCK: "block"}
    try:
        volume = session.api.storagePoolLookupByName(pool).storageVolLookupByName(name)
        kind, path = kinds.get(volume.info()[0]), volume.path()
    except libvirt.libvirtError:
        return disk
    return dataclasses.replace(disk, type=kind, source=path) if kind is not None else disk


def _in_threads(disks: tuple[Disk, ...], qemu: t.Mapping[str, int]) -> tuple[Disk, ...]:
    """Return the disks of a running domain; those in I/O threads are not read if that could crash this QEMU.

    Until 8.2.3, QEMU closes NBD connections in the thread of the disk. With the fix of CVE-2024-7409, which is part of
    many older versions, it then fails an assertion and aborts.
    """
    if (qemu["major"], qemu["minor"], qemu["micro"]) >= (8, 2, 3):
        return disks
    return tuple(
        dataclasses.replace(disk, never=disk.never or disk_kinds.CRASHES) if disk.threaded else disk for disk in disks
    )


def _from_image(disk: Disk) -> Disk:
    if disk.why_unreadable is not None or disk.source is None or not os.path.exists(disk.source):
        return disk
    if disk.layers and (disk.format != "qcow2" or disk.layers != ("encryption",)):
        return disk  # only the header of an encrypted qcow2 image holds size and bitmaps as the guest sees them
    from ..images import qemu_img  # loaded only for a domain that is shut off

    try:
        return with_image(disk, qemu_img.info(disk.source, disk.format))
    except ProgramError:
        return disk  # size and bitmaps stay unknown; code that needs them raises the error


def with_chains(facts: DomainFacts) -> DomainFacts:
    """Return the facts of a domain that is shut off with the backing files of its images, as far as they are known."""
    return dataclasses.replace(facts, disks=tuple(_with_chain(disk) for disk in facts.disks))


def _with_chain(disk: Disk) -> Disk:
    if not disk.image or disk.withheld is not None:
        return disk
    from ..images import qemu_img  # loaded only for a domain that is shut off

    found = []
    if "full-backing-filename" in disk.image:
        try:
            found = qemu_img.chain(disk.source or "", disk.format)[1:]
        except (ProgramError, Refused):
            return disk  # the disk is refused when it is read
    links = ((link.format, link.path if os.path.isabs(link.path) else disk_kinds.ELSEWHERE) for link in found)
    return dataclasses.replace(disk, chain=tuple(links))


def read_domain(domain: Domain) -> DomainFacts:
    """Read a domain's state and disks. Raises HypervisorError if libvirt refuses."""
    with explained(f"read domain {domain.name}"):
        number, cause = domain.api.state()
        state = _states().get(number, "unknown")
        active = bool(domain.api.isActive())
        xml = domain.api.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        disks = tuple(located(domain.session, disk) for disk in parse_disks(xml))
        inactive = domain.api.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
        autostart = bool(domain.api.isPersistent()) and bool(domain.api.autostart())
        # Between the power off of the guest and its own end, QEMU may not answer any more.
        job = SHUTDOWN if state == SHUTDOWN else _running_job(domain) if active else None
        saved = bool(domain.api.hasManagedSaveImage())
    host = domain.session.remote_host
    if active and job not in (INCOMING, SHUTDOWN):  # until it has arrived, libvirt accepts no monitor command
        disks = with_block_nodes(disks, monitor(domain, "query-named-block-nodes", flat=True))
        if any(disk.threaded for disk in disks):
            disks = _in_threads(disks, monitor(domain, "query-version")["qemu"])
    elif host is None and not active:
        disks = tuple(_from_image(disk) for disk in disks)
    return DomainFacts(
        domain.name,
        domain.uuid,
        state,
        active,
        disks,
        xml,
        inactive,
        autostart=autostart,
        job=job,
        shut_down=state == "shutoff" and cause == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        saved=saved,
        owner=_qemu_owner(xml) if active else None,
        host=host,
    )


def require_files_here(facts: DomainFacts, what: str) -> None:
    """Raise Refused if the domain is on another host: ``what`` needs its files."""
    if facts.host is not None:
        raise Refused(
            f"Cannot {what}: {facts.name} is on {facts.host}, and its files are needed. Run the task on that host."
        )


def _uses(domain_xml: str, path: str) -> bool:
    """Whether ``path`` is a disk of the domain, or a backing file of one."""
    sources = ElementTree.fromstring(domain_xml).iterfind("./devices/disk//source")
    return any(
        os.path.realpath(candidate) == path
        for source in sources
        for candidate in (source.get("file"), source.get("dev"))
        if candidate
    )


def running_users_of(session: Session, path: str) -> list[str]:
    """Return the names of running domains with ``path`` as a disk or backing file."""
    wanted = os.path.realpath(path)
    found = ((domain.name, domain.xml(0)) for domain in session.domains(active_only=True))
    return [name for name, xml in found if xml is not None and _uses(xml, wanted)]


def versions(session: Session) -> dict[str, str]:
    """Return the versions of libvirt and QEMU as ``major.minor.release``."""

    def dotted(number: int) -> str:
        return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"

    with explained("read the hypervisor's versions"):
        return {"libvirt": dotted(session.api.getLibVersion()), "qemu": dotted(session.api.getVersion())}
