# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans the definition of a restored machine, creates folders, defines and starts it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import socket
import tempfile
import time
import typing as t
import uuid
from xml.etree import ElementTree

from ...blocks.nbd_target import is_nbd
from ...errors import HypervisorError, Refused
from ...hypervisor import storage_pools
from ...hypervisor.allowed.firmware import described_firmware
from ...hypervisor.allowed.values import is_firmware
from ...hypervisor.connection import Domain, Session, explained, libvirt
from ...hypervisor.domain_xml.machine_files import path_in as path_of
from ...hypervisor.domain_xml.machine_files import tpm_path
from ...repository.format.manifests import RestorePoint
from ...repository.repository import Repository
from ..point.machine_files import SavedFile
from .isolation import check_isolated, ensure_isolated
from .machine_xml import ANY_NETWORK, DiskTarget, TargetMachine, adapt
from .plan import DiskRestore, MachineOptions, RestoreRequest, path_in
from .saved_machine import account_of, configuration, group_of, names_other_files, saved_files
from .targets import is_device

SEEN_WITHIN = 30  # seconds until another host sees a new file; NFS clients cache folders as long by default


@dataclasses.dataclass(frozen=True)
class FileTarget:
    """A saved file and the path to restore it to."""

    saved: SavedFile
    path: str

    def make_folders(self) -> list[str]:
        """Create the folders for the state of a TPM as libvirt does.

        Returns the created folders, the outermost first. Raises Refused.
        """
        made: list[str] = []
        folder = os.path.dirname(self.path)
        try:
            for path in (os.path.dirname(os.path.dirname(folder)), os.path.dirname(folder), folder):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, 0o700 if path == folder else 0o711)
                    made.append(path)
            owner, group = account_of(self.saved.owner), group_of(self.saved.group)
            if folder in made and owner >= 0:
                os.chown(folder, owner, group, follow_symlinks=False)
        except OSError as error:
            raise Refused(f"Cannot restore the state of the TPM to {self.path}: {error.strerror}.") from error
        return made


@dataclasses.dataclass(frozen=True)
class MachinePlan:
    """The domain to define with libvirt.

    ``changes`` describe how its configuration differs from the original's.
    """

    session: Session
    name: str
    uuid: str
    xml: str
    changes: tuple[str, ...]
    files: tuple[FileTarget, ...]
    autostart: bool
    options: MachineOptions

    def check(self, force: bool) -> None:
        """Raise Refused unless the domain may be defined."""
        check_domain(self.session, self.name, self.uuid, force)

    def define(self, otherwise: str) -> str:
        """Define the domain. Returns its configuration as libvirt keeps it.

        Raises HypervisorError; ``otherwise`` is the sentence in it on what is kept of the files.
        """
        with explained(f"define {self.name}", otherwise):
            domain = self.session.api.defineXML(self.xml)
            return t.cast(str, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE))

    def begin(self) -> None:
        """Set autostart as planned, and start the domain if requested. Raises HypervisorError."""
        domain = self.session.domain(self.uuid)
        with explained(f"set autostart of {self.name}", "It was restored and defined."):
            domain.api.setAutostart(int(self.autostart))
        if self.options.isolated_network is not None:
            ensure_isolated(self.session, self.options.isolated_network)
        if self.options.start:
            with explained(
                f"start {self.name}",
                "It was restored and defined; its configuration may refer to something that this host does not have.",
            ):
                domain.api.create()


def plan_machine(
    session: Session,
    repository: Repository,
    point: RestorePoint,
    request: RestoreRequest,
    disks: t.Sequence[DiskRestore],
    options: MachineOptions,
) -> MachinePlan:
    """Plan the domain from the configuration of a restore point, with all checks.

    Raises Refused if the domain or one of its files may not be created, DamagedObject, or HypervisorError.
    """
    name = request.new_name or point.domain
    for disk in disks:
        if is_nbd(disk.path):
            raise Refused(
                f"Cannot define {name} with {disk.target} at {disk.path}: a machine's disks must be files or devices."
                " Restore without define."
            )
    its_uuid = str(uuid.uuid4()) if options.new_uuid else point.uuid
    xml = configuration(repository, point, "inactive.xml")
    networks = options.networks
    if options.isolated_network is not None:
        check_isolated(session, options.isolated_network)
        networks = {ANY_NETWORK: options.isolated_network}
    check_domain(session, name, its_uuid, request.force)
    exists = functools.partial(storage_pools.exists, session)
    firmware = described_firmware() if session.remote_host is None else frozenset()

    def has_loader(path: str) -> bool:
        return (options.trust_definition or is_firmware(path, firmware)) and exists(path)

    files = tuple(_file_targets(xml, saved_files(repository, point), name, its_uuid, request.dest, has_loader))
    for each in () if options.trust_definition else files:
        if each.saved.kind == "nvram" and names_other_files(repository, point, each.saved):
            raise Refused(
                f"Cannot define {name}: the firmware variables in the repository are an image that names another file"
                " of this host. Set trust_definition: true if you trust everyone who can write to the repository as you"
                " trust root."
            )
    target_machine = TargetMachine(
        name=name,
        uuid=its_uuid,
        disks={disk.target: DiskTarget(disk.path, disk.format, is_device(disk.path)) for disk in disks},
        files={each.saved.kind: each.path for each in files},
        new_macs=options.new_macs,
        networks=networks,
        trusted=options.trust_definition,
        keep_host_devices=point.host == socket.gethostname() and session.remote_host is None,
        firmware=firmware,
    )
    adapted = adapt(xml, target_machine, exists)
    _check_seen(session, disks, files)
    for each in files:
        _check_file(each, session, request.force)
    autostart = options.autostart if options.autostart is not None else point.autostart and not options.new_uuid
    return MachinePlan(session, name, its_uuid, adapted.xml, adapted.changes, files, autostart, options)


def check_domain(session: Session, name: str, its_uuid: str, force: bool) -> None:
    """Raise Refused unless a domain of this name and UUID may be defined."""
    for domain in session.domains():
        if domain.name == name and domain.uuid != its_uuid:
            raise Refused(
                f"Cannot define {name}: there is another domain of that name with UUID {domain.uuid}. Choose another"
                " one with new_name."
            )
        if domain.uuid == its_uuid and domain.name != name:
            raise Refused(
                f"Cannot define {name}: the domain {domain.name} has its UUID {its_uuid}. Set uuid: new, or undefine"
                " that one."
            )
        if domain.uuid == its_uuid:
            _check_replaceable(domain, force)


def _check_replaceable(domain: Domain, force: bool) -> None:
    what = f"Cannot define {domain.name}: it exists already"
    with explained(f"look at the domain {domain.name}"):
        if domain.api.isActive():
            raise Refused(f"{what} and is running. Shut it down first, or restore a copy with new_name.")
        if not force:
            raise Refused(f"{what}. Restore a copy with new_name, or replace it with force: true.")
        if domain.api.hasManagedSaveImage():
            raise Refused(
                f"{what} and has a saved state, which would not match the restored disks. Remove it with virsh"
                f" managedsave-remove {domain.name}."
            )
        if domain.api.snapshotNum():
            raise Refused(f"{what} and has snapshots, which would not match the restored disks. Delete them first.")


def _file_targets(
    xml: str,
    saved: t.Iterable[SavedFile],
    name: str,
    its_uuid: str,
    dest: str | None,
    has_loader: t.Callable[[str], bool],
) -> t.Iterator[FileTarget]:
    """Yield the paths of saved files: beside the disks, under the machine's name.

    The state of a TPM goes to the path at which libvirt expects it.
    """
    root = ElementTree.fromstring(xml)
    loader, tpm = root.find("./os/loader"), root.find("./devices/tpm")
    for file in saved:
        if file.kind == "tpm":
            path = tpm_path(its_uuid, tpm) if tpm is not None else None
            if path is not None:
                yield FileTarget(file, path)
            continue
        if file.kind == "loader" and (loader is None or has_loader(path_of(loader) or "")):
            continue  # libvirt chooses the firmware, or this host has it
        if dest is None:
            raise Refused(f"No destination is given for the {file.kind} of the machine. Set dest to a directory.")
        yield FileTarget(file, path_in(dest, f"{name}-{file.kind}"))


def _check_seen(session: Session, disks: t.Iterable[DiskRestore], files: t.Iterable[FileTarget]) -> None:
    """Raise Refused unless libvirt's host sees the files that are written here.

    Without shared storage, a path is a different file on that host.
    """
    host = session.remote_host
    if host is None:
        return
    for disk in disks:
        if is_device(disk.path):
            raise Refused(
                f"Cannot define a machine on {host} with {disk.path}, a device of this host. Restore on that host, or"
                " to an image on shared storage."
            )
    for folder in sorted(
        {os.path.dirname(path) for path in (*(disk.path for disk in disks), *(file.path for file in files))}
    ):
        if not _seen(session, folder):
            raise Refused(
                f"Cannot define a machine on {host} with what is in {folder}: {host} does not see the files of this"
                " host there. Use shared storage."
            )


def _seen(session: Session, folder: str) -> bool:
    """Whether libvirt's host sees a new temporary file in a folder."""
    try:
        with tempfile.NamedTemporaryFile(prefix="kvm-cbt-look-", dir=folder) as file:
            deadline = time.monotonic() + SEEN_WITHIN
            while not storage_pools.has_file(session, file.name):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.5)
    except OSError as error:
        raise Refused(f"Cannot write in {folder}: {error.strerror}.") from error
    except HypervisorError:
        return False  # the folder is missing on that host, or libvirt cannot list it
    return True


def _check_file(file: FileTarget, session: Session, force: bool) -> None:
    kind, path, host = file.saved.kind, file.path, session.remote_host
    if kind == "tpm" and host is not None:
        raise Refused(
            f"Cannot restore the state of the TPM: libvirt on {host} looks for it in {os.path.dirname(path)} there."
            " Restore on that host."
        )
    if kind != "tpm" and not os.path.isdir(os.path.dirname(path)):
        raise Refused(f"Cannot restore {kind} to {path}: the folder does not exist. Create it first.")
    if os.path.lexists(path) and not force:
        raise Refused(
            f"Cannot restore {kind} to {path}: it exists already. Choose another folder, remove it, or set force: true."
        )
